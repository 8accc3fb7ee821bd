"""XᵀX of interactions, dense, and its inverse, each in the one matrix that there is room for."""

from __future__ import annotations

import numpy as np

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import transpose
from recstack.kernels.topk import Sparse, compiled, in_blocks


def gram(rows: Sparse) -> np.ndarray:
    """How many rows hold both columns, float32 [N, N].

    >>> gram(Sparse(np.array([0, 2, 3]), np.array([0, 1, 1], np.int32), 2))
    array([[1., 1.],
           [1., 2.]], dtype=float32)
    """
    other, out = transpose(rows), np.zeros((rows.width, rows.width), np.float32)
    given = (other.offsets, other.columns, rows.offsets, rows.columns, out)
    kernel = compiled(_gram)
    in_blocks(lambda begin, end: kernel(begin, end, *given), rows.width)
    return out


def invert(matrix: np.ndarray) -> None:
    """A symmetric positive definite float32 [N, N] becomes its inverse, by Cholesky (LAPACK), without a second matrix.

    Raises:
        ConfigError: it is not positive definite in float32.
    """
    from scipy.linalg import get_lapack_funcs

    potrf, potri = get_lapack_funcs(("potrf", "potri"), (matrix,))
    a = matrix.T  # in the order of columns, as LAPACK wants it; its upper triangle is read and overwritten
    factor, wrong = potrf(a, lower=0, clean=0, overwrite_a=1)
    inverse, _ = potri(factor, lower=0, overwrite_c=1)
    if wrong:
        raise ConfigError("X'X + l2 has no inverse in float32; take a larger l2.")
    assert inverse.ctypes.data == matrix.ctypes.data
    for low in range(0, len(matrix), 1024):
        high = min(low + 1024, len(matrix))
        here = matrix[low:high, low:high]
        here[:] = np.tril(here) + np.tril(here, -1).T
        matrix[low:high, high:] = matrix[high:, low:high].T


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _gram(begin, end, i_at, i_users, u_at, u_items, out):
    for i in range(begin, end):
        for a in range(i_at[i], i_at[i + 1]):
            u = i_users[a]
            for p in range(u_at[u], u_at[u + 1]):
                out[i, u_items[p]] += np.float32(1)
