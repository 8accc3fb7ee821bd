"""Random loss weighting: Reasonable Effectiveness of Random Weighting (Lin et al., TMLR 2022).

https://arxiv.org/abs/2111.10603
"""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.training.balance.base import Balance
from recstack.training.balance.dwa import over_live_softmax


class RandomWeights(Balance):
    r"""Other weights at each step: :math:`K\, \mathrm{softmax}(z)`, :math:`z \sim N(0, I)`; a baseline that costs nothing.

    Departs from the paper: the weights have mean 1, as equal weights have, where the paper's sum to 1.

    >>> draw = RandomWeights()
    >>> draw.begin(["click", "like"], [], torch.device("cpu"))
    >>> round(draw.weights(torch.tensor([True, True])).sum().item(), 6)
    2.0
    """

    saved = ("t",)

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.t = seed, 0

    def weights(self, live: Tensor) -> Tensor:
        drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + self.t)  # the same on all processes, and resumed
        z = torch.randn(len(self.names), generator=drawn, dtype=torch.float64)
        return over_live_softmax(z.to(live.device), live)

    def observe(self, losses: Tensor, live: Tensor) -> None:
        self.t += 1
