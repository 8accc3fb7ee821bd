"""Small problems over weights that are not negative and sum to one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEPS = 1000  # of which two losses need one and ten about a hundred


def projected(values: np.ndarray, total: float = 1.0) -> np.ndarray:
    r"""The nearest point (Euclidean) of :math:`\{v \ge 0, \sum v = total\}`: all less one threshold, cut at 0.

    Duchi et al., ICML 2008, https://doi.org/10.1145/1390156.1390191
    """
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(values) + 1)
    return np.maximum(values - excess[np.flatnonzero(falling > excess)[-1]], 0.0)


def minimised(
    gradient: Callable[[np.ndarray], np.ndarray],
    line: Callable[[np.ndarray, int, int], float],
    start: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    r"""Minimise a smooth convex function over the simplex by pairwise Frank–Wolfe steps.

    Each step moves weight from the loss s where that gains most to the loss t that gains most by it, as far as is best;
    unlike plain Frank–Wolfe it ends at the optimum after few steps (Lacoste-Julien & Jaggi, NeurIPS 2015,
    https://arxiv.org/abs/1511.05932).

    Args:
        gradient: v → its gradient.
        line: (v, s, t) → how much weight to move from s to t, were there no bound.
        start: a point of the simplex.
        tolerance: of the gain that is left.
    """
    v = start.astype(np.float64)
    for _ in range(STEPS):
        g = gradient(v)
        t, s = int(np.argmin(g)), int(np.argmax(np.where(v > 0, g, -np.inf)))
        if g[s] - g[t] <= tolerance:
            break
        step = min(max(line(v, s, t), 0.0), float(v[s]))
        if step <= 0:
            break
        v[t] += step
        v[s] = 0.0 if step == v[s] else v[s] - step
    return v / v.sum()


def least_norm(gram: np.ndarray, linear: np.ndarray | None = None) -> np.ndarray:
    r""":math:`\arg\min_v \tfrac{1}{2} v^\top M v + b^\top v` over the simplex; M positive semidefinite, b 0 by default."""
    b = np.zeros(len(gram)) if linear is None else linear

    def line(v: np.ndarray, s: int, t: int) -> float:
        slope = gram[s] @ v + b[s] - gram[t] @ v - b[t]
        curve = gram[s, s] + gram[t, t] - 2 * gram[s, t]
        return slope / curve if curve > 0 else np.inf

    size = max(float(np.abs(gram).max()), float(np.abs(b).max()), np.finfo(float).tiny)
    return minimised(lambda v: gram @ v + b, line, np.full(len(gram), 1 / len(gram)), 1e-10 * size)
