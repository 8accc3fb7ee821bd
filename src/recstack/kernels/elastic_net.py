"""Elastic nets with non-negative weights, one per column of a sparse matrix of ones, all others explaining it."""

from __future__ import annotations

import numpy as np

from recstack.kernels.cooccurrence import transpose
from recstack.kernels.topk import Sparse, compiled, in_blocks, offsets_of


def elastic_nets(rows: Sparse, l1: float, l2: float, *, tolerance: float = 1e-4, passes: int = 100) -> Sparse:
    r"""The weights W [N, N] of SLIM, by coordinate descent on residuals, a thread to a column.

    .. math:: \min_{w \ge 0,\, w_j = 0} \tfrac12 \|a_j - A w\|^2 + \tfrac{\beta}{2} \|w\|^2 + \lambda \|w\|_1

    Only items that share more than λ rows with j can have a weight: without it the others are never looked at, and the
    result is the same. Passes go over the positive weights until these stand still, then over all.

    Args:
        rows: A [users, N], ones.
        l1, l2: λ and β.
        tolerance: a pass in which no weight moves further ends the descent.
        passes: at most.

    Returns:
        Row i holds the :math:`W_{ij} > 0` with which item i speaks for item j, largest first.
    """
    items = transpose(rows)
    kernel = compiled(_elastic_nets)
    given = (items.offsets, items.columns, rows.offsets, rows.columns, float(l1), float(l2), tolerance, passes)
    found = in_blocks(lambda begin, end: kernel(begin, end, *given), rows.width)
    source, value, count = (np.concatenate(part) for part in zip(*found, strict=True))
    target = np.repeat(np.arange(rows.width, dtype=np.int32), count)
    order = np.lexsort((target, -value, source))
    offsets = offsets_of(np.bincount(source, minlength=rows.width))
    return Sparse(offsets, target[order], rows.width, value[order])


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _elastic_nets(begin, end, i_at, i_users, u_at, u_items, l1, l2, tolerance, passes):
    n = len(i_at) - 1
    rest = np.zeros(len(u_at) - 1)  # a_j - A w
    weight = np.zeros(n)
    shared = np.zeros(n, np.int64)
    met = np.empty(n, np.int32)
    source, value = np.empty(1024, np.int32), np.empty(1024, np.float32)
    count = np.zeros(end - begin, np.int64)
    total = 0
    for j in range(begin, end):
        m = 0
        for a in range(i_at[j], i_at[j + 1]):
            u = i_users[a]
            rest[u] = 1.0
            for p in range(u_at[u], u_at[u + 1]):
                i = u_items[p]
                if shared[i] == 0:
                    met[m] = i
                    m += 1
                shared[i] += 1
        candidates = 0
        for c in range(m):
            i = met[c]
            if i != j and shared[i] > l1:
                met[candidates] = i
                candidates += 1
            shared[i] = 0
        everyone = True
        for _ in range(passes):
            furthest = 0.0
            for c in range(candidates):
                i = met[c]
                if everyone or weight[i] > 0:
                    s = 0.0
                    for a in range(i_at[i], i_at[i + 1]):
                        s += rest[i_users[a]]
                    held = i_at[i + 1] - i_at[i]
                    move = max(0.0, s + held * weight[i] - l1) / (held + l2) - weight[i]
                    if move != 0.0:
                        weight[i] += move
                        furthest = max(furthest, abs(move))
                        for a in range(i_at[i], i_at[i + 1]):
                            rest[i_users[a]] -= move
            if everyone and furthest < tolerance:
                break
            everyone = furthest < tolerance
        if total + candidates > len(source):
            more = max(2 * len(source), total + candidates)
            source = np.concatenate((source, np.empty(more - len(source), np.int32)))
            value = np.concatenate((value, np.empty(more - len(value), np.float32)))
        for a in range(i_at[j], i_at[j + 1]):
            rest[i_users[a]] = 0.0
        for c in range(candidates):
            i = met[c]
            for a in range(i_at[i], i_at[i + 1]):
                rest[i_users[a]] = 0.0
            if weight[i] > 0:
                source[total], value[total] = i, weight[i]
                total += 1
                count[j - begin] += 1
            weight[i] = 0.0
    return source[:total].copy(), value[:total].copy(), count
