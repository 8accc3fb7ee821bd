"""Gradient Surgery for Multi-Task Learning (Yu et al., NeurIPS 2020).

https://arxiv.org/abs/2001.06782
"""

from __future__ import annotations

import numpy as np

from recstack.training.balance.base import GradientBalance


class PCGrad(GradientBalance):
    r"""Each gradient loses its part against every gradient that it conflicts with, in random order; then they are summed.

    .. math:: g_i \leftarrow g_i - \frac{g_i \cdot g_j}{\|g_j\|^2} g_j \quad\text{where}\quad g_i \cdot g_j < 0

    Projections never leave the span of the gradients, so they are done on coefficients, and the sum of these is the weights.
    Losses without conflict all have weight 1. Departs from the paper: its weights hold for heads and towers too, where the
    paper's tasks keep their own.

    >>> PCGrad().solve(np.array([[1.0, -0.5], [-0.5, 1.0]]), np.ones(2), np.arange(2)).tolist()
    [1.5, 1.5]
    """

    saved = ("t",)

    def __init__(self, at: str = "shared", seed: int = 0) -> None:
        super().__init__(at)
        self.seed, self.t = seed, 0

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        self.t += 1
        return pcgrad(gram, np.random.default_rng([self.seed, self.t]))


def pcgrad(gram: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Weights [K] from the Gram matrix [K, K] of gradients; `chance` orders the projections. See `PCGrad`."""
    k = len(gram)
    coefficients = np.eye(k)
    for i, c in enumerate(coefficients):
        for j in chance.permutation(np.delete(np.arange(k), i)):
            dot = float(c @ gram[j])
            if dot < 0 and gram[j, j] > 0:
                c[j] -= dot / gram[j, j]
    return coefficients.sum(0)
