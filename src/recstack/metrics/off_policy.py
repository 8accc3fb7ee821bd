"""What another policy would have earned, estimated from what the logging policy did (off-policy evaluation).

Every estimator takes a log of n choices: `reward` [n], and `weight` [n] = π(a | x) / μ(a | x), the chance with which the
policy in question would have done what was done over the chance with which it was done (`importance` makes and checks it).
Each returns an `Estimate`: the value, and an interval, by the normal law of the rows' influence on it (`interval="normal"`)
or by drawing rows anew (`interval="bootstrap"`, the percentiles of 1,000 draws; better where rewards are rare).

Work in float64. Raises DataError where shapes differ, there are no rows, or a chance is not one.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from recstack.errors import DataError, unknown

DRAWS = 1000


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


class Overlap(NamedTuple):
    """How well a log covers a policy: mean weight (1 if the chances are right), the largest, and the effective sample size."""

    mean: float
    largest: float
    effective: float


def importance(target: Any, propensity: Any, *, clip: float | None = None) -> np.ndarray:
    r"""The weights :math:`\pi(a \mid x) / \mu(a \mid x)` of n choices, float64 [n], at most `clip`.

    Args:
        target: chance with which the policy in question would have done what was done.
        propensity: chance with which it was done, positive.

    A RuntimeWarning says that the log covers the policy badly: an effective sample size below 100, or a mean weight more
    than 0.1 away from 1 (before clipping).

    >>> importance([0.5, 0.5], [0.25, 1.0], clip=1.5)
    array([1.5, 0.5])
    """
    target, propensity = (np.asarray(x, np.float64) for x in (target, propensity))
    if target.shape != propensity.shape or target.ndim != 1 or not len(target):
        raise DataError(f"Chances are {list(target.shape)} and {list(propensity.shape)}; give two of one length [n].")
    if not ((propensity > 0) & (propensity <= 1)).all() or not ((target >= 0) & (target <= 1)).all():
        raise DataError(
            "A chance lies outside: those of the log are above 0 and at most 1, those of the policy 0 to 1."
        )
    weight = target / propensity
    seen = overlap(weight)
    if len(weight) >= 100 and (seen.effective < 100 or abs(seen.mean - 1) > 0.1):
        warnings.warn(
            f"The log covers the policy badly: {len(weight)} rows count as {seen.effective:.0f}, the mean weight is "
            f"{seen.mean:.2f} (it should be 1), the largest {seen.largest:.0f}.",
            RuntimeWarning,
            stacklevel=2,
        )
    return weight if clip is None else weight.clip(max=clip)


def overlap(weight: Any) -> Overlap:
    r"""How well weights [n] cover a policy; the effective sample size is :math:`(\sum w)^2 / \sum w^2`.

    >>> overlap([1.0, 1.0, 0.0])
    Overlap(mean=0.6666666666666666, largest=1.0, effective=2.0)
    """
    weight = np.asarray(weight, np.float64)
    return Overlap(float(weight.mean()), float(weight.max()), float(weight.sum() ** 2 / max((weight**2).sum(), 1e-300)))


def on_policy(reward: Any, *, interval: str = "normal", level: float = 0.95, seed: int = 0) -> Estimate:
    r"""The mean reward of the policy that made the log: :math:`\frac 1n \sum r`.

    >>> on_policy([1.0, 0.0, 1.0, 0.0]).value
    0.5
    """
    (reward,) = _rows(reward)
    return _estimate(reward, np.ones_like(reward), interval, level, seed)


def ips(reward: Any, weight: Any, *, interval: str = "normal", level: float = 0.95, seed: int = 0) -> Estimate:
    r"""Inverse propensity score: :math:`\frac 1n \sum w r`. Unbiased; its variance grows with the weights.

    Horvitz and Thompson, JASA 1952, https://doi.org/10.1080/01621459.1952.10483446

    >>> ips([1.0, 0.0], [1.5, 0.5]).value
    0.75
    """
    reward, weight = _rows(reward, weight)
    return _estimate(weight * reward, np.ones_like(reward), interval, level, seed)


def snips(reward: Any, weight: Any, *, interval: str = "normal", level: float = 0.95, seed: int = 0) -> Estimate:
    r"""Self-normalised inverse propensity score: :math:`\sum w r / \sum w`. Slightly biased, of less variance.

    Swaminathan and Joachims, NIPS 2015, https://papers.nips.cc/paper/5748

    >>> snips([1.0, 0.0], [1.5, 1.5]).value
    0.5
    """
    reward, weight = _rows(reward, weight)
    return _estimate(weight * reward, weight, interval, level, seed)


def direct(predicted: Any, policy: Any, *, interval: str = "normal", level: float = 0.95, seed: int = 0) -> Estimate:
    r"""The direct method: :math:`\frac 1n \sum_i \sum_a \pi(a \mid x_i)\, \hat q(x_i, a)`, as right as its model is.

    Args:
        predicted: [n, A], the rewards that a model expects of every arm.
        policy: [n, A], with what chance the policy would choose each.

    >>> direct([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 1.0]]).value
    0.75
    """
    expected = _expected(predicted, policy)
    return _estimate(expected, np.ones_like(expected), interval, level, seed)


def doubly_robust(
    reward: Any,
    weight: Any,
    arm: Any,
    predicted: Any,
    policy: Any,
    *,
    interval: str = "normal",
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    r"""The direct method, corrected where the log knows better: right if the model is, or if the propensities are.

    .. math:: \frac 1n \sum_i \Big[ \sum_a \pi(a \mid x_i)\, \hat q(x_i, a) + w_i \big(r_i - \hat q(x_i, a_i)\big) \Big]

    `arm` int [n] is what was done; the model should not have learned from the rows that it predicts (cross-fitting).

    Dudík, Langford and Li, ICML 2011, https://arxiv.org/abs/1103.4601

    >>> doubly_robust([1.0, 0.0], [2.0, 0.0], [0, 1], [[0.5, 0.1]] * 2, [[1.0, 0.0]] * 2).value
    1.0
    """
    reward, weight = _rows(reward, weight)
    predicted, expected = np.asarray(predicted, np.float64), _expected(predicted, policy)
    arm = np.asarray(arm)
    if len(expected) != len(reward) or arm.shape != reward.shape:
        raise DataError(
            f"There are {len(reward)} rewards, {len(expected)} predictions and {len(arm)} arms; give n of each."
        )
    value = expected + weight * (reward - predicted[np.arange(len(arm)), arm])
    return _estimate(value, np.ones_like(value), interval, level, seed)


def replay(reward: Any, match: Any, *, interval: str = "normal", level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean reward where the policy would have done what was done (`match` bool [n]); right if the log chose evenly.

    Li et al., WSDM 2011, https://arxiv.org/abs/1003.5956

    >>> replay([1.0, 0.0, 0.0], [True, True, False]).value
    0.5
    """
    reward, match = _rows(reward, np.asarray(match, np.float64))
    return _estimate(reward * match, match, interval, level, seed)


def switched(weight: Any, most: float) -> np.ndarray:
    r"""Weights for `doubly_robust` that leave rows of more than `most` to the model (Switch-DR): :math:`w\,[w \le \tau]`.

    Wang, Agarwal and Dudík, ICML 2017, https://arxiv.org/abs/1612.01205

    >>> switched([0.5, 20.0], 10.0)
    array([0.5, 0. ])
    """
    (weight,) = _rows(weight)
    return np.where(weight > most, 0.0, weight)


def shrunk(weight: Any, strength: float) -> np.ndarray:
    r"""Weights for `doubly_robust`, the large ones drawn to 0: :math:`\lambda w / (w^2 + \lambda)`, the best for squared errors.

    λ is `strength`: at 0 the model alone speaks, without end the weights stay as they are. Su et al., ICML 2020,
    https://arxiv.org/abs/1907.09623

    >>> shrunk([1.0, 3.0], 9.0)
    array([0.9, 1.5])
    """
    (weight,) = _rows(weight)
    if not strength >= 0:
        raise DataError(f"strength is a number from 0; got {strength!r}.")
    return strength * weight / np.maximum(weight**2 + strength, 1e-300)


def slate_ips(
    reward: Any,
    weight: Any,
    user: str = "cascade",
    *,
    interval: str = "normal",
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    r"""What a policy of whole pages would earn, from the reward of each place: :math:`\frac 1n \sum_i \sum_k W_{ik}\, r_{ik}`.

    ============== ============================== =============================================================
    ``user``       :math:`W_{ik}`                 right if a place's reward depends on
    ============== ============================== =============================================================
    "independent"  :math:`w_{ik}`                 its own item (IIPS); weights of the places' own chances
    "cascade"      :math:`\prod_{j \le k} w_{ij}` it and those above (RIPS)
    "any"          :math:`\prod_j w_{ij}`         the whole page (SIPS)
    ============== ============================== =============================================================

    The fewer places count, the less it varies: choose the weakest that is true of the users.

    Args:
        reward: ``[n, K]``, of each place of each page.
        weight: ``[n, K]``, π / μ of the item at each place, given the items above it.

    McInerney et al., KDD 2020, https://arxiv.org/abs/2007.12986; Li et al., KDD 2018, https://arxiv.org/abs/1804.10488

    >>> slate_ips([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.5], [0.5, 2.0]]).value  # (2 + ½ · 2) / 2
    1.5
    """
    reward, weight = _pages(reward, weight)
    if user not in ("independent", "cascade", "any"):
        raise unknown("user", user, ("independent", "cascade", "any"))
    if user == "cascade":
        weight = weight.cumprod(1)
    elif user == "any":
        weight = np.broadcast_to(weight.prod(1, keepdims=True), weight.shape)
    return _estimate((weight * reward).sum(1), np.ones(len(reward)), interval, level, seed)


def pseudo_inverse(
    reward: Any, weight: Any, *, interval: str = "normal", level: float = 0.95, seed: int = 0
) -> Estimate:
    r"""What a policy of whole pages would earn, from one reward per page: :math:`\frac 1n \sum_i r_i (1 + \sum_k (w_{ik} - 1))`.

    Right where a page's reward is a sum over its places (which nobody sees) and the log chose the places independently of each other: the
    pseudo-inverse then has this form. Other logs, such as those without repetition, need the matrix, which is not here.

    Args:
        reward: ``[n]``; weight: ``[n, K]``, π / μ of the item at each place.

    Swaminathan et al., NIPS 2017, https://arxiv.org/abs/1605.04812

    >>> pseudo_inverse([1.0, 0.0], [[2.0, 0.5], [1.0, 1.0]]).value  # (1 + 1 - ½) / 2
    0.75
    """
    weight = np.asarray(weight, np.float64)
    reward, spread = _pages(np.broadcast_to(np.asarray(reward, np.float64)[..., None], weight.shape), weight)
    return _estimate(reward[:, 0] * (1 + (spread - 1).sum(1)), np.ones(len(reward)), interval, level, seed)


def _pages(reward: Any, weight: Any) -> tuple[np.ndarray, np.ndarray]:
    reward, weight = (np.asarray(x, np.float64) for x in (reward, weight))
    if reward.ndim != 2 or reward.shape != weight.shape or not reward.size:
        raise DataError(f"Rewards are {list(reward.shape)} and weights {list(weight.shape)}; give both as [n, K].")
    if not (np.isfinite(reward).all() and np.isfinite(weight).all()):
        raise DataError("A reward or weight is NaN or infinite; leave those rows out.")
    return reward, weight


def _rows(*columns: Any) -> list[np.ndarray]:
    arrays = [np.asarray(c, np.float64) for c in columns]
    shapes = [list(a.shape) for a in arrays]
    if arrays[0].ndim != 1 or not len(arrays[0]) or any(s != shapes[0] for s in shapes):
        raise DataError(
            f"Columns of a log have shapes {', '.join(map(str, shapes))}; give one value per row each, [n]."
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise DataError("A reward or weight is NaN or infinite; leave those rows out.")
    return arrays


def _expected(predicted: Any, policy: Any) -> np.ndarray:
    predicted, policy = np.asarray(predicted, np.float64), np.asarray(policy, np.float64)
    if predicted.ndim != 2 or predicted.shape != policy.shape or not len(policy):
        raise DataError(
            f"Predictions are {list(predicted.shape)} and chances {list(policy.shape)}; give both as [n, A]."
        )
    if (policy < 0).any() or not np.allclose(policy.sum(1), 1, atol=1e-4):
        raise DataError("The chances of a policy are at least 0 and add up to 1 in each row.")
    return (predicted * policy).sum(1)


def _estimate(top: np.ndarray, bottom: np.ndarray, interval: str, level: float, seed: int) -> Estimate:
    """Of a ratio of sums."""
    if interval not in ("normal", "bootstrap"):
        raise unknown("interval", interval, ("normal", "bootstrap"))
    if bottom.sum() == 0:
        warnings.warn("The value is NaN: no row of the log counts for this policy.", RuntimeWarning, stacklevel=3)
        return Estimate(*[float("nan")] * 3)
    n, value = len(top), float(top.sum() / bottom.sum())
    if interval == "normal":
        from statistics import NormalDist

        influence = (top - value * bottom) / bottom.mean()
        half = NormalDist().inv_cdf(0.5 + level / 2) * float(influence.std(ddof=min(1, n - 1))) / n**0.5
        return Estimate(value, value - half, value + half)
    chance, drawn = np.random.default_rng(seed), np.empty(DRAWS)
    for i in range(DRAWS):
        rows = chance.integers(0, n, n)
        drawn[i] = top[rows].sum() / max(bottom[rows].sum(), 1e-300)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high))
