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
    block: int | None,
) -> None:
    r"""One pass over x [R, D], in place: each row a ridge regression of its targets on the factors of its columns.

    .. math:: \min_{x_r} \sum_{j \in \mathrm{row}(r)} (x_r^\top y_j - t_{rj})^2 + x_r^\top G x_r + \lambda_r \|x_r\|^2

    Args:
        rows: [R, N], the columns of each row.
        targets: float32 [entries], the t.
        factors: float32 [N, D], the y.
        gram: float32 [D, D], the G, symmetric.
        ridge: float32 [R], the λ, positive.
        x: float32 [R, D], where the pass begins and what it leaves.
        block: so many coordinates at a time by Cholesky, the others held (iALS++, Rendle et al., 2021,
            https://arxiv.org/abs/2110.14044): :math:`n d b + d^2 + d b^2` operations for a row of n columns; with
            ``block >= D`` the row is the minimum, whatever x was. None: three steps of conjugate gradients
            (Takács et al., RecSys 2011, https://doi.org/10.1145/2043932.2043987): :math:`4 (2 n d + d^2)`, and the longer
            loops are the faster ones up to a D of about 128.
    """
    given = (rows.offsets, rows.columns, targets, factors, gram, ridge)
    if block is None:
        in_blocks(lambda begin, end: fast(_descend)(begin, end, *given, x), rows.height)
    else:
        size = min(block, x.shape[1])
        in_blocks(lambda begin, end: fast(_solve)(begin, end, *given, size, x), rows.height)


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


def _descend(begin, end, at, columns, targets, y, gram, ridge, x):
    d = y.shape[1]
    rest, way, bent = np.empty(d, np.float32), np.empty(d, np.float32), np.empty(d, np.float32)
    for r in range(begin, end):
        xr = x[r]
        size = np.float32(0)
        for step in range(4):  # the first finds the residual at x, as the others find the curvature along `way`
            v = xr if step == 0 else way
            for l in range(d):
                bent[l] = ridge[r] * v[l]
            k = 0
            while k + 4 <= d:  # four rows of the matrix at a time
                g0, g1, g2, g3 = gram[k], gram[k + 1], gram[k + 2], gram[k + 3]
                v0, v1, v2, v3 = v[k], v[k + 1], v[k + 2], v[k + 3]
                for l in range(d):
                    bent[l] += v0 * g0[l] + v1 * g1[l] + v2 * g2[l] + v3 * g3[l]
                k += 4
            while k < d:
                g = gram[k]
                for l in range(d):
                    bent[l] += v[k] * g[l]
                k += 1
            for p in range(at[r], at[r + 1]):
                yj = y[columns[p]]
                s = np.float32(0)
                for l in range(d):
                    s += yj[l] * v[l]
                if step == 0:
                    s -= targets[p]
                for l in range(d):
                    bent[l] += s * yj[l]
            before = size
            if step == 0:
                size = np.float32(0)
                for l in range(d):
                    rest[l] = -bent[l]
                    way[l] = rest[l]
                    size += rest[l] * rest[l]
            else:
                curve = np.float32(0)
                for l in range(d):
                    curve += way[l] * bent[l]
                far = before / curve
                size = np.float32(0)
                for l in range(d):
                    xr[l] += far * way[l]
                    rest[l] -= far * bent[l]
                    size += rest[l] * rest[l]
                for l in range(d):
                    way[l] = rest[l] + size / before * way[l]
            if size < np.float32(1e-12):
                break
