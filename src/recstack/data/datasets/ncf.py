"""MovieLens-1M as Neural Collaborative Filtering cut it: each user's last film, and 99 that they did not rate, to tell apart.

Terms: MovieLens: research only, no redistribution.

Citation: Xiangnan He et al. 2017. Neural Collaborative Filtering. WWW. https://arxiv.org/abs/1708.05031
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About, Remote, about
from recstack.data.datasets.files import find_file, read_bytes, read_rows, read_table
from recstack.data.log import Log
from recstack.errors import DataError
from recstack.schema import Categorical, Schema, Task

_DATA = "https://raw.githubusercontent.com/hexiangnan/neural_collaborative_filtering/4aab159e81c44b062c091bdaed0ab54ac632371f/Data/"
ABOUT = (
    About(
        name="ncf-ml-1m",
        loader="ncf()",
        rows="994,169 ratings and 6,040 lists of 100",
        what="MovieLens-1M in NCF's leave-one-out: 6,040 users, 3,706 films, 99 given negatives for each test item.",
        terms="research only, acknowledge; no redistribution and no commercial use without permission (GroupLens README)",
        folders=("ncf-ml-1m",),
        needs=("ml-1m.test.negative",),
        remotes=tuple(Remote(f"{_DATA}ml-1m.{part}") for part in ("train.rating", "test.rating", "test.negative")),
    ),
)


def ncf(*, timed: bool = False, data_dir: str | Path | None = None) -> tuple[Log, Log]:
    """(train, test) of MovieLens-1M in the protocol of NCF.

    Terms and citation: see the top of this file.

    `train` is an implicit log of the integers user_id and item_id; Task("interacted"). `test` holds a request per user: the item
    that was left out, label 1, then its 99 negatives, label 0. In 156 of the published lists a "negative" is the test item
    itself; it is left out, as the authors' code does by putting scores into a dictionary, and these lists hold 99.

    Args:
        timed: give `train` the time `seq`, the place of a rating in its user's order; it is read from MovieLens-1M's own ratings
            (ml-1m/ratings.csv), which `item_id_map.csv` translates. Without it the rows of a user are in no order.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
    """
    folder = ABOUT[0].folder(data_dir)
    path = find_file(folder, "ml-1m.train.rating")
    width = 3 + (read_bytes(path)[:200].split(b"\n")[0].count(b"\t") > 2)  # the original has a timestamp behind
    rows = read_rows(path, width)
    events = pl.DataFrame({"user_id": rows[:, 0], "item_id": rows[:, 1]})
    schema = Schema([Categorical("user_id", "user"), Categorical("item_id", "item")], [Task("interacted")])
    if timed:
        events, schema = events.join(_order(folder, data_dir), on=["user_id", "item_id"]), schema.replace(time="seq")
        if events.height != len(rows):
            raise DataError(f"Of {len(rows)} rows of {str(path)!r}, {events.height} are in MovieLens-1M's ratings.csv.")
    test = read_lists(find_file(folder, "ml-1m.test.negative"), schema.replace(time=None), "ncf-ml-1m/test")
    return Log(events, schema, implicit=True, name="ncf-ml-1m/train"), test


def read_lists(path: Path, schema: Schema, name: str) -> Log:
    """A request per line of `(user,item) negative negative ...`: the item, label 1, then its negatives, label 0; a negative that
    is the item itself is left out. See `ncf`.

    Raises:
        DataError: the file is not of that format.
    """
    table = read_rows_of_pairs(read_bytes(path), str(path))
    user, item, other = table[:, 0], table[:, 1], table[:, 2:]
    kept = np.column_stack([np.ones(len(table), bool), other != item[:, None]])
    label = np.zeros(kept.shape, np.int8)
    label[:, 0] = 1
    items = np.column_stack([item, other])
    events = {"user_id": np.repeat(user, kept.sum(1)), "item_id": items[kept], schema.tasks[0].name: label[kept]}
    return Log(pl.DataFrame(events), schema, request="user_id", name=name)


def read_rows_of_pairs(text: bytes, source: str) -> np.ndarray:
    """The lines `(user,item) negative negative ...` as int64 [lines, 2 + negatives].

    Raises:
        DataError: lines of different lengths, or something else than numbers.
    """
    lines = [re.findall(rb"\d+", line) for line in text.splitlines() if line.strip()]
    wrong = next((i for i, line in enumerate(lines) if len(line) < 3 or len(line) != len(lines[0])), None)
    if wrong is not None or not lines:
        raise DataError(
            f"{source!r}, line {(wrong or 0) + 1}: '(user,item) negative negative ...' of one length is due."
        )
    return np.array(lines, np.int64)


def _order(folder: Path, data_dir: str | Path | None) -> pl.DataFrame:
    """user_id, item_id and seq of all ratings, in NCF's numbers: its users are MovieLens' less one."""
    films = read_table(find_file(folder, "item_id_map.csv"), {"ncf_item": pl.Int64, "movie_id": pl.Int64}, header=True)
    columns = {"user_id": pl.Int64, "movie_id": pl.Int64, "seq": pl.Int64}
    ratings = read_table(find_file(about("ml-1m").folder(data_dir), "ratings.csv"), columns, header=True)
    ratings = ratings.join(films, on="movie_id")
    return ratings.select(pl.col("user_id") - 1, pl.col("ncf_item").alias("item_id"), "seq")
