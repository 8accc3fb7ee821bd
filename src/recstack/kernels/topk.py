"""The best few of many: exact top-k over sparse rows, in blocks of requests, and what a top-k list is worth.

Scores of all items are never written down: a thread keeps one accumulator over the items, adds the rows that a request's
history points at, and keeps the best k in a small heap. Order is total everywhere: higher score first, smaller id among
equals, so results depend neither on the number of threads nor on the order in which neighbours were met.

The loops are plain Python functions, compiled by numba when they are first needed. They run in Python threads without
the interpreter's lock, not in numba's own pool: several threads of a service may enter them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch


class Sparse(NamedTuple):
    """Rows of a sparse matrix: row r holds `columns[offsets[r]:offsets[r + 1]]` and, if it has any, `values` there."""

    offsets: np.ndarray
    """int64 [rows + 1]"""
    columns: np.ndarray
    """int32 [entries]"""
    width: int
    """number of columns"""
    values: np.ndarray | None = None
    """float32 [entries], or None: all ones"""

    @property
    def height(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Entries of each row, int64 [rows]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """The row of each entry, int64 [entries]."""
        return np.repeat(np.arange(self.height), self.counts)

    def take(self, rows: np.ndarray) -> Sparse:
        """The given rows, in the given order."""
        counts = self.counts[rows]
        offsets = offsets_of(counts)
        entry = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return Sparse(offsets, self.columns[entry], self.width, None if self.values is None else self.values[entry])

    def last(self, n: int) -> Sparse:
        """At most the last `n` entries of each row: the newest, where rows are in the order of time."""
        kept = np.arange(len(self.columns)) >= np.repeat(self.offsets[1:] - n, self.counts)
        return self.where(kept)

    def where(self, kept: np.ndarray) -> Sparse:
        """The entries for which `kept` (bool [entries]) is true."""
        offsets = np.concatenate(([0], np.cumsum(kept)))[self.offsets]
        return Sparse(offsets, self.columns[kept], self.width, None if self.values is None else self.values[kept])


def product(left: Sparse, right: Sparse) -> Sparse:
    """left [R, M] times right [M, N], both sparse: float32 values, columns of a row ascending.

    >>> one = Sparse(np.array([0, 2]), np.array([0, 1], np.int32), 2, np.array([1.0, 10.0], np.float32))
    >>> other = Sparse(np.array([0, 1, 3]), np.array([3, 3, 4], np.int32), 5)
    >>> product(one, other).columns, product(one, other).values
    (array([3, 4], dtype=int32), array([11., 10.], dtype=float32))
    """
    rows = right.take(left.columns)
    entry = rows.rows  # of left
    value = _weights(rows).astype(np.float64) * _weights(left)[entry]
    key, place = np.unique(left.rows[entry] * right.width + rows.columns, return_inverse=True)
    row, column = np.divmod(key, right.width)
    offsets = offsets_of(np.bincount(row, minlength=left.height))
    values = np.bincount(place, value, minlength=len(key)).astype(np.float32)
    return Sparse(offsets, column.astype(np.int32), right.width, values)


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Where rows of the given lengths begin, and where the last one ends: int64 [rows + 1]."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


@cache
def compiled(function: Callable[..., Any], *helpers: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled by numba, kept on disk between runs; `helpers` are the plain functions that it calls.

    The helpers stay plain functions of a module, because numba never finds a kernel again on disk that encloses a
    compiled function.
    """
    import numba

    for helper in helpers:
        _callable_from_kernels(helper)
    return numba.njit(cache=True, nogil=True)(function)


@cache
def _callable_from_kernels(helper: Callable[..., Any]) -> None:
    from numba.extending import register_jitable

    register_jitable(helper)


def in_blocks(work: Callable[[int, int], Any], n: int, smallest: int = 64) -> list[Any]:
    """`work(begin, end)` over blocks of range(n), in as many threads as torch uses; results in the order of the blocks.

    Blocks are handed out one by one, many to a thread, so that a few expensive rows do not make the others wait.
    """
    threads = torch.get_num_threads()
    size = max(smallest, -(-n // (32 * threads)))
    begins = range(0, n, size)
    if threads == 1 or len(begins) < 2:
        return [work(begin, min(begin + size, n)) for begin in begins]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda begin: work(begin, min(begin + size, n)), begins))


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _sink(ids, scores, size, at):
    """Let the entry at `at` sink in a heap of `size` whose root is the worst entry."""
    id, score = ids[at], scores[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        other = child + 1
        if other < size and (
            scores[other] < scores[child] or (scores[other] == scores[child] and ids[other] > ids[child])
        ):
            child = other
        if score < scores[child] or (score == scores[child] and id > ids[child]):
            break
        ids[at], scores[at] = ids[child], scores[child]
        at = child
    ids[at], scores[at] = id, score


def keep_best(candidates, n, score_of, ids, scores):
    """Write the best of `candidates[:n]` into `ids` and `scores` (float32), best first; return how many there are.

    `score_of` holds the score of every id, `len(ids)` is the most that are kept. To be called from compiled kernels.
    """
    k = len(ids)
    size = min(n, k)
    for c in range(size):
        ids[c] = candidates[c]
        scores[c] = score_of[candidates[c]]
    for at in range(size // 2 - 1, -1, -1):
        _sink(ids, scores, size, at)
    for c in range(size, n):
        id = candidates[c]
        score = np.float32(score_of[id])
        if score > scores[0] or (score == scores[0] and id < ids[0]):
            ids[0], scores[0] = id, score
            _sink(ids, scores, size, 0)
    for end in range(size - 1, 0, -1):
        ids[0], ids[end] = ids[end], ids[0]
        scores[0], scores[end] = scores[end], scores[0]
        _sink(ids, scores, end, 0)
    return size


def _recommend(begin, end, h_at, h_items, h_values, s_at, s_items, s_values, seen_at, seen, closed, ids, scores, found):
    total = np.zeros(len(closed))
    state = closed.copy()  # 0 not met, 1 met, 2 not allowed, 4 or more seen
    met = np.empty(len(closed), np.int32)
    for r in range(begin, end):
        for p in range(seen_at[r], seen_at[r + 1]):
            state[seen[p]] |= 4
        n = 0
        for p in range(h_at[r], h_at[r + 1]):
            i = h_items[p]
            for q in range(s_at[i], s_at[i + 1]):
                j = s_items[q]
                if state[j] == 0:
                    state[j] = 1
                    met[n] = j
                    n += 1
                if state[j] < 2:
                    total[j] += h_values[p] * s_values[q]
        found[r] = keep_best(met, n, total, ids[r], scores[r])
        for c in range(n):
            total[met[c]] = 0.0
            state[met[c]] = 0
        for p in range(seen_at[r], seen_at[r + 1]):
            state[seen[p]] &= 3


def _score(begin, end, h_at, h_items, h_values, s_at, s_items, s_values, width, ids, scores):
    total = np.zeros(width)
    for r in range(begin, end):
        for p in range(h_at[r], h_at[r + 1]):
            i = h_items[p]
            for q in range(s_at[i], s_at[i + 1]):
                total[s_items[q]] += h_values[p] * s_values[q]
        for c in range(ids.shape[1]):
            scores[r, c] = total[ids[r, c]]
        for p in range(h_at[r], h_at[r + 1]):
            i = h_items[p]
            for q in range(s_at[i], s_at[i + 1]):
                total[s_items[q]] = 0.0


# --- what the models call --------------------------------------------------------------------------------------------


def recommend_from_rows(
    history: Sparse, similar: Sparse, k: int, *, seen: Sparse | None = None, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""The k items with the largest :math:`\sum_{i \in \mathrm{history}(r)} h_{ri} S_{ij}`, exactly.

    Args:
        history: [R, M], the items (or users, or tags) each request starts from, with weights or without.
        similar: [M, N], the neighbours of each; values must be positive.
        k: how many at most. Items that no neighbour list reaches are never proposed, so there may be fewer.
        seen: [R, N], what a request must not get.
        allowed: bool [N], what may be proposed at all.

    Returns:
        ids int32 [R, k] (0 where there is none), scores float32 [R, k] (0 there), found int64 [R]: live entries come
        first. Equal scores stand in the order of ids.
    """
    assert similar.values is not None
    R = history.height
    if seen is None:
        seen = Sparse(np.zeros(R + 1, np.int64), np.zeros(0, np.int32), similar.width)
    closed = np.zeros(similar.width, np.uint8) if allowed is None else np.where(allowed, 0, 2).astype(np.uint8)
    ids, scores, found = np.zeros((R, k), np.int32), np.zeros((R, k), np.float32), np.zeros(R, np.int64)
    if k:
        kernel = compiled(_recommend, _sink, keep_best)
        given = (history.offsets, history.columns, _weights(history), similar.offsets, similar.columns, similar.values)
        given += (seen.offsets, seen.columns, closed)
        in_blocks(lambda begin, end: kernel(begin, end, *given, ids, scores, found), R)
    return ids, scores, found


def score_from_rows(history: Sparse, similar: Sparse, ids: np.ndarray) -> np.ndarray:
    """The score that `recommend_from_rows` gives to named candidates: ids int [R, K] to float32 [R, K], 0 if unrelated."""
    assert similar.values is not None
    ids = np.ascontiguousarray(ids, np.int64)
    scores = np.zeros(ids.shape, np.float32)
    kernel = compiled(_score)
    given = (history.offsets, history.columns, _weights(history), similar.offsets, similar.columns, similar.values)
    in_blocks(lambda begin, end: kernel(begin, end, *given, similar.width, ids, scores), history.height)
    return scores


def evaluate_topk(ids: np.ndarray, truth: Sparse, found: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    r"""Recall and NDCG of ranked lists against sets of relevant items, request by request.

    .. math:: \mathrm{recall@}k = \frac{|\mathrm{list} \cap \mathrm{truth}|}{|\mathrm{truth}|}, \qquad
        \mathrm{ndcg@}k = \frac{\sum_{c \le k} [\mathrm{list}_c \in \mathrm{truth}] / \log_2(1 + c)}
        {\sum_{c \le \min(k, |\mathrm{truth}|)} 1 / \log_2(1 + c)}

    The protocol of NGCF and LightGCN. A recall over all relevant items can stay below 1 when there are more than k.

    Args:
        ids: int [R, k], best first, no item twice.
        truth: [R, N] relevant items.
        found: int [R], the live entries of each list; None: all of them.

    Returns:
        recall and ndcg, float64 [R]; NaN for a request without relevant items, which no mean should count.

    >>> truth = Sparse(np.array([0, 2, 2]), np.array([7, 9], np.int32), 10)
    >>> recall, ndcg = evaluate_topk(np.array([[7, 3], [7, 3]]), truth)
    >>> recall, ndcg.round(4)
    (array([0.5, nan]), array([0.6131,    nan]))
    """
    R, k = ids.shape
    relevant = np.sort(truth.rows * truth.width + truth.columns)
    asked = np.arange(R)[:, None] * truth.width + ids
    if len(relevant):
        at = np.minimum(np.searchsorted(relevant, asked), len(relevant) - 1)
        hit = relevant[at] == asked
    else:
        hit = np.zeros(ids.shape, bool)
    if found is not None:
        hit &= np.arange(k) < found[:, None]
    gain = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate(([0.0], np.cumsum(gain)))[np.minimum(truth.counts, k)]
    with np.errstate(invalid="ignore"):
        return hit.sum(1) / truth.counts, hit @ gain / ideal


def _weights(history: Sparse) -> np.ndarray:
    return np.ones(len(history.columns), np.float32) if history.values is None else history.values
