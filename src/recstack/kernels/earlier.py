"""What a log knew of an id before each of its rows: sums over the rows of earlier moments."""

from __future__ import annotations

import numpy as np


def earlier(ids: np.ndarray, values: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """For each row, the sum of `values` [n, K] over the rows of the same id with an earlier moment; float64 [n, K]."""
    order = np.lexsort((moment, ids))
    i, m = ids[order], moment[order]
    first = np.diff(i, prepend=i[:1] - 1) != 0  # begins an id
    begins = first | (np.diff(m, prepend=m[:1] - 1) != 0)  # ... or a moment of it
    place = np.arange(len(order))
    start, stop = (np.maximum.accumulate(np.where(x, place, 0)) for x in (first, begins))
    running = np.zeros((len(order) + 1, values.shape[1]))
    np.cumsum(values[order], 0, dtype=np.float64, out=running[1:])
    out = np.empty(values.shape)
    out[order] = running[stop] - running[start]
    return out
