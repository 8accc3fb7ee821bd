"""Practical Lessons from Predicting Clicks on Ads at Facebook (He et al., ADKDD 2014), section 6.3.

https://doi.org/10.1145/2648584.2648589
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.calibration.base import Calibrator
from recstack.calibration.odds import reweighted


class DownSampling(Calibrator):
    r"""The known rates at which rows were kept, or weighed, in training, taken back: `reweighted` as a stage that needs no fit.

    .. math:: z' = z + \log\frac{w_-}{w_+}

    It sits where any calibrator does, and a cascade takes it as fitted. What is fitted on rows of the true rate, such as
    `Platt`, needs no correction before it.

    Args:
        negative, positive: the share of negatives, and of positives, that was kept.

    >>> DownSampling(negative=0.1).probability(torch.tensor([0.0]))  # ½ with a tenth of the negatives
    tensor([0.0909])
    """

    def __init__(self, negative: float = 1.0, positive: float = 1.0):
        super().__init__()
        self.negative, self.positive = negative, positive
        shift = reweighted(torch.zeros((), dtype=torch.float64), positive=positive, negative=negative)
        self.state = {"shift": shift}

    def config(self) -> dict[str, Any]:
        return {"negative": self.negative, "positive": self.positive}

    def _fit(self, z: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, Any]:
        return dict(self.state)

    def _apply(self, z: Tensor, **state: Tensor) -> Tensor:
        return z + state["shift"]
