r"""Probabilistic Outputs for Support Vector Machines (Platt, 1999; Newton after Lin, Lin and Weng, ML 2007).

https://www.csie.ntu.edu.tw/~cjlin/papers/plattprob.pdf
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from recstack.calibration.base import Calibrator
from recstack.calibration.newton import logistic, smoothed


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
        slope, offset = logistic(z[:, None], smoothed(y, w), w)
        return {"slope": slope, "offset": offset}

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        return state["slope"] * z + state["offset"]
