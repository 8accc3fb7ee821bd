r"""Calibrating User Response Predictions in Online Advertising: each value of a field has its own level (after Pan et al., WWW 2020).

https://arxiv.org/abs/1905.10713
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.calibration.base import Calibrator, rows
from recstack.calibration.isotonic import Isotonic
from recstack.errors import ConfigError, DataError


class ByField(Calibrator):
    r"""One map for all, then a shift for each value of a field, drawn towards 0 as far as its rows are few.

    .. math:: z' = \eta(z) + g_f, \qquad g_f = \arg\min_g \sum_{i \in f} w_i\, \ell(\eta(z_i) + g,\, y_i) + \frac{g^2}{2\tau^2}

    η is `method` (or given options, ``functools.partial(Isotonic, bins=50)``). How much values differ, τ², is
    learned (empirical Bayes: :math:`\tau^2 = \mathrm{mean}_f\, (g_f^2 + \mathrm{Var}\, g_f)`), so a value with few rows stays near all the others,
    and one that was never met has g = 0. Rows of one value keep their order if η keeps it.

    The field is ids: `fit(logit, label, field=ids)`, then `calibrator(logit, ids)`. `field` names the item column
    that a cascade reads them from; rows that are calibrated by hand need no name.

    Departs from the paper: the shifts are regularised maximum likelihood in the place of a network on all features.

    >>> logit, field = torch.zeros(400), torch.arange(2).repeat(200)
    >>> label = torch.cat([torch.ones(300), torch.zeros(100)]) * field  # value 1 has ¾, value 0 nothing
    >>> fitted = ByField().fit(logit, label, field=field)
    >>> fitted.probability(torch.zeros(2), torch.tensor([0, 1])).round(decimals=1)
    tensor([0.0000, 0.7000])
    """

    def __init__(self, field: str | None = None, method: Callable[..., Calibrator] = Isotonic):
        super().__init__()
        self.field, self.method = field, method
        self.all = method()
        if not isinstance(self.all, Calibrator) or isinstance(self.all, ByField):
            raise ConfigError("method= is a calibrator's class, or a partial of one, such as Platt.")
        self.monotone = self.all.monotone

    def config(self) -> dict[str, Any]:
        return {"field": self.field, "method": self.method}

    def fit(self, logit: Any, label: Any, weight: Any = None, *, field: Any = None) -> Self:
        """Fit on rows as every calibrator does; `field`: integer ids of the logits' shape. Raises DataError."""
        if field is None:
            raise DataError("ByField needs field=, the ids of the rows' field, beside logits and labels.")
        ids = torch.as_tensor(field)
        if ids.is_floating_point() or ids.shape != torch.as_tensor(label).shape:
            raise DataError(f"field is {ids.dtype} of shape {list(ids.shape)}; give integers of the labels' shape.")
        self.all.fit(logit, label, weight)
        given = torch.as_tensor(label).double().isfinite()
        given &= True if weight is None else torch.as_tensor(weight) != 0
        z, y, w = rows("logit", self.all(torch.as_tensor(logit).double()), label, weight)
        key, index = np.unique(ids[given].cpu().numpy(), return_inverse=True)
        shift = _shifts(z, y, w, index, len(key))
        state = {"key": torch.from_numpy(key.astype(np.int64)), "shift": torch.from_numpy(shift)}
        self.state = {**state, **{f"all.{name}": value for name, value in self.all.state.items()}}
        return self

    def __call__(self, logit: Tensor, field: Tensor | None = None) -> Tensor:
        """The calibrated logits; without ids those of `method` alone."""
        if not self.state:
            raise ConfigError("ByField is not fitted; call fit(logit, label, field=ids) with held-out rows first.")
        base = self.all(logit.double())
        if field is not None:
            key, shift = self.state["key"].to(logit.device), self.state["shift"].to(logit.device)
            place = torch.searchsorted(key, field.long().contiguous()).clamp(max=len(key) - 1)
            base = base + torch.where(key[place] == field, shift[place], 0)
        return base.to(logit.dtype)

    def probability(self, logit: Tensor, field: Tensor | None = None) -> Tensor:
        """The calibrated probabilities."""
        return self(logit, field).sigmoid()

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        calibrator = cls(**bundle.decode_config(piece.config))
        calibrator.state = {name: torch.as_tensor(value) for name, value in piece.tensors.items()}
        state = calibrator.state.items()
        calibrator.all.state = {name[len("all.") :]: value for name, value in state if name.startswith("all.")}
        return calibrator


def _shifts(z: np.ndarray, y: np.ndarray, w: np.ndarray, index: np.ndarray, n: int, rounds: int = 30) -> np.ndarray:
    """The shift of each value, [n]: Newton's method for all of them at once, between steps of the variance."""
    shift, variance = np.zeros(n), 1.0
    for _ in range(rounds):
        for _ in range(3):
            p = 1 / (1 + np.exp(-(z + shift[index])))
            slope = np.bincount(index, w * (p - y), n) + shift / variance
            curve = np.bincount(index, w * p * (1 - p), n) + 1 / variance
            shift = shift - (slope / curve).clip(-1, 1)  # a step of one: far from the answer the curve says little
        before, variance = variance, max(float((shift**2 + 1 / curve).mean()), 1e-6)
        if abs(variance / before - 1) < 1e-4:
            break
    return shift
