"""How honest probabilities are: groups of equal weight by predicted probability, and the rate observed in each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.calibration.base import mass_bins, rows


def reliability_table(
    probability: Any, label: Any, *, where: Any = None, weight: Any = None, bins: int = 10
) -> dict[str, Tensor]:
    """For each of at most `bins` groups of equal weight: `predicted` and `observed` mean, `weight`, and the 95 % interval.

    All inputs have one shape; rows with a NaN label, or False in `where`, do not count. Columns are float64 [groups], ordered
    by probability; `low` and `high` are the Wilson interval of the observed rate. Raises DataError.

    >>> table = reliability_table(torch.tensor([0.25, 0.25, 0.75, 0.75]), torch.tensor([0, 0, 1, 0]), bins=2)
    >>> table["predicted"].tolist(), table["observed"].tolist()
    ([0.25, 0.75], [0.0, 0.5])
    """
    p, y, w = rows("probability", probability, label, weight, where)
    group = mass_bins(p, w, bins)
    mass = np.bincount(group, w)
    observed = np.bincount(group, w * y) / mass
    z = 1.959963984540054
    centre = (observed + z * z / (2 * mass)) / (1 + z * z / mass)
    half = z / (1 + z * z / mass) * np.sqrt(observed * (1 - observed) / mass + z * z / (4 * mass**2))
    columns = {
        "predicted": np.bincount(group, w * p) / mass,
        "observed": observed,
        "weight": mass,
        "low": centre - half,
        "high": centre + half,
    }
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def expected_calibration_error(
    probability: Any, label: Any, *, where: Any = None, weight: Any = None, bins: int = 10
) -> float:
    r"""The mean gap between predicted and observed rate over groups of equal weight.

    .. math:: \sum_b \frac{W_b}{W} \, |\bar p_b - \bar y_b|

    >>> round(expected_calibration_error(torch.tensor([0.1, 0.1, 0.8, 0.8]), torch.tensor([0, 0, 1, 0]), bins=2), 6)
    0.2
    """
    table = reliability_table(probability, label, where=where, weight=weight, bins=bins)
    gap = (table["predicted"] - table["observed"]).abs()
    return float((gap * table["weight"]).sum() / table["weight"].sum())
