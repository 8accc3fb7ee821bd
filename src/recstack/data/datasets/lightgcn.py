"""LightGCN's format: a line per user, `user item item ...`, in a train and a test file.

Gowalla, Amazon-CDs, MovieLens-1M and Last.fm as published; any folder of that format. Terms: none stated for Gowalla
and Amazon; MovieLens: research only, no redistribution; Last.fm is derived from HetRec 2011, non-commercial use.

Citation: Xiangnan He et al. 2020. LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation.
SIGIR. https://arxiv.org/abs/2002.02126. Amazon-CDs and this ml-1m: Kelong Mao et al. 2021. UltraGCN. CIKM.
https://arxiv.org/abs/2110.15114
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About, Remote
from recstack.data.datasets.files import find_file, has_file, read_bytes, read_numbers, read_rows
from recstack.data.log import Log
from recstack.errors import DataError
from recstack.schema import Categorical, Schema, Task

_LIGHTGCN = (
    "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/947ca2b3b1d2d3545b114145710cb06c4e57b3d2/data/"
)
_ULTRAGCN = "https://raw.githubusercontent.com/xue-pai/UltraGCN/b220010d62af08bd895963a3d71c7c8e55ee1f56/data/"


def _about(name: str, folder: str, rows: str, what: str, terms: str, base: str, train: str, test: str) -> About:
    files = ("data1.txt", "test1.txt") if name == "lastfm" else ("train.txt", "test.txt")
    remotes = tuple(Remote(f"{base}{name}/{file}", sum_) for file, sum_ in zip(files, (train, test), strict=True))
    return About(f"lightgcn-{name}", f'lightgcn("{name}")', rows, what, terms, (folder,), files[:1], remotes)


ABOUT = (
    _about(
        "gowalla",
        "lightgcn-gowalla",
        "1,027,370 check-ins",
        "29,858 users, 40,981 places; 810,128 for training, 217,242 for the test.",
        "none stated",
        _LIGHTGCN,
        "git:a27782bd7a1d4d0744148dc0460ea94da74763f2",
        "sha256:099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3",
    ),
    _about(
        "yelp2018",
        "lightgcn-yelp2018",
        "1,561,406 visits",
        "31,668 users, 38,048 places.",
        "none stated",
        _LIGHTGCN,
        "git:cda12361055ba448ae4bd1070f6000c16dea8f22",
        "git:30dfbc3437b27b74cb2970b435a5ec93ad9f2468",
    ),
    _about(
        "amazon-book",
        "lightgcn-amazon-book",
        "2,984,108 reviews",
        "52,643 users, 91,599 books.",
        "none stated",
        _LIGHTGCN,
        "git:6ef55159c5f1fd7f6d86eb9ff290d0cc2854ac99",
        "git:09e5da4e0bf46c751c4ba0f4375e414fd13512cd",
    ),
    _about(
        "lastfm",
        "lightgcn-lastfm",
        "52,668 listened artists",
        "1,892 users, 4,489 artists; 42,135 for training, 10,533 for the test.",
        "none stated; derived from HetRec 2011 Last.fm, non-commercial use",
        _LIGHTGCN,
        "sha256:c82af3228cbbda2f55a39244de09ed93292894f1d0d9f1908ebb57e27598fded",
        "sha256:de4417c0e6123284ce59a0934bcf5288ec1ec8774a18a1eef453c9952dfa48f9",
    ),
    _about(
        "amazoncds",
        "ultragcn-amazoncds",
        "777,426 reviews",
        "43,169 users, 35,648 discs; 604,475 for training, 172,951 for the test.",
        "none stated for the data; repository Apache-2.0",
        _ULTRAGCN,
        "sha256:dffb4e0cb45813f752ebe4c201a6c35aeb2755289b39b89bc1c148df8afcbd0c",
        "sha256:5ad687ad2d00d7b3da4b366736aa606a63b3df5a53502ffc860f40990d7d6c36",
    ),
    _about(
        "ml-1m",
        "ultragcn-ml-1m",
        "895,699 ratings",
        "MovieLens-1M as UltraGCN cut it, without its validation part: 6,022 users, 3,043 films.",
        "research only, acknowledge; no redistribution and no commercial use without permission (GroupLens README)",
        _ULTRAGCN,
        "sha256:f088986b22f14f17136f9c4ef6f1269201f83dfb9ce259f1fd4ed46d72a92599",
        "sha256:7ca364f7f9321417b521745833b12719a2feb13253bccece2c04d5afe9fc3e15",
    ),
)


def lightgcn(name: str = "gowalla", *, data_dir: str | Path | None = None) -> tuple[Log, Log]:
    """(train, test) of a set in LightGCN's format, on its published split.

    Terms and citation: see the top of this file.

    Implicit logs of the integers user_id and item_id; Task("interacted"); no time, and so no histories. Last.fm's lines
    are `user item weight`; its weight is kept as a column.

    Args:
        name: "gowalla", "amazoncds", "ml-1m", "lastfm", "yelp2018", "amazon-book"; or the folder, under the data
            folder, of your own train.txt and test.txt.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
    """
    own = About(name, "", "", "", "", (name,), ("train.txt",), get="put your train.txt and test.txt there")
    folder = {a.name: a for a in ABOUT}.get(f"lightgcn-{name}", own).folder(data_dir)
    schema = Schema([Categorical("user_id", "user"), Categorical("item_id", "item")], [Task("interacted")])

    def part(file: str) -> Log:
        if has_file(folder, f"{file}.txt"):
            events = read_adjacency(find_file(folder, f"{file}.txt"))
        else:
            rows = read_rows(find_file(folder, {"train": "data1", "test": "test1"}[file] + ".txt"), 3, np.float64)
            events = pl.DataFrame(rows, schema=["user_id", "item_id", "weight"], orient="row")
            events = events.with_columns(pl.col("user_id", "item_id").cast(pl.Int64))
        return Log(events, schema, implicit=True, name=f"{name}/{file}")

    return part("train"), part("test")


def read_adjacency(path: str | Path) -> pl.DataFrame:
    """The lines `user item item ...` of a file (.gz too) as a row per pair: user_id, item_id, int64, in the file's order.

    A line with a user alone gives no row.

    Raises:
        DataError: the file is not there, is empty, or holds something that is not a whole number.
    """
    values, offsets = read_numbers(read_bytes(Path(path)), str(path), np.int64)
    filled = np.flatnonzero(np.diff(offsets))  # an empty line is no user
    if not len(filled):
        raise DataError(f"{str(path)!r} is empty; lines of 'user item item ...' are due.")
    first, counts = offsets[filled], np.diff(offsets)[filled] - 1
    items = np.ones(len(values), bool)
    items[first] = False
    return pl.DataFrame({"user_id": np.repeat(values[first], counts), "item_id": values[items]})
