"""Conflict-Averse Gradient Descent for Multi-Task Learning (Liu et al., NeurIPS 2021).

https://arxiv.org/abs/2110.14048
"""

from __future__ import annotations

import math

import numpy as np

from recstack.errors import ConfigError
from recstack.training.balance.base import GradientBalance
from recstack.training.balance.simplex import minimised


class CAGrad(GradientBalance):
    r"""The step near the mean gradient :math:`g_0` under which the worst-off loss falls most.

    .. math:: \max_{d} \min_k\, g_k \cdot d \quad\text{with}\quad \|d - g_0\| \le c\, \|g_0\|

    Its dual is over the simplex: :math:`\min_v g_v \cdot g_0 + c \|g_0\| \|g_v\|`, and :math:`d = g_0 + c \|g_0\| g_v /
    \|g_v\|`. As in the authors' program d is divided by :math:`1 + c^2`.

    Args:
        c: 0 is the mean of the losses; towards 1 it approaches MGDA.

    >>> CAGrad(c=0.0).solve(np.eye(2), np.ones(2), np.arange(2)).tolist()
    [0.5, 0.5]
    """

    def __init__(self, at: str = "shared", c: float = 0.4) -> None:
        super().__init__(at)
        if not 0 <= c < 1:
            raise ConfigError(f"c of balance='cagrad' lies in [0, 1); got {c}.")
        self.c = c

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        return cagrad(gram, self.c)


def cagrad(gram: np.ndarray, c: float = 0.4) -> np.ndarray:
    """Weights [K] from the Gram matrix [K, K] of gradients; see `CAGrad`."""
    k = len(gram)
    mean = np.full(k, 1 / k)
    slope = gram @ mean  # g_k · g_0
    radius = c * math.sqrt(max(mean @ slope, 0.0))
    size = max(float(np.abs(gram).max()), np.finfo(float).tiny)

    def norm(v: np.ndarray) -> float:
        return math.sqrt(max(v @ gram @ v, 1e-16 * size))

    def line(v: np.ndarray, s: int, t: int) -> float:
        # along d = e_t - e_s: a x + radius sqrt(curve x² + 2 cross x + |g_v|²)
        a = slope[t] - slope[s]
        curve = gram[s, s] + gram[t, t] - 2 * gram[s, t]
        if curve <= 0:
            return np.inf
        centre = (gram[t] - gram[s]) @ v / curve
        if radius**2 * curve <= a**2:
            return np.inf  # it falls all the way
        return -centre - a * math.sqrt(max(norm(v) ** 2 / curve - centre**2, 0.0) / (radius**2 * curve - a**2))

    if radius == 0:
        return mean
    v = minimised(lambda v: slope + radius * (gram @ v) / norm(v), line, mean, 1e-9 * size)
    return (mean + radius / norm(v) * v) / (1 + c**2)
