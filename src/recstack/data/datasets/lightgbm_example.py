"""LightGBM's example of ranking: examples/lambdarank of its repository, libsvm with the sizes of the lists beside it.

Terms: the repository is MIT. https://github.com/microsoft/LightGBM/tree/master/examples/lambdarank
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About, Remote
from recstack.data.datasets.files import find_file, read_bytes
from recstack.data.datasets.libsvm import parse
from recstack.data.log import Log
from recstack.errors import DataError
from recstack.schema import Schema, Task, Vector

WIDTH = 300
_AT = "https://raw.githubusercontent.com/microsoft/LightGBM/bae0b7ba/examples/lambdarank"

ABOUT = (
    About(
        name="lightgbm-example",
        loader="lightgbm_example()",
        rows="3,773 documents",
        what="201 queries of train and 50 of test, 300 features, relevance 0 to 4.",
        terms="repository under the MIT licence",
        folders=("ltr-lightgbm",),
        needs=("rank.train",),
        remotes=tuple(Remote(f"{_AT}/rank.{part}") for part in ("train", "train.query", "test", "test.query")),
    ),
)


def lightgbm_example(*, data_dir: str | Path | None = None) -> tuple[Log, Log]:
    """(train, test): a list of documents per query, relevance 0 to 4.

    Terms: see the top of this file.

    `query`, counted from 0, is the request, whose rows are its list; Vector("features", role="pair"), 300 numbers, those a
    line leaves out 0; Task("relevance"), a regression on the grade, measured by ndcg@10.

    Raises:
        DataError: the files are not there, or not of that format, or the sizes of the lists do not add up.
    """
    folder = ABOUT[0].folder(data_dir)
    schema = Schema([Vector("features", "pair", size=WIDTH)], [Task("relevance", kind="regression", metric="ndcg@10")])
    train, test = (
        Log(_read(folder, part), schema, request="query", name=f"lightgbm-example/{part}") for part in ("train", "test")
    )
    return train, test


def _read(folder: Path, part: str) -> pl.DataFrame:
    path = find_file(folder, f"rank.{part}")
    labels, row, index, value, _ = parse(read_bytes(path), str(path))
    sizes = np.array(read_bytes(find_file(folder, f"rank.{part}.query")).split(), np.int64)
    if sizes.sum() != len(labels):
        raise DataError(f"{str(path)!r} has {len(labels)} lines, and the lists of 'rank.{part}.query' {sizes.sum()}.")
    if len(index) and not 1 <= index.min() <= index.max() <= WIDTH:
        raise DataError(f"{str(path)!r} holds feature {index.max()}; 1 to {WIDTH} are due.")
    features = np.zeros((len(labels), WIDTH), np.float32)
    features[row, index - 1] = value
    query = np.repeat(np.arange(len(sizes)), sizes)
    return pl.DataFrame({"query": query, "relevance": labels.astype(np.int64), "features": features})
