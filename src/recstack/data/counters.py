"""Point-in-time counters: how many events of a kind an entity had in a window before now, f(T) − f(T−n).

One spec serves twice: on a log, all rows at once, and on a stream, event by event; both give the same numbers.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from recstack.errors import SchemaError, unknown

if TYPE_CHECKING:
    from recstack.data.log import Log


@dataclass(frozen=True)
class WindowCounter:
    """Counts events of the same entity in [T − window, T), T being the event's time rounded down to `grain`.

    What happens at T itself is never counted. Times are int64 in the time column's own unit (a polars Datetime counts
    microseconds), and so are window and grain.

    Args:
        name: of the column it makes; declare Numeric(name, role=...) to feed it to a model.
        by: the columns that make the entity: "item_id", or ("user_id", "item_id").
        window: how far back; None counts from the beginning.
        where: a task's label or a column that must be equal to `equals`; None counts every event.
        equals: 1 counts clicks; 0 with where="click" counts what was shown and not clicked.
        value: a column to sum in place of counting: +1 and −1 for a state that can be undone. Null adds nothing.
        grain: counts change only at multiples of it (3600 s: a table refreshed every hour).

    >>> from recstack.data import Log
    >>> from recstack.schema import Categorical, Schema, Task
    >>> schema = Schema([Categorical("user", "user"), Categorical("item", "item")], [Task("click")], time="at")
    >>> log = Log({"user": [1, 1, 2, 1], "item": [7, 7, 7, 7], "click": [1, 0, 1, 1], "at": [0, 5, 6, 12]}, schema)
    >>> WindowCounter("clicks", by="item", window=10, where="click").count(log)
    array([0, 1, 1, 1])
    >>> WindowCounter("ignored", by=("user", "item"), where="click", equals=0).count(log)
    array([0, 0, 0, 1])
    """

    name: str
    by: tuple[str, ...]
    window: int | None = None
    where: str | None = None
    equals: float = 1
    value: str | None = None
    grain: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", (self.by,) if isinstance(self.by, str) else tuple(self.by))
        if not self.by:
            raise SchemaError(f"Counter {self.name!r} needs by=: the column or columns whose events it counts.")
        for what, number in (("window", self.window), ("grain", self.grain)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise SchemaError(f"Counter {self.name!r}: {what} is a whole number of at least 1; got {number!r}.")

    def count(self, log: Log) -> np.ndarray:
        """int64 [events] (float64 with `value`). An event whose entity is null counts 0 and is not counted.

        Raises:
            SchemaError: a column that is missing, or no time column.
        """
        from recstack.data.frames import factorised

        entity = np.zeros(len(log), np.int64)
        nobody = np.zeros(len(log), bool)
        for column in self.by:
            if not log.has(column):
                raise unknown(f"column of events for counter {self.name!r}", column, log.events.columns, SchemaError)
            codes = factorised(log.events[column]).codes
            assert codes is not None
            nobody |= codes < 0
            entity = np.unique(entity * (int(codes.max(initial=0)) + 2) + codes + 1, return_inverse=True)[1]
        times = log.times
        distinct = np.unique(times)
        enters = np.flatnonzero(self._enters(log) & ~nobody)
        key = entity[enters] * (len(distinct) + 1) + np.searchsorted(distinct, times[enters])
        order = np.argsort(key, kind="stable")
        key = key[order]

        def before(moment: np.ndarray) -> np.ndarray:
            """Events of all entities up to this one, before this moment."""
            return np.searchsorted(key, entity * (len(distinct) + 1) + np.searchsorted(distinct, moment))

        now = times // self.grain * self.grain
        end = before(now)
        # Nothing is before the beginning of time, except the other entities' events.
        begin = before(now - self.window) if self.window is not None else before(np.full(len(now), distinct[0]))
        if self.value is None:
            return np.where(nobody, 0, end - begin)
        total = np.append(0.0, np.cumsum(_values(log, self.value)[enters][order]))
        return np.where(nobody, 0.0, total[end] - total[begin])

    def _enters(self, log: Log) -> np.ndarray:
        if self.where is None:
            return np.ones(len(log), bool)
        column = self._column({t.name: t.column for t in log.schema.tasks})
        if not log.has(column):
            raise unknown(f"column in where= of counter {self.name!r}", column, log.events.columns, SchemaError)
        return _values(log, column, np.nan) == self.equals

    def _column(self, tasks: Mapping[str, str]) -> str:
        assert self.where is not None
        return tasks.get(self.where, self.where)


def with_counters(log: Log, counters: Iterable[WindowCounter]) -> Log:
    """The log with a column for each counter. Do it before splitting, as a live table would know all earlier events."""
    import polars as pl

    return log.with_columns([pl.Series(c.name, c.count(log)) for c in counters])


@dataclass
class _Entity:
    """What one counter keeps of one entity: times in order, their values, and the sum of what is too old to list."""

    times: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    older: float = 0


class CounterStream:
    """The same counters, live. Reads and appends go forward in time for each entity; a late event finds its place.

    What no later read can ask for is forgotten, so an entity costs its events of one window.

    Args:
        counters: the specs.
        log: events to begin with.

    >>> stream = CounterStream([WindowCounter("clicks", by="item", window=10, where="click")])
    >>> stream.append({"item": 7, "click": 1}, time=0)
    >>> stream.read({"item": 7}, time=10), stream.read({"item": 7}, time=11), stream.read({"item": 8}, time=10)
    ({'clicks': 1}, {'clicks': 0}, {'clicks': 0})
    """

    def __init__(self, counters: Iterable[WindowCounter], log: Log | None = None) -> None:
        self.counters = tuple(counters)
        self._entities: dict[tuple[str, tuple[Any, ...]], _Entity] = {}
        self._tasks: dict[str, str] = {}
        if log is not None:
            self._tasks = {t.name: t.column for t in log.schema.tasks}
            needed = {x for c in self.counters for x in (*c.by, c.value, c.where and c._column(self._tasks)) if x}
            order = np.argsort(log.times, kind="stable")
            rows = log.events.select(sorted(needed))[order].iter_rows(named=True)
            for row, time in zip(rows, log.times[order].tolist(), strict=True):
                self.append(row, time)

    def append(self, event: Mapping[str, Any], time: int) -> None:
        """Something happened. `event` holds the columns that the counters name."""
        for counter in self.counters:
            key = tuple(event[c] for c in counter.by)
            if None in key:
                continue
            if counter.where is not None and event.get(counter._column(self._tasks)) != counter.equals:
                continue
            value = 1 if counter.value is None else event[counter.value]
            entity = self._entities.setdefault((counter.name, key), _Entity())
            at = bisect.bisect_right(entity.times, time)
            entity.times.insert(at, time)
            entity.values.insert(at, 0 if value is None else value)
            self._forget(counter, entity)

    def read(self, row: Mapping[str, Any], time: int) -> dict[str, float]:
        """The counters of this row's entities at this moment."""
        out: dict[str, float] = {}
        for counter in self.counters:
            entity = self._entities.get((counter.name, tuple(row[c] for c in counter.by)), _Entity())
            now = time // counter.grain * counter.grain
            end = bisect.bisect_left(entity.times, now)
            begin = 0 if counter.window is None else bisect.bisect_left(entity.times, now - counter.window)
            out[counter.name] = (entity.older if counter.window is None else 0) + sum(entity.values[begin:end])
        return out

    @staticmethod
    def _forget(counter: WindowCounter, entity: _Entity) -> None:
        newest = entity.times[-1] // counter.grain * counter.grain
        gone = bisect.bisect_left(entity.times, newest - (counter.window or 0))
        entity.older += sum(entity.values[:gone])
        del entity.times[:gone], entity.values[:gone]


def _values(log: Log, column: str, null: float = 0.0) -> np.ndarray:
    """float64 [events]."""
    raw = log.raw(column)
    if raw.offsets is not None or raw.kind not in ("int", "float", "null"):
        raise SchemaError(f"Column {column!r} is counted, and holds no numbers.")
    x = np.full(len(raw), np.nan) if raw.kind == "null" else raw.flat().astype(np.float64)
    return np.where(np.isnan(x), null, x)
