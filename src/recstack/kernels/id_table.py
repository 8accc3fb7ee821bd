"""Ids of a space far larger than its rows: which id owns which row, when it gets one, and when it loses it.

Open addressing with linear probing in arrays of a power of two of slots. A slot holds an id that owns a row, or a candidate
that only counts its occurrences; an id that lost its row is a candidate with a count of zero, so that nothing is ever
deleted. When the slots fill up they are laid anew and all candidates are forgotten. The rows' owners follow the ids seen
and nothing else: the same batches in the same order give the same table, on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIRST = 2  # rows 0 and 1 are padding and out-of-vocabulary, like ids 0 and 1
LAST = np.iinfo(np.int64).max
_HALF = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing


class IdTable:
    """Ids ≥ 2 to rows 2 … rows + 1; ids 0 and 1 are rows 0 and 1.

    Args:
        rows: ids that can own a row at a time.
        admit: an id gets a row at its `admit`-th occurrence in what was learned (until then it is row 1).
        evict: whose row is given to a new id where none is free. "lfu": those with the fewest occurrences, of equal
            ones the longest unused; "lru": those longest unused; "ttl": those unused for more than `ttl` steps. None:
            nobody's. Rows used in the present step are never taken. Not one row is taken but 1/64 of all at least: to find
            them costs a look at every row.
        ttl: see `evict`.
        slots: at least; by default room for 2 · rows ids and 2^16.

    Its state is the dict of CPU tensors `state`, which may be saved and copied back with `load`:
    keys int64, row int32, count int32 by slot; last int64, the step of the last use, by row; clock [step, driven].

    >>> table = IdTable(rows=2, admit=2)
    >>> table.learn(torch.tensor([70, 80, 70]))[0].tolist(), table.find(torch.tensor([0, 70, 80])).tolist()
    ([2, 1, 2], [0, 2, 1])
    """

    def __init__(
        self, rows: int, admit: int = 1, evict: str | None = None, ttl: int | None = None, slots: int | None = None
    ) -> None:
        self.rows, self.admit, self.evict, self.ttl = rows, admit, evict, ttl
        size = 1 << (max(2 * rows, slots or 1 << 16) - 1).bit_length()
        self.state = {
            "keys": torch.zeros(size, dtype=torch.int64),
            "row": torch.zeros(size, dtype=torch.int32),
            "count": torch.zeros(size, dtype=torch.int32),
            "last": torch.zeros(rows + FIRST, dtype=torch.int64),
            "clock": torch.zeros(2, dtype=torch.int64),
        }
        self._follow()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of the same rows and slots."""
        for name, own in self.state.items():
            own.copy_(state[name])
        self._follow()

    def _follow(self) -> None:
        """What follows from the state: slot of each row, rows without owner (ascending), slots in use."""
        row = self.state["row"].numpy()
        owned = np.flatnonzero(row > 0)
        self._slot = np.full(self.rows + FIRST, -1, np.int64)
        self._slot[row[owned]] = owned
        self._free = np.flatnonzero(self._slot[FIRST:] < 0) + FIRST
        self._occupied = int(torch.count_nonzero(self.state["keys"]))
        self._none_before = 0  # the first step in which a row may be older than ttl
        self._sorted: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """Ids that own a row."""
        return self.rows - len(self._free)

    # -- the clock ----------------------------------------------------------------------------------------------------
    def gathering(self) -> None:
        """Before the lookups of one forward pass: a step by itself, unless somebody calls `stepped`."""
        clock = self.state["clock"]
        clock[0] += 1 - clock[1]

    def stepped(self) -> None:
        """An optimiser's step is due; what is learned from now on belongs to the next."""
        clock = self.state["clock"]
        clock[0] += 1
        clock[1] = 1

    def forget_steps(self) -> None:
        """Nobody calls `stepped` any more."""
        self.state["clock"][1] = 0

    # -- looking up ---------------------------------------------------------------------------------------------------
    def find(self, ids: Tensor) -> Tensor:
        """Rows int64 of ids, 1 for those that own none. Plain torch, for evaluation and export; changes nothing."""
        if self._sorted is None:
            owned = self.state["row"] > 0
            keys, order = torch.sort(self.state["keys"][owned])
            row = self.state["row"][owned].long()[order]
            self._sorted = torch.cat([keys, keys.new_tensor([LAST])]), torch.cat([row, row.new_tensor([1])])
        if self._sorted[0].device != ids.device:
            self._sorted = self._sorted[0].to(ids.device), self._sorted[1].to(ids.device)
        keys, row = self._sorted
        ids = ids.long()
        at = torch.searchsorted(keys, ids)
        return torch.where(keys[at] == ids, row[at], ids.clamp(max=1))

    def learn(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(rows int32 of `ids`, rows int64 that changed owner): counts, admits in the order of first occurrence, evicts."""
        s = {name: tensor.numpy() for name, tensor in self.state.items()}
        flat = np.ascontiguousarray(ids.detach().cpu().numpy()).reshape(-1)
        limit = len(s["keys"]) * 3 // 4
        if self._occupied > limit * 7 // 8:
            self._lay_anew()
        step = max(1, int(s["clock"][0]))
        out, want = np.empty(len(flat), np.int32), np.empty(len(flat), np.int64)
        self._occupied, wanted = _compiled(_look)(
            flat, s["keys"], s["row"], s["count"], s["last"], step, limit, self.admit, self._occupied, want, out
        )
        fresh = self._give(want[:wanted], step) if wanted else np.zeros(0, np.int64)
        waiting = np.flatnonzero(out < 0)
        found = s["row"][-1 - out[waiting].astype(np.int64)]
        out[waiting] = np.where(found > 0, found, 1)
        return torch.from_numpy(out).view(ids.shape).to(ids.device), torch.from_numpy(fresh)

    def _give(self, want: np.ndarray, step: int) -> np.ndarray:
        """Rows for the ids in these slots, as far as there are rows; those that had an owner before."""
        if len(want) > len(self._free) and self.evict is not None:
            self._make_room(max(len(want) - len(self._free), self.rows // 64), step)
        row, last = self.state["row"].numpy(), self.state["last"].numpy()
        n = min(len(want), len(self._free))
        given, self._free = self._free[:n], self._free[n:]
        row[want] = 0
        row[want[:n]] = given
        self._slot[given] = want[:n]
        before = given[last[given] > 0]
        last[given] = step
        if n:
            self._sorted = None
        return before

    def _make_room(self, n: int, step: int) -> None:
        last, count = self.state["last"].numpy(), self.state["count"].numpy()
        if self.evict == "ttl" and step < self._none_before:
            return
        at = np.flatnonzero((self._slot >= 0) & (last != step))
        if self.evict == "ttl":
            assert self.ttl is not None
            old = last[at] < step - self.ttl
            at, young = at[old], at[~old]
            self._none_before = (int(last[young].min()) if len(young) else step) + self.ttl + 1
        elif len(at) > n:
            score = last[at]
            if self.evict == "lfu":
                score = (count[self._slot[at]].astype(np.int64) << 32) | np.minimum(score, (1 << 32) - 1)
            edge = np.partition(score, n - 1)[n - 1]
            below = at[score < edge]
            at = np.concatenate([below, at[score == edge][: n - len(below)]])
        slots = self._slot[at]
        self.state["row"].numpy()[slots] = 0
        count[slots] = 0
        self._slot[at] = -1
        self._free = np.sort(np.concatenate([self._free, at]))
        self._sorted = None

    def _lay_anew(self) -> None:
        keys, row, count = (self.state[n].numpy() for n in ("keys", "row", "count"))
        owned = np.flatnonzero(row > 0)
        old = keys[owned], row[owned], count[owned]
        for array in (keys, row, count):
            array[:] = 0
        _compiled(_put)(*old, keys, row, count, self._slot)
        self._occupied = len(owned)


@cache
def _compiled(loop: Any) -> Any:
    import numba

    return numba.njit(loop, nogil=True, cache=True)


def _look(ids, keys, row, count, last, step, limit, admit, occupied, want, out):
    """One occurrence after the other: `out` is the row, or -1 - slot of an id without one; `want` those due to get one."""
    size = len(keys)
    shift = np.uint64(64)
    while size > 1:
        size >>= 1
        shift -= np.uint64(1)
    size = len(keys)
    wanted = 0
    for i in range(len(ids)):
        key = np.int64(ids[i])
        if key < 2:
            out[i] = key
            continue
        s = np.int64((np.uint64(key) * _HALF) >> shift)
        while keys[s] != key and keys[s] != 0:
            s = (s + 1) & (size - 1)
        if keys[s] == 0:
            if occupied >= limit:  # until the slots are laid anew
                out[i] = 1
                continue
            keys[s] = key
            occupied += 1
        if count[s] < 2147483647:
            count[s] += 1
        r = row[s]
        if r > 0:
            last[r] = step
            out[i] = r
            continue
        out[i] = -1 - s
        if r == 0 and count[s] >= admit:
            row[s] = -1
            want[wanted] = s
            wanted += 1
    return occupied, wanted


def _put(old_keys, old_row, old_count, keys, row, count, slot):
    """Owners into empty slots."""
    size = len(keys)
    shift = np.uint64(64)
    while size > 1:
        size >>= 1
        shift -= np.uint64(1)
    size = len(keys)
    for i in range(len(old_keys)):
        s = np.int64((np.uint64(old_keys[i]) * _HALF) >> shift)
        while keys[s] != 0:
            s = (s + 1) & (size - 1)
        keys[s], row[s], count[s] = old_keys[i], old_row[i], old_count[i]
        slot[old_row[i]] = s
