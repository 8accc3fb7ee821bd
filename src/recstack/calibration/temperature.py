r"""On Calibration of Modern Neural Networks (Guo et al., ICML 2017). https://arxiv.org/abs/1706.04599"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from recstack.calibration.base import Calibrator


class Temperature(Calibrator):
    r"""One number: logits that are too sure (T > 1) or too shy (T < 1). The base rate is taken as right.

    .. math:: z' = z / T

    T minimises the log loss, between 0.001 and 1000.
    """

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        low, high = np.log(1e-3), np.log(1e3)
        for _ in range(60):  # the gradient grows with 1 / T: halving cannot fail
            middle = (low + high) / 2
            p = 1 / (1 + np.exp(-np.clip(z * np.exp(middle), -700, 700)))
            if w @ ((p - y) * z) < 0:
                low = middle
            else:
                high = middle
        return {"temperature": np.exp(-(low + high) / 2)}

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        return z / state["temperature"]
