"""Yandex's "Internet Mathematics 2009": queries, documents and 50 features; relevance judged by people.

Terms: no licence file with the copy (spbsu-ml-community/jmll); local use only.

https://github.com/catboost/benchmarks/blob/master/ranking/Readme.md
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, read_bytes
from recstack.data.log import Log
from recstack.errors import DataError
from recstack.schema import Schema, Task, Vector

GRADES = (0.07, 0.14, 0.41, 0.61)  # of CatBoost's benchmark: as many as a relevance reaches
WIDTH = 50

ABOUT = (
    About(
        name="yandex-2009",
        loader="yandex2009()",
        rows="59,061 documents",
        what="666 queries of train and 2,668 of test, 50 features, relevance from 0 to 1 and its grade, 0 to 4.",
        terms="no licence file; local use only",
        folders=("ltr-yandex2009",),
        needs=("train.txt",),
        get="put features.txt.gz and featuresTest.txt.gz of spbsu-ml-community/jmll there as train.txt.gz and test.txt.gz",
    ),
)


def yandex2009(*, data_dir: str | Path | None = None) -> tuple[Log, Log]:
    """(train, test): a list of documents per query, graded as CatBoost's benchmark grades it.

    Terms and citation: see the top of this file.

    `query` is the request, whose rows are its list; Vector("features", role="pair"), 50 numbers; Task("relevance"), a
    regression on the grade 0 to 4, measured by ndcg@10. The relevance itself, a number, is the column `judged`, the document
    `url` and its `group` columns too. One query in eight has nothing of a grade above 0: published figures count these as 1.

    Raises:
        DataError: the files are not there, or not of that format.
    """
    folder = ABOUT[0].folder(data_dir)
    schema = Schema([Vector("features", "pair", size=WIDTH)], [Task("relevance", kind="regression", metric="ndcg@10")])
    train, test = (
        Log(_read(find_file(folder, f"{part}.txt")), schema, request="query", name=f"yandex-2009/{part}")
        for part in ("train", "test")
    )
    return train, test


def _read(path: Path) -> pl.DataFrame:
    raw = read_bytes(path)
    names = ["query", "judged", "url", "group", *map(str, range(WIDTH))]
    types = {"query": pl.Int64, "url": pl.String, "group": pl.Int64}
    try:
        frame = pl.read_csv(
            io.BytesIO(raw),
            separator="\t",
            has_header=False,
            quote_char=None,
            schema={name: types.get(name, pl.Float32) for name in names},
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{str(path)!r}: query, relevance, url, group and 50 features between tabs are due; {str(error).splitlines()[0]}."
        ) from error
    grade = np.digitize(frame["judged"].to_numpy().astype(np.float64).round(6), GRADES)
    return frame.select("query", "judged", "url", "group").with_columns(
        pl.Series("relevance", grade), pl.Series("features", frame.select(names[4:]).to_numpy())
    )
