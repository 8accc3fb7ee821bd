r"""Probabilistic Outputs for Support Vector Machines (Platt, 1999; Newton after Lin, Lin and Weng, ML 2007).

https://www.csie.ntu.edu.tw/~cjlin/papers/plattprob.pdf
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from recstack.calibration.base import Calibrator


class Platt(Calibrator):
    r"""A line through the logits: two numbers, sound from a few hundred rows on.

    .. math:: z' = a z + b, \qquad t_+ = \frac{N_+ + 1}{N_+ + 2}, \quad t_- = \frac{1}{N_- + 2}

    a and b minimise the log loss against the smoothed targets t. An a below 0 says that the model ranks backwards.

    >>> import torch
    >>> logit, label = torch.tensor([-4.0, -4, -4, -4, 4, 4, 4, 4]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    >>> logit.sigmoid()[-1:], Platt().fit(logit, label).probability(logit)[-1:]
    (tensor([0.9820]), tensor([0.6667]))
    """

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        positive, negative = (w * y).sum(), (w * (1 - y)).sum()
        target = y * (positive + 1) / (positive + 2) + (1 - y) / (negative + 2)
        mean = np.average(z, weights=w)
        spread = np.sqrt(np.average((z - mean) ** 2, weights=w)) or 1.0  # constant logits: only b counts
        x = (z - mean) / spread
        base = np.average(target, weights=w)
        theta, ridge = np.array([0.0, np.log(base / (1 - base))]), 1e-12 * w.sum()
        loss = _loss(theta, x, target, w)
        for _ in range(100):
            p = 1 / (1 + np.exp(-(theta[0] * x + theta[1])))
            slope = w * (p - target)
            curve = w * p * (1 - p)
            gradient = np.array([slope @ x, slope.sum()])
            hessian = np.array([[curve @ x**2 + ridge, curve @ x], [curve @ x, curve.sum() + ridge]])
            step, length = np.linalg.solve(hessian, gradient), 1.0
            if np.abs(step).max() < 1e-6:  # the next would be its square; below, rounding decides which loss is less
                theta = theta - step
                break
            while (tried := _loss(theta - length * step, x, target, w)) > loss and length > 1e-10:
                length /= 2
            if length <= 1e-10 or np.abs(gradient).max() < 1e-10 * w.sum():
                break
            theta, loss = theta - length * step, tried
        return {"slope": theta[0] / spread, "offset": theta[1] - theta[0] * mean / spread}

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        return state["slope"] * z + state["offset"]


def _loss(theta: np.ndarray, x: np.ndarray, target: np.ndarray, w: np.ndarray) -> float:
    z = theta[0] * x + theta[1]
    return float(w @ (np.logaddexp(0, z) - target * z))
