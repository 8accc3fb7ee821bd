"""Training, validation and test parts of a log. Histories are built first, so a test row knows the training rows that
came before it, and never anything at or after its own time. The rows of one request stay together."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from recstack.data.frames import as_times, factorised
from recstack.data.log import Log
from recstack.errors import ConfigError, DataError, SchemaError

Parts = tuple[Log, Log, Log]
TRAIN, VALID, TEST = 0, 1, 2


def by_time(log: Log, valid: Any = 0.1, test: Any = 0.1) -> Parts:
    """The last part of time is the test, the part before it validation.

    Args:
        valid, test: fractions of the requests (events of one moment stay together, on the later side), or the moments
            at which the parts begin, as the time column gives them.

    Raises:
        ConfigError: fractions that leave no training rows, moments in the wrong order.

    >>> from recstack.schema import Categorical, Schema
    >>> schema = Schema([Categorical("u", "user"), Categorical("i", "item")], time="t")
    >>> log = Log({"u": [1] * 5, "i": [1, 2, 3, 4, 5], "t": [10, 20, 30, 40, 50]}, schema)
    >>> [part.events["t"].to_list() for part in by_time(log, 0.2, 0.2)]
    [[10, 20, 30], [40], [50]]
    >>> [part.events["t"].to_list() for part in by_time(log, 20, 40)]
    [[10], [20, 30], [40, 50]]
    """
    log = log.with_histories()
    unit, first = _units(log)
    times = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(times, unit, log.times)
    if _is_fraction(valid) and _is_fraction(test):
        _check_fractions(valid, test)
        ordered, n = np.sort(times), len(times)
        starts = [round(n * (1 - test - valid)), round(n * (1 - test))]
        cut = [ordered[s] if s < n else np.iinfo(np.int64).max for s in starts]
        part = (times >= cut[0]).astype(int) + (times >= cut[1])
        part = np.where((part == VALID) & (valid == 0), TRAIN, part)
    else:
        begin = [_moment(log, valid), _moment(log, test)]
        if begin[0] > begin[1]:
            raise ConfigError(f"Validation begins at {valid!r}, after the test's {test!r}.")
        part = (times >= begin[0]).astype(int) + (times >= begin[1])
    return _parts(log, part[unit])


def last_per_user(log: Log, test: int = 1, valid: int = 1) -> Parts:
    """Each user's last `test` requests are the test, the `valid` before them validation.

    Requests at the same time count in the order of the rows. A user who would have nothing left to train on stays
    wholly in training.
    """
    if test < 0 or valid < 0:
        raise ConfigError(f"test and valid count requests per user; got {test} and {valid}.")
    log = log.with_histories()
    unit, first = _units(log)
    user = _users(log)[first]
    times = log.times[first]
    order = np.lexsort((np.arange(len(first)), times, user))
    # Place of each from the end of its user: 1 is the last.
    last = np.append(np.flatnonzero(np.diff(user[order])), len(order) - 1)
    count = np.diff(last, prepend=-1)
    from_end = np.empty(len(order), np.int64)
    from_end[order] = np.repeat(last, count) - np.arange(len(order)) + 1
    total = np.empty(len(order), np.int64)
    total[order] = np.repeat(count, count)
    part = np.where(from_end <= test, TEST, np.where(from_end <= test + valid, VALID, TRAIN))
    part = np.where((total <= test + valid) | (user < 0), TRAIN, part)
    return _parts(log, part[unit])


def leave_last_out(log: Log) -> Parts:
    """Each user's last request is the test, the one before it validation."""
    return last_per_user(log, 1, 1)


def by_user(log: Log, valid: float = 0.1, test: float = 0.1, seed: int = 0) -> Parts:
    """Whole users: those of the test are unknown in training. Rows without a user stay in training."""
    _check_fractions(valid, test)
    log = log.with_histories()
    user = _users(log)
    part = np.append(_drawn(int(user.max(initial=-1)) + 1, valid, test, seed), TRAIN)  # the last is for code -1
    return _parts(log, part[user])


def random(log: Log, valid: float = 0.1, test: float = 0.1, seed: int = 0) -> Parts:
    """Requests at random, whatever their time."""
    _check_fractions(valid, test)
    log = log.with_histories()
    unit, first = _units(log)
    return _parts(log, _drawn(len(first), valid, test, seed)[unit])


def _units(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """What is never torn apart: the unit of each row, and the first row of each unit."""
    if log.request is None:
        return np.arange(len(log)), np.arange(len(log))
    unit = log.request_codes()
    return unit, np.unique(unit, return_index=True)[1]


def _users(log: Log) -> np.ndarray:
    """Users numbered in ascending order of their raw key, so that the order of the rows does not matter; -1 for null."""
    if log.schema.user is None:
        raise SchemaError("A split by user needs a user key: Schema(..., user='...').")
    raw = factorised(log.events[log.schema.user])
    assert raw.codes is not None
    rank = np.empty(len(raw.values) + 1, np.int64)
    rank[np.argsort(raw.values, kind="stable")] = np.arange(len(raw.values))
    rank[-1] = -1
    return rank[raw.codes]


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _check_fractions(valid: float, test: float) -> None:
    if not (_is_fraction(valid) and _is_fraction(test) and valid + test < 1):
        raise ConfigError(
            f"valid and test are fractions that leave some rows for training; got {valid!r} and {test!r}."
        )


def _moment(log: Log, value: Any) -> int:
    dtype = log.events[log.schema.time].dtype  # type: ignore[index]
    try:
        return int(as_times(pl.Series("", [value]).cast(dtype), "Cut point")[0])
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"Cut point {value!r} is not a {dtype}, as the time column is.") from error


def _drawn(n: int, valid: float, test: float, seed: int) -> np.ndarray:
    part = np.full(n, TRAIN)
    order = np.random.default_rng(seed).permutation(n)
    n_test, n_valid = round(n * test), round(n * valid)
    part[order[:n_test]], part[order[n_test : n_test + n_valid]] = TEST, VALID
    return part


def _parts(log: Log, part: np.ndarray) -> Parts:
    if not (part == TRAIN).any():
        raise DataError(f"The split leaves none of {len(log)} rows for training; make valid and test smaller.")
    return log.select(part == TRAIN), log.select(part == VALID), log.select(part == TEST)
