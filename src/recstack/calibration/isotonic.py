r"""Transforming Classifier Scores into Accurate Multiclass Probability Estimates (Zadrozny and Elkan, KDD 2002).

https://doi.org/10.1145/775047.775151
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.calibration.base import Calibrator, mass_bins
from recstack.errors import ConfigError


class Isotonic(Calibrator):
    r"""The best increasing curve through the labels, as straight pieces between the points.

    Rows are first put into `bins` groups of equal weight (None: a group for each logit, the textbook form, which needs many
    rows not to follow their noise); pool-adjacent-violators makes the groups' rates increasing; between groups the
    probability is interpolated, beyond the last ones it stays. No probability goes beyond 1 / (n + 2) of n rows.

    The pooled parts of the curve are flat, which would tie items that the model tells apart. So
    :math:`\epsilon (z - \bar z)` with ε = `tie_break` is added to the calibrated logit: the ranking, and with it AUC,
    stays as it was, up to rounding. With ``tie_break=0`` it is the plain curve.

    >>> logit, label = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    >>> Isotonic(bins=None, tie_break=0.0).fit(logit, label).probability(logit)[1:3]
    tensor([0.5000, 0.5000])
    >>> (Isotonic(bins=None).fit(logit, label)(logit).diff() > 0).all()
    tensor(True)
    """

    def __init__(self, bins: int | None = 100, tie_break: float = 1e-3):
        super().__init__()
        if (bins is not None and bins < 1) or tie_break < 0:
            raise ConfigError(f"Isotonic needs at least one bin and no negative tie_break; got {bins} and {tie_break}.")
        self.bins, self.tie_break = bins, tie_break

    def config(self) -> dict[str, Any]:
        return {"bins": self.bins, "tie_break": self.tie_break}

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        group = mass_bins(z, w, self.bins)
        mass = np.bincount(group, w)
        x = np.bincount(group, w * z) / mass
        p = increasing(np.bincount(group, w * y) / mass, mass)
        keep = np.ones(len(p), dtype=bool)
        keep[1:-1] = (p[1:-1] != p[:-2]) | (p[1:-1] != p[2:])  # the inside of a flat part says nothing
        return {"x": x[keep], "p": p[keep], "least": 1 / (w.sum() + 2), "mean": np.average(z, weights=w)}

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        x, p, least = state["x"], state["p"], state["least"]
        if len(x) == 1:
            curve = p.expand_as(z)
        else:
            right = torch.searchsorted(x, z.contiguous()).clamp(1, len(x) - 1)
            part = ((z - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
            curve = torch.lerp(p[right - 1], p[right], part)
        return curve.clamp(least, 1 - least).logit() + self.tie_break * (z - state["mean"])


def increasing(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence nearest to `value` in weighted least squares: pool adjacent violators, O(n)."""
    means: list[float] = []
    masses: list[float] = []
    counts: list[int] = []
    for v, m in zip(value.tolist(), weight.tolist(), strict=True):
        count = 1
        while means and means[-1] >= v:
            last = masses.pop()
            v = (means.pop() * last + v * m) / (last + m)
            m += last
            count += counts.pop()
        means.append(v)
        masses.append(m)
        counts.append(count)
    return np.repeat(means, counts)
