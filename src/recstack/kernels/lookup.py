"""From int64 values to int32 ids: a table where values lie close together, else open addressing.

Small inputs take numpy (a live request never waits for a compiler); both forms give the same arrays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SMALL = 1 << 14  # values below which numpy is as fast, and numba need not be imported


def dense(values: np.ndarray, low: int, table: np.ndarray, absent: int) -> np.ndarray:
    """table[value - low], or `absent` for values that the table does not reach.

    Args:
        values: int64 [n].
        low: the value of the table's first entry.
        table: int32 [m].

    Returns:
        int32 [n].
    """
    if len(values) < SMALL:
        return dense_plain(values, low, table, absent)
    out = np.empty(len(values), np.int32)
    _compiled()["dense"](values, low, table, absent, out)
    return out


def dense_plain(values: np.ndarray, low: int, table: np.ndarray, absent: int) -> np.ndarray:
    """`dense` in numpy."""
    inside = (values >= low) & (values <= low + (len(table) - 1))  # compared, not subtracted: no overflow
    return np.where(inside, table[np.where(inside, values, low) - low], absent).astype(np.int32)


def build(keys: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hash table of distinct keys int64 [m] and their ids int32 [m], none of them 0: (slots, slot ids).

    At most half of the slots are taken; an id of 0 marks a free one. The first slot is the high bits of
    key * 2**64 / golden ratio (Knuth, TAOCP 3, 6.4), the next ones follow it.
    """
    size = 1 << max(4, (2 * len(keys) - 1).bit_length())
    slots, taken = np.zeros(size, np.int64), np.zeros(size, np.int32)
    _compiled()["build"](keys, ids, slots, taken, 64 - (size.bit_length() - 1))
    return slots, taken


def hashed(values: np.ndarray, slots: np.ndarray, taken: np.ndarray, absent: int) -> np.ndarray:
    """int32 [n]: the ids of values in a table of `build`, `absent` where they are not in it."""
    out = np.empty(len(values), np.int32)
    _compiled()["find"](values, slots, taken, 64 - (len(slots).bit_length() - 1), absent, out)
    return out


@cache
def _compiled() -> dict[str, Any]:
    import numba

    golden = np.uint64(0x9E3779B97F4A7C15)

    @numba.njit(nogil=True, cache=True)
    def dense(values, low, table, absent, out):
        high = low + (len(table) - 1)  # in this order: low + len(table) may be past int64
        for i in range(len(values)):
            v = values[i]
            out[i] = table[v - low] if low <= v <= high else absent

    @numba.njit(nogil=True, cache=True)
    def build(keys, ids, slots, taken, shift):
        last = len(slots) - 1
        for i in range(len(keys)):
            at = np.int64((np.uint64(keys[i]) * golden) >> np.uint64(shift))
            while taken[at] != 0:
                at = (at + 1) & last
            slots[at], taken[at] = keys[i], ids[i]

    @numba.njit(nogil=True, cache=True)
    def find(values, slots, taken, shift, absent, out):
        last = len(slots) - 1
        for i in range(len(values)):
            at = np.int64((np.uint64(values[i]) * golden) >> np.uint64(shift))
            while taken[at] != 0 and slots[at] != values[i]:
                at = (at + 1) & last
            out[i] = taken[at] if taken[at] != 0 else absent

    return {"dense": dense, "build": build, "find": find}
