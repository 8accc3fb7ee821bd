"""Weights that stay as they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from recstack.training.balance.base import Balance, positive


class Static(Balance):
    """Fixed weights ``{loss: w}``, 1 for what is not named; the baseline that every other way has to beat.

    They multiply what the model calls its losses, and so a `Task`'s own `weight`. Auxiliary losses may be named too.

    >>> static = Static({"like": 0.3})
    >>> static.begin(["click", "like"], [], torch.device("cpu"))
    >>> static.weights(torch.tensor([True, True])).tolist()
    [1.0, 0.3]
    """

    every_loss = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.chosen = {name: positive(w, f"the weight of {name!r}", zero=True) for name, w in weights.items()}

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        super().begin(names, regression, device)
        self._weights = self.given(self.chosen, 1.0, "weights")

    def weights(self, live: Tensor) -> Tensor:
        return self._weights
