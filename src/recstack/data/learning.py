"""What an Encoder learns of rows, gathered part by part: the same numbers whether rows come at once or in parts. numpy only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from recstack.data.raw import KINDS, Raw
from recstack.data.vocabulary import Hashed, Vocabulary, mix64
from recstack.errors import DataError, SchemaError
from recstack.schema import Categorical, Feature, History, Numeric, Schema, Task, Text, is_embedded

if TYPE_CHECKING:
    from recstack.data.log import Log

BLOCK = 1 << 16  # values that are summed together, wherever parts begin and end
SAMPLE = 1 << 20  # rows up to which quantiles are exact


class Learning:
    """Counts of values and statistics of numbers, of training rows that come in parts.

    A value of the events counts once per row; an attribute that lives in the users or items frame once for each user or
    item that the rows mention.

    Args:
        schema: what to learn.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema, self.rows = schema, 0
        self.counts: dict[str, Counts] = {}
        self._numbers: dict[str, Moments | Sample | None] = {}
        self._kinds: dict[str, dict[str, str]] = {}  # by table, which feature had which kind
        self._mentioned: dict[str, np.ndarray] = {}
        self._frames: Log | None = None
        self._labels = {t.name: Sample() for t in schema.tasks if isinstance(t.bins, int)}
        self._by_table: dict[str, list[Feature]] = {}
        for f in schema.features:
            if isinstance(f, Numeric):
                self._numbers[f.name] = Moments() if f.transform in ("log", "standard") else Sample()
            if is_embedded(f) and not isinstance(f, Numeric):
                self._by_table.setdefault(f.table_name, []).append(f)
                self.counts.setdefault(f.table_name, Counts())
                self._kinds.setdefault(f.table_name, {})

    def add(self, log: Log, pool: ThreadPoolExecutor | None = None) -> None:
        """Count these rows; the parts of one log share their users and items frames.

        Raises:
            SchemaError: a column is missing, or holds what its feature does not take.
        """
        places = {f.name: log.place(f.name) for f in self.schema.features if not isinstance(f, History)}
        for name, place in places.items():
            if place is None:
                raise missing(self.schema.feature(name), log)
        self.rows += len(log)
        for place in set(places.values()) - {"events"}:
            mentioned = self._mentioned.setdefault(place, np.zeros(log.frame(place).height, bool))  # type: ignore[arg-type]
            rows = log.rows_of(place)  # type: ignore[arg-type]
            mentioned[rows[rows >= 0]] = True
            self._frames = log
        self._run(lambda f: log.raw(f.name) if places[f.name] == "events" else None, pool, log)
        for name, sample in self._labels.items():
            sample.add(self._live_labels(log, self.schema.task(name)))

    def _live_labels(self, log: Log, task: Task) -> np.ndarray:
        """The labels that a task learns from: there, and where the task that it is given has label 1."""
        y = label_numbers(log, task)
        live, parent = np.isfinite(y), task.given
        while parent is not None:
            above = self.schema.task(parent)
            if log.has(above.column) or not log.implicit:  # rows that are positives only have label 1
                live &= label_numbers(log, above) == 1
            parent = above.given
        return y[live]

    def finish(self) -> None:
        """Count the attributes of the users and items that were mentioned."""
        log, self_mentioned = self._frames, {p: np.flatnonzero(m) for p, m in self._mentioned.items()}
        if log is None:
            return

        def column(f: Feature) -> Raw | None:
            place = log.place(f.name)
            return None if place == "events" else log.raw(f.name, place).take(self_mentioned[place])  # type: ignore[arg-type,index]

        self._run(column, None, None)

    def _run(self, column: Callable[[Feature], Raw | None], pool: ThreadPoolExecutor | None, log: Log | None) -> None:
        def count(table: str) -> None:
            for f in self._by_table[table]:
                if (raw := column(f)) is not None:
                    self._count(table, f, raw)
                if log is not None and f.name == self.schema.item:
                    for h in (h for h in self.schema.histories if log.has(h.name)):
                        self._take(table, log.raw(h.name), f)

        def measure(name: str) -> None:
            feature = self.schema.feature(name)
            assert isinstance(feature, Numeric)
            if (raw := column(feature)) is not None:
                x = numbers(feature, raw)
                x = x[~np.isnan(x)] if feature.learns_missing else x
                if feature.transform is not None:
                    self._numbers[name].add(log1p(x) if feature.transform == "log" else x)  # type: ignore[union-attr]

        jobs: list[tuple[Callable[[str], None], str]] = [(count, t) for t in self._by_table]
        jobs += [(measure, n) for n in self._numbers]
        run: Iterable[Any] = (pool.map if pool else map)(lambda job: job[0](job[1]), jobs)
        for _ in run:
            pass

    def _count(self, table: str, feature: Feature, raw: Raw) -> None:
        check_shape(feature, raw)
        kind = id_kind(feature, raw)
        if kind == "null":
            return
        known = self._kinds[table]
        known.setdefault(kind, feature.name)
        if len(known) > 1:
            (a, first), (b, second) = known.items()
            raise SchemaError(
                f"Columns {first!r} and {second!r} share table {table!r}, and hold {KINDS[a]} and {KINDS[b]}; cast one."
                if first != second
                else f"Column {first!r} holds {KINDS[a]}, and further on {KINDS[b]}; cast it."
            )
        self._take(table, raw, feature)

    def _take(self, table: str, raw: Raw, feature: Feature) -> None:
        hashes = getattr(feature, "buckets", None) is not None
        known = next(iter(self._kinds[table]), raw.kind)
        if raw.kind == known and (not hashes or feature.name == self.schema.item):
            self.counts[table].add(*counted(raw))

    # -- what was learned ---------------------------------------------------------------------------------------------
    def tables(self) -> dict[str, Vocabulary | Hashed]:
        """A vocabulary or a hash of each table, bins aside."""
        out: dict[str, Vocabulary | Hashed] = {}
        for table, sharing in self._by_table.items():
            buckets = getattr(sharing[0], "buckets", None)
            if buckets is not None:
                out[table] = Hashed(table, buckets, next(iter(self._kinds[table]), "null"))
                continue
            values, count = self.counts[table].total()
            out[table] = Vocabulary(values[count >= max(f.min_count for f in sharing)])  # type: ignore[attr-defined]
        return out

    def statistics(self) -> dict[str, dict[str, np.ndarray]]:
        """What the transform of each Numeric needs, float64.

        Raises:
            DataError: a transform has no rows to learn from.
        """
        return {n: _statistics(self.schema.feature(n), seen) for n, seen in self._numbers.items()}  # type: ignore[arg-type]

    def bins(self) -> dict[str, tuple[float, ...]]:
        """The values of each histogram that asked for a number of bins: the least label, and quantiles of those above it.

        Watch times are mostly 0: the least stands for itself, and does not crowd out the others. Equal quantiles are one.

        Raises:
            DataError: a histogram's labels are missing, or all the same.
        """
        out = {}
        for name, sample in self._labels.items():
            task, y = self.schema.task(name), sample.values()
            above = y[y > y.min()] if len(y) else y
            if not len(above):
                said = f"{y[0]:g} on all {sample.n} rows" if len(y) else "missing on all rows"
                raise DataError(f'Label "{task.column}" is {said}; histogram {name!r} needs several values.')
            n = task.bins - 1  # type: ignore[operator]
            quantiles = np.quantile(above, np.arange(1, n + 1) / n)
            out[name] = tuple(np.unique(np.append(y.min(), quantiles)).tolist())
        return out


class Counts:
    """How often each value comes; numbers in sorted runs that are merged when they have doubled, texts in a dict."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending = self._merged = 0
        self._texts: dict[str, int] = {}

    def add(self, values: np.ndarray, count: np.ndarray) -> None:
        """More of these values."""
        if values.dtype == object:
            texts = self._texts
            for v, n in zip(values.tolist(), count.tolist(), strict=True):
                texts[v] = texts.get(v, 0) + n
            return
        self._runs.append((values, count))
        self._pending += len(values)
        if self._pending > max(BLOCK, 2 * self._merged):
            self.total()

    def total(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct values, ascending, and their counts."""
        if self._texts:
            order = sorted(self._texts)
            values = np.empty(len(order), object)
            values[:] = order
            return values, np.array([self._texts[v] for v in order])
        if not self._runs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        if len(self._runs) > 1 or not self._merged:
            values = np.concatenate([v for v, _ in self._runs])
            distinct, which = np.unique(values, return_inverse=True)
            counts = np.bincount(which, np.concatenate([c for _, c in self._runs]), len(distinct)).astype(np.int64)
            self._runs, self._pending, self._merged = [(distinct, counts)], len(distinct), len(distinct)
        return self._runs[0]


class Moments:
    """Mean and deviation of numbers that come in parts: sums of whole blocks, put together in their order.

    Chan, Golub and LeVeque (1979), with the first value subtracted from all, so that a constant has no deviation.
    """

    def __init__(self) -> None:
        self.n, self.mean, self._square, self._shift = 0, 0.0, 0.0, 0.0
        self._rest = np.zeros(0)

    def add(self, x: np.ndarray) -> None:
        if not self.n and not len(self._rest) and len(x):
            self._shift = x[0]
        x = np.concatenate([self._rest, x])
        whole = len(x) - len(x) % BLOCK
        for block in x[:whole].reshape(-1, BLOCK):
            self._merge(block)
        self._rest = x[whole:]

    def _merge(self, block: np.ndarray) -> None:
        block = block - self._shift
        mean, n = block.mean(), len(block)
        apart, self.n = mean - self.mean, self.n + n
        self._square += np.square(block - mean).sum() + apart * apart * (self.n - n) * n / self.n
        self.mean += apart * n / self.n

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        if len(self._rest):
            self._merge(self._rest)
            self._rest = np.zeros(0)
        return self._shift + self.mean, np.sqrt(self._square / self.n)


class Sample:
    """Numbers for quantiles: all of them up to SAMPLE, then those whose row number has a hash below a bound.

    The bound halves whenever more would stay, so that between SAMPLE / 2 and SAMPLE numbers remain, chosen without regard
    to their values: the rank of a quantile is then off by 0.0007 (one deviation, at the median) or less.
    """

    def __init__(self) -> None:
        self.n = self._level = 0
        self._hash: list[np.ndarray] = []
        self._kept: list[np.ndarray] = []
        self._size = 0

    def add(self, x: np.ndarray) -> None:
        self._put(mix64(np.arange(self.n, self.n + len(x), dtype=np.uint64)), x)
        self.n += len(x)
        while self._size > SAMPLE:
            self._level += 1
            before, self._hash, self._kept, self._size = list(zip(self._hash, self._kept, strict=True)), [], [], 0
            for pair in before:
                self._put(*pair)

    def _put(self, hashes: np.ndarray, x: np.ndarray) -> None:
        if self._level:
            keep = hashes >> np.uint64(64 - self._level) == 0
            hashes, x = hashes[keep], x[keep]
        self._hash.append(hashes)
        self._kept.append(x)
        self._size += len(x)

    def values(self) -> np.ndarray:
        return np.concatenate(self._kept) if self._kept else np.zeros(0)


def _statistics(feature: Numeric, seen: Moments | Sample) -> dict[str, np.ndarray]:
    if feature.transform is None:
        return {}
    if isinstance(seen, Moments):
        mean, deviation = seen.result() if seen.n or len(seen._rest) else (None, 0.0)
        if mean is not None:
            return {"mean": np.array([mean]), "deviation": np.array([deviation if deviation > 0 else 1.0])}
        x = np.zeros(0)
    else:
        x = seen.values()
    if not len(x):
        raise DataError(f"Column {feature.name!r} has no training rows to learn its transform from.")
    if feature.transform == "quantile":
        level = np.linspace(0, 1, feature.bins + 1)
        grid = np.quantile(x, level)
        last = np.append(grid[1:] > grid[:-1], True)  # of equal quantiles the highest: P(X <= x)
        return {"grid": grid[last], "level": level[last]}
    return {"edges": np.quantile(x, np.arange(1, feature.bins) / feature.bins)}


def label_numbers(log: Log, task: Task) -> np.ndarray:
    """float64 [n] of a task's label, NaN where missing.

    Raises:
        SchemaError: the column is missing.
        DataError: it holds no numbers.
    """
    if not log.has(task.column):
        from recstack.errors import unknown

        raise unknown(f"label column of task {task.name!r}", task.column, log.events.columns, SchemaError)
    raw = log.raw(task.column)
    if raw.offsets is not None or raw.kind in ("text", "time"):
        raise DataError(f"Label {task.column!r} holds {what(raw)} where a number is due.")
    return np.full(len(raw), np.nan) if raw.kind == "null" else raw.flat().astype(np.float64)


# -- what a raw column may hold -----------------------------------------------------------------------------------------
def missing(feature: Feature, log: Log) -> SchemaError:
    """The error for a feature whose column is nowhere."""
    from recstack.errors import unknown

    known = list(log.events.columns)
    if feature.role == "user" and log.users is not None:
        known += log.users.columns
    if feature.role == "item" and log.items is not None:
        known += log.items.columns
    return unknown(f"column for {feature.role} feature", feature.name, known, SchemaError)  # type: ignore[return-value]


def what(raw: Raw) -> str:
    """The contents of a column in words."""
    return ("lists of " if raw.offsets is not None else "") + KINDS[raw.kind]


def id_kind(feature: Feature, raw: Raw) -> str:
    """int, text or null; an error for what has no ids."""
    kind = raw.kind
    if isinstance(feature, Text) and kind in ("text", "null"):
        return "text"
    if kind == "float" and np.isnan(raw.values).all():
        return "null"
    if isinstance(feature, Text) or kind in ("float", "time"):
        due = "text" if isinstance(feature, Text) else "whole numbers or text"
        raise SchemaError(f"Column {feature.name!r} holds {KINDS[kind]} where {due} is due; cast it.")
    return kind


def check_shape(feature: Feature, raw: Raw) -> None:
    """Lists where lists are due, and nowhere else."""
    if isinstance(feature, Categorical) and not feature.multi and raw.offsets is not None:
        raise SchemaError(f"Column {feature.name!r} holds lists; declare Categorical({feature.name!r}, multi=True).")
    if isinstance(feature, Categorical) and feature.multi:
        list_offsets(feature, raw)


def list_offsets(feature: Feature, raw: Raw) -> np.ndarray:
    """Of a column of lists; nulls alone are empty lists, and anything else is an error."""
    if raw.offsets is not None:
        return raw.offsets
    if raw.kind != "null":
        raise SchemaError(f"Column {feature.name!r} holds {KINDS[raw.kind]} where lists are due; split it into lists.")
    return np.zeros(len(raw) + 1, np.int64)


def numbers(feature: Numeric, raw: Raw) -> np.ndarray:
    """float64 [n], filled and finite; NaN where the model learns what is missing."""
    if raw.offsets is not None or raw.kind in ("text", "time"):
        example = f", for example {raw.values[0]!r}" if len(raw.values) else ""
        raise SchemaError(f"Column {feature.name!r} holds {what(raw)}{example}, where a number is due.")
    x = np.full(len(raw), np.nan) if raw.kind == "null" else raw.flat().astype(np.float64, copy=False)
    if np.isfinite(x).all():
        return x
    null = np.isnan(x)
    if null.any():
        if feature.fill is None:
            n = int(null.sum())
            raise SchemaError(
                f'Column "{feature.name}" holds {n} null{"s" * (n > 1)}; give Numeric("{feature.name}", fill=...).'
            )
        x = x if feature.learns_missing else np.where(null, feature.fill, x)
    if np.isinf(x).any():
        raise SchemaError(
            f'Column "{feature.name}" holds {int(np.isinf(x).sum())} infinite values; replace them by null or a number.'
        )
    return x


def log1p(x: np.ndarray) -> np.ndarray:
    """sign(x) · log(1 + |x|)."""
    return np.sign(x) * np.log1p(np.abs(x))


def counted(raw: Raw) -> tuple[np.ndarray, np.ndarray]:
    """Values and how often each comes, nulls left out; of a column with codes a value may come twice."""
    if raw.codes is None:
        if raw.kind == "text":
            return raw.values, np.ones(len(raw.values), np.int64)
        return np.unique(raw.values, return_counts=True)
    count = np.bincount(raw.codes[raw.codes >= 0], minlength=len(raw.values))
    return raw.values[count > 0], count[count > 0]
