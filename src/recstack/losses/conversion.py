"""What is seen of some rows only, learned for all: conversions of what was clicked, and those that are still to come.

Everywhere: tensors ``[...]`` of one shape; ``where`` (True = live) and ``weight`` as in all losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.losses.rows import clean, full_precision, weighted_mean


@full_precision
def inverse_propensity(
    error: Tensor,
    seen: Tensor,
    propensity: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    floor: float = 0.02,
    self_normalised: bool = False,
) -> Tensor:
    r"""The mean error of all rows, from those that are seen, each weighed by how unlikely it was to be seen.

    .. math:: \frac1N \sum_i \frac{o_i\, e_i}{\max(\hat p_i, p_{\min})}, \qquad
        \text{self-normalised: } \sum_i \frac{o_i e_i}{\hat p_i} \Big/ \sum_i \frac{o_i}{\hat p_i}

    Args:
        error: e, of each row's prediction; what stands in rows that are not seen has no effect.
        seen: o, bool.
        propensity: :math:`\hat p`, no gradient reaches it.
        floor: :math:`p_{\min}`; it bounds each row's own weight, never the sum: a bit of bias for less variance.
        self_normalised: over the weights' sum in the place of N: biased for few rows, with a smaller variance.

    Schnabel et al., ICML 2016, https://arxiv.org/abs/1602.05352

    >>> seen = torch.tensor([True, False, True, False])
    >>> inverse_propensity(torch.tensor([1.0, 9.0, 2.0, 9.0]), seen, torch.tensor([0.5, 0.5, 0.25, 0.25]))
    tensor(2.5000)
    """
    error, ratio, weight = _weighed(error, seen, propensity, where, weight, floor)
    return weighted_mean(error, weight * ratio) if self_normalised else weighted_mean(ratio * error, weight)


@full_precision
def doubly_robust(
    error: Tensor,
    imputed: Tensor,
    seen: Tensor,
    propensity: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    floor: float = 0.02,
    self_normalised: bool = False,
) -> Tensor:
    r"""The mean error of all rows from an imputed one, corrected where the true one is seen.

    .. math:: \frac1N \sum_i \hat e_i + \frac{o_i\, (e_i - \hat e_i)}{\max(\hat p_i, p_{\min})}

    Right on average as soon as either the propensities or the imputed errors are. Arguments as of `inverse_propensity`;
    `self_normalised` divides the correction by the weights' sum.

    Wang et al., ICML 2019, https://proceedings.mlr.press/v97/wang19n.html

    >>> seen = torch.tensor([True, False])
    >>> doubly_robust(torch.tensor([1.0, 9.0]), torch.tensor([2.0, 3.0]), seen, torch.tensor([0.5, 0.5]))
    tensor(1.5000)
    """
    gap = inverse_propensity(
        error - imputed,
        seen,
        propensity,
        where=where,
        weight=weight,
        floor=floor,
        self_normalised=self_normalised,
    )
    _, imputed, weight = clean(imputed, imputed, where, weight)
    return weighted_mean(imputed, weight) + gap


def _weighed(
    error: Tensor, seen: Tensor, propensity: Tensor, where: Tensor | None, weight: Tensor | None, floor: float
):
    live = seen.bool() if where is None else seen.bool() & where
    _, propensity, weight = clean(propensity.detach(), propensity.detach(), where, weight)
    ratio = live / torch.where(live, propensity, 1).clamp(min=floor)
    return torch.where(live, error, 0), ratio.to(error.dtype), weight


@full_precision
def delayed_feedback(
    score: Tensor,
    log_delay: Tensor,
    label: Tensor,
    elapsed: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    r"""The likelihood of conversions that come after an exponential delay, and of those that have not come yet.

    .. math:: y = 1: \; -\log p - \log \lambda + \lambda d, \qquad
        y = 0: \; -\log\big(1 - p + p\, e^{-\lambda e}\big), \qquad p = \sigma(s), \quad \lambda = e^{-m}

    Args:
        score: s, the log-odds of converting at all.
        log_delay: m, the logarithm of the expected delay :math:`1 / \lambda`.
        label: 1 where the conversion has come.
        elapsed: d, how long it took; where it has not come, e, how long one has waited. Of any unit; m has the same.

    Chapelle, KDD 2014, https://doi.org/10.1145/2623330.2623634

    >>> label, elapsed = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1000.0])
    >>> delayed_feedback(torch.zeros(2), torch.zeros(2), label, elapsed)  # nothing is known at 0, and log 2 when all is
    tensor(0.3466)
    """
    score, label, weight = clean(score, label, where, weight)
    log_delay, elapsed, _ = clean(log_delay, elapsed, where, None)
    gone = elapsed.clamp(min=0) * (-log_delay).exp()  # λ e
    converted = F.softplus(-score) + log_delay + gone
    waiting = -torch.logaddexp(F.logsigmoid(-score), F.logsigmoid(score) - gone)
    return weighted_mean(label * converted + (1 - label) * waiting, weight)


@full_precision
def fake_negative_weighted(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    r"""Cross entropy on a stream in which every row comes at once as a negative, and again when it is a positive.

    .. math:: -\,y\,(1 + \hat p) \log p - (1 - y)\,(1 - \hat p)(1 + \hat p) \log(1 - p)

    :math:`\hat p` is p without its gradient. The weights undo what the false negatives do: rows of rate p are positive on the
    stream at p / (1 + p) only (`data.delays.stream` builds it; plain "bce" on it, and `calibration.true_from_stream`
    afterwards, is fake negative calibration). The mean is over the rows' own weights.

    Ktena et al., RecSys 2019, https://arxiv.org/abs/1907.06558

    >>> score = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    >>> p = score.sigmoid()[0].item()
    >>> fake_negative_weighted(score, torch.tensor([0.0, 0.0, 1.0]), weight=torch.tensor([1 - p, p, p])).backward()
    >>> bool(score.grad.sum().abs() < 1e-6)  # at the true rate nothing is left to learn
    True
    """
    score, label, weight = clean(score, label, where, weight)
    p = score.detach().sigmoid()
    importance = label * (1 + p) + (1 - label) * (1 - p) * (1 + p)
    return weighted_mean(importance * F.binary_cross_entropy_with_logits(score, label, reduction="none"), weight)


@full_precision
def agreement(score: Tensor, other: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""How far two predictions of one event are from each other: the symmetric divergence of their probabilities.

    .. math:: \mathrm{KL}(p \,\|\, q) + \mathrm{KL}(q \,\|\, p) = (p - q)\Big(\log\frac{p}{1 - p} - \log\frac{q}{1 - q}\Big)

    Both are log-odds, and both learn from it.

    >>> agreement(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0]))
    tensor(0.)
    """
    score, other, weight = clean(score, other, where, weight)
    return weighted_mean((score.sigmoid() - other.sigmoid()) * (score - other), weight)
