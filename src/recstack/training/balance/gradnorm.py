"""GradNorm: Gradient Normalization for Adaptive Loss Balancing (Chen et al., ICML 2018).

https://arxiv.org/abs/1711.02257
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from recstack.training.balance.base import Adam, GradientBalance, positive


class GradNorm(GradientBalance):
    r"""Weights learned so that gradients are equally long, longer for tasks that learn more slowly.

    .. math:: \min_w \sum_k \Bigl| w_k \|g_k\| - \bar G\, r_k^\alpha \Bigr|, \qquad
        r_k = \frac{\ell_k}{\operatorname{mean}_j \ell_j}, \quad \ell_k = \frac{L_k}{L_k(0)}, \quad
        \bar G = \operatorname{mean}_k w_k \|g_k\|

    The target :math:`\bar G r_k^\alpha` counts as a constant. The weights have an optimiser of their own (Adam, no weight
    decay), move after the step that used them, stay above 0.001 and have mean 1.

    Args:
        alpha: how much slow tasks are pulled up: 1.5 for tasks that differ, 0.12 for similar ones, 0 for equal norms.
        lr: of the weights.
        initial: {loss: :math:`L_k(0)`}; for what is not named that of its first step. Of C classes :math:`\log C` is steadier.

    >>> balance = GradNorm(lr=0.1)
    >>> balance.begin(["a", "b"], [], torch.device("cpu"))
    >>> for _ in range(200):
    ...     weights = balance.solve(np.diag([1.0, 9.0]), np.ones(2), np.arange(2))
    >>> [round(w, 1) for w in weights.tolist()]
    [1.5, 0.5]
    """

    saved = ("w", "start")

    def __init__(
        self, at: str = "shared", alpha: float = 1.5, lr: float = 0.025, initial: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(at)
        self.alpha, self.lr = positive(alpha, "alpha", zero=True), positive(lr, "lr")
        self.initial = {name: positive(x, f"the initial loss of {name!r}") for name, x in (initial or {}).items()}

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        super().begin(names, regression, torch.device("cpu"))
        self.start = self.given(self.initial, 0.0, "initial")  # 0: not met yet
        self.w = torch.ones_like(self.start)
        self.adam = Adam(len(self.names), self.lr)

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        assert self.adam is not None
        on = torch.zeros(len(self.w), dtype=torch.bool)
        on[live] = True
        self.start[live] = torch.where(self.start[live] > 0, self.start[live], torch.from_numpy(losses))
        share = float(self.w[on].sum())
        used = self.w[on].numpy() * len(live) / share
        grad = torch.zeros_like(self.w)
        grad[on] = torch.from_numpy(slope(gram, losses / np.maximum(self.start[on].numpy(), 1e-12), used, self.alpha))
        moved = self.adam.step(torch.where(on, self.w * len(live) / share, 0.0), grad, on).clamp(min=1e-3)
        self.w = torch.where(on, moved * share / float(moved[on].sum()), self.w)
        return used


def slope(gram: np.ndarray, ratios: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    r"""The gradient [K] of GradNorm's loss with respect to `weights`; `ratios` [K] are :math:`L_k / L_k(0)`."""
    norm = np.sqrt(np.maximum(np.diag(gram), 0.0))
    length = weights * norm
    target = length.mean() * (ratios / max(ratios.mean(), 1e-12)) ** alpha
    return np.sign(length - target) * norm
