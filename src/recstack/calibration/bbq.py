r"""Obtaining Well Calibrated Probabilities Using Bayesian Binning (Pakdaman Naeini, Cooper and Hauskrecht, AAAI 2015).

https://ojs.aaai.org/index.php/AAAI/article/view/9602
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.calibration.base import Calibrator, mass_bins
from recstack.errors import ConfigError


class BBQ(Calibrator):
    r"""Many histograms of equal-weight bins, each counting as much as the labels are likely under it.

    .. math:: P(D \mid M) = \prod_{b=1}^{B} \frac{\Gamma(N'/B)}{\Gamma(N_b + N'/B)}
        \frac{\Gamma(m_b + \alpha_b)}{\Gamma(\alpha_b)} \frac{\Gamma(n_b + \beta_b)}{\Gamma(\beta_b)}, \qquad
        p = \sum_M \frac{P(D \mid M)}{\sum P(D \mid M)} \; \frac{m_b + \alpha_b}{N_b + N'/B}

    m and n are a bin's positives and negatives, N their sum; the prior of a bin is its middle probability q,
    :math:`\alpha = q N'/B`, :math:`\beta = (1 - q) N'/B`, with N' = `prior`. Histograms have B from
    :math:`N^{1/3} / C` to :math:`C N^{1/3}` bins, C = `spread`. Their mean is one staircase, which is what is kept. Its steps may
    go down: the order is **not** kept. Weights count as rows, fractions as fractions of one.

    Departs from the paper: nothing.

    >>> z = torch.linspace(-2, 2, 400)
    >>> fitted = BBQ().fit(z, (z > 0).float())
    >>> fitted.probability(torch.tensor([-1.0, 1.0])).round(decimals=1)
    tensor([0., 1.])
    """

    monotone = False

    def __init__(self, spread: float = 10.0, prior: float = 2.0):
        super().__init__()
        if spread < 1 or prior <= 0:
            raise ConfigError(f"BBQ needs spread of at least 1 and a prior above 0; got {spread} and {prior}.")
        self.spread, self.prior = spread, prior

    def config(self) -> dict[str, Any]:
        return {"spread": self.spread, "prior": self.prior}

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        value, place = np.unique(z, return_inverse=True)
        mass, positive = np.bincount(place, w), np.bincount(place, w * y)
        cube = w.sum() ** (1 / 3)
        least, most = max(1, math.floor(cube / self.spread)), min(len(value), math.ceil(cube * self.spread))
        models = [self._binned(value, mass, positive, bins) for bins in range(min(least, most), most + 1)]
        score = np.array([model[2] for model in models])
        chance = np.exp(score - score.max())
        chance /= chance.sum()
        counted = [(m, c) for m, c in zip(models, chance, strict=True) if c > 1e-12]
        edges = np.unique(np.concatenate([model[0] for model, _ in counted]))
        inside = np.append(edges, np.inf)  # the right end of each step stands for it
        p = sum(c * model[1][np.searchsorted(model[0], inside)] for model, c in counted) / sum(c for _, c in counted)
        return {"edges": edges, "p": p}

    def _binned(
        self, value: np.ndarray, mass: np.ndarray, positive: np.ndarray, bins: int
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """One histogram: its edges [B - 1] among the logits, its rates [B] and its log likelihood."""
        from scipy.special import expit, gammaln

        group = mass_bins(value, mass, bins)
        first = np.flatnonzero(np.diff(group)) + 1
        edges = (value[first - 1] + value[first]) / 2
        start = np.append(0, first)
        n, m = np.add.reduceat(mass, start), np.add.reduceat(positive, start)
        ends = np.concatenate([[0.0], expit(edges), [1.0]])
        middle = ((ends[1:] + ends[:-1]) / 2).clip(1e-12, 1 - 1e-12)
        share = self.prior / len(n)
        a, b = share * middle, share * (1 - middle)
        score = gammaln(share) - gammaln(n + share) + gammaln(m + a) - gammaln(a) + gammaln(n - m + b) - gammaln(b)
        return edges, (m + a) / (n + share), float(score.sum())

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        return state["p"][torch.searchsorted(state["edges"], z.contiguous())].logit(eps=1e-9)
