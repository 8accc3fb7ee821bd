"""Weights that grow or fade: PLE's joint loss (Tang et al., RecSys 2020, https://doi.org/10.1145/3383313.3412236)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from recstack.training.balance.base import Balance, choice, positive


class Scheduled(Balance):
    r"""A weight that is multiplied by a ratio of its own again and again, equation 8 of PLE.

    .. math:: w_k(t) = w_{k,0}\, \gamma_k^t

    Args:
        rates: {loss: :math:`\gamma_k`}, 1 for what is not named.
        weights: {loss: :math:`w_{k,0}`}, 1 for what is not named.
        unit: what t counts: "epoch", as in the paper, or "step"; from 0.

    >>> fade = Scheduled({"like": 0.5})
    >>> fade.begin(["click", "like"], [], torch.device("cpu"))
    >>> fade.after_epoch()
    >>> fade.weights(torch.tensor([True, True])).tolist()
    [1.0, 0.5]
    """

    saved = ("t",)
    every_loss = True

    def __init__(
        self, rates: Mapping[str, float], weights: Mapping[str, float] | None = None, unit: str = "epoch"
    ) -> None:
        self.rates = {name: positive(g, f"the rate of {name!r}") for name, g in rates.items()}
        self.chosen = {name: positive(w, f"the weight of {name!r}", zero=True) for name, w in (weights or {}).items()}
        self.unit = choice(unit, ("epoch", "step"), "unit")
        self.t = 0

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        super().begin(names, regression, device)
        self._rates, self._first = self.given(self.rates, 1.0, "rates"), self.given(self.chosen, 1.0, "weights")

    def weights(self, live: Tensor) -> Tensor:
        return self._first * self._rates**self.t

    def observe(self, losses: Tensor, live: Tensor) -> None:
        self.t += self.unit == "step"

    def after_epoch(self) -> None:
        self.t += self.unit == "epoch"
