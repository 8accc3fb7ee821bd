"""Multi-Task Learning as a Bargaining Game (Navon et al., ICML 2022).

https://arxiv.org/abs/2202.01017
"""

from __future__ import annotations

import math

import numpy as np

from recstack.errors import ConfigError
from recstack.training.balance.base import GradientBalance, positive

MOST = 1e4  # how many times the least weight a weight may be


class NashMTL(GradientBalance):
    r"""The step on which the losses, as players, would agree: the product of their gains is largest.

    .. math:: M w = 1 / w, \quad w > 0, \qquad M_{ij} = \frac{g_i \cdot g_j}{\| G^\top G \|}

    No loss gains by being multiplied by a constant, up to a factor of 10,000: a loss whose shared gradient has all but vanished
    would else be given a weight without bound, and its head with it. These are the conditions of the optimum of :math:`\tfrac12 w^\top M w -
    \sum_k \log w_k`, which is convex: Newton's method finds it, where the authors solve a sequence of problems. As in their
    program M is divided by its norm, so that the step shrinks with the gradients.

    Args:
        every: steps between two solutions; in between no gradients but those of the step are taken.
        max_norm: the weights are scaled so that the common gradient is no longer than this; the authors clip that
            gradient alone, and not those of the heads.

    >>> NashMTL(max_norm=99).solve(np.diag([1.0, 100.0]), np.ones(2), np.arange(2)).round(1).tolist()
    [10.0, 1.0]
    """

    def __init__(self, at: str = "shared", every: int = 1, max_norm: float = 1.0) -> None:
        super().__init__(at)
        if every < 1:
            raise ConfigError(f"every= of balance='nash' counts steps, from 1; got {every}.")
        self.every, self.max_norm = every, positive(max_norm, "max_norm")

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        return nash(gram, self.max_norm, MOST)


def nash(gram: np.ndarray, max_norm: float = math.inf, most: float = math.inf) -> np.ndarray:
    """Weights [K] from the Gram matrix [K, K] of gradients, none more than `most` times the least; see `NashMTL`."""
    norm = np.sqrt(np.maximum(np.diag(gram), 0.0))
    norm = np.maximum(norm, max(1e-8 * float(norm.max()), np.finfo(float).tiny ** 0.25))
    # In units of each gradient's length, which the equation allows: u = norm · w. Where the gradients can cancel out no
    # step is the best of all; the ridge keeps the weights finite.
    m = gram / np.outer(norm, norm) + 1e-8 * np.eye(len(gram))
    u = np.ones(len(gram))
    for _ in range(100):
        slope, curve = m @ u - 1 / u, m + np.diag(u**-2)
        move = np.linalg.solve(curve, -slope)
        decrement = math.sqrt(max(-slope @ move, 0.0))
        u = u + move / (1 + decrement)  # the function is self-concordant: u stays positive
        if decrement < 1e-9:
            break
    w = u / norm * math.sqrt(float(np.linalg.norm(gram)))
    w = np.minimum(w, most * w.min())
    return w * min(1.0, max_norm / math.sqrt(max(w @ gram @ w, np.finfo(float).tiny)))
