"""Alternating least squares: the rows of one side solved for, the other side held, a thread to a row.

Rows do not depend on each other while the other side stands still, so all blocks of a row are solved in one visit, and
the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from recstack.kernels.topk import Sparse, in_blocks


def solve(
    rows: Sparse,
    targets: np.ndarray,
    factors: np.ndarray,
    gram: np.ndarray,
    ridge: np.ndarray,
    x: np.ndarray,
    block: int,
) -> None:
    r"""One pass over x [R, D], in place: each row a ridge regression of its targets on the factors of its columns.

    .. math:: \min_{x_r} \sum_{j \in \mathrm{row}(r)} (x_r^\top y_j - t_{rj})^2 + x_r^\top G x_r + \lambda_r \|x_r\|^2

    `block` coordinates at a time by Cholesky, the others held (iALS++, Rendle et al., 2021, https://arxiv.org/abs/2110.14044):
    :math:`n d b + d b^2` operations for a row of n columns. With ``block >= D`` the row is the minimum, whatever x was.

    Args:
        rows: [R, N], the columns of each row.
        targets: float32 [entries], the t.
        factors: float32 [N, D], the y.
        gram: float32 [D, D], the G, symmetric.
        ridge: float32 [R], the λ, positive.
        x: float32 [R, D], where the pass begins and what it leaves.
        block: coordinates solved for at once.
    """
    kernel = fast(_solve)
    given = (rows.offsets, rows.columns, targets, factors, gram, ridge, min(block, x.shape[1]), x)
    in_blocks(lambda begin, end: kernel(begin, end, *given), rows.height)


@cache
def fast(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `topk.compiled`, and sums may be taken in the order that the processor adds fastest."""
    import numba

    return numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})(function)


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _solve(begin, end, at, columns, targets, y, gram, ridge, block, x):
    d = y.shape[1]
    longest = 0
    for r in range(begin, end):
        longest = max(longest, at[r + 1] - at[r])
    rest = np.empty(longest, np.float32)  # what the row predicts too much
    a = np.empty((block, block), np.float32)  # its upper triangle alone is read and written
    step = np.empty(block, np.float32)
    for r in range(begin, end):
        first, n = at[r], at[r + 1] - at[r]
        xr = x[r]
        for p in range(n):
            yj = y[columns[first + p]]
            s = np.float32(0)
            for k in range(d):
                s += yj[k] * xr[k]
            rest[p] = s - targets[first + p]
        for low in range(0, d, block):
            b = min(block, d - low)
            xb = xr[low : low + b]
            for k in range(b):  # the gradient of the block, and the part of its Hessian that all rows share
                g = gram[low + k]
                s = ridge[r] * xb[k]
                for l in range(d):
                    s += g[l] * xr[l]
                step[k] = s
                gb, ak = g[low : low + b], a[k]
                for l in range(k, b):
                    ak[l] = gb[l]
                ak[k] += ridge[r]
            p = 0
            while p < n:  # four columns at a time: the Hessian is read and written a quarter as often
                left = n - p
                y0 = y[columns[first + p]][low : low + b]
                y1 = y[columns[first + min(p + 1, n - 1)]][low : low + b]
                y2 = y[columns[first + min(p + 2, n - 1)]][low : low + b]
                y3 = y[columns[first + min(p + 3, n - 1)]][low : low + b]
                on1 = np.float32(1 if left > 1 else 0)
                on2 = np.float32(1 if left > 2 else 0)
                on3 = np.float32(1 if left > 3 else 0)
                e0, e1 = rest[p], on1 * rest[min(p + 1, n - 1)]
                e2, e3 = on2 * rest[min(p + 2, n - 1)], on3 * rest[min(p + 3, n - 1)]
                for k in range(b):
                    step[k] += e0 * y0[k] + e1 * y1[k] + e2 * y2[k] + e3 * y3[k]
                for k in range(b):
                    c0, c1, c2, c3 = y0[k], on1 * y1[k], on2 * y2[k], on3 * y3[k]
                    ak, z0, z1, z2, z3 = a[k][k:b], y0[k:], y1[k:], y2[k:], y3[k:]
                    for l in range(b - k):
                        ak[l] += c0 * z0[l] + c1 * z1[l] + c2 * z2[l] + c3 * z3[l]
                p += 4
            for k in range(b):  # a = u'u, and step becomes the solution of u'z = step
                ak = a[k]
                pivot = np.float32(1) / np.sqrt(max(ak[k], np.float32(1e-30)))
                for l in range(k, b):
                    ak[l] *= pivot
                step[k] *= pivot
                z = step[k]
                for l in range(k + 1, b):
                    step[l] -= z * ak[l]
                for i in range(k + 1, b):
                    c, ai, tail = ak[i], a[i][i:b], ak[i:b]
                    for l in range(b - i):
                        ai[l] -= c * tail[l]
            for k in range(b - 1, -1, -1):
                ak, s = a[k], step[k]
                for l in range(k + 1, b):
                    s -= ak[l] * step[l]
                step[k] = s / ak[k]
            for k in range(b):
                xb[k] -= step[k]
            if low + b < d:
                for p in range(n):
                    yb = y[columns[first + p]][low : low + b]
                    s = np.float32(0)
                    for k in range(b):
                        s += yb[k] * step[k]
                    rest[p] -= s
