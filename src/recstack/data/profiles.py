"""Live user state: who a user is, what they did last, what they have seen. What retrieval and serving ask for."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recstack import bundle
from recstack.data.columns import Columns, history_batch
from recstack.data.encoder import Encoder
from recstack.data.raw import Raw
from recstack.data.store import Block, Encoded
from recstack.data.vocabulary import OOV, pack_text, unpack_text
from recstack.errors import DataError, SchemaError
from recstack.kernels import jagged
from recstack.schema import Feature, History, is_multi

if TYPE_CHECKING:  # the log brings polars, which serving must not import
    from recstack.data.log import Log

Lists = tuple[np.ndarray, np.ndarray]  # offsets int64 [rows + 1], flat values


@dataclass(frozen=True, eq=False)
class Requests:
    """What a retriever is asked: R users, here and now.

    Args:
        batch: the user side, tensors [R, ...].
        users: int64 [R], encoded; 1 is an unknown user.
        seen: offsets int64 [R + 1] and item ids int32, ascending per row.
        memo: what models have worked out of these users, so that several questions cost one answer.
    """

    batch: dict[str, Tensor]
    users: np.ndarray
    seen: Lists
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def of(cls, columns: Columns, index: np.ndarray | None = None, *, seen: Columns | None = None) -> Requests:
        """Requests as they stand in columns; `seen` are the columns whose items count as seen, its own by default."""
        index = np.arange(columns.n_requests) if index is None else np.asarray(index)
        users = columns.user_ids[index].astype(np.int64)
        batch = columns.request_batch(index, padded=True)
        return cls(batch, users, (columns if seen is None else seen).seen(users))

    def seen_pairs(self) -> tuple[Tensor, Tensor]:
        """Row and item id of all that was seen, int64 ``[n]`` each."""
        offsets, items = (torch.as_tensor(x).long() for x in self.seen)
        return torch.repeat_interleave(torch.arange(len(self)), offsets.diff()), items

    def slice(self, start: int, stop: int) -> Requests:
        """Rows start to stop."""
        stop = min(stop, len(self))
        flat = {n.removesuffix("@offsets") for n in self.batch if n.endswith("@offsets")}
        batch = {}
        for name, tensor in self.batch.items():
            owner = name if name in flat else name.rpartition("@")[2]
            if name.endswith("@offsets"):
                batch[name] = tensor[start : stop + 1] - tensor[start]
            elif owner in flat:
                bounds = self.batch[f"{owner}@offsets"]
                batch[name] = tensor[int(bounds[start]) : int(bounds[stop])]
            else:
                batch[name] = tensor[start:stop]
        offsets, items = self.seen
        seen = offsets[start : stop + 1] - offsets[start], items[offsets[start] : offsets[stop]]
        return Requests(batch, self.users[start:stop], seen)


class Profiles:
    """The state of every user, by raw user id; takes new events, and users never met before, at any time.

    Safe to use from several threads.

    >>> from recstack.data import Log
    >>> from recstack.schema import Categorical, Schema
    >>> features = [Categorical("user", "user"), Categorical("item", "item"), History("past", of="item", max_len=2)]
    >>> schema = Schema(features, time="at")
    >>> log = Log({"user": [1, 1, 2], "item": ["a", "b", "c"], "at": [1, 2, 3]}, schema)
    >>> profiles = Profiles.build(log, Encoder(schema).fit(log))
    >>> profiles.append(9, "c", 4)
    >>> asked = profiles.requests([1, 9])
    >>> asked.batch["item@past"].tolist(), asked.users.tolist(), asked.seen[1].tolist()
    ([[2, 3], [4, 0]], [2, 1], [2, 3, 4])
    """

    def __init__(
        self,
        encoder: Encoder,
        users: np.ndarray,
        block: Block,
        histories: dict[str, tuple[Lists, np.ndarray]],
        seen: Lists,
    ) -> None:
        # Row 0 of everything is the unknown user; raw user users[i] is row i + 1.
        self.encoder, self._users, self._block, self._histories, self._seen = encoder, users, block, histories, seen
        self._row = {u: i for i, u in enumerate(users.tolist(), 1)}
        key = encoder.schema.user
        assert key is not None  # `build` saw to it
        self._row_of_id = np.zeros(encoder.schema.feature(key).size or 0, np.int64)  # type: ignore[attr-defined]
        ids = block.column(key)
        self._row_of_id[ids[::-1]] = np.arange(len(ids))[::-1]
        self._row_of_id[:2] = 0
        self._new: dict[int, dict[str, tuple[list[int], list[int]]]] = {}  # row → history → (times, items), in order
        self._new_seen: dict[int, set[int]] = {}
        self._lock = threading.Lock()

    @classmethod
    def build(cls, data: Log | Columns, encoder: Encoder | None = None) -> Profiles:
        """The state after all rows of a log, or of columns (whose unknown users are then one and the same).

        Args:
            encoder: the schema's own by default.

        Raises:
            SchemaError: no user key, or no encoder given or known.
        """
        encoder = encoder or data.schema.encoder
        if encoder is None:
            raise SchemaError("Profiles need an Encoder: Profiles.build(log, encoder).")
        if encoder.schema.user is None:
            raise SchemaError("Profiles need a user key: Schema(..., user='...').")
        if isinstance(data, Columns):
            columns = data
            ids, code = np.unique(columns.user_ids, return_inverse=True)
            known = ids >= 2
            users, code = encoder.decode(encoder.schema.user, ids[known]), code - int((~known).sum())
            framed = None
        else:
            columns = encoder.encode(data, labels=any(h.where for h in encoder.schema.histories))
            users, code, framed = data.user_codes()
        last = _last_requests(columns, code, len(users))
        block = _user_block(encoder, columns, users, last, framed)
        rows = np.repeat(code, np.diff(columns.lists))
        seen = _grouped(rows + 1, columns.item_ids, len(users) + 1, distinct=True)
        histories = {h.name: _history(columns, h, code, last) for h in encoder.schema.histories}
        return cls(encoder, users, block, histories, seen)

    def __len__(self) -> int:
        """Users."""
        return len(self._row)

    def __contains__(self, user: Any) -> bool:
        return user in self._row

    @property
    def users(self) -> list[Any]:
        """Raw ids of all users, those of new events included."""
        return list(self._row)

    def append(self, user: Any, item: Any, time: int | None = None, **labels: float) -> None:
        """An event: raw user, raw item, its time (int64 as the schema's column; None: now, after all of the user's).

        It enters a History with `where=` unless the label of that name says otherwise: append(u, i, t, click=0). Takes
        effect for the next request.
        """
        schema = self.encoder.schema
        self.encoder.encode_values(schema.user, [user])  # type: ignore[arg-type]  # text for whole numbers raises here
        item_id = int(self.encoder.encode_values(schema.item, [item])[0])  # type: ignore[arg-type]
        with self._lock:
            row = self._row.setdefault(user, len(self._row) + 1)
            if item_id != OOV:
                self._new_seen.setdefault(row, set()).add(item_id)
            new = self._new.setdefault(row, {})
            for history in schema.histories:
                if history.where is not None and labels.get(history.where, 1) != 1:
                    continue
                times, items = new.setdefault(history.name, ([], []))
                at = (times[-1] if times else self._last_time(row, history.name)) if time is None else int(time)
                place = bisect.bisect_right(times, at)
                times.insert(place, at)
                items.insert(place, item_id)
                if len(times) > 2 * history.max_len:  # or a busy user's would grow for as long as the service runs
                    del times[: -history.max_len], items[: -history.max_len]

    def requests(
        self,
        users: Any,
        *,
        encoded: bool = False,
        context: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        time: int | None = None,
        times: bool = False,
        padded: bool = True,
    ) -> Requests:
        """What is known of these users now.

        Args:
            users: raw ids [R]; encoded ids with encoded=True. One that was never met is the unknown user.
            context: raw values of context and domain features, one mapping for all or one each; None is unknown.
            time: now: histories strictly before it; None takes all. Of each history the log left `max_len` events or
                little more, so a moment long before its end finds fewer than there were.
            times: add `@time@history`, and `@time` where `time` is given.
            padded: histories and multi-valued features as [R, T]; otherwise flat values and offsets.

        Raises:
            SchemaError: raw ids of another kind than the training rows had; a context column that is missing.
        """
        schema = self.encoder.schema
        times = times or schema.timed
        with self._lock:
            if encoded:
                ids = np.asarray(users).astype(np.int64)
                rows = self._row_of_id[np.where((ids >= 0) & (ids < len(self._row_of_id)), ids, 0)]
            else:
                raw = users.tolist() if hasattr(users, "tolist") else list(users)
                self.encoder.encode_values(schema.user, raw)  # type: ignore[arg-type]
                rows = np.array([self._row.get(u, 0) for u in raw], np.int64)
            stored = np.where(rows < self._block.rows, rows, 0)  # who came later has events, and no attributes
            batch = self._block.take(stored, padded=padded)
            for history in schema.histories:
                flat, offsets, when = self._history_of(history, rows, time)
                batch |= history_batch(
                    history, flat, offsets, self.encoder.catalog, padded=padded, times=when if times else None
                )
            seen = self._seen_of(rows)
        batch |= self._context(context, len(rows), padded)
        if times and time is not None:
            batch["@time"] = torch.full((len(rows),), time, dtype=torch.int64)
        assert schema.user is not None
        return Requests(batch, batch[schema.user].numpy().astype(np.int64), seen)

    def history(self, user: Any, name: str | None = None) -> np.ndarray:
        """Raw items of one user's history (the first by default), oldest first; None where unknown."""
        histories = self.encoder.schema.histories
        chosen = next((h for h in histories if name in (None, h.name)), None)
        if chosen is None:
            raise SchemaError(f"There is no History {name!r} in the schema." if name else "The schema has no History.")
        with self._lock:
            flat, _, _ = self._history_of(chosen, np.array([self._row.get(user, 0)]), None)
        return self.encoder.decode(chosen.of[0], flat)

    # -- own ----------------------------------------------------------------------------------------------------------
    def _context(self, context: Any, n: int, padded: bool) -> dict[str, Tensor]:
        features = [f for f in self.encoder.schema.by_role("context", "domain") if not isinstance(f, History)]
        if context is None:
            return self.encoder.unknown_rows(features, n).take(slice(None), padded=padded)
        rows = [context] * n if isinstance(context, Mapping) else list(context)
        if len(rows) != n:
            raise DataError(f"There are {n} users and {len(rows)} contexts; give one for all, or one each.")

        def encode(f: Feature) -> Encoded:
            for i, row in enumerate(rows):
                if f.name not in row:
                    raise SchemaError(f"Column {f.name!r} is missing from context {i}; null means that it is unknown.")
            return self.encoder.column(f.name, Raw.of([row[f.name] for row in rows], f.name))

        return Block.build(n, features, encode).take(slice(None), padded=padded)

    def _last_time(self, row: int, name: str) -> int:
        (offsets, _), times = self._histories[name]
        stored = row < len(offsets) - 1 and offsets[row] < offsets[row + 1]
        return int(times[offsets[row + 1] - 1]) if stored else 0

    def _history_of(
        self, history: History, rows: np.ndarray, time: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (offsets, items), times = self._histories[history.name]
        stored = np.where(rows < len(offsets) - 1, rows, 0)
        begin, end = offsets[:-1][stored], offsets[1:][stored]
        if time is None and not any(r in self._new for r in rows.tolist()):
            begin = np.maximum(begin, end - history.max_len)
            flat, bounds = jagged.gather(items, begin, end)
            return flat, bounds, jagged.gather(times, begin, end)[0]
        lines, moments = [], []
        for row, a, b in zip(rows.tolist(), begin.tolist(), end.tolist(), strict=True):
            new_times, new_items = self._new.get(row, {}).get(history.name, ([], []))
            line, when = (
                np.append(items[a:b], new_items).astype(np.int32),
                np.append(times[a:b], new_times).astype(np.int64),
            )
            order = np.argsort(when, kind="stable")  # a late event goes to its place
            order = order[when[order] < time] if time is not None else order
            lines.append(line[order[-history.max_len :]])
            moments.append(when[order[-history.max_len :]])
        bounds = np.concatenate([[0], np.cumsum([len(x) for x in lines])]).astype(np.int64)
        nothing = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        return np.concatenate(lines or nothing[0]), bounds, np.concatenate(moments or nothing[1])

    def _seen_of(self, rows: np.ndarray) -> Lists:
        offsets, items = self._seen
        stored = np.where(rows < len(offsets) - 1, rows, 0)
        flat, bounds = jagged.gather(items, offsets[:-1][stored], offsets[1:][stored])
        if not any(r in self._new_seen for r in rows.tolist()):
            return bounds, flat
        lines = [
            np.union1d(flat[a:b], np.array(sorted(self._new_seen.get(r, ())), np.int32)).astype(np.int32)
            for r, a, b in zip(rows.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        return np.concatenate([[0], np.cumsum([len(x) for x in lines])]).astype(np.int64), np.concatenate(lines)

    # -- saving -------------------------------------------------------------------------------------------------------
    def to_piece(self) -> bundle.Piece:
        """All of it, events that were appended included; the encoder is saved beside."""
        with self._lock:
            rows = np.arange(len(self._row) + 1)
            users = Raw.of(list(self._row), "user").values
            block = self._block.select(np.where(rows < self._block.rows, rows, 0))
            tensors = block.arrays("user")
            seen = self._seen_of(rows)
            tensors |= {"seen.offsets": seen[0], "seen": seen[1]}
            for j, h in enumerate(self.encoder.schema.histories):
                flat, offsets, times = self._history_of(h, rows, None)
                tensors |= {f"history{j}.offsets": offsets, f"history{j}": flat, f"history{j}.times": times}
        if users.dtype == object:
            tensors["users.utf8"], tensors["users.offsets"] = pack_text(users)
        else:
            tensors["users"] = users
        return bundle.Piece(bundle.class_path(Profiles), {"block": block.spec()}, tensors)

    @classmethod
    def from_piece(cls, piece: bundle.Piece, encoder: Encoder) -> Profiles:
        """What `to_piece` gave, with the encoder that it was built with."""
        a = {k: np.asarray(v) for k, v in piece.tensors.items()}
        users = a["users"] if "users" in a else unpack_text(a["users.utf8"], a["users.offsets"])
        histories = {
            h.name: ((a[f"history{j}.offsets"], a[f"history{j}"]), a[f"history{j}.times"])
            for j, h in enumerate(encoder.schema.histories)
        }
        block = Block.restore(piece.config["block"], a, "user")
        return cls(encoder, users, block, histories, (a["seen.offsets"], a["seen"]))


def _grouped(rows: np.ndarray, values: np.ndarray, n: int, *, distinct: bool) -> Lists:
    """Values by row, ascending; unknown items and row 0 (nobody) left out."""
    live = (rows > 0) & (values > OOV)
    pairs = rows[live].astype(np.int64) << 32 | values[live].astype(np.int64)
    pairs = jagged.distinct(pairs) if distinct else np.sort(pairs)
    return np.searchsorted(pairs, np.arange(n + 1) << 32), (pairs & 0xFFFFFFFF).astype(np.int32)


def _moments(columns: Columns) -> np.ndarray:
    """int64 [requests]: the time, or the place of the row where there is none."""
    return np.arange(columns.n_requests) if columns.times is None else np.asarray(columns.times)


def _last_requests(columns: Columns, code: np.ndarray, n: int) -> np.ndarray:
    """int64 [n]: each user's latest request, -1 for none."""
    order = np.argsort(_moments(columns), kind="stable")
    order = order[code[order] >= 0]
    last = np.full(n, -1, np.int64)
    last[code[order]] = order
    return last


def _user_block(
    encoder: Encoder, columns: Columns, users: np.ndarray, last: np.ndarray, framed: np.ndarray | None
) -> Block:
    """User features by row, row 0 the unknown user; as of the last request, or from the users frame."""
    features = [f for f in encoder.schema.by_role("user") if not isinstance(f, History)]
    unknown = encoder.unknown_rows(features, 1)
    own, store, pointers = columns.user_sources()
    if store is not None and framed is None:
        framed = np.where(last >= 0, pointers[last], 0) - 1  # type: ignore[index]

    def encode(f: Feature) -> Encoded:
        if f.name == encoder.schema.user:
            return np.append(np.int32(OOV), encoder.encode_values(f.name, users))
        source, at = (own, last) if f.name in own.names else (store, framed)
        assert source is not None
        assert at is not None
        at = np.where(at >= 0, at + (source is store), -1)  # the store's row 0 is its own unknown
        if is_multi(f):
            values, offsets = source.lists[f.name]
            begin = np.where(at >= 0, offsets[:-1][at], 0)
            end = np.where(at >= 0, offsets[1:][at], 0)
            flat, bounds = jagged.gather(values, np.append(0, begin), np.append(0, end))
            return flat, bounds
        nothing = unknown.column(f.name)
        found = source.column(f.name)[np.maximum(at, 0)] if source.rows else np.repeat(nothing, len(at), 0)
        found = np.where(np.expand_dims(at >= 0, tuple(range(1, found.ndim))), found, nothing)
        return np.concatenate([nothing, found])

    return Block.build(len(users) + 1, features, encode)


def _history(columns: Columns, history: History, code: np.ndarray, last: np.ndarray) -> tuple[Lists, np.ndarray]:
    """Each user's history at their last request, then what entered at that very moment; row 0 is empty."""
    at, moments, n = columns.history_pointers(history.name), _moments(columns), len(last)
    begin, end = np.where(last >= 0, at.begin[last], 0), np.where(last >= 0, at.end[last], 0)
    before, bounds = jagged.gather(at.items, begin, end)
    owner = np.repeat(np.arange(n), np.diff(bounds))
    when = moments[last[owner]] - 1 if at.times is None else jagged.gather(at.times, begin, end)[0]
    rows = np.repeat(np.arange(columns.n_requests), np.diff(columns.lists))  # request of each candidate
    enters = (code[rows] >= 0) & columns.enters(history)
    enters &= moments[rows] == moments[last[np.maximum(code[rows], 0)]] if n else False
    owner = np.concatenate([owner, code[rows][enters]])
    items = np.concatenate([before, columns.item_ids[enters]])
    when = np.concatenate([when, moments[rows][enters]])
    order = np.argsort(owner, kind="stable")  # what came before stays before what entered last
    offsets = np.searchsorted(owner[order], np.arange(-1, n + 1))
    return (offsets, items[order].astype(np.int32)), when[order].astype(np.int64)
