"""Weights that undo where things were shown, and the curve of examination from a log without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from recstack.errors import ConfigError, DataError


def examination_weights(
    position: Any, examination: Mapping[Any, float], *, clicked: Any = None, floor: float = 0.05
) -> np.ndarray:
    r"""Inverse propensities :math:`1 / \max(\theta_k, \theta_{\min})` of rows shown at positions k, float32 ``[n]``.

    As the ``weight`` of a log of lists whose task learns by a listwise or pairwise loss, a click counts as if every place had been
    looked at (Joachims et al., WSDM 2017, https://arxiv.org/abs/1608.04468): the order that is learned is that of relevance. With `clicked` only
    clicks are weighed, which is what a loss of single rows takes; that is right up to terms in the click rate.

    Args:
        position: ``[n]``.
        examination: {position: chance of being looked at}, such as ``model.examination()`` or `click_model(...).examination`.
        clicked: 0 or 1 ``[n]``.
        floor: :math:`\theta_{\min}`, a bound on the variance at the price of a bias.

    Raises:
        DataError: a position that `examination` lacks. ConfigError: a floor that is not above 0.

    >>> examination_weights([1, 2, 1], {1: 1.0, 2: 0.5})
    array([1., 2., 1.], dtype=float32)
    """
    if not 0 < floor <= 1:
        raise ConfigError(f"floor is a chance above 0 and at most 1; got {floor!r}.")
    known, index = np.unique(np.asarray(position), return_inverse=True)
    for value in known.tolist():
        if value not in examination:
            raise DataError(f"Position {value!r} has no chance of being looked at; known are {sorted(examination)}.")
    weight = 1 / np.maximum([examination[value] for value in known.tolist()], floor)[index]
    if clicked is not None:
        weight = np.where(np.asarray(clicked) > 0, weight, 1.0)
    return weight.astype(np.float32)


class ClickModel(NamedTuple):
    """What `click_model` found."""

    examination: dict[Any, float]  # {position: θ}, the greatest 1
    relevance: dict[Any, float]  # {item: γ}
    log_likelihood: list[float]  # after each round, per row; never less than before


def click_model(click: Any, position: Any, item: Any, *, rounds: int = 5000, tolerance: float = 1e-10) -> ClickModel:
    r"""The position-based model of clicks, :math:`p = \theta_k \gamma_i`, by expectation-maximisation on counts.

    .. math:: \theta_k \leftarrow \mathrm{mean}_{k} \Big( y + (1 - y) \frac{\theta (1 - \gamma)}{1 - \theta \gamma} \Big), \qquad
        \gamma_i \leftarrow \mathrm{mean}_{i} \Big( y + (1 - y) \frac{(1 - \theta)\, \gamma}{1 - \theta \gamma} \Big)

    It asks that an item was shown at several positions for reasons that have nothing to do with its relevance (to the user): a log
    of random swaps, or items of many requests. Where a policy puts at the top what its user likes, take ``rs.ranking.RegressionEM``, whose γ
    knows the features.

    Args:
        click: 0 or 1 ``[n]``. position, item: ``[n]``, of any type.
        rounds: at most so many; it ends where a round adds less than `tolerance` to the log likelihood of a row.

    Richardson, Dominowska and Ragno, WWW 2007; Craswell et al., WSDM 2008, https://doi.org/10.1145/1341531.1341545

    >>> found = click_model([1, 0, 1, 0, 0, 0, 1, 0], [1, 2, 1, 2, 1, 2, 1, 2], list("aaaabbbb"))
    >>> found.examination[1] == 1 and found.examination[2] < 0.1
    True
    """
    y = np.asarray(click, np.float64)
    (places, k), (items, i) = (np.unique(np.asarray(x), return_inverse=True) for x in (position, item))
    if not len(y) == len(k) == len(i) or not len(y):
        raise DataError(
            f"click, position and item have {len(y)}, {len(k)} and {len(i)} rows; give as many, at least one."
        )
    if not np.isin(y, (0, 1)).all():
        raise DataError("click holds something else than 0 and 1.")
    # Rows that are alike are one cell with counts: what a round costs is the number of pairs of position and item.
    cell, at = np.unique(k * len(items) + i, return_inverse=True)
    k, i = cell // len(items), cell % len(items)
    shown, clicks = np.bincount(at), np.bincount(at, y)
    by_place, by_item = np.bincount(k, shown), np.bincount(i, shown)
    theta, gamma, history = np.full(len(places), 0.9), np.full(len(items), max(y.mean(), 1e-6)), []
    for _ in range(rounds):
        t, g = theta[k], gamma[i]
        none = np.maximum(1 - t * g, 1e-12)
        seen = clicks + (shown - clicks) * t * (1 - g) / none
        liked = clicks + (shown - clicks) * (1 - t) * g / none
        theta, gamma = np.bincount(k, seen) / by_place, np.bincount(i, liked) / by_item
        theta, gamma = theta / theta.max(), gamma * theta.max()  # only the product is seen
        p = (theta[k] * gamma[i]).clip(1e-12, 1 - 1e-12)
        history.append(float((clicks @ np.log(p) + (shown - clicks) @ np.log1p(-p)) / len(y)))
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            break
    return ClickModel(
        dict(zip(places.tolist(), (theta / theta.max()).tolist(), strict=True)),
        dict(zip(items.tolist(), gamma.tolist(), strict=True)),
        history,
    )
