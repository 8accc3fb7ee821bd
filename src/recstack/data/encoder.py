"""Raw rows to ids and floats: learned on training rows, the same for a table, one row, or a live request. numpy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from recstack import bundle
from recstack.data.columns import Columns, HistoryPointers, history_batch
from recstack.data.implications import warn_of_implications
from recstack.data.learning import (
    Learning,
    check_shape,
    id_kind,
    label_numbers,
    list_offsets,
    log1p,
    missing,
    numbers,
    what,
)
from recstack.data.raw import KINDS, Raw
from recstack.data.store import Block, Encoded, ItemStore
from recstack.data.vocabulary import FIRST, OOV, Hashed, Vocabulary, pack_text, tokens, unpack_text
from recstack.errors import BundleError, DataError, SchemaError
from recstack.kernels import jagged
from recstack.schema import (
    REQUEST_ROLES,
    Categorical,
    Feature,
    History,
    Numeric,
    Schema,
    Text,
    Vector,
    is_embedded,
    is_multi,
)

if TYPE_CHECKING:  # the log brings polars, which serving must not import
    from recstack.data.log import Log


@dataclass
class Part:
    """Encoded rows: a request's side per head, a candidate's side and labels per row."""

    user: Block
    item: Block
    user_rows: np.ndarray | None
    item_rows: np.ndarray | None
    times: np.ndarray | None
    labels: Block
    weights: np.ndarray | None


LARGEST_CATALOG = 1 << 27  # ids of an item key; its catalog is a table with a row for each


class Encoder:
    """Learns vocabularies and statistics from training rows, and turns raw rows into columns and batches.

    A Categorical's ids: 0 padding, 1 unknown or null, then the vocabulary in ascending order; values seen fewer than
    `min_count` times are unknown. Features that share a table learn the union of their values. An attribute that lives
    in the users or items frame is counted once for each user or item that the training rows mention. A Numeric's nulls
    become its `fill`.

    >>> from recstack.data import Log
    >>> from recstack.schema import Categorical, Schema
    >>> schema = Schema([Categorical("user", "user"), Categorical("item", "item", min_count=2)])
    >>> encoder = Encoder(schema).fit(Log({"user": ["bo", "al", "al"], "item": [7, 7, 8]}, schema))
    >>> encoder.encode_values("user", ["al", "bo", None, "cy"]), encoder.encode_values("item", [7, 8])
    (array([2, 3, 1, 1], dtype=int32), array([2, 1], dtype=int32))
    >>> encoder.schema.feature("user").size
    4
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.catalog: ItemStore | None = None
        self._tables: dict[str, Vocabulary | Hashed] = {}
        self._numbers: dict[str, dict[str, np.ndarray]] = {}
        self._item_values: np.ndarray | None = None  # raw values of catalog.ids

    # -- learning -----------------------------------------------------------------------------------------------------
    def fit(self, log: Log) -> Encoder:
        """Learn from these rows only. Returns itself; `.schema` then knows every table's size.

        Raises:
            DataError: the log has no rows.
            SchemaError: a column is missing, or holds what its feature does not take.
        """
        if not len(log):
            raise DataError(f"{log!r} has no rows to learn from.")
        learning = Learning(self.schema)
        learning.add(log)
        self.learn(learning)
        self._fit_catalog(log, learning)
        return self

    def learn(self, learning: Learning) -> None:
        """Take over vocabularies and statistics; the catalog is another matter."""
        learning.finish()
        self.__dict__.pop("fingerprint", None)
        self._tables, self._numbers = learning.tables(), learning.statistics()
        bins = learning.bins()
        self.schema = self.schema.replace(
            tasks=[replace(t, bins=bins[t.name]) if t.name in bins else t for t in self.schema.tasks]
        )
        self._size()

    def _size(self) -> None:
        """The schema with the sizes of the tables."""
        sizes = {name: table.size for name, table in self._tables.items()}
        for f in self.schema.features:
            if is_embedded(f):
                sizes.setdefault(f.table_name, f.bins + FIRST if isinstance(f, Numeric) else 0)
        features = [replace(f, size=sizes[f.table_name]) if is_embedded(f) else f for f in self.schema.features]  # type: ignore[type-var]
        self.schema = self.schema.replace(features=features, encoder=self)
        key = self.schema.item
        if key is not None and self._table(self.schema.feature(key)).size > LARGEST_CATALOG:
            raise SchemaError(
                f"Item key {key!r} has {self._table(self.schema.feature(key)).size:,} ids, and the catalog keeps a row of "
                f"features for each; give buckets= of at most {LARGEST_CATALOG:,}, or none to learn a vocabulary."
            )

    def _fit_catalog(self, log: Log, learning: Learning, old: Encoder | None = None) -> None:
        key = self.schema.item
        if key is None:
            return
        feature = self.schema.feature(key)
        order = np.arange(len(log)) if not log.has(self.schema.time) else np.argsort(log.times, kind="stable")
        last = np.full(self._table(feature).size, -1, np.int64)
        last[self._ids(feature, log.raw(key))[order]] = order
        values, _ = learning.counts[feature.table_name].total()  # type: ignore[attr-defined]
        self.set_catalog(log, last, values, lambda f, rows: self._column(f, log.raw(f.name).take(rows)), old)

    def set_catalog(
        self,
        log: Log,
        last: np.ndarray,
        values: np.ndarray,
        encoded: Callable[[Feature, np.ndarray], Encoded],
        old: Encoder | None = None,
    ) -> None:
        """Item features by item id: from the items frame, or as they were in the item's last training event.

        Args:
            log: its items frame is read.
            last: int64 [size]: the last event of each item id, -1 for none.
            values: raw values of a hashed item key; a learned vocabulary knows its own.
            encoded: a feature's encoded values in these events.
            old: the encoder that this one grew from, whose catalog tells of items that the events do not.
        """
        key = self.schema.item
        assert key is not None
        feature = self.schema.feature(key)
        table = self._table(feature)
        framed = np.full(table.size, -1, np.int64)
        if log.items is not None:
            ids = self._ids(feature, log.raw(key, "items"))
            framed[ids[::-1]] = np.arange(len(ids))[::-1]  # of two items in one bucket, the first row
        before = None if old is None else old.catalog
        if isinstance(table, Vocabulary):
            live, self._item_values = np.arange(FIRST, table.size), None
        else:
            if old is not None and old._item_values is not None:
                values = np.concatenate([old._item_values, values])  # of two items in one bucket, the old one stays
            live, first = np.unique(table.ids(values), return_index=True)
            self._item_values = values[first]

        def encode(f: Feature) -> Encoded:
            if f.name == key:
                out = np.zeros(table.size, np.int32)
                out[live], out[OOV] = live, OOV
                return out
            in_frame = log.items is not None and f.name in log.items.columns
            rows = (framed if in_frame else last)[live]
            at, rows = live[rows >= 0], rows[rows >= 0]
            if in_frame:
                new = self._column(f, log.raw(f.name, "items").take(rows))
            elif log.has(f.name):
                new = encoded(f, rows)
            else:  # only a grown encoder goes on without the column
                at, new = at[:0], self._column(f, Raw(np.zeros(0, np.int64)))
            return self._scattered(f, new, at, table.size, before)

        self.catalog = ItemStore(Block.build(table.size, self.schema.by_role("item"), encode), live.astype(np.int64))

    def _scattered(
        self, feature: Feature, encoded: Encoded, rows: np.ndarray, size: int, before: ItemStore | None = None
    ) -> Encoded:
        """An encoded column in these rows of a store; nothing in row 0; the others as they were `before`, or "unknown"."""
        if isinstance(encoded, tuple):
            values, offsets = encoded
            begin, end = np.zeros(size, np.int64), np.zeros(size, np.int64)
            if before is not None:
                old, bounds = before.block.lists[feature.name]
                begin[: before.size], end[: before.size] = bounds[:-1] + len(values), bounds[1:] + len(values)
                values = np.concatenate([values, old])
            begin[rows], end[rows] = offsets[:-1], offsets[1:]
            return jagged.gather(values, begin, end)
        out = np.empty((size, *encoded.shape[1:]), encoded.dtype)
        out[:] = self._unknown(feature)
        if before is not None:
            out[: before.size] = before.block.column(feature.name)
        out[0] = 0
        out[rows] = encoded
        return out

    def grown(self, log: Log) -> Encoder:
        """An encoder that also knows what is new in these rows, for training that goes on with them.

        Old values keep their ids; values that are new and come `min_count` times in these rows follow them, ascending.
        Statistics of numbers stay as they were, since the trained weights rest on them. The catalog holds old and new
        items, each as these rows (or their items frame) show it last.

        Raises:
            DataError: the log has no rows.
            SchemaError: a column is missing, or holds another kind of values than before.
        """
        self._require_fit()
        if not len(log):
            raise DataError(f"{log!r} has no rows to learn from.")
        learning = Learning(self.schema)
        learning.add(log)
        learning.finish()
        encoder = Encoder(self.schema)
        encoder._numbers = self._numbers
        for name, new in learning.tables().items():
            old = self._tables[name]
            if "null" not in (old.kind, new.kind) and old.kind != new.kind:
                raise SchemaError(
                    f"Table {name!r} holds {KINDS[old.kind]}, and the new rows hold {KINDS[new.kind]}; cast them."
                )
            if isinstance(old, Vocabulary) and isinstance(new, Vocabulary):
                encoder._tables[name] = old.grown(new.values) if new.kind != "null" else old
            else:
                encoder._tables[name] = new if old.kind == "null" else old
        encoder._size()
        encoder._fit_catalog(log, learning, self)
        return encoder

    def _unknown(self, feature: Feature) -> Any:
        """What an entity of which nothing is known has: OOV, the fill, or zeros."""
        if isinstance(feature, Numeric) and feature.fill is not None:
            return self._column(feature, Raw(np.array([np.nan])))[0]
        return OOV if is_embedded(feature) else 0.0

    # -- encoding -----------------------------------------------------------------------------------------------------
    def encode(self, log: Log, *, labels: bool = True) -> Columns:
        """All of a log, as columns.

        Args:
            labels: read the tasks' label columns; False for rows that are only scored.

        Raises:
            SchemaError: a column is missing or holds what its feature does not take.
            DataError: labels that are not what their task says, users that differ within one request.
        """
        self._require_fit()
        log = log.with_histories()
        rows = np.arange(len(log))
        if log.request is None:
            order, heads, lists = rows, rows, None
        else:
            group = log.request_codes()
            order = np.argsort(group, kind="stable")
            lists = np.concatenate([[0], np.cumsum(np.bincount(group))]) if len(group) else np.zeros(1, np.int64)
            heads = order[lists[:-1]]
        part = self.part(log, heads, order, labels=labels)
        stores = self.stores(log)
        columns = Columns(
            schema=self.schema,
            user=part.user,
            item=part.item,
            users=stores.get("users"),
            items=stores.get("items"),
            user_rows=part.user_rows,
            item_rows=part.item_rows,
            lists=lists,
            histories={h.name: self._pointers(log, h, heads) for h in self.schema.histories},
            times=part.times,
            label_block=part.labels,
            weights=part.weights,
            implicit=log.implicit,
            catalog=self.catalog,
        )
        if lists is not None and self.schema.user is not None:
            user = self._ids(self.schema.feature(self.schema.user), log.raw(self.schema.user))[order]
            wrong = int((user != np.repeat(user[lists[:-1]], np.diff(lists))).sum())
            if wrong:
                raise several_users(wrong, self.schema.user, log.request)
        return columns

    def part(self, log: Log, heads: np.ndarray, order: np.ndarray, *, labels: bool = True) -> Part:
        """What columns hold of some rows by themselves: all but histories and the users and items frames.

        Args:
            heads: the row that speaks for each request.
            order: the rows in the order of requests.
        """
        pointers: dict[str, np.ndarray] = {}
        blocks: dict[str, Block] = {}
        for side, at in (("users", heads), ("items", order)):
            features = self._features(side)
            places = {f.name: log.place(f.name) for f in features}
            for f in features:
                if places[f.name] is None:
                    raise missing(f, log)
            own = [f for f in features if places[f.name] == "events"]
            whole = len(at) == len(log) and bool((at == np.arange(len(at))).all())
            blocks[side] = Block.build(
                len(at), own, lambda f, at=at, whole=whole: self._column(f, _part(log.raw(f.name), at, whole))
            )
            if len(own) == len(features):
                continue
            pointers[side] = log.rows_of(side)[at] + 1
            absent = int((pointers[side] == 0).sum())
            for f in (f for f in features if places[f.name] == side):
                if absent and (isinstance(f, Vector) or (isinstance(f, Numeric) and f.fill is None)):
                    remedy = "drop those rows" if isinstance(f, Vector) else f'give Numeric("{f.name}", fill=...)'
                    raise SchemaError(
                        f"{absent} rows name a {side[:-1]} that the {side} frame lacks, so column {f.name!r} is null "
                        f"there; add it, or {remedy}."
                    )
        return Part(
            user=blocks["users"],
            item=blocks["items"],
            user_rows=pointers.get("users"),
            item_rows=pointers.get("items"),
            times=log.times[heads] if log.has(self.schema.time) else None,
            labels=_labels(self.schema, log, order) if labels else Block.build(len(order), [], lambda f: None),
            weights=None if log.weight is None else _weights(log, order),
        )

    def stores(self, log: Log) -> dict[str, Block]:
        """The attributes that live in the users and items frames, row 0 being the unknown user or item."""
        out: dict[str, Block] = {}
        for side in ("users", "items"):
            framed = [f for f in self._features(side) if log.place(f.name) == side]
            if framed:
                at = np.arange(1, log.frame(side).height + 1)
                out[side] = Block.build(
                    len(at) + 1,
                    framed,
                    lambda f, s=side, at=at: self._scattered(f, self._column(f, log.raw(f.name, s)), at, len(at) + 1),
                )
        return out

    def _features(self, side: str) -> list[Feature]:
        roles = REQUEST_ROLES if side == "users" else ("item", "pair")
        return [f for f in self.schema.by_role(*roles) if not isinstance(f, History)]

    def _pointers(self, log: Log, history: History, heads: np.ndarray) -> HistoryPointers:
        key = self.schema.feature(history.of[0])
        if log.has(history.name):
            raw = log.raw(history.name)
            offsets = list_offsets(history, raw)
            begin, end = offsets[:-1][heads], offsets[1:][heads]
            return HistoryPointers(self._ids(key, raw), None, np.maximum(begin, end - history.max_len), end)
        line = log.timelines[history.name]
        items = line.encoded(self.fingerprint, lambda raw: self._ids(key, raw))
        begin = log.raw(f"{history.name}@begin").values[heads]
        return HistoryPointers(items, line.times, begin, log.raw(f"{history.name}@end").values[heads])

    def requests(self, rows: Sequence[Mapping[str, Any]], *, padded: bool = True) -> dict[str, Tensor]:
        """A batch's user side [R] from raw rows, {column: value}; histories are lists of raw item ids, oldest first.

        Args:
            padded: histories and multi-valued features as [R, T]; otherwise flat values and offsets.

        Raises:
            SchemaError: a column that is missing from a row, or holds what its feature does not take.
        """
        self._require_fit()
        features = self.schema.by_role(*REQUEST_ROLES)
        block = Block.build(len(rows), features, lambda f: self._column(f, _of_rows(rows, f)))
        batch = block.take(slice(None), padded=padded)
        for history in self.schema.histories:
            raw = _of_rows(rows, history)
            bounds = list_offsets(history, raw)
            ids = self._ids(self.schema.feature(history.of[0]), raw)
            flat, offsets = jagged.gather(ids, np.maximum(bounds[:-1], bounds[1:] - history.max_len), bounds[1:])
            batch |= history_batch(history, flat, offsets, self.catalog, padded=padded)
        return batch

    def items(self, rows: Sequence[Mapping[str, Any]], *, roles: tuple[str, ...] = ("item",)) -> dict[str, Tensor]:
        """Item tensors [N] from raw rows, multi-valued features padded [N, K]; `roles` may add "pair".

        Raises:
            SchemaError: as `requests`.
        """
        self._require_fit()
        features = self.schema.by_role(*roles)
        block = Block.build(len(rows), features, lambda f: self._column(f, _of_rows(rows, f)))
        return block.take(slice(None), padded=True)

    def encode_values(self, name: str, values: Iterable[Any]) -> np.ndarray:
        """int32 ids of raw values of a Categorical; unknown and null are 1.

        Raises:
            SchemaError: the feature is not embedded, or the values are of another kind (text for whole numbers).
        """
        self._require_fit()
        feature = self.schema.feature(name)
        if not isinstance(feature, Categorical):
            raise SchemaError(f"Feature {name!r} is a {type(feature).__name__}; only a Categorical has ids of values.")
        return self._ids(feature, values if isinstance(values, Raw) else Raw.of(values, name))

    def decode(self, name: str, ids: Any) -> np.ndarray:
        """Raw values of ids; None for padding and unknown (the array is then of objects).

        Raises:
            SchemaError: the feature's values are hashed (except the item key's, which the catalog remembers).
            DataError: an id past the vocabulary.
        """
        self._require_fit()
        feature, ids = self.schema.feature(name), np.asarray(ids)
        table = self._tables.get(getattr(feature, "table_name", ""))
        if table is None or isinstance(feature, Text):
            raise SchemaError(f"Feature {name!r} is a {type(feature).__name__}; only a Categorical's ids have values.")
        if ids.size and (ids.min() < 0 or ids.max() >= table.size):
            raise DataError(f"Id {ids.max()} is past the vocabulary of {name!r}, which has {table.size} ids.")
        if isinstance(table, Vocabulary):
            known, values, at = ids >= FIRST, table.values, ids - FIRST
        elif name == self.schema.item and self.catalog is not None and self._item_values is not None:
            values = self._item_values
            at = np.minimum(np.searchsorted(self.catalog.ids, ids), len(values) - 1)
            known = self.catalog.ids[at] == ids
        else:
            raise SchemaError(f"Feature {name!r} is hashed into buckets, so its ids have no values to go back to.")
        if known.all():
            return values[at]
        out = np.full(ids.shape, None, object)
        out[known] = values[at[known]]
        return out

    def kind(self, name: str) -> str:
        """What the raw values of a Categorical are: "int", "text", or "null" where training showed none."""
        self._require_fit()
        return self._table(self.schema.feature(name)).kind

    def column(self, name: str, values: Raw | Iterable[Any]) -> Encoded:
        """One encoded column of any feature but a History: int32 [n] ids, float32 [n] or [n, size], or values and offsets."""
        self._require_fit()
        feature = self.schema.feature(name)
        return self._column(feature, values if isinstance(values, Raw) else Raw.of(values, name))

    def unknown_rows(self, features: Iterable[Feature], rows: int) -> Block:
        """Rows of which nothing is known: OOV ids, fills or zeros, empty lists."""

        def encode(f: Feature) -> Encoded:
            if is_multi(f):
                return np.zeros(0, np.int32), np.zeros(rows + 1, np.int64)
            return np.full((rows, f.size) if isinstance(f, Vector) else rows, self._unknown(f))

        return Block.build(rows, features, encode)

    # -- one column ---------------------------------------------------------------------------------------------------
    def _table(self, feature: Feature) -> Vocabulary | Hashed:
        return self._tables[feature.table_name]  # type: ignore[attr-defined]

    def _column(self, feature: Feature, raw: Raw) -> Encoded:
        if isinstance(feature, Numeric):
            return _transformed(feature, numbers(feature, raw), self._numbers[feature.name])
        if isinstance(feature, Vector):
            return _vectors(feature, raw)
        if isinstance(feature, Text):
            return self._words(feature, raw)
        assert isinstance(feature, Categorical)
        check_shape(feature, raw)
        if not feature.multi:
            return self._ids(feature, raw)
        ids, offsets = self._ids(feature, raw), list_offsets(feature, raw)
        if feature.max_len is not None:
            ids, offsets = jagged.gather(ids, offsets[:-1], np.minimum(offsets[1:], offsets[:-1] + feature.max_len))
        return ids, offsets

    def _ids(self, feature: Feature, raw: Raw) -> np.ndarray:
        """int32 of the flat values: distinct values are looked up once where the column says which they are."""
        table, kind = self._table(feature), id_kind(feature, raw)
        if kind == "null":
            return np.full(raw.flat_size, OOV, np.int32)  # of a null in place of a list nothing is read
        if table.kind not in (kind, "null"):  # a column of nulls alone has taught nothing, its kind neither
            raise SchemaError(
                f"Column {feature.name!r} holds {KINDS[kind]}, for example {raw.values[0]!r}, and held {KINDS[table.kind]} "
                "in the training rows; cast it."
            )
        ids = table.ids(raw.values)
        return ids if raw.codes is None else np.append(ids, np.int32(OOV))[raw.codes]  # code -1 is the appended one

    def _words(self, feature: Text, raw: Raw) -> Encoded:
        if raw.offsets is not None or raw.kind not in ("text", "null"):
            raise SchemaError(f"Column {feature.name!r} holds {what(raw)} where text is due.")
        words = [tokens(v)[: feature.max_len] for v in raw.values]
        offsets = np.zeros(len(words) + 1, np.int64)
        np.cumsum([len(w) for w in words], out=offsets[1:])
        flat = np.empty(offsets[-1], object)
        flat[:] = [w for line in words for w in line]
        values = self._table(feature).ids(flat)
        if raw.codes is None:
            return values, offsets
        begin, end = np.append(offsets[:-1], 0)[raw.codes], np.append(offsets[1:], 0)[raw.codes]
        return jagged.gather(values, begin, end)

    # -- saving -------------------------------------------------------------------------------------------------------
    def to_piece(self) -> bundle.Piece:
        """Schema, vocabularies, statistics and catalog: all that a served bundle needs to encode."""
        self._require_fit()
        tensors: dict[str, np.ndarray] = {}
        tables = []
        for i, (name, table) in enumerate(self._tables.items()):
            tables.append({"name": name, "kind": table.kind, "buckets": getattr(table, "buckets", None)})
            if isinstance(table, Vocabulary):
                tensors |= _pack(f"table{i}" if table.ascending else f"table{i}.by_id", table.values)
        numbers = []
        for i, (name, stats) in enumerate(self._numbers.items()):
            numbers.append({"name": name, "statistics": list(stats)})
            tensors |= {f"number{i}.{k}": v for k, v in stats.items()}
        config: dict[str, Any] = {
            "schema": self.schema.to_dict(),
            "tables": tables,
            "numbers": numbers,
            "catalog": None,
        }
        if self.catalog is not None:
            config["catalog"] = self.catalog.block.spec()
            tensors |= self.catalog.block.arrays("catalog") | {"catalog.ids": self.catalog.ids}
            if self._item_values is not None:
                tensors |= _pack("catalog.values", self._item_values)
        return bundle.Piece(bundle.class_path(Encoder), config, tensors)

    @classmethod
    def from_piece(cls, piece: bundle.Piece) -> Encoder:
        """The encoder that `to_piece` gave."""
        config, arrays = piece.config, {k: np.asarray(v) for k, v in piece.tensors.items()}
        try:
            encoder = cls(Schema.from_dict(config["schema"]))
            for i, t in enumerate(config["tables"]):
                encoder._tables[t["name"]] = (
                    Hashed(t["name"], t["buckets"], t["kind"])
                    if t["buckets"] is not None
                    else Vocabulary(
                        _unpack(f"table{i}.by_id" if _packed(f"table{i}.by_id", arrays) else f"table{i}", arrays)
                    )
                )
            for i, n in enumerate(config["numbers"]):
                encoder._numbers[n["name"]] = {k: arrays[f"number{i}.{k}"] for k in n["statistics"]}
            if config["catalog"] is not None:
                encoder.catalog = ItemStore(Block.restore(config["catalog"], arrays, "catalog"), arrays["catalog.ids"])
                if _packed("catalog.values", arrays):
                    encoder._item_values = _unpack("catalog.values", arrays)
        except (KeyError, TypeError) as error:
            raise BundleError(f"The saved encoder lacks {error}; it comes from another version.") from error
        encoder.schema = encoder.schema.replace(encoder=encoder)
        return encoder

    def save(self, folder: str | Path) -> None:
        """Write a bundle with this one piece."""
        bundle.write(folder, {"encoder": self.to_piece()})

    @classmethod
    def load(cls, folder: str | Path) -> Encoder:
        """From a bundle that has a piece "encoder".

        Raises:
            BundleError: nothing there, or not intact.
        """
        return cls.from_piece(bundle.read(folder).piece("encoder"))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that was learned: encoders fitted on equal data have the same."""
        piece = self.to_piece()
        digest = hashlib.sha256(json.dumps(piece.config, sort_keys=True).encode())
        for name, value in sorted(piece.tensors.items()):
            digest.update(f"{name} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)  # type: ignore[arg-type]
        return digest.hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoder) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def _require_fit(self) -> None:
        self.schema.require_fitted()
        if self.schema.encoder is not self:
            raise SchemaError("This Encoder has not been fitted: Encoder(schema).fit(train).")


# -- helpers: each a pure function of its arguments ---------------------------------------------------------------------
def several_users(rows: int, user: str, request: str | None) -> DataError:
    """The error for requests whose rows have different users."""
    return DataError(f"{rows} rows have another {user!r} than their request {request!r}; a request is one user's.")


def _of_rows(rows: Sequence[Mapping[str, Any]], feature: Feature) -> Raw:
    for i, row in enumerate(rows):
        if feature.name not in row:
            raise SchemaError(f"Column {feature.name!r} is missing from row {i}; null means that it is unknown.")
    return Raw.of([row[feature.name] for row in rows], feature.name)


def _part(raw: Raw, at: np.ndarray, whole: bool) -> Raw:
    return raw if whole else raw.take(at)


def _transformed(feature: Numeric, x: np.ndarray, stats: Mapping[str, np.ndarray]) -> np.ndarray:
    if feature.transform == "bucketize":
        return (np.searchsorted(stats["edges"], x, "right") + FIRST).astype(np.int32)
    if feature.transform == "quantile":
        x = np.interp(x, stats["grid"], stats["level"], left=0.0, right=1.0)
    elif feature.transform is not None:
        x = ((log1p(x) if feature.transform == "log" else x) - stats["mean"]) / stats["deviation"]
    return x.astype(np.float32)


def _vectors(feature: Vector, raw: Raw) -> np.ndarray:
    """float32 [n, size]."""
    if raw.kind == "text" or raw.kind == "time" or (raw.offsets is None and len(raw)):
        raise SchemaError(f"Column {feature.name!r} holds {what(raw)} where lists of {feature.size} numbers are due.")
    lengths = np.zeros(0, np.int64) if raw.offsets is None else np.diff(raw.offsets)
    wrong = np.flatnonzero(lengths != feature.size)
    if len(wrong):
        raise SchemaError(
            f"Column {feature.name!r} holds {lengths[wrong[0]]} numbers in row {wrong[0]}; "
            f"Vector({feature.name!r}, size={feature.size}) needs {feature.size} in each."
        )
    values = raw.flat().astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0]) // feature.size
        raise SchemaError(f"Column {feature.name!r} holds a null or infinite number in row {row}; a Vector is finite.")
    return values.reshape(-1, feature.size)


def _labels(schema: Schema, log: Log, order: np.ndarray) -> Block:
    """float32 [rows, label columns], NaN where missing."""
    columns: dict[str, np.ndarray] = {}
    for task in schema.tasks:
        if task.derived or task.column in columns:
            continue
        if not log.has(task.column) and log.implicit and task.kind == "binary":
            columns[task.column] = np.ones(len(order), np.float32)
            continue
        y = label_numbers(log, task)
        if task.kind == "binary":
            bad, due = ~(np.isnan(y) | (y == 0) | (y == 1)), "0, 1 or null"
        elif task.kind == "multiclass":
            classes = task.classes or 0
            bad = ~(np.isnan(y) | ((y == np.floor(y)) & (y >= 0) & (y < classes)))
            due = f"a whole number below {classes}, or null"
        else:
            bad, due = np.isinf(y), "finite or null"
        if bad.any():
            raise DataError(
                f"Label {task.column!r} is {y[bad][0]:g} in {int(bad.sum())} rows; a {task.kind} label is {due}."
            )
        columns[task.column] = y[order].astype(np.float32)
    warn_of_implications(schema, columns, order)
    names = tuple((n, 0) for n in columns)
    values = np.stack(list(columns.values()), 1) if columns else np.zeros((len(order), 0), np.float32)
    return Block(len(order), np.zeros((len(order), 0), np.int32), values, (), names)


def _weights(log: Log, order: np.ndarray) -> np.ndarray:
    raw = log.raw(log.weight)  # type: ignore[arg-type]
    if raw.offsets is not None or raw.kind not in ("int", "float"):
        raise DataError(f"Weight {log.weight!r} holds {what(raw)} where a number is due.")
    weight = raw.flat().astype(np.float32)
    if not (weight >= 0).all() or not np.isfinite(weight).all():
        raise DataError(f"Weight {log.weight!r} holds negative, infinite or null values; a weight is 0 or more.")
    return weight[order]


def _pack(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    if values.dtype != object:
        return {name: values}
    data, offsets = pack_text(values)
    return {f"{name}.utf8": data, f"{name}.offsets": offsets}


def _packed(name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    return name in arrays or f"{name}.offsets" in arrays


def _unpack(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if name in arrays:
        return arrays[name]
    return unpack_text(arrays[f"{name}.utf8"], arrays[f"{name}.offsets"])
