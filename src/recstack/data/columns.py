"""Encoded data: row-major arrays per side and dtype, in memory or mapped from files, and the batches cut from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recstack.bundle.store import locked
from recstack.data.folder import Writer, read, release, wanted
from recstack.data.store import Block, ItemStore, padded_lists
from recstack.errors import DataError, SchemaError
from recstack.kernels import jagged
from recstack.schema import History, Schema

if TYPE_CHECKING:
    from recstack.data.resident import Resident


@dataclass(eq=False)
class HistoryPointers:
    """Request i's history is items[begin[i]:end[i]], oldest first; `times` int64 go with items where they are known."""

    items: np.ndarray
    times: np.ndarray | None
    begin: np.ndarray
    end: np.ndarray


def history_batch(
    history: History,
    flat: np.ndarray,
    offsets: np.ndarray,
    catalog: ItemStore | None,
    *,
    padded: bool = False,
    times: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """The tensors of one history: item ids [n] with `name@offsets`, or [R, T] padded, and what `of=` reads of them."""
    key, name = history.of[0], history.name
    ids = padded_lists(flat, offsets) if padded else flat
    out = {f"{key}@{name}": torch.from_numpy(ids)}
    if not padded:
        out[f"{name}@offsets"] = torch.from_numpy(offsets)
    if len(history.of) > 1:
        assert catalog is not None  # a schema with a history has an item key
        looked_up = catalog.batch(ids, only=history.of[1:])
        out |= {f"{n}@{name}": looked_up[n] for n in history.of[1:]}
    if times is not None:
        out[f"@time@{name}"] = torch.from_numpy(jagged.pad(times, offsets, ids.shape[1]) if padded else times)
    return out


class Columns:
    """R requests with their candidates, encoded. Made by `Encoder.encode`.

    A pointwise log has one candidate per request; with `Log(request=...)` request i holds the rows lists[i] to
    lists[i + 1]. Attributes from the users and items frames are stored once and pointed at.

    Attributes:
        schema: the fitted schema.
        implicit: whether rows are positives and all else is unknown.
        catalog: the encoder's items; None where the schema has no item key.
        times: int64 [n_requests] or None.
    """

    def __init__(
        self,
        *,
        schema: Schema,
        user: Block,
        item: Block,
        users: Block | None,
        items: Block | None,
        user_rows: np.ndarray | None,
        item_rows: np.ndarray | None,
        lists: np.ndarray | None,
        histories: dict[str, HistoryPointers],
        times: np.ndarray | None,
        label_block: Block,
        weights: np.ndarray | None,
        implicit: bool,
        catalog: ItemStore | None,
    ) -> None:
        self.schema, self.implicit, self.catalog = schema, implicit, catalog
        self._user, self._item, self._users, self._items = user, item, users, items
        self._user_rows, self._item_rows, self._lists = user_rows, item_rows, lists
        self._histories, self.times = histories, times
        self._labels, self.weights = label_block, weights

    @property
    def n_requests(self) -> int:
        return self._user.rows

    @property
    def n_rows(self) -> int:
        """Candidates of all requests."""
        return self._item.rows

    def __len__(self) -> int:
        """Requests."""
        return self.n_requests

    def __repr__(self) -> str:
        return f"Columns({self.n_requests:,} requests, {self.n_rows:,} rows, {len(self.schema.features)} features)"

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """float32 [n_rows] by label column; NaN is missing."""
        return {n: self._labels.column(n) for n, _ in self._labels.float_names}

    @property
    def lists(self) -> np.ndarray:
        """int64 [n_requests + 1]: where each request's rows begin."""
        return np.arange(self.n_rows + 1) if self._lists is None else self._lists

    @property
    def has_lists(self) -> bool:
        """Whether a request may have several candidates."""
        return self._lists is not None

    @property
    def user_ids(self) -> np.ndarray:
        """int32 [n_requests]."""
        return self._user.column(self._key("user"))

    @property
    def item_ids(self) -> np.ndarray:
        """int32 [n_rows]."""
        return self._item.column(self._key("item"))

    def _key(self, role: str) -> str:
        key = self.schema.user if role == "user" else self.schema.item
        if key is None:
            raise SchemaError(f"The schema has no {role} key: add a Categorical with role {role!r}, or {role}=.")
        return key

    # -- batches ------------------------------------------------------------------------------------------------------
    def batch(self, index: np.ndarray | slice, *, times: bool = False, padded: bool = False) -> dict[str, Tensor]:
        """All tensors of these requests: the user side [R, ...], the candidates and labels [R, L, ...].

        Args:
            index: int64 [R] or a slice.
            times: add `@time` and `@time@history`.
            padded: multi-valued features and histories padded instead of flat with offsets.
        """
        batch = self.request_batch(index, times=times, padded=padded)
        if self._lists is None:
            batch |= _one_each(self._candidates(index, None, padded))
            return batch
        if isinstance(index, slice):
            index = np.arange(*index.indices(self.n_requests))
        begin, length = self._lists[:-1][index], np.diff(self._lists)[index]
        step = np.arange(max(1, int(length.max(initial=0))))
        mask = step < length[:, None]
        batch |= self._candidates(np.where(mask, begin[:, None] + step, 0), mask, padded)
        if not mask.all():
            batch["@mask"] = torch.from_numpy(mask)
        return batch

    def request_batch(
        self, index: np.ndarray | slice, *, times: bool = False, padded: bool = False
    ) -> dict[str, Tensor]:
        """The user side only: user, context, domain and history tensors [R, ...]."""
        times = times or self.schema.timed
        batch = self._user.take(index, padded=padded)
        if self._users is not None and self._user_rows is not None:
            batch |= self._users.take(self._user_rows[index], padded=padded)
        for history in self.schema.histories if self._histories else ():
            at = self._histories[history.name]
            begin, end = at.begin[index], at.end[index]
            flat, offsets = jagged.gather(at.items, begin, end)
            when = jagged.gather(at.times, begin, end)[0] if times and at.times is not None else None
            batch |= history_batch(history, flat, offsets, self.catalog, padded=padded, times=when)
        if times and self.times is not None:
            batch["@time"] = torch.from_numpy(np.array(self.times[index]))
        return batch

    def _candidates(self, rows: np.ndarray | slice, live: np.ndarray | None, padded: bool) -> dict[str, Tensor]:
        out = self._item.take(rows, live, padded=padded)
        if self._items is not None and self._item_rows is not None:
            out |= self._items.take(self._item_rows[rows], live, padded=padded)
        return out | self.label_batch(rows, live)

    def label_batch(self, rows: np.ndarray | slice, live: np.ndarray | None = None) -> dict[str, Tensor]:
        """`column@label` float32 of these rows, and `@weight`; where not live, missing and 0."""
        out = {f"{n}@label": t for n, t in self._labels.take(rows).items()}
        if self.weights is not None:
            out["@weight"] = torch.from_numpy(np.array(self.weights[rows]))
        if live is not None and not live.all():
            dead = torch.from_numpy(~live)
            for name, tensor in out.items():
                tensor[dead] = 0.0 if name == "@weight" else torch.nan
        return out

    # -- views of all of it -------------------------------------------------------------------------------------------
    def seen(self, user_ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """All items that each of these users (encoded) has in these columns.

        Returns:
            offsets int64 [len(user_ids) + 1] and items int32, ascending per user. An unknown user has none.
        """
        offsets, items = self.seen_by_user
        users = np.asarray(user_ids)
        users = np.where((users >= 2) & (users < len(offsets) - 1), users, 0)
        flat, bounds = jagged.gather(items, offsets[:-1][users], offsets[1:][users])
        return bounds, flat

    @cached_property
    def seen_by_user(self) -> tuple[np.ndarray, np.ndarray]:
        """offsets int64 [users + 1] and items int32, ascending per user, of every user id."""
        users = np.repeat(self.user_ids, np.diff(self.lists)).astype(np.int64)
        known = (users >= 2) & (self.item_ids >= 2)
        pairs = jagged.distinct(users[known] << 32 | self.item_ids[known])
        size = self.schema.feature(self._key("user")).size or 0  # type: ignore[attr-defined]
        return np.searchsorted(pairs, np.arange(size + 1) << 32), (pairs & 0xFFFFFFFF).astype(np.int32)

    def newer(self) -> np.ndarray:
        """int64 [n_requests]: how many newer requests the same user has; 0 for each user's newest."""
        users = self.user_ids
        order = np.lexsort((np.arange(len(users)) if self.times is None else self.times, users))
        ends = np.append(np.flatnonzero(np.diff(users[order])), len(users) - 1)  # place of each user's newest
        out = np.empty(len(users), np.int64)
        out[order] = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(users))
        return out

    def positives(self, task: str | None = None) -> np.ndarray:
        """bool [n_rows]: where a binary task (the first by default) has label 1; everywhere for implicit rows."""
        binary = [t for t in self.schema.tasks if t.kind == "binary" and not t.derived]
        chosen = self.schema.task(task) if task is not None else next(iter(binary), None)
        if chosen is None or chosen.column not in self.labels:
            return np.ones(self.n_rows, bool)
        return self.labels[chosen.column] == 1

    def enters(self, history: History) -> np.ndarray:
        """bool [n_rows]: which rows enter this history, by its `where`."""
        if history.where is None:
            return np.ones(self.n_rows, bool)
        columns = {t.name: t.column for t in self.schema.tasks}
        label = self.labels.get(columns.get(history.where, history.where))
        if label is None:
            raise SchemaError(f"History {history.name!r} has where={history.where!r}, which is no task's label.")
        return label == 1

    def history_pointers(self, name: str) -> HistoryPointers:
        """Where each request's history lies."""
        return self._histories[name]

    def user_sources(self) -> tuple[Block, Block | None, np.ndarray | None]:
        """Request features [n_requests], user attributes with row 0 for the unknown, and each request's row of these."""
        return self._user, self._users, self._user_rows

    def check_labels(self) -> None:
        """What training asks of the labels.

        Raises:
            DataError: a trained label is missing everywhere, a binary one never differs, or a loss finds nothing to compare;
                not for implicit rows.
        """
        from recstack.losses import OF_LISTS

        for task in self.schema.tasks:
            if task.derived or task.weight == 0 or self.implicit:
                continue
            label = self.labels[task.column]
            live = label[~np.isnan(label)]
            if not len(live):
                raise DataError(f'Label "{task.column}" is missing on all {self.n_rows} rows.')
            if task.kind == "binary" and live.min() == live.max():
                other = 1 - int(live[0])
                raise DataError(
                    f'Label "{task.column}" is {int(live[0])} on all {len(live)} rows; training needs some of {other}, '
                    "or Log(implicit=True) and sampled negatives where rows are positives only."
                )
            if task.loss_name == "weighted_logistic" and live.min() > 0:
                raise DataError(
                    f'Label "{task.column}" is above 0 on all {len(live)} rows; weighted_logistic needs rows of 0, of what '
                    "was shown and not watched."
                )
            if task.loss_name in OF_LISTS and self._lists is None:
                raise DataError(
                    f"Task {task.name!r} learns by {task.loss_name!r}, which compares the candidates of a request, and every "
                    "request has one here; name the column of requests, Log(..., request=...)."
                )

    def select(self, index: np.ndarray) -> Columns:
        """The columns of these requests, by mask or indices: a copy of their rows, stores shared."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        rows, lists = index, None
        if self._lists is not None:
            rows, lists = jagged.gather(np.arange(self.n_rows), self._lists[:-1][index], self._lists[1:][index])
        at = self._histories.items()
        return Columns(
            schema=self.schema,
            user=self._user.select(index),
            item=self._item.select(rows),
            users=self._users,
            items=self._items,
            user_rows=None if self._user_rows is None else self._user_rows[index],
            item_rows=None if self._item_rows is None else self._item_rows[rows],
            lists=lists,
            histories={n: HistoryPointers(h.items, h.times, h.begin[index], h.end[index]) for n, h in at},
            times=None if self.times is None else self.times[index],
            label_block=self._labels.select(rows),
            weights=None if self.weights is None else self.weights[rows],
            implicit=self.implicit,
            catalog=self.catalog,
        )

    def to(self, device: str | torch.device) -> Resident:
        """All of it on a device, for a Loader that gathers there: single-valued features and labels of pointwise rows.

        Raises:
            ConfigError: histories, multi-valued features or lists of candidates, by name.
        """
        from recstack.data.resident import Resident

        return Resident(self, device)

    # -- memory and identity ------------------------------------------------------------------------------------------
    def release(self) -> None:
        """Give the memory of mapped files back; what is asked for again is mapped again, or read.

        All of it and not only what was read: the kernel maps neighbours too, whose turn may be over.
        """
        for array in self.arrays().values():
            release(array)

    def wanted(self, start: int, stop: int) -> None:
        """Begin to read these requests from the disk, where they are mapped."""
        for array, first, last in self._extents(start, stop):
            wanted(array, first, last)

    def _extents(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, int, int]]:
        """What is stored in the order of requests: each array, and where these requests' part of it begins and ends."""
        rows = (start, stop) if self._lists is None else (int(self._lists[start]), int(self._lists[stop]))
        single = [(self._user_rows, start, stop), (self.times, start, stop), (self._lists, start, stop)]
        single += [(x, *rows) for x in (self._item_rows, self.weights)]
        single += [(x, start, stop) for h in self._histories.values() for x in (h.begin, h.end)]
        yield from ((array, a, b) for array, a, b in single if array is not None)
        for block, (a, b) in ((self._user, (start, stop)), (self._item, rows), (self._labels, rows)):
            yield block.ids, a, b
            yield block.floats, a, b
            for values, offsets in block.lists.values():
                yield values, int(offsets[a]), int(offsets[b])
                yield offsets, a, b

    @cached_property
    def digest(self) -> str:
        """What tells these columns from others: names, sizes, and rows at 64 places of each array."""
        digest = hashlib.blake2b(
            json.dumps([self.manifest()["blocks"], list(self._histories)]).encode(), digest_size=16
        )
        for name, array in sorted(self.arrays().items()):
            at = np.linspace(0, len(array) - 1, min(64, len(array))).astype(np.int64)
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array[at]).tobytes())
        return digest.hexdigest()

    # -- files --------------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """One .npy file per array and a manifest, written last: what the folder held before stays until then.

        Raises:
            DataError: a file cannot be written, by name.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), Writer(folder) as writer:
            for name, array in self.arrays().items():
                writer.append(name, array)
            writer.finish(self.manifest())

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by the names that the files have."""
        arrays: dict[str, np.ndarray | None] = {
            "user_rows": self._user_rows,
            "item_rows": self._item_rows,
            "lists": self._lists,
            "times": self.times,
            "weights": self.weights,
            "catalog.ids": None if self.catalog is None else self.catalog.ids,
        }
        for name, block in self.blocks().items():
            arrays |= block.arrays(name)
        for j, at in enumerate(self._histories.values()):
            arrays |= {f"history{j}.{k}": getattr(at, k) for k in ("items", "times", "begin", "end")}
        return {name: array for name, array in arrays.items() if array is not None}

    def manifest(self) -> dict[str, Any]:
        """What `load` must know beside the arrays, as JSON."""
        return {
            "schema": self.schema.to_dict(),
            "implicit": self.implicit,
            "blocks": {n: b.spec() for n, b in self.blocks().items()},
            "histories": list(self._histories),
        }

    def blocks(self) -> dict[str, Block]:
        """By name: user, item, users, items, labels, catalog, those that there are."""
        blocks = {"user": self._user, "item": self._item, "users": self._users, "items": self._items}
        blocks |= {"labels": self._labels, "catalog": None if self.catalog is None else self.catalog.block}
        return {n: b for n, b in blocks.items() if b is not None}

    @classmethod
    def load(cls, folder: str | Path, encoder: Any = None) -> Columns:
        """Mapped from the files that `save` wrote; nothing is read until it is asked for.

        Args:
            encoder: the Encoder that made them, for those who go back to raw ids through `schema.encoder`.

        Raises:
            DataError: naming the file that is missing, truncated or of another format.
        """
        return cls.restore(*read(Path(folder)), encoder)

    @classmethod
    def restore(cls, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray], encoder: Any = None) -> Columns:
        """From what `manifest` and `arrays` gave."""
        blocks = {n: Block.restore(spec, arrays, n) for n, spec in content["blocks"].items()}
        histories = {
            name: HistoryPointers(*(arrays.get(f"history{j}.{k}") for k in ("items", "times", "begin", "end")))  # type: ignore[arg-type]
            for j, name in enumerate(content["histories"])
        }
        return cls(
            schema=Schema.from_dict(content["schema"]).replace(encoder=encoder),
            user=blocks["user"],
            item=blocks["item"],
            users=blocks.get("users"),
            items=blocks.get("items"),
            user_rows=arrays.get("user_rows"),
            item_rows=arrays.get("item_rows"),
            lists=arrays.get("lists"),
            histories=histories,
            times=arrays.get("times"),
            label_block=blocks["labels"],
            weights=arrays.get("weights"),
            implicit=content["implicit"],
            catalog=ItemStore(blocks["catalog"], arrays["catalog.ids"]) if "catalog" in blocks else None,
        )


def _one_each(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """[R, ...] as [R, 1, ...]; flat lists have the same offsets for R rows as for R × 1."""
    flat: Iterable[str] = {n.removesuffix("@offsets") for n in batch if n.endswith("@offsets")}
    return {n: t if n in flat or n.endswith("@offsets") else t.unsqueeze(1) for n, t in batch.items()}
