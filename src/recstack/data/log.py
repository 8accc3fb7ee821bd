"""A log: what happened, row by row, and what each user had done before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from recstack.data.frames import as_frame, as_raw, as_times, factorised
from recstack.data.raw import Raw
from recstack.errors import DataError, SchemaError, unknown
from recstack.schema import History, Schema


@dataclass(eq=False)
class HistoryTimeline:
    """The events that may enter a history, ordered by user, then time, then row.

    Args:
        raw: the item of each event, raw.
        times: int64 [n].
        users: the distinct raw users.
        offsets: int64 [users + 1]; user u's events are offsets[u] to offsets[u + 1].
    """

    raw: Raw
    times: np.ndarray
    users: np.ndarray
    offsets: np.ndarray
    _encoded: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def items(self) -> np.ndarray:
        """Raw item of each event."""
        return self.raw.flat()

    def encoded(self, key: str, encode: Callable[[Raw], np.ndarray]) -> np.ndarray:
        """int32 item ids, made once per encoder (`key`) and shared by all splits of a log."""
        if key not in self._encoded:
            self._encoded[key] = encode(self.raw)
        return self._encoded[key]


def timeline(
    users: np.ndarray, n_users: int, times: np.ndarray, enters: np.ndarray, max_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each user's events in time, and which of them came before each event.

    Args:
        users: int [n], each event's user, -1 for none.
        times: int64 [n].
        enters: bool [n], which events may enter a history.
        max_len: the most recent that count.

    Returns:
        int64 order (the events that enter, by user, then time, then row), offsets [n_users + 1] into it, and begin and
        end [n] into it: what happened strictly before each event's own time.
    """
    distinct, rank = np.unique(times, return_inverse=True)
    # One integer orders by user, then time: a lookup of (user, own time) from the left counts what came before.
    key = users.astype(np.int64) * len(distinct) + rank
    order = np.flatnonzero(enters & (users >= 0))
    order = order[np.argsort(key[order], kind="stable")]
    ordered = key[order]
    offsets = np.searchsorted(ordered, np.arange(n_users + 1, dtype=np.int64) * len(distinct))
    end = np.searchsorted(ordered, key, "left")
    begin = np.maximum(offsets[users], end - max_len)
    begin[users < 0], end[users < 0] = 0, 0  # no user, no history
    return order, offsets, begin, end


class Log:
    """Events with a schema: one row per impression or interaction.

    A feature's column is looked for in `events` first, then in `users` or `items` by its role.

    Args:
        events: any frame (polars, pandas, pyarrow, what narwhals reads, an Arrow stream, a dict of columns).
        schema: what the columns mean.
        users, items: frames with one row per user key, per item key.
        implicit: rows are the positives of every binary task whose label column is absent; what is no row is unknown.
        name: for messages and reports.
        request: column that groups rows into lists, the candidates shown together; None makes each row its own.
        weight: column with a weight per row.

    Raises:
        SchemaError: a key, label, request or weight column that is missing.
        DataError: no frame at all, or a user or item that has two rows in its frame.

    >>> from recstack.schema import Categorical, Task
    >>> schema = Schema([Categorical("user", "user"), Categorical("item", "item")], [Task("click")], time="at")
    >>> log = Log({"user": [1, 1, 2], "item": [7, 8, 7], "click": [1, 0, 1], "at": [10, 20, 5]}, schema)
    >>> len(log), log.catalog().tolist(), len(log.select(log.events["click"] == 1))
    (3, [7, 8], 2)
    """

    def __init__(
        self,
        events: Any,
        schema: Schema,
        *,
        users: Any = None,
        items: Any = None,
        implicit: bool = False,
        name: str = "",
        request: str | None = None,
        weight: str | None = None,
    ) -> None:
        self.events = as_frame(events, "events")
        self.schema, self.implicit, self.name = schema, implicit, name
        self.request, self.weight = request, weight
        self.users = None if users is None else as_frame(users, "users")
        self.items = None if items is None else as_frame(items, "items")
        self.timelines: dict[str, HistoryTimeline] = {}
        for what, column in (("request", request), ("weight", weight)):
            if column is not None:
                self._need(column, f"{what}=")
        for what, frame, key in (("users", self.users, schema.user), ("items", self.items, schema.item)):
            if frame is not None:
                self._check_frame(what, frame, key)

    @classmethod
    def from_frame(cls, frame: Any, schema: Schema, **options: Any) -> Log:
        """From any frame; the options are the constructor's."""
        return cls(frame, schema, **options)

    def __len__(self) -> int:
        """Events."""
        return self.events.height

    def __repr__(self) -> str:
        return f"Log({self.name or 'events'}: {len(self):,} rows, {len(self.events.columns)} columns)"

    # -- columns ------------------------------------------------------------------------------------------------------
    def place(self, name: str) -> str | None:
        """Where a feature's column is: "events", "users", "items" or None."""
        role = self.schema.feature(name).role
        if name in self.events.columns:
            return "events"
        if role == "user" and self.users is not None and name in self.users.columns:
            return "users"
        if role == "item" and self.items is not None and name in self.items.columns:
            return "items"
        return None

    def has(self, column: str | None) -> bool:
        """Whether the events have this column."""
        return column in self.events.columns

    def frame(self, place: str) -> pl.DataFrame:
        """The frame called "events", "users" or "items"."""
        frame = {"events": self.events, "users": self.users, "items": self.items}[place]
        if frame is None:
            raise SchemaError(f"This log has no {place} frame.")
        return frame

    def raw(self, name: str, place: str = "events") -> Raw:
        """A column of one frame, as numpy.

        Raises:
            SchemaError: it is missing, or of a dtype that no feature takes.
        """
        frame = self.frame(place)
        if name not in frame.columns:
            raise unknown(f"column of {place}", name, frame.columns, SchemaError)
        return as_raw(frame[name])

    def request_codes(self) -> np.ndarray:
        """int64 [events]: which request each row belongs to, numbered by first appearance.

        Raises:
            DataError: a row has no request.
        """
        assert self.request is not None
        codes = factorised(self.events[self.request]).codes
        assert codes is not None
        if len(codes) and codes.min() < 0:
            raise DataError(f"Request column {self.request!r} holds {int((codes < 0).sum())} nulls; drop those rows.")
        return codes.astype(np.int64)

    def rows_of(self, place: str) -> np.ndarray:
        """int64 [events]: the row of each event's user (or item) in its frame; -1 where it has none."""
        key = self.schema.user if place == "users" else self.schema.item
        frame = self.frame(place)
        assert key is not None  # checked when the frame came in
        self._need(key, f"the key of the {place} frame")
        try:
            joined = self.events.select(key).join(
                frame.select(key).with_row_index("@row"), on=key, how="left", maintain_order="left"
            )
        except pl.exceptions.SchemaError:
            raise SchemaError(
                f"Key {key!r} is {self.events[key].dtype} in events and {frame[key].dtype} in {place}; cast one of them."
            ) from None
        return joined["@row"].cast(pl.Int64).fill_null(-1).to_numpy()

    def user_codes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Users of the events, then those of the users frame alone.

        Returns:
            raw users; int64 [requests], each request's place among them, -1 for null; and int64 [users], their rows in
            the users frame (-1 for none), or None without a frame.
        """
        key = self.schema.user
        assert key is not None
        raw = factorised(self.events[key])
        users, codes = raw.values, raw.codes
        assert codes is not None
        if self.request is not None:
            codes = codes[np.unique(self.request_codes(), return_index=True)[1]]
        if self.users is None:
            return users, codes.astype(np.int64), None
        row = {u: i for i, u in enumerate(self.users[key].to_list())}
        known = set(users.tolist())
        more = [u for u in row if u not in known]
        users = np.append(users, np.array(more, users.dtype))
        return users, codes.astype(np.int64), np.array([row.get(u, -1) for u in users.tolist()], np.int64)

    @cached_property
    def times(self) -> np.ndarray:
        """int64 [events].

        Raises:
            SchemaError: the schema names no time column, or it is missing.
            DataError: nulls, text or fractions in it.
        """
        if self.schema.time is None:
            raise SchemaError("The schema has no time column, which orders a user's events: Schema(..., time='...').")
        self._need(self.schema.time, "time=")
        return as_times(self.events[self.schema.time], "Time column")

    def catalog(self) -> np.ndarray:
        """Distinct raw item ids of the items frame and the events, sorted."""
        if self.schema.item is None:
            raise SchemaError("The schema has no item key, so there is no catalog: Schema(..., item='...').")
        parts = [f[self.schema.item] for f in (self.items, self.events) if f is not None and self.schema.item in f]
        raw = as_raw(pl.concat([p.cast(parts[0].dtype) for p in parts]).drop_nulls().unique().sort())
        return raw.flat()

    # -- parts and histories ------------------------------------------------------------------------------------------
    def select(self, rows: Any) -> Log:
        """The log of these rows, by mask or by indices; users, items and timelines are shared."""
        rows = rows.to_numpy() if isinstance(rows, pl.Series) else np.asarray(rows)
        events = self.events.filter(pl.Series(rows)) if rows.dtype == bool else self.events[rows.astype(np.int64)]
        return self._with(events)

    def concat(self, other: Log) -> Log:
        """Both parts of one split log: its rows, then those of `other`; users, items and timelines are shared.

        Raises:
            DataError: the two are not parts of one log.
        """
        if self.schema != other.schema or self.events.schema != other.events.schema:
            raise DataError(f"{self!r} and {other!r} are not parts of one log, so they cannot be put together.")
        return self._with(pl.concat([self.events, other.events]))

    def with_columns(self, columns: Iterable[pl.Series]) -> Log:
        """With these columns added to the events, or replaced."""
        return self._with(self.events.with_columns(list(columns)))

    def with_histories(self) -> Log:
        """With pointers into time-ordered histories, for each History whose column is not in the events.

        `name@begin` and `name@end` point into `timelines[name]`; `end` counts only what happened strictly before the
        event's own time (ties are excluded), so nothing at or after an event is ever in its history.

        Raises:
            SchemaError: there is a History to build, and no user key, item key or time column.
        """
        missing = [h for h in self.schema.histories if h.name not in self.events.columns]
        missing = [h for h in missing if f"{h.name}@end" not in self.events.columns]
        if not missing:
            return self
        keys = []
        for what, key in (("user", self.schema.user), ("item", self.schema.item), ("time", self.schema.time)):
            if key is None:
                raise SchemaError(
                    f"History {missing[0].name!r} is not a column of the events, and cannot be built from them without "
                    f"a {what} column: Schema(..., {what}='...')."
                )
            self._need(key, f"{what}=")
            keys.append(key)
        user, items = factorised(self.events[keys[0]]), self.events[keys[1]]
        assert user.codes is not None
        log = self._with(self.events)
        for history in missing:
            order, offsets, begin, end = timeline(
                user.codes, len(user.values), self.times, self.enters(history), history.max_len
            )
            log.timelines[history.name] = HistoryTimeline(
                factorised(items[order]), self.times[order], user.values, offsets
            )
            log.events = log.events.with_columns(
                pl.Series(f"{history.name}@begin", begin, pl.Int64), pl.Series(f"{history.name}@end", end, pl.Int64)
            )
        return log

    def enters(self, history: History) -> np.ndarray:
        """bool [events]: what enters this history."""
        if history.where is None:
            return np.ones(len(self), bool)
        columns = {t.name: t.column for t in self.schema.tasks}
        column = columns.get(history.where, history.where)
        if column not in self.events.columns:
            if self.implicit and history.where in columns:
                return np.ones(len(self), bool)
            raise unknown(f"column in where= of History {history.name!r}", column, self.events.columns, SchemaError)
        label = self.events[column]
        if not (label.dtype.is_numeric() or label.dtype in (pl.Boolean, pl.Null)):
            raise DataError(
                f"Column {column!r} holds {label.dtype}, and History {history.name!r} takes the events where it is 1; "
                "make it 0 and 1."
            )
        return (label.cast(pl.Float64) == 1).fill_null(False).to_numpy()

    # -- own ----------------------------------------------------------------------------------------------------------
    def _with(self, events: pl.DataFrame) -> Log:
        log = object.__new__(Log)
        log.__dict__.update({k: v for k, v in vars(self).items() if k != "times"})
        log.events, log.timelines = events, dict(self.timelines)
        return log

    def _need(self, column: str, what: str) -> None:
        if column not in self.events.columns:
            raise unknown(f"column of events for {what}", column, self.events.columns, SchemaError)

    @staticmethod
    def _check_frame(what: str, frame: pl.DataFrame, key: str | None) -> None:
        if key is None:
            raise SchemaError(f"A {what} frame needs the key that it is joined on: Schema(..., {what[:-1]}='...').")
        if key not in frame.columns:
            raise unknown(f"column of {what} for its key", key, frame.columns, SchemaError)
        if frame[key].null_count():
            raise DataError(f"Key {key!r} of the {what} frame holds {frame[key].null_count()} nulls; drop those rows.")
        twice = frame.filter(frame[key].is_duplicated())[key]
        if len(twice):
            raise DataError(
                f"The {what} frame has {int((twice == twice[0]).sum())} rows for {key} {twice[0]!r}; one row per key."
            )
