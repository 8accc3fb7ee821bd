"""XMRec, as in the WSDM Cup 2022: what people of five markets bought of one catalogue (Amazon reviews).

Terms: none stated with the cup's files; the reviews are Amazon's.

Citation: Hamed Bonab, Mohammad Aliannejadi, Ali Vardasbi, Evangelos Kanoulas and James Allan. 2021. Cross-Market Product
Recommendation. CIKM. https://doi.org/10.1145/3459637.3482493
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, has_file, read_table
from recstack.data.log import Log
from recstack.errors import ConfigError, unknown
from recstack.schema import Categorical, Schema, Task

MARKETS = ("s1", "s2", "s3", "t1", "t2")
ABOUT = (
    About(
        name="xmrec",
        loader="xmrec()",
        rows="209,683 purchases",
        what="5 markets of the WSDM Cup 2022, three sources and two targets, with items in common; 5-core.",
        terms="none stated",
        folders=("xmrec-wsdm22",),
        needs=MARKETS,
        get="put the cup's folders s1 to t2 (https://xmrec.github.io/wsdmcup/) there",
    ),
)
_COLUMNS = {"userId": pl.String, "itemId": pl.String, "rating": pl.Float64}


def xmrec(
    markets: tuple[str, ...] = MARKETS,
    *,
    negatives: int = 4,
    sampled: int = 99,
    seed: int = 0,
    data_dir: str | Path | None = None,
) -> tuple[Log, Log, Log]:
    """(train, valid, test) of XMRec's markets: is the item bought, with the market as the domain.

    Terms and citation: see the top of this file.

    The files have no time and no features: user_id, item_id (items are the same in all markets, users never) and `market`,
    the domain. The test is the cup's validation file, one purchase of each user of the 5-core, among `sampled` items
    drawn as the cup drew them (checked on its two run files, which are read where they are there): uniformly, without
    repetition, from the items of the user's market that the user did not buy. Validation is one purchase of each user,
    drawn from the 5-core and taken out of it, with negatives drawn alike. Each purchase of training comes with `negatives`
    drawn so, too, with repetition. All draws are fixed by `seed`; nothing that the user bought in any part is ever a negative.

    Args:
        markets: which, in this order.
        negatives: beside each purchase of training.
        sampled: beside the purchase of each user in validation and test, where no run file says.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
        ConfigError: an unknown market, or none.
    """
    if isinstance(markets, str) or not markets:
        raise ConfigError(f"markets= is a list of {', '.join(MARKETS)}; got {markets!r}.")
    for market in markets:
        if market not in MARKETS:
            raise unknown("market of XMRec", market, MARKETS)
    folder = ABOUT[0].folder(data_dir)
    parts: tuple[list[pl.DataFrame], ...] = ([], [], [])
    for market in markets:
        rng = np.random.default_rng((seed, MARKETS.index(market)))
        for part, rows in zip(parts, _market(folder / market, market, negatives, sampled, rng), strict=True):
            part.append(rows)
    schema = Schema(
        [Categorical("user_id", "user"), Categorical("item_id", "item"), Categorical("market", "domain")],
        [Task("bought")],
    )
    train, valid, test = (Log(pl.concat(part), schema, name=ABOUT[0].name) for part in parts)
    return train, valid, test


def _market(
    folder: Path, market: str, negatives: int, sampled: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    core = _read(folder, "train_5core.tsv").unique(maintain_order=True)
    test = _read(folder, "valid_qrel.tsv")
    users = np.unique(np.concatenate([core["user_id"].to_numpy(), test["user_id"].to_numpy()]))
    lists = _run(folder)
    named = [core["item_id"].to_numpy(), test["item_id"].to_numpy(), *(np.array(x, object) for x in lists.values())]
    items = np.unique(np.concatenate(named))
    pairs = [
        (np.searchsorted(users, p["user_id"].to_numpy()), np.searchsorted(items, p["item_id"].to_numpy()))
        for p in (core, test)
    ]
    bought = np.zeros((len(users), len(items)), bool)  # the largest market has 63 million cells
    for user, item in pairs:
        bought[user, item] = True
    user, item = pairs[0]
    order = rng.permutation(len(user))
    held = order[np.unique(user[order], return_index=True)[1]]  # one of each user
    kept = np.setdiff1d(np.arange(len(user)), held)

    def rows(user: np.ndarray, item: np.ndarray, others: np.ndarray) -> pl.DataFrame:
        every = np.concatenate([item[:, None], others], 1)
        live = every >= 0
        label = np.zeros(every.shape, np.int8)
        label[:, 0] = 1
        who = np.broadcast_to(user[:, None], every.shape)[live]
        return pl.DataFrame({"user_id": users[who], "item_id": items[every[live]], "bought": label[live]}).with_columns(
            market=pl.lit(market)
        )

    def drawn(user: np.ndarray, item: np.ndarray) -> pl.DataFrame:
        return rows(user, item, _different(bought, user, sampled, rng))

    tested = _listed(lists, users, items, *pairs[1]) if lists else None
    return (
        rows(user[kept], item[kept], _any(bought, user[kept], negatives, rng)),
        drawn(user[held], item[held]),
        rows(*pairs[1], tested) if tested is not None else drawn(*pairs[1]),
    )


def _any(bought: np.ndarray, user: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[rows, count] items that the row's user did not buy, the same one twice at times; -1 for who bought all."""
    out = rng.integers(bought.shape[1], size=(len(user), count))
    out[np.asarray(bought.all(1))[user]] = -1
    who = np.broadcast_to(user[:, None], out.shape)
    while (wrong := (out >= 0) & bought[who, out]).any():
        out[wrong] = rng.integers(bought.shape[1], size=int(wrong.sum()))
    return out


def _different(bought: np.ndarray, user: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[rows, count] different items that the row's user did not buy; -1 where there are no more."""
    out = np.full((len(user), count), -1, np.int64)
    for lo in range(0, len(user), 1024):
        chance = rng.random((len(user[lo : lo + 1024]), bought.shape[1]), np.float32)
        chance[bought[user[lo : lo + 1024]]] = 2
        n = min(count, bought.shape[1])
        top = np.argpartition(chance, n - 1, 1)[:, :n]
        out[lo : lo + 1024, :n] = np.where(np.take_along_axis(chance, top, 1) < 2, top, -1)
    return out


def _run(folder: Path) -> dict[str, list[str]]:
    """The cup's own candidates of each user; nothing where it gave none."""
    if not has_file(folder, "valid_run.tsv"):
        return {}
    table = read_table(find_file(folder, "valid_run.tsv"), {"user_id": pl.String, "items": pl.String}, separator="\t")
    return dict(zip(table["user_id"].to_list(), table["items"].str.split(",").to_list(), strict=True))


def _listed(
    lists: dict[str, list[str]], users: np.ndarray, items: np.ndarray, user: np.ndarray, item: np.ndarray
) -> np.ndarray:
    """[rows, most] the user's candidates without the purchase; -1 where there are fewer."""
    place = {name: i for i, name in enumerate(items.tolist())}
    names = users.tolist()
    found = [[place[x] for x in lists.get(names[u], ()) if place[x] != i] for u, i in zip(user, item, strict=True)]
    out = np.full((len(user), max(map(len, found), default=0)), -1, np.int64)
    for row, others in zip(out, found, strict=True):
        row[: len(others)] = others
    return out


def _read(folder: Path, name: str) -> pl.DataFrame:
    table = read_table(find_file(folder, name), _COLUMNS, separator="\t", header=True)
    return table.select(user_id="userId", item_id="itemId")
