"""Lists of unequal length in flat arrays: gathering, padding, membership.

Each has a plain numpy form, which serves small inputs (a live request never waits for a compiler) and tests the compiled
form; both give the same arrays.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

SMALL = 1 << 14  # entries below which numpy is as fast, and numba need not be imported


def gather(values: np.ndarray, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The runs values[begin[i]:end[i]] one after another.

    Args:
        values: [n], any dtype, memory-mapped or not.
        begin, end: int64 [rows], begin <= end.

    Returns:
        flat [sum of lengths] and offsets int64 [rows + 1].
    """
    offsets = np.zeros(len(begin) + 1, np.int64)
    np.cumsum(end - begin, out=offsets[1:])
    if offsets[-1] < SMALL:
        return gather_plain(values, begin, offsets), offsets
    flat = np.empty(offsets[-1], values.dtype)
    _compiled()["gather"](values, begin, offsets, flat)
    return flat, offsets


def gather_plain(values: np.ndarray, begin: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """`gather` in numpy, the offsets of the result being known."""
    shift = np.repeat(begin - offsets[:-1], np.diff(offsets))
    return values[np.arange(offsets[-1]) + shift]


def pad(values: np.ndarray, offsets: np.ndarray, width: int | None = None) -> np.ndarray:
    """[rows, width]: each list left-aligned and zero-filled; `width` cuts, None takes the longest."""
    longest = int(np.diff(offsets).max(initial=0))
    width = longest if width is None else width
    out = np.zeros((len(offsets) - 1, width), values.dtype)
    if len(values) < SMALL:
        pad_plain(values, offsets, out)
    else:
        _compiled()["pad"](values, offsets, out)
    return out


def pad_plain(values: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
    """`pad` in numpy, into zeros."""
    row = np.repeat(np.arange(len(out)), np.diff(offsets))
    column = np.arange(offsets[-1] - offsets[0]) - (offsets[:-1] - offsets[0])[row]
    keep = column < out.shape[1]
    out[row[keep], column[keep]] = values[offsets[0] : offsets[-1]][keep]


def contains(rows: np.ndarray, values: np.ndarray, offsets: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Whether values[i, j] is among row rows[i]'s members.

    Args:
        rows: int [R].
        values: int32 [R, n].
        offsets: int64 [all rows + 1].
        members: int32, sorted within each row.

    Returns:
        bool [R, n].
    """
    if values.size < SMALL // 16:
        return contains_plain(rows, values, offsets, members)
    out = np.empty(values.shape, bool)
    _compiled()["contains"](rows, values, offsets, members, out)
    return out


def contains_plain(rows: np.ndarray, values: np.ndarray, offsets: np.ndarray, members: np.ndarray) -> np.ndarray:
    """`contains` in numpy."""
    pairs = zip(rows, values, strict=True)
    found = [np.isin(v, members[offsets[r] : offsets[r + 1]]) for r, v in pairs]
    return np.array(found, bool).reshape(values.shape)


def distinct(values: np.ndarray) -> np.ndarray:
    """The values ``[n]`` that differ, ascending; by sorting, because `np.unique` hashes: 16 times slower where most differ.

    >>> distinct(np.array([3, 1, 3]))
    array([1, 3])
    """
    ordered = np.sort(values)
    return ordered[np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))]


@cache
def _compiled() -> dict[str, Any]:
    import numba

    @numba.njit(nogil=True, cache=True)
    def gather(values, begin, offsets, out):
        for i in range(len(begin)):
            start = begin[i] - offsets[i]
            for j in range(offsets[i], offsets[i + 1]):
                out[j] = values[start + j]

    @numba.njit(nogil=True, cache=True)
    def pad(values, offsets, out):
        for i in range(out.shape[0]):
            start = offsets[i]
            for j in range(min(out.shape[1], offsets[i + 1] - start)):
                out[i, j] = values[start + j]

    @numba.njit(nogil=True, cache=True)
    def contains(rows, values, offsets, members, out):
        for i in range(values.shape[0]):
            first, last = offsets[rows[i]], offsets[rows[i] + 1]
            for j in range(values.shape[1]):
                low, high = first, last
                while low < high:
                    middle = (low + high) // 2
                    if members[middle] < values[i, j]:
                        low = middle + 1
                    else:
                        high = middle
                out[i, j] = low < last and members[low] == values[i, j]

    return {"gather": gather, "pad": pad, "contains": contains}
