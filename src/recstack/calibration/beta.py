r"""Beta Calibration: a Well-Founded and Easily Implemented Improvement on Logistic Calibration (Kull, Silva Filho and Flach, AISTATS 2017).

https://proceedings.mlr.press/v54/kull17a.html
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from recstack.calibration.base import Calibrator
from recstack.calibration.newton import logistic, smoothed


class Beta(Calibrator):
    r"""Two slopes, one for how sure a yes is and one for a no: it bends where Platt's line cannot, and can be no map at all.

    .. math:: z' = a \ln p - b \ln(1 - p) + c, \qquad p = \sigma(z), \quad a, b \ge 0

    With a = b it is Platt's line. A slope that comes out negative is 0 and the rest is fitted again, as the paper does; if
    both would be, one rate is left. Departs from the paper: Platt's smoothed targets, so that labels that the logits
    separate have an answer.

    >>> import torch
    >>> logit, label = torch.tensor([-2.0, -2, -1, 1, 2, 2]), torch.tensor([0.0, 0, 1, 0, 1, 1])
    >>> (Beta().fit(logit, label)(torch.tensor([-3.0, 0.0, 3.0])).diff() > 0).all()
    tensor(True)
    """

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        x = np.stack([-np.logaddexp(0, -z), np.logaddexp(0, z)], 1)  # ln p and -ln(1 - p), both rising in z
        target, used, slope = smoothed(y, w), [0, 1], np.zeros(2)
        while True:
            *found, offset = logistic(x[:, used], target, w)
            low = [i for i, value in zip(used, found, strict=True) if value < 0]
            if not low:
                break
            used.remove(min(low, key=lambda i: found[used.index(i)]))
        slope[used] = found
        return {"a": slope[0], "b": slope[1], "c": offset}

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        return state["a"] * F.logsigmoid(z) + state["b"] * F.softplus(z) + state["c"]
