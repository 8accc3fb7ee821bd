"""Frappe: which app a person used in which context, with two drawn negatives per use (the AFN / BARS Frappe_x1 split).

Terms, as its README states them: research use; acknowledge it in publications; no redistribution without separate
permission; no de-anonymising; no commercial or revenue-bearing use without permission.

Citation: Linas Baltrunas, Karen Church, Alexandros Karatzoglou, Nuria Oliver. 2015. Frappe: Understanding the Usage and
Perception of Mobile App Recommendations In-The-Wild. https://arxiv.org/abs/1505.03014. Split: Weiyu Cheng, Yanyan Shen,
Linpeng Huang. 2020. Adaptive Factorization Network. AAAI. https://arxiv.org/abs/1909.03276
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, has_file, read_table
from recstack.data.datasets.libsvm import read_libsvm
from recstack.data.log import Log
from recstack.errors import unknown
from recstack.schema import Categorical, Schema, Task

ABOUT = (
    About(
        name="frappe",
        loader="frappe()",
        rows="288,609 uses and negatives",
        what="957 users, 4,082 apps, eight context fields; 202,027 / 57,722 / 28,860 rows.",
        terms="research only, acknowledge; no redistribution and no commercial use without permission (README)",
        folders=("frappe-afn",),
        needs=("valid.libsvm",),
        get="put the .libsvm files of the AFN repository (WeiyuCheng/AFN-AAAI-20, data/frappe) there",
    ),
)

# The first index of each field.
FIELDS = {
    "user_id": 0,
    "item_id": 957,
    "daytime": 5039,
    "weekday": 5046,
    "isweekend": 5053,
    "homework": 5055,
    "cost": 5058,
    "weather": 5060,
    "country": 5069,
    "city": 5149,
}


def frappe(train: str = "resampled", *, data_dir: str | Path | None = None) -> tuple[Log, Log, Log]:
    """(train, valid, test) of Frappe: a third of the rows are uses of an app, the others drawn negatives.

    Terms and citation: see the top of this file (research only, no redistribution).

    Ten categorical columns: user_id, item_id, and the context daytime, weekday, isweekend, homework, cost (a negative
    keeps the cost of its positive, so it is no property of the app), weather, country, city; decoded to the values of the
    original log where feature_map.csv lies beside the files, else counted from 0. Task("click"): 1 is a use.

    valid and test are AFN's own files. AFN's train file is read if it is there as train.libsvm. If not, "resampled" has
    all its positives, exactly, and for each negative its exact user and context with an app drawn again, uniformly from
    those that the user never used: say so next to a number. Logistic regression (L2, C = 1, one-hot) on it gives AUC /
    logloss .9398 / .2806 on valid and .9379 / .2830 on test.

    Args:
        train: "resampled" or "positives", which has no negatives at all.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
        ConfigError: another `train`.
    """
    if train not in ("resampled", "positives"):
        raise unknown("train part of Frappe", train, ("resampled", "positives"))
    folder = ABOUT[0].folder(data_dir)
    own = train == "resampled" and has_file(folder, "train.libsvm")
    values = _values(folder)
    roles = {"user_id": "user", "item_id": "item"}
    schema = Schema([Categorical(name, roles.get(name, "context")) for name in FIELDS], [Task("click")])

    def part(name: str, file: str) -> Log:
        events = read_libsvm(find_file(folder, f"{file}.libsvm"), FIELDS, label="click")
        decoded = [values[name].gather(events[name]).alias(name) for name in values]
        return Log(events.with_columns(pl.col("click").cast(pl.Int8), *decoded), schema, name=f"frappe/{name}")

    return part("train", "train" if own else f"train_{train}"), part("valid", "valid"), part("test", "test")


def _values(folder: Path) -> dict[str, pl.Series]:
    """{column: the original value of each of its numbers}; empty without feature_map.csv."""
    if not has_file(folder, "feature_map.csv"):
        return {}
    columns = {"feature_index": pl.Int64, "field": pl.String, "value": pl.String}
    table = read_table(find_file(folder, "feature_map.csv"), columns, header=True, quote='"').sort("feature_index")
    found: dict[str, pl.Series] = {}
    for name in FIELDS:
        values = table.filter(pl.col("field") == name.removesuffix("_id"))["value"]
        found[name] = values.cast(pl.Int64) if name.endswith("_id") else values
    return found
