r"""Obtaining calibrated probability estimates from decision trees and naive Bayesian classifiers (Zadrozny and Elkan, ICML 2001).

https://cseweb.ucsd.edu/~elkan/calibrated.pdf
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.calibration.base import Calibrator, mass_bins
from recstack.errors import ConfigError


class Histogram(Calibrator):
    r"""The observed rate of each of `bins` groups of equal weight: a staircase.

    .. math:: p_b = \frac{\sum_{i \in b} w_i y_i + m\, \bar y}{\sum_{i \in b} w_i + m}

    m = `smoothing` rows of the mean rate are added to each group, so that none says 0 or 1. Rows of one group are tied and a
    step may go down: the order is **not** kept. For a staircase that rises, take `Isotonic(tie_break=0.0)`.

    >>> logit, label = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    >>> Histogram(bins=2, smoothing=0.0).fit(logit, label).probability(torch.tensor([-9.0]))
    tensor([0.5000])
    """

    monotone = False

    def __init__(self, bins: int = 20, smoothing: float = 1.0):
        super().__init__()
        if bins < 1 or smoothing < 0:
            raise ConfigError(
                f"Histogram needs at least one bin and no negative smoothing; got {bins} and {smoothing}."
            )
        self.bins, self.smoothing = bins, smoothing

    def config(self) -> dict[str, Any]:
        return {"bins": self.bins, "smoothing": self.smoothing}

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        group = mass_bins(z, w, self.bins)
        mass, mean = np.bincount(group, w), np.average(y, weights=w)
        p = (np.bincount(group, w * y) + self.smoothing * mean) / (mass + self.smoothing)
        low, high = np.full(len(mass), np.inf), np.full(len(mass), -np.inf)
        np.minimum.at(low, group, z)
        np.maximum.at(high, group, z)
        return {"edges": (high[:-1] + low[1:]) / 2, "p": p}

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        return state["p"][torch.searchsorted(state["edges"], z.contiguous())].logit(eps=1e-9)
