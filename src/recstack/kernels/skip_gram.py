"""Skip-gram with negative sampling, a pair at a time: what items stand near each other in sequences.

A pair touches a handful of short rows, so that one thread of plain loops does what batches of tensors only approximate;
equal seeds give equal vectors, to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recstack.kernels.als import fast
from recstack.kernels.topk import Sparse, offsets_of


class Parts(NamedTuple):
    """What an item's vector is put together from: item i of the rows `rows[offsets[i]:offsets[i + 1]]` of one table.

    .. math:: h_i = \\sum_f \\frac{e^{a_{if}}}{\\sum_g e^{a_{ig}}} \\sum_{e \\in (i, f)} s_e\\, w_{row(e)}

    The entries of a field stand side by side, and their shares sum to one.
    """

    offsets: np.ndarray
    """int64 [N + 1]"""
    rows: np.ndarray
    """int32 [entries], of the table"""
    fields: np.ndarray
    """int32 [entries]"""
    shares: np.ndarray
    """float32 [entries]"""


def alone(n: int) -> Parts:
    """Each of n items has one row of its own.

    >>> alone(2).rows
    array([0, 1], dtype=int32)
    """
    return Parts(np.arange(n + 1), np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.ones(n, np.float32))


def noise(counts: np.ndarray, power: float = 0.75, size: int = 1 << 20) -> np.ndarray:
    """A table from which a uniform draw gives item i with chance :math:`\\propto \\mathrm{count}_i^{power}`: int32 [size].

    >>> np.bincount(noise(np.array([0, 1, 16]), size=9))
    array([0, 1, 8])
    """
    total = np.cumsum(np.asarray(counts, np.float64) ** power * (np.asarray(counts) > 0))
    return np.searchsorted(total, (np.arange(size) + 0.5) / size * total[-1], side="right").astype(np.int32)


def skip_gram(
    sequences: Sparse,
    parts: Parts,
    table: np.ndarray,
    out: np.ndarray,
    attention: np.ndarray,
    drawn: np.ndarray,
    *,
    window: int,
    negatives: int,
    lr: tuple[float, float],
    seed: int,
    attend: bool = False,
    goals: np.ndarray | None = None,
    local: tuple[np.ndarray, Sparse] | None = None,
    local_negatives: int = 0,
) -> None:
    r"""One epoch of stochastic gradient descent over all pairs of items at most `window` apart; everything in place.

    .. math:: \mathrm{softplus}(-h_i^\top z_j) + \sum_{n} \mathrm{softplus}(h_i^\top z_n)

    for the item j beside i, and n drawn anew for each pair; one that is j itself is left out.

    Args:
        sequences: [S, N], the items of each in their order; items may come again.
        parts: of which h is made.
        table: float32 [rows, D], the w.
        out: float32 [N, D], the z.
        attention: float32 [N, fields], the a; they are learned where `attend` is true.
        drawn: int32, what negatives are drawn from uniformly (see `noise`).
        lr: learning rate at the beginning and at the end, linear between.
        goals: int32 [S], an item that counts as standing beside every item of the sequence; -1 where there is none.
        local: (int32 [N], the group of each item; [groups, N], the items of each), of which `local_negatives` more are drawn
            for each pair, uniformly from the group of i; a group of -1 has none.
    """
    none = np.zeros(0, np.int32)
    if local is None:
        local, local_negatives = (none, Sparse(np.zeros(1, np.int64), none, 0)), 0
    given = (sequences.offsets, sequences.columns, *parts, table, out, attention, drawn)
    more = (none if goals is None else goals, local[0], local[1].offsets, local[1].columns)
    fast(_skip_gram)(*given, window, negatives, lr[0], lr[1], np.uint64(seed % 2**64), attend, *more, local_negatives)


def thinned(sequences: Sparse, kept: np.ndarray, seed: int, shuffle: bool) -> Sparse:
    """Each entry stays with the chance ``kept[item]``; the entries of a row in a new order, where `shuffle` says so."""
    rng = np.random.default_rng(seed)
    stay = rng.random(len(sequences.columns)) < kept[sequences.columns]
    row, column = sequences.rows[stay], sequences.columns[stay]
    if shuffle:
        column = column[np.lexsort((rng.random(len(row)), row))]
    return Sparse(offsets_of(np.bincount(row, minlength=sequences.height)), column, sequences.width)


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _skip_gram(
    at,
    items,
    p_at,
    p_rows,
    p_fields,
    p_shares,
    w,
    z,
    attention,
    drawn,
    window,
    negatives,
    lr_begin,
    lr_end,
    seed,
    attend,
    goals,
    group_of,
    g_at,
    g_items,
    local_negatives,
):
    d = w.shape[1]
    h, dh = np.zeros(d, np.float32), np.zeros(d, np.float32)
    alpha, own = np.zeros(attention.shape[1], np.float32), np.zeros(attention.shape[1], np.float32)
    state = seed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    a, c, half = np.uint64(6364136223846793005), np.uint64(1442695040888963407), np.uint64(32)
    one = np.float32(1)
    for s in range(len(at) - 1):
        goal = goals[s] if len(goals) else np.int32(-1)
        for p in range(at[s], at[s + 1]):
            i = items[p]
            lr = np.float32(lr_begin + (lr_end - lr_begin) * p / len(items))
            first, last = max(at[s], p - window), min(at[s + 1], p + window + 1)
            for o in range(first - (1 if goal >= 0 else 0), last):
                if o == p:
                    continue
                j = goal if o < first else items[o]
                total = np.float32(0)
                before = np.int32(-1)
                for e in range(p_at[i], p_at[i + 1]):
                    f = p_fields[e]
                    if f != before:
                        alpha[f] = np.exp(attention[i, f])
                        total += alpha[f]
                        own[f] = 0
                        before = f
                h[:] = 0
                dh[:] = 0
                for e in range(p_at[i], p_at[i + 1]):
                    share = p_shares[e] * alpha[p_fields[e]] / total
                    row = w[p_rows[e]]
                    for k in range(d):
                        h[k] += share * row[k]
                for n in range(1 + negatives + local_negatives):
                    t = j
                    if n > 0:
                        state = state * a + c  # the upper half of a linear congruence, as fractions of the range
                        if n <= negatives:
                            t = drawn[((state >> half) * np.uint64(len(drawn))) >> half]
                        else:
                            g = group_of[i]
                            if g < 0:
                                break
                            size = np.uint64(g_at[g + 1] - g_at[g])
                            t = g_items[g_at[g] + np.int64(((state >> half) * size) >> half)]
                        if t == j:
                            continue
                    row = z[t]
                    x = np.float32(0)
                    for k in range(d):
                        x += h[k] * row[k]
                    slope = one / (one + np.exp(-x))
                    if n == 0:
                        slope -= one
                    for k in range(d):
                        dh[k] += slope * row[k]
                        row[k] -= lr * slope * h[k]
                whole = np.float32(0)
                for k in range(d):
                    whole += h[k] * dh[k]
                for e in range(p_at[i], p_at[i + 1]):
                    f = p_fields[e]
                    row = w[p_rows[e]]
                    step = lr * p_shares[e] * alpha[f] / total
                    dot = np.float32(0)
                    for k in range(d):
                        dot += row[k] * dh[k]
                        row[k] -= step * dh[k]
                    own[f] += p_shares[e] * dot
                if attend:
                    before = np.int32(-1)
                    for e in range(p_at[i], p_at[i + 1]):
                        f = p_fields[e]
                        if f != before:
                            attention[i, f] -= lr * alpha[f] / total * (own[f] - whole)
                            before = f
