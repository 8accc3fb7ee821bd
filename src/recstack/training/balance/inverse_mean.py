"""Each loss measured in its own mean."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.training.balance.base import Balance, over_live, positive


class InverseMean(Balance):
    r"""Each loss divided by a moving average of itself, so that all are about 1.

    .. math:: w_k = \frac{1}{\max(\bar L_k, \epsilon)}, \qquad \bar L_k = \frac{1 - \beta}{1 - \beta^t}
        \sum_s \beta^{t - s} L_k(s)

    The average is over the steps before, and only those in which the task had valid rows; before there is one the weight is 1.

    Args:
        decay: :math:`\beta`.
        floor: :math:`\epsilon`, so that a loss near zero cannot take the step for itself.
        normalise: scale the weights to mean 1.

    >>> mean = InverseMean()
    >>> mean.begin(["click", "order"], [], torch.device("cpu"))
    >>> live = torch.tensor([True, True])
    >>> mean.observe(torch.tensor([0.5, 0.01]), live)
    >>> [round(w, 3) for w in mean.weights(live).tolist()]
    [2.0, 100.0]
    """

    saved = ("sums", "steps")

    def __init__(self, decay: float = 0.99, floor: float = 1e-4, normalise: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay of balance= lies between 0 and 1; got {decay}.")
        self.decay, self.floor, self.normalise = decay, positive(floor, "floor"), normalise

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        super().begin(names, regression, device)
        self.sums, self.steps = (torch.zeros(len(self.names), dtype=torch.float64, device=device) for _ in range(2))

    def weights(self, live: Tensor) -> Tensor:
        mean = self.sums / (1 - self.decay**self.steps)
        weights = torch.where(self.steps > 0, 1 / mean.clamp(min=self.floor), 1.0)
        return over_live(weights, live) if self.normalise else weights

    def observe(self, losses: Tensor, live: Tensor) -> None:
        self.sums = torch.where(live, self.decay * self.sums + (1 - self.decay) * losses, self.sums)
        self.steps = self.steps + live
