"""Logistic regression of a few numbers by Newton's method, which Platt's line and the beta map fit by."""

from __future__ import annotations

import numpy as np


def smoothed(y: np.ndarray, w: np.ndarray) -> np.ndarray:
    r"""Platt's targets, :math:`t_+ = (N_+ + 1) / (N_+ + 2)` and :math:`t_- = 1 / (N_- + 2)`, between which soft labels lie."""
    positive, negative = (w * y).sum(), (w * (1 - y)).sum()
    return y * (positive + 1) / (positive + 2) + (1 - y) / (negative + 2)


def logistic(features: np.ndarray, target: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The numbers of least log loss, one for each column of `features` [n, k] and the offset: [k + 1]."""
    mean = np.average(features, axis=0, weights=w)
    spread = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=w))
    spread[spread == 0] = 1.0  # a constant column: only the offset counts
    x = np.concatenate([(features - mean) / spread, np.ones((len(features), 1))], 1)
    base = np.average(target, weights=w)
    theta = np.zeros(x.shape[1])
    theta[-1] = np.log(base / (1 - base))
    ridge = 1e-12 * w.sum() * np.eye(len(theta))
    loss = _loss(theta, x, target, w)
    for _ in range(100):
        p = 1 / (1 + np.exp(-(x @ theta)))
        gradient = x.T @ (w * (p - target))
        step, length = np.linalg.solve((x.T * (w * p * (1 - p))) @ x + ridge, gradient), 1.0
        if np.abs(step).max() < 1e-6:  # the next would be its square; below, rounding decides which loss is less
            theta = theta - step
            break
        while (tried := _loss(theta - length * step, x, target, w)) > loss and length > 1e-10:
            length /= 2
        if length <= 1e-10 or np.abs(gradient).max() < 1e-10 * w.sum():
            break
        theta, loss = theta - length * step, tried
    slope = theta[:-1] / spread
    return np.append(slope, theta[-1] - slope @ mean)


def _loss(theta: np.ndarray, x: np.ndarray, target: np.ndarray, w: np.ndarray) -> float:
    z = x @ theta
    return float(w @ (np.logaddexp(0, z) - target * z))
