"""Multi-Task Learning as Multi-Objective Optimization (Sener & Koltun, NeurIPS 2018).

https://arxiv.org/abs/1810.04650
"""

from __future__ import annotations

import numpy as np

from recstack.training.balance.base import GradientBalance, choice
from recstack.training.balance.simplex import least_norm

NORMALISERS = ("none", "l2", "loss", "loss+")


class MGDA(GradientBalance):
    r"""The shortest convex combination of the gradients: a step along it makes no loss worse.

    .. math:: \min_{w \ge 0,\, \sum w = 1} \Bigl\| \sum_k \frac{w_k}{n_k} g_k \Bigr\|^2

    At ``at="<module>"`` this is MGDA-UB, whose gradients are with respect to a representation: K backwards of the heads and
    one of the trunk, no second forward. A task of a small gradient gets most of the weight; normalisers change that.

    Departs from the authors' program, which weighs the raw losses by what it found for normalised gradients: here the step
    has the direction that was found, its weights scaled to sum to 1.

    Args:
        normalise: what gradients are divided by: "none", "l2" (their norms), "loss" or "loss+" (loss times norm).

    >>> MGDA().solve(np.diag([1.0, 3.0]), np.ones(2), np.arange(2)).tolist()
    [0.75, 0.25]
    """

    def __init__(self, at: str = "shared", normalise: str = "none") -> None:
        super().__init__(at)
        self.normalise = choice(normalise, NORMALISERS, "normalise")

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        return mgda(gram, losses, self.normalise)


def mgda(gram: np.ndarray, losses: np.ndarray, normalise: str = "none") -> np.ndarray:
    """Weights [K] from the Gram matrix [K, K] of gradients and the losses [K]; see `MGDA`."""
    norm = np.sqrt(np.diag(gram))
    tiny = np.finfo(float).tiny
    by = {"none": np.ones_like(norm), "l2": norm, "loss": losses, "loss+": losses * norm}[normalise]
    by = np.maximum(np.abs(by), max(1e-12 * float(np.abs(by).max()), tiny))
    by = by / by.max()  # the scale of all is free
    weights = least_norm(gram / np.outer(by, by)) / by
    return weights / weights.sum()
