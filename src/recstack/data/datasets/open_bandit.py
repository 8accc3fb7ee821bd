"""Open Bandit Dataset, the small sample: what two policies showed on a fashion site, with what chance, and clicks (ZOZO).

Terms: none stated with the sample (the carrying repository's licence is Apache-2.0); its owners ask to cite the paper.

Citation: Yuta Saito, Shunsuke Aihara, Megumi Matsutani and Yusuke Narita. 2021. Open Bandit Dataset and Pipeline: Towards
Realistic and Reproducible Off-Policy Evaluation. NeurIPS Datasets and Benchmarks. https://arxiv.org/abs/2008.07146
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, read_bytes
from recstack.data.log import Log
from recstack.errors import DataError, unknown
from recstack.schema import Categorical, Numeric, Schema, Task

ABOUT = (
    About(
        name="open-bandit",
        loader="open_bandit(policy)",
        rows="4 × 10,000 impressions",
        what="What a random and a Thompson-sampling policy showed at three places, with what chance, and clicks.",
        terms="none stated with the sample; cite the paper",
        folders=("obd",),
        needs=("random", "bts"),
        get="put the folder obd/ of https://github.com/st-tech/zr-obp there",
    ),
)
POLICIES, CAMPAIGNS = ("random", "bts"), ("men", "women")


def open_bandit(policy: str = "random", campaign: str = "men", *, data_dir: str | Path | None = None) -> Log:
    """The 10,000 impressions of one policy ("random", or "bts": Bernoulli Thompson sampling) in one campaign ("men", "women").

    Terms and citation: see the top of this file.

    Binary task "click". Columns beside: `propensity`, the chance with which the policy showed this item at this place. Arms
    are `item_id`, 0 to 33 (men) or 45 (women), at a `position` 1, 2 or 3. Features: four of the user
    (there are no user ids, so they are of the request, role "context"), four of the item, one of them a number, and `affinity`,
    the user's past clicks on the item shown.

    Raises:
        ConfigError: another policy or campaign.
        DataError: the files are not there, or not of that format.
    """
    for what, name, known in (("policy", policy, POLICIES), ("campaign", campaign, CAMPAIGNS)):
        if name not in known:
            raise unknown(f"{what} of Open Bandit", name, known)
    folder = ABOUT[0].folder(data_dir) / policy / campaign
    raw = _table(folder, f"{campaign}.csv", ("timestamp", "item_id", "position", "click", "propensity_score"))
    items = _table(folder, "item_context.csv", ("item_id", "item_feature_0")).drop("")
    affinity = raw.select(pl.col("^user-item_affinity_.*$")).to_numpy()
    users = [f"user_feature_{i}" for i in range(4)]
    item = raw["item_id"].to_numpy()
    if affinity.shape[1] <= item.max() or items.height <= item.max():
        raise DataError(f"Open Bandit's {str(folder)!r} shows items that it does not describe; get the files anew.")
    events = raw.select(
        "item_id",
        "position",
        "click",
        *users,
        propensity="propensity_score",
        affinity=pl.Series(affinity[range(len(item)), item]),
        time=pl.col("timestamp").str.head(19).str.to_datetime("%Y-%m-%d %H:%M:%S").dt.epoch("s"),
    )
    schema = Schema(
        [
            *(Categorical(name, "context") for name in users),
            Categorical("position", "context"),
            Categorical("item_id", "item"),
            Numeric("item_feature_0", "item"),
            *(Categorical(f"item_feature_{i}", "item") for i in range(1, 4)),
            Numeric("affinity", "pair"),
        ],
        [Task("click")],
        item="item_id",
        time="time",
    )
    return Log(events, schema, items=items, name=f"open-bandit-{policy}-{campaign}")


def _table(folder: Path, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    path = find_file(folder, name)
    table = pl.read_csv(read_bytes(path))
    if missing := [c for c in columns if c not in table.columns]:
        raise DataError(f"{str(path)!r} has no column {missing[0]!r}; it is not a file of Open Bandit.")
    return table
