"""A Pareto-Efficient Algorithm for Multiple Objective Optimization in E-Commerce Recommendation (Lin et al., RecSys 2019).

https://doi.org/10.1145/3298689.3346998
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from recstack.errors import ConfigError
from recstack.training.balance.base import GradientBalance, choice, positive
from recstack.training.balance.simplex import least_norm, projected


class PELTR(GradientBalance):
    r"""MGDA with a least weight for each loss: runs with other bounds end at other points of the Pareto front.

    .. math:: \min_w \Bigl\| \sum_k w_k g_k \Bigr\|^2 \quad\text{with}\quad \sum_k w_k = 1, \; w_k \ge c_k

    With :math:`\hat w = w - c`, solver "projection" is the paper's: :math:`\hat w` without its bounds is the solution of a linear
    system, and the nearest point of :math:`\{\hat w \ge 0, \sum \hat w = 1 - \sum c\}` is taken (the paper's equation 4 has 1
    there, a slip; the projection is exact, no iteration). "exact" solves the problem itself, of which a projected solution is
    only near.

    Args:
        bounds: {loss: c}, 0 for what is not named; their sum is below 1.
        solver: "projection" or "exact".

    >>> balance = PELTR({"click": 0.1, "order": 0.6})
    >>> balance.begin(["click", "order"], [], torch.device("cpu"))
    >>> balance.solve(np.diag([1.0, 3.0]), np.ones(2), np.arange(2)).round(2).tolist()
    [0.4, 0.6]
    """

    def __init__(
        self, bounds: Mapping[str, float] | None = None, at: str = "shared", solver: str = "projection"
    ) -> None:
        super().__init__(at)
        self.bounds = {name: positive(c, f"the bound of {name!r}", zero=True) for name, c in (bounds or {}).items()}
        if sum(self.bounds.values()) >= 1:
            raise ConfigError(
                f"The bounds of balance='pe_ltr' sum to {sum(self.bounds.values()):g}; weights sum to 1, so keep them below."
            )
        self.solver = choice(solver, ("projection", "exact"), "solver")

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        super().begin(names, regression, device)
        self._bounds = self.given(self.bounds, 0.0, "bounds").cpu().numpy()

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        return pe_ltr(gram, self._bounds[live], self.solver)


def pe_ltr(gram: np.ndarray, bounds: np.ndarray, solver: str = "projection") -> np.ndarray:
    """Weights [K] from the Gram matrix [K, K] of gradients, not below `bounds` [K]; see `PELTR`."""
    k, left = len(gram), 1 - bounds.sum()
    if solver == "exact":
        return bounds + left * least_norm(left * gram, gram @ bounds)
    size = max(float(np.abs(gram).max()), np.finfo(float).tiny)
    system = np.zeros((k + 1, k + 1))
    system[:k, :k] = gram / size
    system[:k, k] = system[k, :k] = 1
    free = np.linalg.lstsq(system, np.append(-gram @ bounds / size, left), rcond=None)[0][:k]
    return bounds + projected(free, left)
