"""Encoded rows: a block of row-major arrays, and the store of items that looks them up by id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.errors import DataError
from recstack.kernels import jagged
from recstack.schema import Feature, History, Vector, is_embedded, is_multi

Encoded = Any  # int32 [n] ids, float32 [n] or [n, size], or (int32 values, int64 offsets [n + 1])


@dataclass(eq=False)
class Block:
    """n encoded rows of some features, row-major by dtype: one gather of a row brings all its columns.

    Args:
        rows: n.
        ids: int32 [n, F], the columns named by id_names.
        floats: float32 [n, W]; `float_names` gives (name, width), width 0 for a plain number.
        lists: name → (int32 values, int64 offsets [n + 1]), the multi-valued features.
    """

    rows: int
    ids: np.ndarray
    floats: np.ndarray
    id_names: tuple[str, ...] = ()
    float_names: tuple[tuple[str, int], ...] = ()
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @classmethod
    def build(cls, rows: int, features: Iterable[Feature], encode: Callable[[Feature], Encoded]) -> Block:
        """Encode each feature into its place."""
        features = [f for f in features if not isinstance(f, History)]
        lists = [f for f in features if is_multi(f)]
        ids = [f for f in features if is_embedded(f) and not is_multi(f)]
        floats = [(f, f.size if isinstance(f, Vector) else 0) for f in features if not is_embedded(f)]
        block = cls(
            rows,
            np.empty((rows, len(ids)), np.int32),
            np.empty((rows, sum(max(1, w) for _, w in floats)), np.float32),
            tuple(f.name for f in ids),
            tuple((f.name, w) for f, w in floats),
        )
        _fill(block.ids, [np.asarray(encode(f)).reshape(rows, 1) for f in ids])
        _fill(block.floats, [np.asarray(encode(f)).reshape(rows, max(1, w)) for f, w in floats])
        block.lists = {f.name: encode(f) for f in lists}
        return block

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.id_names, *(n for n, _ in self.float_names), *self.lists)

    def column(self, name: str) -> np.ndarray:
        """One single-valued feature of all rows, a view."""
        if name in self.id_names:
            return self.ids[:, self.id_names.index(name)]
        start = 0
        for other, width in self.float_names:
            if other == name:
                return self.floats[:, start : start + width] if width else self.floats[:, start]
            start += max(1, width)
        raise KeyError(name)

    def take(
        self,
        index: np.ndarray | slice,
        live: np.ndarray | None = None,
        *,
        padded: bool = False,
        only: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """A batch of rows.

        Args:
            index: int [...], or a slice of rows, which copies nothing.
            live: bool [...]; rows that are not live come back as zeros and empty lists.
            padded: multi-valued features as [..., K], 0 = nothing; otherwise flat values and `name@offsets`, int64
                [number of rows + 1].
            only: names to take; None takes all.
        """
        shape = (len(range(*index.indices(self.rows))),) if isinstance(index, slice) else np.shape(index)
        dead = None if live is None or live.all() else ~live
        wanted = None if only is None else set(only)
        out: dict[str, Tensor] = {}
        if self.id_names and (wanted is None or wanted.intersection(self.id_names)):
            out |= zip(self.id_names, _tensor(_rows(self.ids, index, dead)).unbind(-1), strict=True)
        if self.float_names and (wanted is None or any(n in wanted for n, _ in self.float_names)):
            gathered, start = _tensor(_rows(self.floats, index, dead)), 0
            columns = gathered.unbind(-1)  # one call for all: a slice each would take as long as the gathering
            for name, width in self.float_names:
                out[name] = gathered[..., start : start + width] if width else columns[start]
                start += max(1, width)
        if wanted is not None:
            out = {n: t for n, t in out.items() if n in wanted}
        for name, (values, offsets) in self.lists.items():
            if wanted is not None and name not in wanted:
                continue
            begin, end = offsets[:-1][index].reshape(-1), offsets[1:][index].reshape(-1)
            if dead is not None:
                end = np.where(dead.reshape(-1), begin, end)
            flat, bounds = jagged.gather(values, begin, end)
            if padded:
                out[name] = torch.from_numpy(padded_lists(flat, bounds)).unflatten(0, shape)
            else:
                out[name], out[f"{name}@offsets"] = torch.from_numpy(flat), torch.from_numpy(bounds)
        return out

    def select(self, index: np.ndarray) -> Block:
        """The block of these rows, a copy."""
        lists = {}
        for name, (values, offsets) in self.lists.items():
            lists[name] = jagged.gather(values, offsets[:-1][index], offsets[1:][index])
        return Block(len(index), self.ids[index], self.floats[index], self.id_names, self.float_names, lists)

    # -- files: names as JSON, arrays by name ---------------------------------------------------------------------------
    def spec(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "ids": list(self.id_names),
            "floats": [list(f) for f in self.float_names],
            "lists": list(self.lists),
        }

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        out = {f"{prefix}.i32": self.ids, f"{prefix}.f32": self.floats}
        for j, (values, offsets) in enumerate(self.lists.values()):
            out |= {f"{prefix}.list{j}": values, f"{prefix}.list{j}.offsets": offsets}
        return out

    @classmethod
    def restore(cls, spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray], prefix: str) -> Block:
        lists = {
            n: (arrays[f"{prefix}.list{j}"], arrays[f"{prefix}.list{j}.offsets"]) for j, n in enumerate(spec["lists"])
        }
        floats = tuple((n, w) for n, w in spec["floats"])
        return cls(spec["rows"], arrays[f"{prefix}.i32"], arrays[f"{prefix}.f32"], tuple(spec["ids"]), floats, lists)


def _fill(out: np.ndarray, columns: list[np.ndarray]) -> None:
    """`out` [n, W] from columns [n, w], some thousand rows at a time: a whole column would pass the cache W times."""
    for first in range(0, len(out) if columns else 0, 4096):
        start = 0
        for column in columns:
            out[first : first + 4096, start : start + column.shape[1]] = column[first : first + 4096]
            start += column.shape[1]


def _rows(array: np.ndarray, index: np.ndarray | slice, dead: np.ndarray | None) -> np.ndarray:
    out = array[index] if isinstance(index, slice) else np.take(array, index, 0)
    if dead is not None:
        out[dead] = 0
    return out


def padded_lists(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """At least one wide, so that a batch of empty lists still has a column to read."""
    return jagged.pad(values, offsets, max(1, int(np.diff(offsets).max(initial=0))))


def _tensor(array: np.ndarray) -> Tensor:
    """Shared with the array, unless that is a read-only file."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


class ItemStore:
    """Encoded item features by item id: row 0 is padding (zeros), row 1 an unknown item.

    Args:
        block: one row per id.
        ids: int64, ascending: the ids that are items, all of [2, size) for a learned vocabulary.
    """

    def __init__(self, block: Block, ids: np.ndarray) -> None:
        self.block, self.ids = block, ids

    @property
    def size(self) -> int:
        """Rows: one more than the largest id."""
        return self.block.rows

    def __len__(self) -> int:
        """Items."""
        return len(self.ids)

    def live(self) -> Tensor:
        """Bool ``[size]``: the ids that are items; padding, the unknown item and empty hash buckets are none."""
        live = torch.zeros(self.size, dtype=torch.bool)
        live[torch.from_numpy(self.ids)] = True
        return live

    def batch(self, ids: Tensor | np.ndarray, *, only: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Item tensors of these ids, of any shape [...]; multi-valued features padded to [..., K].

        Raises:
            DataError: an id that is not in [0, size).
        """
        index = np.asarray(ids)
        if index.size and (index.min() < 0 or index.max() >= self.size):
            wrong = index.max() if index.max() >= self.size else index.min()
            raise DataError(f"Item id {wrong} is outside the catalog's [0, {self.size}); encode raw ids first.")
        wanted = set(self.block.names if only is None else only)
        out = self.block.take(index, padded=True, only=wanted - set(self._padded))
        return out | {n: torch.from_numpy(np.take(t, index, 0)) for n, t in self._padded.items() if n in wanted}

    @cached_property
    def _padded(self) -> dict[str, np.ndarray]:
        """Lists as int32 [size, K], where at least half of the cells are filled: one gather in place of many."""
        tables = {}
        for name, (values, offsets) in self.block.lists.items():
            longest = int(np.diff(offsets).max(initial=0))
            if 0 < longest * (len(offsets) - 1) <= 2 * len(values) + 2 * longest:  # rows 0 and 1 are empty by nature
                tables[name] = jagged.pad(values, offsets, longest)
        return tables
