"""Trivago: lists of hotels that people saw, with prices, and the one that they clicked (RecSys Challenge 2019), a sample.

Terms: none stated with the sample; the challenge's data were given out for research.

Citation: Peter Knees, Yashar Deldjoo, Farshad Bakhshandegan Moghaddam, Jens Adamczak, Gerard-Paul Leyson and Philipp Monreal.
2019. RecSys Challenge 2019: Session-based Hotel Recommendations. RecSys. https://doi.org/10.1145/3298689.3346974
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, read_table
from recstack.data.log import Log
from recstack.errors import DataError
from recstack.schema import Categorical, History, Numeric, Schema, Task

ABOUT = (
    About(
        name="trivago",
        loader="trivago()",
        rows="13,596 lists, 312,514 items shown",
        what="What 6,593 users of a hotel search were shown, at which price and place, and which hotel they clicked.",
        terms="none stated with the sample; cite the paper",
        folders=("trivago-100k",),
        needs=("events.csv",),
        get="put events.csv there, made of trivago_val_100k.parquet.snappy (github.com/RecoHut-Datasets/trivago, branch v3)",
    ),
)
STEPS = 20  # of a session that its history keeps
_COLUMNS = {
    "user_id": pl.String,
    "session_id": pl.String,
    "timestamp": pl.Int64,
    "step": pl.Int64,
    "action_type": pl.String,
    "reference": pl.String,
    "platform": pl.String,
    "city": pl.String,
    "device": pl.String,
    "current_filters": pl.String,
    "impressions": pl.String,
    "prices": pl.String,
}


def trivago(*, data_dir: str | Path | None = None) -> Log:
    """Click-outs of the sample of 100,003 events: a request is one list, its rows the hotels (`item_id`) in the order shown.

    Terms and citation: see the top of this file.

    Binary task "click", 1 for the one hotel of the list; the 1 of 13,597 click-outs whose hotel is not in its list is left
    out. Features: user_id; item_id and its price; platform, city, device and filters of the search; and of the session
    before the click-out `met`, how often it turned to this hotel (looked at it, searched or clicked it), `met_last`, whether
    that was the last hotel it turned to, and the history `session` of the last 20 such hotels. Columns beside: `position`
    in the list from 1, which no feature reads, `request`, `session_id`, `step`, and the time, `timestamp`, in seconds.
    A session's later lists often hold what it clicked before: a part by time may cut a session in two.

    Raises:
        DataError: the file is not there, or not of that format.
    """
    path = find_file(ABOUT[0].folder(data_dir), "events.csv")
    table = read_table(path, _COLUMNS, header=True, quote='"')
    turned = table.filter(pl.col("reference").str.contains(r"^\d+$")).select(
        "session_id", pl.col("step").alias("then"), pl.col("reference").alias("hotel")
    )
    lists = table.filter(pl.col("action_type") == "clickout item").with_columns(
        item_id=pl.col("impressions").str.split("|"), price=pl.col("prices").str.split("|")
    )
    uneven = lists.filter(pl.col("item_id").list.len() != pl.col("price").list.len())
    if uneven.height:
        raise DataError(
            f"{str(path)!r}: session {uneven['session_id'][0]!r} shows other hotels than it has prices for."
        )
    lists = lists.filter(pl.col("item_id").list.contains(pl.col("reference"))).with_row_index("request")
    before = (
        lists.select("request", "session_id", "step")
        .join(turned, on="session_id")
        .filter(pl.col("then") < pl.col("step"))
        .sort("request", "then", maintain_order=True)
    )
    session = before.group_by("request", maintain_order=True).agg(pl.col("hotel").alias("session"))
    met = before.group_by("request", pl.col("hotel").alias("item_id")).agg(met=pl.len().cast(pl.Float64))
    lists = lists.join(session, on="request", how="left", maintain_order="left").with_columns(
        pl.col("session").fill_null([]), pl.col("current_filters").str.split("|").fill_null([]).alias("filters")
    )
    rows = lists.explode("item_id", "price").join(met, on=["request", "item_id"], how="left", maintain_order="left")
    rows = rows.with_columns(
        request=pl.col("request").cast(pl.Int64),
        position=1 + pl.int_range(pl.len()).over("request"),
        price=pl.col("price").cast(pl.Float64),
        click=(pl.col("item_id") == pl.col("reference")).cast(pl.Int8),
        met=pl.col("met").fill_null(0.0),
        met_last=(pl.col("session").list.last() == pl.col("item_id")).fill_null(False).cast(pl.Float64),
        session=pl.col("session").list.tail(STEPS),
    )
    schema = Schema(
        [
            Categorical("user_id", "user"),
            Categorical("item_id", "item"),
            Numeric("price", "pair", transform="log"),
            Numeric("met", "pair", transform="log"),
            Numeric("met_last", "pair"),
            History("session", of=("item_id",), max_len=STEPS),
            Categorical("platform", "context"),
            Categorical("city", "context"),
            Categorical("device", "context"),
            Categorical("filters", "context", multi=True),
        ],
        [Task("click")],
        time="timestamp",
    )
    kept = ("request", "session_id", "step", "timestamp", "position", "click")
    names = [f.name for f in schema.features]
    return Log(rows.select(*kept, *names), schema, name="trivago", request="request")
