"""How honest probabilities are: groups by predicted probability, or by a field, and the rate observed in each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recstack.calibration.base import mass_bins, rows
from recstack.errors import ConfigError, DataError, unknown


def reliability_table(
    probability: Any, label: Any, *, where: Any = None, weight: Any = None, bins: int = 10, by: str = "weight"
) -> dict[str, Tensor]:
    """For each of at most `bins` groups: `predicted` and `observed` mean, `weight`, and the 95 % interval.

    All inputs have one shape; rows with a NaN label, or False in `where`, do not count. Groups have equal weight, or with
    ``by="width"`` are steps of 1 / `bins`, those without a row left out. Columns are float64 [groups], ordered by probability; `low`
    and `high` are the Wilson interval of the observed rate. Raises DataError, and ConfigError for another `by`.

    >>> table = reliability_table(torch.tensor([0.25, 0.25, 0.75, 0.75]), torch.tensor([0, 0, 1, 0]), bins=2)
    >>> table["predicted"].tolist(), table["observed"].tolist()
    ([0.25, 0.75], [0.0, 0.5])
    """
    table = _table(*_grouped(probability, label, where, weight, bins, by))
    return {name: torch.from_numpy(column) for name, column in table.items()}


def _grouped(
    probability: Any, label: Any, where: Any, weight: Any, bins: int, by: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(each row's group, probability, label, weight) of the rows that count."""
    p, y, w = rows("probability", probability, label, weight, where)
    if by not in ("weight", "width"):
        raise unknown("kind of groups", by, ("weight", "width"))
    if bins < 1:
        raise ConfigError(f"A table of {bins} groups says nothing; give bins from 1.")
    step = np.minimum((p * bins).astype(np.int64), bins - 1)
    group = mass_bins(p, w, bins) if by == "weight" else np.unique(step, return_inverse=True)[1]
    return group, p, y, w


def _table(group: np.ndarray, p: np.ndarray, y: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    mass = np.bincount(group, w)
    observed = np.bincount(group, w * y) / mass
    z = 1.959963984540054
    centre = (observed + z * z / (2 * mass)) / (1 + z * z / mass)
    half = z / (1 + z * z / mass) * np.sqrt(observed * (1 - observed) / mass + z * z / (4 * mass**2))
    return {
        "predicted": np.bincount(group, w * p) / mass,
        "observed": observed,
        "weight": mass,
        "low": centre - half,
        "high": centre + half,
    }


def expected_calibration_error(
    probability: Any, label: Any, *, where: Any = None, weight: Any = None, bins: int = 10, by: str = "weight"
) -> float:
    r"""The mean gap between predicted and observed rate over groups, each counting its weight (ECE).

    .. math:: \sum_b \frac{W_b}{W} \, |\bar p_b - \bar y_b|

    Arguments as in `reliability_table`. A perfect model has about :math:`\sqrt{2 B \bar p (1 - \bar p) / \pi n}` of n rows, which is
    chance: on few rows take few groups.

    >>> round(expected_calibration_error(torch.tensor([0.1, 0.1, 0.8, 0.8]), torch.tensor([0, 0, 1, 0]), bins=2), 6)
    0.2
    """
    table = reliability_table(probability, label, where=where, weight=weight, bins=bins, by=by)
    gap = (table["predicted"] - table["observed"]).abs()
    return float((gap * table["weight"]).sum() / table["weight"].sum())


def maximum_calibration_error(
    probability: Any, label: Any, *, where: Any = None, weight: Any = None, bins: int = 10, by: str = "weight"
) -> float:
    """The greatest gap between predicted and observed rate of a group (MCE); arguments as in `reliability_table`.

    >>> round(maximum_calibration_error(torch.tensor([0.1, 0.1, 0.8, 0.8]), torch.tensor([0, 0, 1, 0]), bins=2), 6)
    0.3
    """
    table = reliability_table(probability, label, where=where, weight=weight, bins=bins, by=by)
    return float((table["predicted"] - table["observed"]).abs().max())


def debiased_calibration_error(
    probability: Any, label: Any, *, where: Any = None, weight: Any = None, bins: int = 10, by: str = "weight"
) -> float:
    r"""The root of the groups' mean squared gap, less what chance alone makes of it: near 0 for an honest model on few rows too.

    .. math:: \Big( \sum_b \frac{W_b}{W} \Big[ (\bar p_b - \bar y_b)^2 - \frac{\bar y_b (1 - \bar y_b)}{n_b - 1} \Big] \Big)_+^{1/2}

    Arguments as in `reliability_table`; with weights the variance of the weighted mean is taken off.

    Kumar, Liang and Ma, NeurIPS 2019, https://arxiv.org/abs/1909.10155

    >>> round(
    ...     debiased_calibration_error(torch.tensor([0.8] * 4), torch.tensor([0, 0, 1, 0]), bins=1) ** 2, 4
    ... )  # .55² - .0625
    0.24
    """
    group, p, y, w = _grouped(probability, label, where, weight, bins, by)
    table, n = _table(group, p, y, w), np.bincount(group)
    chance = np.bincount(group, (w * (y - table["observed"][group])) ** 2) / table["weight"] ** 2 * n / (n - 1).clip(1)
    gap = (table["predicted"] - table["observed"]) ** 2 - chance
    return float(max(gap @ table["weight"] / table["weight"].sum(), 0.0) ** 0.5)


def calibration_ratio_error(
    probability: Any,
    label: Any,
    field: Any = None,
    *,
    where: Any = None,
    weight: Any = None,
    bins: int = 10,
    by: str = "weight",
) -> float:
    r"""How far the ratio of predicted to observed is from 1 over groups, both ways alike (Cal-N); 0 is the best.

    .. math:: \sqrt{\tfrac1B \sum_b e_b^2}, \qquad e = \max(r, 1 / r) - 1, \quad r = \bar p_b / \bar y_b

    With `field`, integers of the labels' shape, it is the mean over its values, by their weight (GC-N). Groups without a positive have no
    ratio and are left out. NaN where none has one.

    Deng et al., ECML PKDD 2020, https://doi.org/10.1007/978-3-030-67667-4_13

    >>> round(calibration_ratio_error(torch.tensor([0.2, 0.2, 0.5, 0.5]), torch.tensor([1, 0, 1, 0]), bins=2), 4)
    1.0607
    """
    if field is None:
        table = _table(*_grouped(probability, label, where, weight, bins, by))
        observed, predicted = (table[name][table["observed"] > 0] for name in ("observed", "predicted"))
        with np.errstate(divide="ignore"):
            error = np.maximum(predicted / observed, observed / predicted) - 1
        return float(np.sqrt((error**2).mean())) if len(error) else float("nan")
    _, group, (p, y, w) = _by_field(probability, label, field, where, weight)
    each = [calibration_ratio_error(p[r], y[r], weight=w[r], bins=bins, by=by) for r in _rows_of(group)]
    value, mass = np.array(each), np.bincount(group, w)
    kept = ~np.isnan(value)
    return float(value[kept] @ mass[kept] / mass[kept].sum()) if kept.any() else float("nan")


def _rows_of(group: np.ndarray) -> list[np.ndarray]:
    """The rows of each group."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group))[:-1])


def field_table(
    probability: Any, label: Any, field: Any, *, where: Any = None, weight: Any = None
) -> dict[str, Tensor]:
    """As `reliability_table`, a group for each value of `field` (integers of the labels' shape), which is the column `value`.

    >>> table = field_table(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 0]), torch.tensor([7, 7, 9]))
    >>> table["value"].tolist(), table["observed"].tolist()
    ([7, 9], [0.5, 0.0])
    """
    value, group, (p, y, w) = _by_field(probability, label, field, where, weight)
    return {"value": torch.from_numpy(value)} | {
        name: torch.from_numpy(column) for name, column in _table(group, p, y, w).items()
    }


def field_calibration_error(
    probability: Any, label: Any, field: Any, *, where: Any = None, weight: Any = None
) -> float:
    r"""The gap between what a field's values promise and hold, per row (field-ECE).

    .. math:: \frac{1}{W} \sum_f \Big| \sum_{i \in f} w_i (y_i - p_i) \Big|

    Pan et al., WWW 2020, https://arxiv.org/abs/1905.10713

    >>> field_calibration_error(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 0]), torch.tensor([7, 7, 9])) * 3
    0.5
    """
    _, group, (p, y, w) = _by_field(probability, label, field, where, weight)
    return float(np.abs(np.bincount(group, w * (y - p))).sum() / w.sum())


def field_relative_error(probability: Any, label: Any, field: Any, *, where: Any = None, weight: Any = None) -> float:
    r"""The same relative to what each value holds (field-RCE): a rare value's level matters as much as a common one's.

    .. math:: \frac{1}{W} \sum_f W_f \frac{|\sum_{i \in f} w_i (y_i - p_i)|}{\sum_{i \in f} w_i y_i}

    Values without a positive have no answer and are left out, with their weight: report how many rows remain. NaN where none does.

    Pan et al., WWW 2020, https://arxiv.org/abs/1905.10713

    >>> field_relative_error(torch.tensor([0.5, 0.5, 0.3]), torch.tensor([1, 1, 0]), torch.tensor([7, 7, 9]))
    0.5
    """
    _, group, (p, y, w) = _by_field(probability, label, field, where, weight)
    mass, seen, gap = np.bincount(group, w), np.bincount(group, w * y), np.abs(np.bincount(group, w * (y - p)))
    kept = seen > 0
    return float((mass * gap)[kept] @ (1 / seen[kept]) / mass[kept].sum()) if kept.any() else float("nan")


class Brier(NamedTuple):
    """The squared error and what it is made of: error = reliability - resolution + uncertainty, exactly for grouped predictions."""

    error: float
    reliability: float  # 0: every group holds what it says
    resolution: float  # how much the groups' rates differ: what the model knows
    uncertainty: float  # of the labels themselves


def brier(probability: Any, label: Any, *, where: Any = None, weight: Any = None, bins: int | None = None) -> Brier:
    r"""Mean squared error of probabilities, with Murphy's decomposition over groups of equal weight.

    .. math:: \frac1W \sum_i w_i (p_i - y_i)^2 = \sum_b \frac{W_b}{W} (\bar p_b - \bar y_b)^2
        - \sum_b \frac{W_b}{W} (\bar y_b - \bar y)^2 + \bar y (1 - \bar y)

    ``bins=None`` makes a group of each probability, for which the equation is exact when labels are 0 or 1.

    Murphy, Journal of Applied Meteorology 1973

    >>> brier(torch.tensor([0.5, 0.5]), torch.tensor([1, 0]))
    Brier(error=0.25, reliability=0.0, resolution=0.0, uncertainty=0.25)
    """
    p, y, w = rows("probability", probability, label, weight, where)
    table, total = _table(mass_bins(p, w, bins), p, y, w), w.sum()
    base, share = float(w @ y / total), table["weight"] / total
    return Brier(
        error=float(w @ (p - y) ** 2 / total),
        reliability=float(share @ (table["predicted"] - table["observed"]) ** 2),
        resolution=float(share @ (table["observed"] - base) ** 2),
        uncertainty=base * (1 - base),
    )


def _by_field(
    probability: Any, label: Any, field: Any, where: Any, weight: Any
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """(values, each row's place among them, the rows that count)."""
    ids, y = torch.as_tensor(field), torch.as_tensor(label)
    if ids.is_floating_point() or ids.shape != y.shape:
        raise DataError(f"field is {ids.dtype} of shape {list(ids.shape)}; give integers of the labels' shape.")
    live = ~y.isnan()
    for part in (where, weight):
        live = live if part is None else live & (torch.as_tensor(part) != 0)
    value, group = np.unique(ids[live].cpu().numpy(), return_inverse=True)
    return value, group, rows("probability", probability, label, weight, where)
