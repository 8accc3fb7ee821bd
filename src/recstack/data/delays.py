"""Conversions that come late: what is known of them at a moment, and the stream in which they become known."""

from __future__ import annotations

import numpy as np
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


def settled(
    events: pl.DataFrame,
    *,
    time: str = "time",
    happened: str = "order_time",
    window: float,
) -> pl.DataFrame:
    """The events with what `elapsed_weight` asks of a model: labels of rows so old that all their conversions have come.

    Returns:
        the events with `delayed` (1 where it converts, but not within `window`) and `never` (1 where it does not convert, 0
        where it does so after the window, null where it has converted by then).

    Raises:
        DataError: a column that is missing, or a conversion before its row.

    >>> events = pl.DataFrame({"time": [0, 0, 0], "order_time": [3, 8, None]})
    >>> settled(events, window=5)["delayed", "never"].rows()
    [(0.0, None), (1.0, 0.0), (0.0, 1.0)]
    """
    _check(events, time, happened)
    ever = pl.col(happened).is_not_null()
    early = (pl.col(happened) <= pl.col(time) + window).fill_null(False)
    never = pl.when(~early).then((~ever).cast(pl.Float32))
    return events.with_columns((ever & ~early).cast(pl.Float32).alias("delayed"), never.alias("never"))


def shifted(
    events: pl.DataFrame,
    now: float,
    deadline: float,
    *,
    time: str = "time",
    happened: str = "order_time",
    unit: float = DAY,
) -> pl.DataFrame:
    """The events with what `shift_weight` asks of a model: how they looked at an earlier `deadline`, told by what came until now.

    Returns:
        the events up to the deadline with `arrived` (1 where its conversion had come by then, 0 where it came later, null
        where none has come), `never` (1 where none has come, 0 where one came after the deadline, null where one had come by
        then) and `elapsed` (how old it was then, in `unit`).

    Raises:
        DataError: a column that is missing, or a conversion before its row.

    >>> events = pl.DataFrame({"time": [0, 0, 4, 6], "order_time": [3, 8, None, 7]})
    >>> shifted(events, 9, 5, unit=1)["arrived", "never", "elapsed"].rows()
    [(1.0, None, 5.0), (0.0, 0.0, 5.0), (None, 1.0, 1.0)]
    """
    _check(events, time, happened)
    had, come = ((pl.col(happened) <= moment).fill_null(False) for moment in (deadline, now))
    return events.filter(pl.col(time) <= deadline).with_columns(
        pl.when(come).then(had.cast(pl.Float32)).alias("arrived"),
        pl.when(~had).then((~come).cast(pl.Float32)).alias("never"),
        ((deadline - pl.col(time)) / unit).cast(pl.Float32).alias("elapsed"),
    )


def elapsed_weight(label: np.ndarray, delayed: np.ndarray, never: np.ndarray) -> np.ndarray:
    r"""What rows of a `stream` with a window weigh, so that its rates are the true ones (ES-DFM).

    .. math:: y\, (1 + d) + (1 - y)\, (1 + d)\, n

    Args:
        label: y, as the stream has it.
        delayed: d, the probability that the row converts after the window.
        never: n, the probability that one that has not converted within the window never does.

    Yang et al., AAAI 2021, https://arxiv.org/abs/2012.03245

    >>> elapsed_weight(np.array([1.0, 0.0]), np.array([0.25, 0.25]), np.array([0.5, 0.5])).tolist()
    [1.25, 0.625]
    """
    return (1 + delayed) * (label + (1 - label) * never)


def shift_weight(label: np.ndarray, arrived: np.ndarray, never: np.ndarray, floor: float = 0.02) -> np.ndarray:
    r"""What rows weigh that are labelled by what has come so far (`as_of`), so that their rates are the final ones (FSIW).

    .. math:: y / \max(a, a_{\min}) + (1 - y)\, n

    Args:
        label: y, 1 where the conversion has come.
        arrived: a, the probability that the conversion of a row of this age, if there is one, has come.
        never: n, the probability that one of this age whose conversion has not come has none.
        floor: least a: bounds the weights at the price of a little bias.

    Yasui et al., WWW 2020, https://doi.org/10.1145/3366423.3380032

    >>> shift_weight(np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([0.75, 0.75])).tolist()
    [2.0, 0.75]
    """
    return label / np.maximum(arrived, floor) + (1 - label) * never


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
