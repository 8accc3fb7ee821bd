"""Independent Component Alignment for Multi-Task Learning (Senushkin et al., CVPR 2023).

https://arxiv.org/abs/2305.19000
"""

from __future__ import annotations

import numpy as np

from recstack.training.balance.base import GradientBalance


class AlignedMTL(GradientBalance):
    r"""Gradients turned as little as is needed to stand at right angles and be equally long; then they are summed.

    .. math:: w = \sqrt{\lambda_{\min}}\, V \Lambda^{-1/2} V^\top \mathbf{1}, \qquad G G^\top = V \Lambda V^\top

    Directions whose :math:`\lambda` is zero but for rounding are left out.

    >>> AlignedMTL().solve(np.diag([1.0, 4.0]), np.ones(2), np.arange(2)).tolist()
    [1.0, 0.5]
    """

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        return aligned(gram)


def aligned(gram: np.ndarray) -> np.ndarray:
    """Weights [K] from the Gram matrix [K, K] of gradients; see `AlignedMTL`."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(values[-1], 0.0) * len(gram) * 1e-10
    if not kept.any():
        return np.ones(len(gram))
    values, vectors = values[kept], vectors[:, kept]
    return vectors @ (np.sqrt(values[0] / values) * vectors.sum(0))
