"""Greedy maximum a posteriori of a determinantal point process, a request at a time (Chen et al., NeurIPS 2018)."""

from __future__ import annotations

import numpy as np

from recstack.kernels.topk import compiled

SPENT = 1e-10  # a variance below this is rounding: the item lies in the span of those before


def greedy(vectors: np.ndarray, gain: np.ndarray, weight: float, live: np.ndarray, k: int, window: int) -> np.ndarray:
    r"""The places of k items [R, k], one by one the highest ``gain + weight log d²``; -1 where no item is left.

    d² is what is left of an item given the last `window` chosen, the Schur complement in
    :math:`S_{ij} = (1 + \langle f_i, f_j \rangle) / 2` with :math:`S_{ii} = 1`; items without a vector are similar to none.
    An item in the span of the chosen has a d² of 1e-10. O(k K (D + window)) per request.

    Args:
        vectors: float64 [R, K, D], of length one or zero.
        gain: float64 [R, K].
        live: bool [R, K].
    """
    rows, width = gain.shape
    picks = np.full((rows, min(k, width)), -1, np.int64)
    across = np.ascontiguousarray(vectors.transpose(0, 2, 1))
    has = np.ascontiguousarray((vectors != 0).any(-1))
    for r in range(rows):
        compiled(_greedy)(across[r], has[r], gain[r], weight, live[r].copy(), min(window, max(k, 1)), picks[r])
    return picks


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------
def _greedy(vectors, has, gain, weight, free, window, picks):
    dim, width = vectors.shape
    left = np.ones(width)  # d²
    rows = np.zeros((window, width))  # of the Cholesky factor, one for each item that is conditioned on
    order = np.arange(window)  # its rows from the oldest to the newest
    chosen = np.zeros(window, np.int64)
    held = 0
    for place in range(len(picks)):
        best, j = -np.inf, -1
        for i in range(width):
            if free[i]:
                worth = gain[i] + weight * np.log(max(left[i], SPENT)) if weight > 0 else gain[i]
                if worth > best:
                    best, j = worth, i
        if j < 0:
            return
        picks[place] = j
        free[j] = False
        if weight == 0:
            continue
        if held == window:  # the oldest leaves: rotate its column out of the factor
            old = order[0]
            for t in range(1, held):
                row, y = order[t], chosen[order[t]]
                length = np.hypot(rows[old, y], rows[row, y])
                cos, sin = rows[row, y] / length, rows[old, y] / length
                for i in range(width):
                    a, b = rows[old, i], rows[row, i]
                    rows[row, i] = cos * b + sin * a
                    rows[old, i] = cos * a - sin * b
            for i in range(width):
                left[i] += rows[old, i] * rows[old, i]
            for t in range(1, held):
                order[t - 1] = order[t]
            held -= 1
            order[held] = old
        if left[j] < SPENT:
            continue  # conditioning on what is known changes nothing
        new = order[held]
        chosen[new] = j
        row = rows[new]
        row[:] = 0.0
        if has[j]:
            for d in range(dim):
                v = vectors[d, j]
                for i in range(width):
                    row[i] += v * vectors[d, i]
            for i in range(width):
                row[i] = 0.5 * (1.0 + row[i]) if has[i] else 0.0
        row[j] = 1.0
        for t in range(held):
            other = rows[order[t]]
            c = other[j]
            for i in range(width):
                row[i] -= c * other[i]
        scale = 1.0 / np.sqrt(left[j])
        for i in range(width):
            row[i] *= scale
            left[i] -= row[i] * row[i]
        held += 1
