"""LETOR's format: `relevance qid:query 1:x 2:x ... #docid = D`; MQ2008 (LETOR 4.0) and OHSUMED (LETOR 3.0).

Terms: none stated with the files; Microsoft published LETOR for research.

Citation: Tao Qin and Tie-Yan Liu. 2013. Introducing LETOR 4.0 Datasets. https://arxiv.org/abs/1306.2597
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, read_bytes
from recstack.data.datasets.libsvm import parse
from recstack.data.log import Log
from recstack.errors import ConfigError, DataError
from recstack.schema import Schema, Task, Vector

_GET = "put the fold's files there: S1.txt to S5.txt, or Fold1/train.txt, vali.txt and test.txt"
_NEEDS = ("S1.txt", "Fold1")
_TERMS = "none stated with the files; published by Microsoft for research"

ABOUT = (
    About(
        name="letor-mq2008",
        loader='letor("mq2008")',
        rows="15,211 documents",
        what="784 queries, 46 features, relevance 0 to 2, five folds (LETOR 4.0).",
        terms=_TERMS,
        folders=("ltr-mq2008", "MQ2008"),
        needs=_NEEDS,
        get=_GET,
    ),
    About(
        name="letor-ohsumed",
        loader='letor("ohsumed")',
        rows="16,140 documents",
        what="106 queries, 45 features normalised per query, relevance 0 to 2, five folds (LETOR 3.0).",
        terms=_TERMS,
        folders=("ltr-ohsumed", "OHSUMED"),
        needs=_NEEDS,
        get=_GET,
    ),
)


def letor(name: str = "mq2008", *, fold: int = 1, data_dir: str | Path | None = None) -> tuple[Log, Log, Log]:
    """(train, valid, test) of one fold: a list of documents per query, with graded relevance.

    Terms and citation: see the top of this file.

    `query` is the request, whose rows are its list; Vector("features", role="pair"), which describes the query with the
    document; Task("relevance"), a regression on the grade, measured by ndcg@10. There is no user and no item key: the
    document's id, where the file has one, is the column `doc`.

    Args:
        name: "mq2008", "ohsumed", or the folder, under the data folder, of your own S1.txt to S5.txt or Fold1 ...
        fold: 1 to 5. Fold k trains on parts k, k+1, k+2, validates on k+3 and tests on k+4, counted round.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
        ConfigError: no such fold.
    """
    if fold not in (1, 2, 3, 4, 5):
        raise ConfigError(f"LETOR has folds 1 to 5; got fold={fold!r}.")
    own = About(name, "", "", "", "", (name,), _NEEDS, get=_GET)
    folder = {a.name: a for a in ABOUT}.get(f"letor-{name}", own).folder(data_dir)
    own = folder / f"Fold{fold}"
    if own.is_dir():
        parts = [[read_letor(find_file(own, f"{part}.txt"))] for part in ("train", "vali", "test")]
    else:
        turn = [f"S{(fold - 1 + i) % 5 + 1}" for i in range(5)]
        read = [read_letor(find_file(folder, f"{part}.txt")) for part in turn]
        parts = [read[:3], read[3:4], read[4:]]
    width = max(frame["features"].dtype.shape[0] for part in parts for frame in part)  # type: ignore[attr-defined]
    task = Task("relevance", kind="regression", metric="ndcg@10")
    schema = Schema([Vector("features", "pair", size=width)], [task])

    def log(part: str, frames: list[pl.DataFrame]) -> Log:
        events = pl.concat([_widened(f, width) for f in frames])
        return Log(events, schema, request="query", name=f"{name}/fold {fold}/{part}")

    train, valid, test = (log(part, frames) for part, frames in zip(("train", "valid", "test"), parts, strict=True))
    return train, valid, test


def read_letor(path: str | Path) -> pl.DataFrame:
    """A file of LETOR's format (.gz too): query (int64), relevance (int64), features (float32 array), doc (text or null).

    The features are numbered from 1; those a line leaves out are 0.

    Raises:
        DataError: a line not of that format, or without a qid.
    """
    text = read_bytes(Path(path))
    labels, row, index, value, query = parse(text, str(path))
    if query is None:
        raise DataError(f"{str(path)!r} has no 'qid:'; 'relevance qid:query 1:value ...' is due.")
    if len(index) and index.min() < 1:
        raise DataError(f"{str(path)!r} holds feature {index.min()}; LETOR's are numbered from 1.")
    features = np.zeros((len(labels), int(index.max(initial=1))), np.float32)
    features[row, index - 1] = value
    docs = [found.decode() for found in re.findall(rb"docid\s*=\s*(\S+)", text)]
    return pl.DataFrame(
        {
            "query": query,
            "relevance": labels.astype(np.int64),
            "features": features,
            "doc": pl.Series(docs if len(docs) == len(labels) else [None] * len(labels), dtype=pl.String),
        }
    )


def _widened(frame: pl.DataFrame, width: int) -> pl.DataFrame:
    features = frame["features"].to_numpy()
    return frame.with_columns(pl.Series("features", np.pad(features, ((0, 0), (0, width - features.shape[1])))))
