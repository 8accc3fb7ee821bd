"""Conversions that come late: what is known of them at a moment, and the stream in which they become known."""

from __future__ import annotations

import polars as pl

from recstack.errors import DataError

DAY = 86_400


def as_of(
    events: pl.DataFrame,
    now: float,
    *,
    time: str = "time",
    happened: str = "order_time",
    label: str = "order",
    delay: str = "delay",
    unit: float = DAY,
) -> pl.DataFrame:
    """The events as one sees them at `now`: later ones are gone, and what converts later has not converted yet.

    Args:
        events: one row per click (or impression), `time` when it was.
        now: when the log is read, in the unit of `time`.
        time, happened: the columns of both times, numbers; `happened` is null where nothing ever converts.
        label: the column that is written: 1 where the conversion has come by now.
        delay: the column that is written: how long the conversion took, or where it has not come, how long ago the row is.
        unit: of `delay`, in those of `time`; seconds become days.

    Raises:
        DataError: a column that is missing, or a conversion before its row.

    >>> events = pl.DataFrame({"time": [0, 0, 9], "order_time": [3, 8, None]})
    >>> as_of(events, 5, unit=1)["order", "delay"].rows()
    [(1.0, 3.0), (0.0, 5.0)]
    """
    _check(events, time, happened)
    came = (pl.col(happened) <= now).fill_null(False)
    until = pl.when(came).then(pl.col(happened)).otherwise(now)
    return events.filter(pl.col(time) <= now).with_columns(
        came.cast(pl.Float32).alias(label), ((until - pl.col(time)) / unit).cast(pl.Float32).alias(delay)
    )


def stream(
    events: pl.DataFrame,
    now: float,
    *,
    time: str = "time",
    happened: str = "order_time",
    label: str = "order",
    window: float = 0.0,
    since: float | None = None,
) -> pl.DataFrame:
    """The rows in the order in which a learner that cannot wait meets them, up to `now`.

    Each row comes when its `window` is over, a positive if it converted within, else a negative; and one that converts later
    comes again then, as a positive. Without a window that is the stream of fake negatives (Ktena et al., RecSys 2019), with
    one that of elapsed-time sampling (Yang et al., AAAI 2021).

    A stream that begins with the first event lacks the late positives of rows before it. `since` lets it begin a few delays
    later, with those positives: what the rates on the stream are, and hence what its weights undo, holds only then.

    Returns:
        the events with `label`, ``seen`` (when the row is met, ascending) and ``late`` (whether it is a positive that comes
        again).

    Raises:
        DataError: a column that is missing, or a conversion before its row.

    >>> events = pl.DataFrame({"time": [0, 1], "order_time": [4, None]})
    >>> stream(events, 5)["time", "order", "seen", "late"].rows()
    [(0, 0.0, 0.0, False), (1, 0.0, 1.0, False), (0, 1.0, 4.0, True)]
    """
    _check(events, time, happened)
    over = pl.col(time) + window
    early = (pl.col(happened) <= over).fill_null(False) if window else pl.lit(False)
    first = events.with_columns(
        early.cast(pl.Float32).alias(label), over.cast(pl.Float64).alias("seen"), pl.lit(False).alias("late")
    )
    again = events.filter(pl.col(happened).is_not_null() & ~early).with_columns(
        pl.lit(1.0, pl.Float32).alias(label),
        pl.col(happened).cast(pl.Float64).alias("seen"),
        pl.lit(True).alias("late"),
    )
    rows = pl.concat([first, again]).filter(pl.col("seen") <= now)
    rows = rows if since is None else rows.filter(pl.col("seen") > since)
    return rows.sort("seen", maintain_order=True)


def _check(events: pl.DataFrame, time: str, happened: str) -> None:
    for name in (time, happened):
        if name not in events.columns:
            raise DataError(
                f"The events have no column {name!r}; name the columns of both times by time= and happened=."
            )
    before = events.filter(pl.col(happened) < pl.col(time))
    if len(before):
        raise DataError(
            f"{len(before)} rows convert before they happen, the first {happened} {before[happened][0]} against "
            f"{time} {before[time][0]}; both columns must count in the same unit."
        )
