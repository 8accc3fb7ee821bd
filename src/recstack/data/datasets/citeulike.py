"""CiteULike-a: the papers in researchers' libraries, in the leave-one-out of Collaborative Memory Networks.

Terms: none stated.

Citation: Travis Ebesu, Bin Shen and Yi Fang. 2018. Collaborative Memory Network for Recommendation Systems. SIGIR.
https://arxiv.org/abs/1804.10862. The libraries: Hao Wang, Binyi Chen and Wu-Jun Li. 2013. Collaborative Topic Regression
with Social Regularization for Tag Recommendation. IJCAI.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, read_rows
from recstack.data.datasets.ncf import read_lists
from recstack.data.log import Log
from recstack.schema import Categorical, Schema, Task

ABOUT = (
    About(
        name="citeulike-a",
        loader="citeulike_a()",
        rows="199,435 bookmarks and 5,551 lists of 101",
        what="5,551 researchers, 16,980 papers, 100 given negatives for each test item.",
        terms="none stated",
        folders=("citeulike-a",),
        needs=("test_negatives.txt",),
        get="write train_data and test_data of github.com/tebesu/CollaborativeMemoryNetwork's data/citeulike-a.npz there, as "
        "train.txt ('user item' lines) and test_negatives.txt ('(user,item) negative negative ...' lines)",
    ),
)


def citeulike_a(*, data_dir: str | Path | None = None) -> tuple[Log, Log]:
    """(train, test) of CiteULike-a in the protocol of CMN.

    Terms and citation: see the top of this file.

    `train` is an implicit log of the integers user_id and item_id, in no order; Task("bookmarked"). `test` holds a request per
    user: the item that was left out, label 1, then its 100 negatives, label 0.

    Args:
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
    """
    folder = ABOUT[0].folder(data_dir)
    rows = read_rows(find_file(folder, "train.txt"), 2)
    events = pl.DataFrame({"user_id": rows[:, 0], "item_id": rows[:, 1]})
    schema = Schema([Categorical("user_id", "user"), Categorical("item_id", "item")], [Task("bookmarked")])
    train = Log(events, schema, implicit=True, name="citeulike-a/train")
    return train, read_lists(find_file(folder, "test_negatives.txt"), schema, "citeulike-a/test")
