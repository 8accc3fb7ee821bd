"""Files to an encoded store, part by part: the data are read twice and never held as a whole."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from recstack.bundle.store import locked
from recstack.data import folder as folders
from recstack.data.columns import Columns
from recstack.data.encoder import Encoder, Part, several_users
from recstack.data.folder import Writer
from recstack.data.frames import as_frame, factorised
from recstack.data.learning import Learning
from recstack.data.log import Log, timeline
from recstack.data.readers import Parts, found, read_frame
from recstack.data.store import Block, Encoded
from recstack.data.vocabulary import OOV, Vocabulary
from recstack.errors import DataError, SchemaError
from recstack.kernels import jagged
from recstack.schema import Categorical, Feature, History, Schema

logger = logging.getLogger("recstack.data")

ROWS = 1 << 16  # rows of a part
A = TypeVar("A")
B = TypeVar("B")


def prepare(
    files: str | Path | Iterable[str | Path],
    schema: Schema,
    *,
    cache: str | Path,
    encoder: Encoder | None = None,
    users: Any = None,
    items: Any = None,
    implicit: bool = False,
    request: str | None = None,
    weight: str | None = None,
    labels: bool = True,
    rows: int = ROWS,
) -> Columns:
    """Encoded columns of files of any size, mapped from a store that is made once.

    The first call reads the files twice, `rows` rows at a time: to learn vocabularies and statistics, and to encode. The
    result equals ``Encoder(schema).fit(log).encode(log)`` of the whole log, bit for bit. A later call with equal
    arguments and files maps the store and returns at once; a file counts as unchanged while its size and time of
    modification are, and is otherwise read to see whether its contents are. Memory holds the vocabularies, a few
    parts, and, if a History has to be built from the events, 21 bytes per event (several times that while they are sorted).

    Args:
        files: a file, a folder, a glob, or several of them: .parquet, .arrow, .feather, .ipc, .csv, .tsv.
        schema: what the columns mean.
        cache: folder of stores; each has a folder of its own there, which may be deleted when it is no longer wanted.
        encoder: a fitted one, for validation and test files; None learns from these files.
        users, items: paths or frames with one row per user or item; held in memory.
        implicit, request, weight: as `Log` takes them. The rows of one request must lie next to each other.
        labels: read the label columns.
        rows: rows of a part; the result does not depend on it.

    Raises:
        DataError: files that are missing, unreadable or differ in their columns; a full disk (then what was stored
            before is as it was); requests that are scattered. Names file and column.
        SchemaError: as `Encoder.fit`.
    """
    given = [files] if isinstance(files, str | Path) else list(files)
    paths = list(dict.fromkeys(f for one in given for f in found(one)))
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    key = digest_of(paths, schema, cache, encoder, users, items, [implicit, request, weight, labels])
    folder = cache / key
    folder.mkdir(exist_ok=True)
    with locked(folder):
        if not (folder / folders.MANIFEST).exists():
            frames = [None if f is None else read_frame(f) if isinstance(f, str | Path) else f for f in (users, items)]
            options = {"implicit": implicit, "request": request, "weight": weight}
            encode_files(
                paths,
                schema,
                folder,
                encoder=encoder,
                users=frames[0],
                items=frames[1],
                labels=labels,
                rows=rows,
                **options,
            )
        else:
            logger.info("%s is encoded already: %s", ", ".join(map(str, given)), folder)
        return Columns.load(folder, encoder or Encoder.load(folder / "encoder"))


def digest_of(
    files: Iterable[Path],
    schema: Schema,
    memory: Path,
    encoder: Encoder | None = None,
    users: Any = None,
    items: Any = None,
    options: Any = None,
) -> str:
    """32 hexadecimal digits of all that a store depends on: schema or encoder, contents of the files, options.

    Args:
        memory: folder that remembers the digests of files by path, size and time of modification.
    """
    known = _Digests(memory)
    frames = []
    for frame in (users, items):
        if frame is None or not isinstance(frame, str | Path):
            frames.append(None if frame is None else _digest_of_frame(as_frame(frame)))
        else:
            frames.append([known.of(f) for f in found(frame)])
    content = {
        "format": folders.FORMAT,
        "schema": schema.to_dict() if encoder is None else None,
        "encoder": None if encoder is None else encoder.fingerprint,
        "files": [known.of(f) for f in files],
        "frames": frames,
        "options": options,
    }
    known.save()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class _Digests:
    def __init__(self, memory: Path) -> None:
        self.path, self.changed = memory / "digests.json", False
        try:
            self.known = dict(json.loads(self.path.read_text("utf8")))
        except (OSError, ValueError):
            self.known = {}

    def of(self, file: Path) -> str:
        try:
            status, name = file.stat(), str(file.resolve())
            seen = [status.st_size, status.st_mtime_ns]
            if self.known.get(name, [])[:2] != seen:
                self.known[name] = [*seen, _contents(file)]
                self.changed = True
        except OSError as error:
            raise DataError(f"{str(file)!r} cannot be read: {error.strerror or error}.") from error
        return self.known[name][2]

    def save(self) -> None:
        if self.changed:
            with (
                folders.named(self.path),
                tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as stream,
            ):
                json.dump(self.known, stream)
                stream.flush()
                os.replace(stream.name, self.path)


def _contents(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_of_frame(frame: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for batch in frame.to_arrow().to_batches():
        digest.update(batch.serialize())
    return f"{frame.schema} {digest.hexdigest()}"


def encode_files(
    files: Iterable[Path],
    schema: Schema,
    folder: Path,
    *,
    encoder: Encoder | None = None,
    users: Any = None,
    items: Any = None,
    implicit: bool = False,
    request: str | None = None,
    weight: str | None = None,
    labels: bool = True,
    rows: int = ROWS,
) -> Encoder:
    """`prepare` without the cache: the store in `folder`, its encoder in `folder`/encoder. Returns the encoder."""
    for killed in folder.glob(".text.*"):
        shutil.rmtree(killed, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".text.", dir=folder))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        parts = Parts(list(files), draft)
        schema = schema if encoder is None else encoder.schema
        columns = _columns(parts, schema, [request, weight], labels)
        empty = pl.DataFrame(schema={c: parts.schemas[parts.files[0]][c] for c in columns})
        log = Log(empty, schema, users=users, items=items, implicit=implicit, request=request, weight=weight)
        with ThreadPoolExecutor(threads, "recstack-encode") as pool, Writer(folder) as writer:
            learning = None
            if encoder is None:
                encoder, learning = Encoder(schema), Learning(schema)
                for file, start, frame in _early(parts.read(columns, rows)):
                    with _at(file, start, frame.height):
                        learning.add(log._with(frame), pool)
                if not learning.rows:
                    raise DataError(f"{str(parts.files[0])!r} has no rows.")
                encoder.learn(learning)
            store = _Store(encoder, log, writer, learning, labels)

            def encode(part: tuple[Path, int, pl.DataFrame]) -> tuple[Path, int, _Encoded]:
                file, start, frame = part
                with _at(file, start, frame.height):
                    return file, start, store.encode(frame)

            for file, start, one in _ahead(pool, encode, store.requests(parts.read(columns, rows)), threads + 1):
                with _at(file, start, len(one.log)):
                    store.append(one)
            content = store.close()
            encoder.save(folder / "encoder")
            writer.finish(content)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return encoder


class _Store:
    """A store that is being written, part by part."""

    def __init__(self, encoder: Encoder, log: Log, writer: Writer, learning: Learning | None, labels: bool) -> None:
        self.encoder, self.log, self.writer, self.learning, self.labels = encoder, log, writer, learning, labels
        schema = self.schema = encoder.schema
        self.rows, self.user = 0, -1  # rows written, and the user of the last one
        self.specs: dict[str, dict[str, Any]] = {}
        self.totals: dict[str, int] = {}
        self.starts: list[np.ndarray] = []
        self.given = [h for h in schema.histories if log.has(h.name)]
        self.built = [h for h in schema.histories if not log.has(h.name)]
        if self.built:
            log.with_histories()  # says what is missing for it
        self.people: dict[Any, int] = {}
        self.events: list[tuple[np.ndarray, ...]] = []
        self.entered: dict[str, list[np.ndarray]] = {h.name: [] for h in self.built}
        size = 0 if schema.item is None else encoder._table(schema.feature(schema.item)).size
        self.last, self.latest = np.full(size, -1, np.int64), np.full(size, np.iinfo(np.int64).min)

    # -- requests ---------------------------------------------------------------------------------------------------------
    def requests(self, parts: Iterator[tuple[Path, int, pl.DataFrame]]) -> Iterator[tuple[Path, int, pl.DataFrame]]:
        """The parts, with a column that says where a request begins."""
        name, before = self.log.request, None
        for file, start, frame in parts:
            if name is not None:
                column = frame[name]
                if column.null_count():
                    with _at(file, start, frame.height):
                        raise DataError(f"Request column {name!r} holds {column.null_count()} nulls; drop those rows.")
                new = (column != column.shift(1)).fill_null(True).to_numpy(writable=True)
                new[0] = before is None or before != column[0]
                before = column[-1]
                self.starts.append(column.filter(pl.Series(new)).hash(0).to_numpy())
                frame = frame.with_columns(pl.Series("@new", new))
            yield file, start, frame

    # -- in threads -------------------------------------------------------------------------------------------------------
    def encode(self, frame: pl.DataFrame) -> _Encoded:
        """A part by itself."""
        log, encoder = self.log._with(frame), self.encoder
        order = np.arange(len(log))
        heads = order if log.request is None else np.flatnonzero(frame["@new"].to_numpy())
        part = encoder.part(log, heads, order, labels=self.labels)
        given = []
        for h in self.given:
            at = encoder._pointers(log, h, heads)
            given.append(jagged.gather(at.items, at.begin, at.end))
        users = None
        if self.schema.user is not None and (self.built or log.request is not None):
            users = encoder._ids(self.schema.feature(self.schema.user), log.raw(self.schema.user))
        return _Encoded(log, heads, part, given, users)

    # -- in order -----------------------------------------------------------------------------------------------------------
    def append(self, one: _Encoded) -> None:
        """The next part."""
        part, times = one.part, None
        for name, block in (("user", part.user), ("item", part.item), ("labels", part.labels)):
            self._append_block(name, block)
        whole = {"user_rows": part.user_rows, "item_rows": part.item_rows, "times": part.times, "weights": part.weights}
        for name, array in whole.items():
            if array is not None:
                self.writer.append(name, array)
        for h, (values, offsets) in zip(self.given, one.given, strict=True):
            name = f"history{self.schema.histories.index(h)}"
            total = self._total(name, len(values))
            self.writer.append(f"{name}.items", values)
            self.writer.append(f"{name}.begin", offsets[:-1] + total)
            self.writer.append(f"{name}.end", offsets[1:] + total)
        if self.log.request is not None:
            self._check_users(one)
            self.writer.append("lists", one.heads + self.rows)
        if self.schema.item is not None:
            items = part.item.column(self.schema.item)
            times = one.log.times if one.log.has(self.schema.time) else None
            if self.learning is not None:
                self._remember(items, times)
            if self.built:
                self.events.append((self._people(one), one.log.times, np.array(items)))
                for h in self.built:
                    self.entered[h.name].append(one.log.enters(h))
        self.rows += len(one.log)

    def _append_block(self, prefix: str, block: Block) -> None:
        self.specs.setdefault(prefix, block.spec() | {"rows": 0})["rows"] += block.rows
        self.writer.append(f"{prefix}.i32", block.ids)
        self.writer.append(f"{prefix}.f32", block.floats)
        for j, (values, offsets) in enumerate(block.lists.values()):
            name = f"{prefix}.list{j}"
            first = name not in self.totals
            total = self._total(name, len(values))
            self.writer.append(name, values)
            self.writer.append(f"{name}.offsets", (offsets if first else offsets[1:]) + total)

    def _total(self, name: str, more: int) -> int:
        before = self.totals.get(name, 0)
        self.totals[name] = before + more
        return before

    def _check_users(self, one: _Encoded) -> None:
        if one.users is None:
            return
        first = int(one.heads[0]) if len(one.heads) else len(one.log)  # rows before it go on with the last request
        of_request = np.concatenate(
            [np.full(first, self.user, np.int32), np.repeat(one.users[one.heads], np.diff([*one.heads, len(one.log)]))]
        )
        if wrong := int((of_request != one.users).sum()):
            raise several_users(wrong, self.schema.user or "", self.log.request)
        self.user = int(of_request[-1])

    def _remember(self, items: np.ndarray, times: np.ndarray | None) -> None:
        """The last event of each item: of the latest time, and of equal times the last row."""
        order = np.arange(len(items)) if times is None else np.argsort(times, kind="stable")
        last = np.full(len(self.last), -1, np.int64) if len(self.last) < len(items) else None
        if last is not None:
            last[items[order]] = order
            ids = np.flatnonzero(last >= 0)
            row = last[ids]
        else:
            ids, at = np.unique(items[order][::-1], return_index=True)
            row = order[::-1][at]
        if times is not None:
            later = times[row] >= self.latest[ids]
            ids, row = ids[later], row[later]
            self.latest[ids] = times[row]
        self.last[ids] = row + self.rows

    def _people(self, one: _Encoded) -> np.ndarray:
        """int64: a number for each event's user, -1 for none: its id, or one past all ids where the vocabulary lacks it."""
        assert one.users is not None
        assert self.schema.user is not None
        feature = self.schema.feature(self.schema.user)
        hashed = not isinstance(self.encoder._table(feature), Vocabulary)
        out = one.users.astype(np.int64)
        unknown = np.arange(len(out)) if hashed else np.flatnonzero(out == OOV)
        if len(unknown):
            raw = factorised(one.log.events[self.schema.user].gather(unknown))
            assert raw.codes is not None
            base, people = feature.size or 0, self.people  # type: ignore[attr-defined]
            codes = [base + people.setdefault(v, len(people)) for v in raw.values.tolist()]
            out[unknown] = np.array([*codes, -1], np.int64)[raw.codes]
        return out

    # -- at the end -----------------------------------------------------------------------------------------------------------
    def close(self) -> dict[str, Any]:
        """Everything that is known only now; returns the manifest."""
        encoder, writer, schema = self.encoder, self.writer, self.schema
        if not self.rows:
            raise DataError("The files have no rows to encode.")
        heads: Any = slice(None)
        if self.log.request is not None:
            writer.append("lists", np.array([self.rows]))
            begun = np.concatenate(self.starts)
            if len(np.unique(begun)) < len(begun):
                raise DataError(
                    f"The rows of some requests of column {self.log.request!r} lie apart; sort the files by it, so that "
                    "each request's rows follow each other."
                )
            heads = np.asarray(writer.mapped("lists"))[:-1]
        if self.built:
            self._build_histories(heads)
        for name, block in encoder.stores(self.log).items():
            self._append_block(name, block)
        if schema.item is not None and self.learning is not None:
            names = [n for n in writer.names if n.startswith("item.")]
            block = Block.restore(self.specs["item"], {n: writer.mapped(n) for n in names}, "item")

            def encoded(f: Feature, rows: np.ndarray) -> Encoded:
                if f.name in block.lists:
                    values, offsets = block.lists[f.name]
                    return jagged.gather(values, offsets[:-1][rows], offsets[1:][rows])
                return block.column(f.name)[rows]

            table = schema.feature(schema.item).table_name  # type: ignore[attr-defined]
            encoder.set_catalog(self.log, self.last, self.learning.counts[table].total()[0], encoded)
        if encoder.catalog is not None:
            self._append_block("catalog", encoder.catalog.block)
            writer.append("catalog.ids", encoder.catalog.ids)
        return {
            "schema": schema.to_dict(),
            "implicit": self.log.implicit,
            "blocks": self.specs,
            "histories": [h.name for h in schema.histories],
        }

    def _build_histories(self, heads: Any) -> None:
        users, times, items = (np.concatenate(c) for c in zip(*self.events, strict=True))
        for h in self.built:
            enters = np.concatenate(self.entered[h.name])
            order, _, begin, end = timeline(users, int(users.max(initial=-1)) + 1, times, enters, h.max_len)
            name = f"history{self.schema.histories.index(h)}"
            found = {"items": items[order], "times": times[order], "begin": begin[heads], "end": end[heads]}
            for k, array in found.items():
                self.writer.append(f"{name}.{k}", array)


@dataclass
class _Encoded:
    log: Log
    heads: np.ndarray
    part: Part
    given: list[tuple[np.ndarray, np.ndarray]]
    users: np.ndarray | None


# -- the parts of files -------------------------------------------------------------------------------------------------
def _columns(parts: Parts, schema: Schema, more: Iterable[str | None], labels: bool) -> list[str]:
    """What is read of the files: what the schema names. Every file must have it, holding the same kind of values."""
    tasks = {t.name: t.column for t in schema.tasks}
    wanted = [f.name for f in schema.features] + [schema.user, schema.item, schema.time, *more]
    wanted += [tasks.get(h.where, h.where) for h in schema.histories if h.where is not None]
    wanted += [t.column for t in schema.tasks if labels and not t.derived]
    ids = {f.name for f in schema.features if isinstance(f, Categorical | History)}
    columns: dict[str, tuple[Path, str]] = {}
    for file, types in parts.schemas.items():
        for name in dict.fromkeys(n for n in wanted if n is not None and n in types):
            kind = _kind(types[name], name in ids)
            first, due = columns.setdefault(name, (file, kind))
            if due == "null" != kind:
                columns[name] = file, kind
            elif kind not in (due, "null"):
                raise DataError(
                    f"Column {name!r} holds {types[name]} in {str(file)!r} and {parts.schemas[first][name]} in "
                    f"{str(first)!r}; cast one of them."
                )
    for file, types in parts.schemas.items():
        for name, (first, _) in columns.items():
            if name not in types:
                raise DataError(
                    f"{str(file)!r} lacks column {name!r}, which {str(first)!r} has; they must have the same."
                )
    return list(columns)


def _kind(dtype: Any, ids: bool) -> str:
    """What of a type must be the same in all files: whole numbers may turn fractional where numbers are due."""
    if isinstance(dtype, pl.List | pl.Array):
        return f"lists of {_kind(dtype.inner, ids)}"
    if dtype.is_integer() or dtype == pl.Boolean:
        return "int" if ids else "number"
    if dtype.is_float() or dtype.is_decimal():
        return "float" if ids else "number"
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "text"
    return "null" if dtype == pl.Null else str(dtype)


@contextmanager
def _at(file: Path, start: int, rows: int) -> Iterator[None]:
    """Says in which rows of which file something is wrong."""
    try:
        yield
    except (SchemaError, DataError) as error:
        raise type(error)(f"{str(file)!r}, rows {start:,} to {start + rows:,}: {error}") from error


def _early(parts: Iterator[A]) -> Iterator[A]:
    """The same, each read while the one before it is worked on."""
    with ThreadPoolExecutor(1, "recstack-read") as one:
        coming = one.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = one.submit(next, parts, None)
            yield part


def _ahead(pool: ThreadPoolExecutor, work: Callable[[A], B], parts: Iterable[A], depth: int) -> Iterator[B]:
    """`map(work, parts)` by threads, at most `depth` parts at once, in order."""
    coming: deque[Future[B]] = deque()
    try:
        for part in parts:
            coming.append(pool.submit(work, part))
            if len(coming) >= depth:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()
