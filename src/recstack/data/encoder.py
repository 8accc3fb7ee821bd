"""Raw rows to ids and floats: learned on training rows, the same for a table, one row, or a live request. numpy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from recstack import bundle
from recstack.data.columns import Columns, HistoryPointers, history_batch
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
        self.__dict__.pop("fingerprint", None)
        columns = {f.name: self._training_column(log, f) for f in self.schema.features if not isinstance(f, History)}
        lists = [log.raw(h.name) for h in self.schema.histories if log.has(h.name)]
        sizes: dict[str, int] = {}
        for table in self.schema.tables:
            sharing = [f for f in self.schema.features if is_embedded(f) and f.table_name == table]  # type: ignore[attr-defined]
            first = sharing[0]
            if isinstance(first, Numeric):
                sizes[table] = first.bins + FIRST
                continue
            raws = [columns[f.name] for f in sharing]
            if any(f.name == self.schema.item for f in sharing):
                raws += lists
            self._tables[table] = learned = self._learn(table, sharing, raws)
            sizes[table] = learned.size
        for f in self.schema.features:
            if isinstance(f, Numeric):
                self._numbers[f.name] = _statistics(f, _numbers(f, columns[f.name]))
        self.schema = _sized(self.schema, sizes, self)
        self._fit_catalog(log, columns)
        return self

    def _training_column(self, log: Log, feature: Feature) -> Raw:
        place = log.place(feature.name)
        if place is None:
            raise _missing(feature, log)
        raw = log.raw(feature.name, place)
        _check_shape(feature, raw)
        if place != "events":
            rows = np.unique(log.rows_of(place))
            raw = raw.take(rows[rows >= 0])
        return raw

    def _learn(self, table: str, sharing: Sequence[Feature], raws: Sequence[Raw]) -> Vocabulary | Hashed:
        kinds = {}
        for f, raw in zip(sharing, raws, strict=False):
            kinds.setdefault(_id_kind(f, raw), f.name)
        kinds.pop("null", None)
        if len(kinds) > 1:
            (a, first), (b, second) = kinds.items()
            raise SchemaError(
                f"Columns {first!r} and {second!r} share table {table!r}, and hold {KINDS[a]} and {KINDS[b]}; cast one."
            )
        kind = next(iter(kinds), "null")
        buckets = getattr(sharing[0], "buckets", None)
        if buckets is not None:
            return Hashed(table, buckets, kind)
        parts = [_counted(raw) for raw in raws if raw.kind == kind]
        values, count = _merged(parts)
        return Vocabulary(values[count >= max(f.min_count for f in sharing)])  # type: ignore[attr-defined]

    def _fit_catalog(self, log: Log, columns: Mapping[str, Raw]) -> None:
        """Item features by item id: from the items frame, or as they were in the item's last training event."""
        key = self.schema.item
        if key is None:
            return
        feature = self.schema.feature(key)
        table = self._table(feature)
        events = self._ids(feature, columns[key])
        order = np.arange(len(log)) if not log.has(self.schema.time) else np.argsort(log.times, kind="stable")
        last = np.full(table.size, -1, np.int64)
        last[events[order]] = order
        framed = np.full(table.size, -1, np.int64)
        if log.items is not None:
            ids = self._ids(feature, log.raw(key, "items"))
            framed[ids[::-1]] = np.arange(len(ids))[::-1]  # of two items in one bucket, the first row
        if isinstance(table, Vocabulary):
            live, self._item_values = np.arange(FIRST, table.size), None
        else:
            values, _ = _merged([_counted(columns[key])])
            ids = table.ids(values)
            live, first = np.unique(ids, return_index=True)
            self._item_values = values[first]

        def encode(f: Feature) -> Encoded:
            if f.name == key:
                out = np.zeros(table.size, np.int32)
                out[live], out[OOV] = live, OOV
                return out
            in_frame = log.items is not None and f.name in log.items.columns
            rows = (framed if in_frame else last)[live]
            raw = log.raw(f.name, "items" if in_frame else "events")
            return self._scattered(f, raw.take(rows[rows >= 0]), live[rows >= 0], table.size)

        self.catalog = ItemStore(Block.build(table.size, self.schema.by_role("item"), encode), live.astype(np.int64))

    def _scattered(self, feature: Feature, raw: Raw, rows: np.ndarray, size: int) -> Encoded:
        """The encoded column in these rows of a store, nothing in row 0, "unknown" in the others."""
        encoded, unknown = self._column(feature, raw), self._unknown(feature)
        if isinstance(encoded, tuple):
            values, offsets = encoded
            count = np.zeros(size, np.int64)
            count[rows] = np.diff(offsets)
            order = np.argsort(rows, kind="stable")
            values, _ = jagged.gather(values, offsets[:-1][order], offsets[1:][order])
            return values, np.concatenate([[0], np.cumsum(count)])
        out = np.empty((size, *encoded.shape[1:]), encoded.dtype)
        out[:] = unknown
        out[0] = 0
        out[rows] = encoded
        return out

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
        pointers: dict[str, np.ndarray] = {}
        stores: dict[str, Block] = {}
        sides = {"users": (REQUEST_ROLES, heads), "items": (("item", "pair"), order)}
        blocks: dict[str, Block] = {}
        for side, (roles, at) in sides.items():
            features = [f for f in self.schema.by_role(*roles) if not isinstance(f, History)]
            places = {f.name: log.place(f.name) for f in features}
            for f in features:
                if places[f.name] is None:
                    raise _missing(f, log)
            own = [f for f in features if places[f.name] == "events"]
            whole = at is rows
            blocks[side] = Block.build(
                len(at), own, lambda f, at=at, whole=whole: self._column(f, _part(log.raw(f.name), at, whole))
            )
            framed = [f for f in features if places[f.name] == side]
            if framed:
                pointers[side] = log.rows_of(side)[at] + 1
                height, absent = log.frame(side).height, (pointers[side] == 0).sum()
                for f in framed:
                    if absent and (isinstance(f, Vector) or (isinstance(f, Numeric) and f.fill is None)):
                        remedy = "drop those rows" if isinstance(f, Vector) else f'give Numeric("{f.name}", fill=...)'
                        raise SchemaError(
                            f"{absent} rows name a {side[:-1]} that the {side} frame lacks, so column {f.name!r} is null "
                            f"there; add it, or {remedy}."
                        )
                put = np.arange(1, height + 1)
                stores[side] = Block.build(
                    height + 1, framed, lambda f, s=side, p=put: self._scattered(f, log.raw(f.name, s), p, len(p) + 1)
                )
        columns = Columns(
            schema=self.schema,
            user=blocks["users"],
            item=blocks["items"],
            users=stores.get("users"),
            items=stores.get("items"),
            user_rows=pointers.get("users"),
            item_rows=pointers.get("items"),
            lists=lists,
            histories={h.name: self._pointers(log, h, heads) for h in self.schema.histories},
            times=log.times[heads] if log.has(self.schema.time) else None,
            label_block=_labels(self.schema, log, order) if labels else Block.build(len(order), [], lambda f: None),
            weights=None if log.weight is None else _weights(log, order),
            implicit=log.implicit,
            catalog=self.catalog,
        )
        if lists is not None and self.schema.user is not None:
            user = self._ids(self.schema.feature(self.schema.user), log.raw(self.schema.user))[order]
            wrong = np.flatnonzero(user != np.repeat(user[lists[:-1]], np.diff(lists)))
            if len(wrong):
                raise DataError(
                    f"{len(wrong)} rows have another {self.schema.user!r} than their request {log.request!r}; a request is one user's."
                )
        return columns

    def _pointers(self, log: Log, history: History, heads: np.ndarray) -> HistoryPointers:
        key = self.schema.feature(history.of[0])
        if log.has(history.name):
            raw = log.raw(history.name)
            offsets = _offsets(history, raw)
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
            bounds = _offsets(history, raw)
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
            return _transformed(feature, _numbers(feature, raw), self._numbers[feature.name])
        if isinstance(feature, Vector):
            return _vectors(feature, raw)
        if isinstance(feature, Text):
            return self._words(feature, raw)
        assert isinstance(feature, Categorical)
        _check_shape(feature, raw)
        if not feature.multi:
            return self._ids(feature, raw)
        ids, offsets = self._ids(feature, raw), _offsets(feature, raw)
        if feature.max_len is not None:
            ids, offsets = jagged.gather(ids, offsets[:-1], np.minimum(offsets[1:], offsets[:-1] + feature.max_len))
        return ids, offsets

    def _ids(self, feature: Feature, raw: Raw) -> np.ndarray:
        """int32 of the flat values: distinct values are looked up once where the column says which they are."""
        table, kind = self._table(feature), _id_kind(feature, raw)
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
            raise SchemaError(f"Column {feature.name!r} holds {_what(raw)} where text is due.")
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
                tensors |= _pack(f"table{i}", table.values)
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
                    else Vocabulary(_unpack(f"table{i}", arrays))
                )
            for i, n in enumerate(config["numbers"]):
                encoder._numbers[n["name"]] = {k: arrays[f"number{i}.{k}"] for k in n["statistics"]}
            if config["catalog"] is not None:
                encoder.catalog = ItemStore(Block.restore(config["catalog"], arrays, "catalog"), arrays["catalog.ids"])
                if "catalog.values" in arrays or "catalog.values.offsets" in arrays:
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
def _sized(schema: Schema, sizes: Mapping[str, int], encoder: Encoder) -> Schema:
    from dataclasses import replace

    features = [replace(f, size=sizes[f.table_name]) if is_embedded(f) else f for f in schema.features]  # type: ignore[attr-defined,type-var]
    return schema.replace(features=features, encoder=encoder)


def _missing(feature: Feature, log: Log) -> SchemaError:
    from recstack.errors import unknown

    known = list(log.events.columns)
    if feature.role == "user" and log.users is not None:
        known += log.users.columns
    if feature.role == "item" and log.items is not None:
        known += log.items.columns
    return unknown(f"column for {feature.role} feature", feature.name, known, SchemaError)  # type: ignore[return-value]


def _what(raw: Raw) -> str:
    return ("lists of " if raw.offsets is not None else "") + KINDS[raw.kind]


def _id_kind(feature: Feature, raw: Raw) -> str:
    kind = raw.kind
    if isinstance(feature, Text) and kind in ("text", "null"):
        return "text"
    if kind == "float" and np.isnan(raw.values).all():
        return "null"
    if isinstance(feature, Text) or kind in ("float", "time"):
        due = "text" if isinstance(feature, Text) else "whole numbers or text"
        raise SchemaError(f"Column {feature.name!r} holds {KINDS[kind]} where {due} is due; cast it.")
    return kind


def _check_shape(feature: Feature, raw: Raw) -> None:
    if isinstance(feature, Categorical) and not feature.multi and raw.offsets is not None:
        raise SchemaError(f"Column {feature.name!r} holds lists; declare Categorical({feature.name!r}, multi=True).")
    if isinstance(feature, Categorical) and feature.multi:
        _offsets(feature, raw)


def _offsets(feature: Feature, raw: Raw) -> np.ndarray:
    """Of a column of lists; nulls alone are empty lists, and anything else is an error."""
    if raw.offsets is not None:
        return raw.offsets
    if raw.kind != "null":
        raise SchemaError(f"Column {feature.name!r} holds {KINDS[raw.kind]} where lists are due; split it into lists.")
    return np.zeros(len(raw) + 1, np.int64)


def _counted(raw: Raw) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values and how often each comes, nulls left out."""
    if raw.codes is None:
        if raw.kind == "text":
            raw = Raw(raw.values, np.arange(len(raw.values)))
        else:
            return np.unique(raw.values, return_counts=True)
    assert raw.codes is not None
    count = np.bincount(raw.codes[raw.codes >= 0], minlength=len(raw.values))
    return raw.values[count > 0], count[count > 0]


def _merged(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The union of counted values, sorted, counts added."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    values = np.concatenate([v for v, _ in parts])
    distinct, which = np.unique(values, return_inverse=True)
    return distinct, np.bincount(which, np.concatenate([c for _, c in parts]), len(distinct)).astype(np.int64)


def _of_rows(rows: Sequence[Mapping[str, Any]], feature: Feature) -> Raw:
    for i, row in enumerate(rows):
        if feature.name not in row:
            raise SchemaError(f"Column {feature.name!r} is missing from row {i}; null means that it is unknown.")
    return Raw.of([row[feature.name] for row in rows], feature.name)


def _part(raw: Raw, at: np.ndarray, whole: bool) -> Raw:
    return raw if whole else raw.take(at)


def _numbers(feature: Numeric, raw: Raw) -> np.ndarray:
    """float64 [n], filled and finite."""
    if raw.offsets is not None or raw.kind in ("text", "time"):
        example = f", for example {raw.values[0]!r}" if len(raw.values) else ""
        raise SchemaError(f"Column {feature.name!r} holds {_what(raw)}{example}, where a number is due.")
    x = np.full(len(raw), np.nan) if raw.kind == "null" else raw.flat().astype(np.float64)
    null = np.isnan(x)
    if null.any():
        if feature.fill is None:
            n = int(null.sum())
            raise SchemaError(
                f'Column "{feature.name}" holds {n} null{"s" * (n > 1)}; give Numeric("{feature.name}", fill=...).'
            )
        x = np.where(null, feature.fill, x)
    if not np.isfinite(x).all():
        raise SchemaError(
            f'Column "{feature.name}" holds {int((~np.isfinite(x)).sum())} infinite values; replace them by null or a number.'
        )
    return x


def _log1p(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.log1p(np.abs(x))


def _statistics(feature: Numeric, x: np.ndarray) -> dict[str, np.ndarray]:
    """What the transform needs of the training rows, float64."""
    if not len(x) and feature.transform is not None:
        raise DataError(f"Column {feature.name!r} has no training rows to learn its transform from.")
    if feature.transform in ("log", "standard"):
        y = _log1p(x) if feature.transform == "log" else x
        deviation = y.std()
        return {"mean": np.array([y.mean()]), "deviation": np.array([deviation if deviation > 0 else 1.0])}
    if feature.transform == "quantile":
        level = np.linspace(0, 1, feature.bins + 1)
        grid = np.quantile(x, level)
        last = np.append(grid[1:] > grid[:-1], True)  # of equal quantiles the highest: P(X <= x)
        return {"grid": grid[last], "level": level[last]}
    if feature.transform == "bucketize":
        return {"edges": np.quantile(x, np.arange(1, feature.bins) / feature.bins)}
    return {}


def _transformed(feature: Numeric, x: np.ndarray, stats: Mapping[str, np.ndarray]) -> np.ndarray:
    if feature.transform == "bucketize":
        return (np.searchsorted(stats["edges"], x, "right") + FIRST).astype(np.int32)
    if feature.transform == "quantile":
        x = np.interp(x, stats["grid"], stats["level"], left=0.0, right=1.0)
    elif feature.transform is not None:
        x = ((_log1p(x) if feature.transform == "log" else x) - stats["mean"]) / stats["deviation"]
    return x.astype(np.float32)


def _vectors(feature: Vector, raw: Raw) -> np.ndarray:
    """float32 [n, size]."""
    if raw.kind == "text" or raw.kind == "time" or (raw.offsets is None and len(raw)):
        raise SchemaError(f"Column {feature.name!r} holds {_what(raw)} where lists of {feature.size} numbers are due.")
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
        if not log.has(task.column):
            if log.implicit and task.kind == "binary":
                columns[task.column] = np.ones(len(order), np.float32)
                continue
            from recstack.errors import unknown

            raise unknown(f"label column of task {task.name!r}", task.column, log.events.columns, SchemaError)
        raw = log.raw(task.column)
        if raw.offsets is not None or raw.kind in ("text", "time"):
            raise DataError(f"Label {task.column!r} holds {_what(raw)} where a number is due.")
        y = np.full(len(raw), np.nan) if raw.kind == "null" else raw.flat().astype(np.float64)
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
    names = tuple((n, 0) for n in columns)
    values = np.stack(list(columns.values()), 1) if columns else np.zeros((len(order), 0), np.float32)
    return Block(len(order), np.zeros((len(order), 0), np.int32), values, (), names)


def _weights(log: Log, order: np.ndarray) -> np.ndarray:
    raw = log.raw(log.weight)  # type: ignore[arg-type]
    if raw.offsets is not None or raw.kind not in ("int", "float"):
        raise DataError(f"Weight {log.weight!r} holds {_what(raw)} where a number is due.")
    weight = raw.flat().astype(np.float32)
    if not (weight >= 0).all() or not np.isfinite(weight).all():
        raise DataError(f"Weight {log.weight!r} holds negative, infinite or null values; a weight is 0 or more.")
    return weight[order]


def _pack(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    if values.dtype != object:
        return {name: values}
    data, offsets = pack_text(values)
    return {f"{name}.utf8": data, f"{name}.offsets": offsets}


def _unpack(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if name in arrays:
        return arrays[name]
    return unpack_text(arrays[f"{name}.utf8"], arrays[f"{name}.offsets"])
