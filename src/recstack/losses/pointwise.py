"""Losses of one cell at a time: every candidate is judged on its own.

Everywhere: score and label ``[...]``, ``where`` (True = live) and ``weight`` broadcast to them; the result is the
weighted mean over live cells, 0 if there are none. What stands in a dead cell touches neither value nor gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.losses.rows import check, clean, clean_classes, full_precision, weighted_mean


@full_precision
def bce(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    prior: float = 0.5,
) -> Tensor:
    r"""Binary cross entropy of a logit; labels may be soft, between 0 and 1.

    .. math:: -y' \log \sigma(s) - (1 - y') \log(1 - \sigma(s)), \qquad y' = (1 - \epsilon)\, y + \epsilon\, \pi

    `label_smoothing` :math:`\epsilon` (Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567) keeps logits small;
    the probabilities that are learned are those of y', drawn towards the `prior` :math:`\pi`: with ½ and :math:`\epsilon` = 0.1 no
    click is less likely than 5 %, with the share of clicks for prior their mean stays what it is. Raises ConfigError for
    either outside 0 to 1.

    >>> score, label = torch.tensor([0.0, 3.0]), torch.tensor([1.0, float("nan")])
    >>> bce(score, label, where=label.isfinite())  # a missing label is a dead cell: log 2 is left
    tensor(0.6931)
    """
    check("bce", "label_smoothing", label_smoothing, 0, 1)
    check("bce", "prior", prior, 0, 1)
    score, label, weight = clean(score, label, where, weight)
    label = label * (1 - label_smoothing) + label_smoothing * prior
    return weighted_mean(F.binary_cross_entropy_with_logits(score, label, reduction="none"), weight)


@full_precision
def weighted_logistic(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    r"""Expected watch time by logistic regression: a watched row weighs its time T, any other row 1.

    .. math:: -T \log \sigma(s) - [T = 0] \log(1 - \sigma(s))

    The label is T, 0 for what was shown and not watched. Of N alike rows, k of them watched, the odds that are learned
    are :math:`e^s = \sum T / (N - k) = \bar T / (1 - p) \approx \bar T (1 + p)`, with :math:`\bar T = \sum T / N` the
    mean watch time of a row and p = k / N, which is small. So :math:`e^s`, and not the probability, is what is served.
    Rows of 0 are needed: without them the odds have no bound. The mean counts rows, whatever their T. A negative label
    counts as 0.

    Covington, Adams and Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016, section 4.2

    >>> score = torch.zeros((), requires_grad=True)
    >>> times = torch.tensor([30.0, 0.0, 0.0, 0.0])
    >>> weighted_logistic((score + torch.tensor(10.0).log()).expand(4), times).backward()
    >>> bool(score.grad.abs() < 1e-6)  # at odds of 30 / 3 nothing is left to learn
    True
    """
    score, label, weight = clean(score, label, where, weight)
    time = label.clamp(min=0)
    return weighted_mean(torch.where(time > 0, time * F.softplus(-score), F.softplus(score)), weight)


@full_precision
def mse(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Squared error :math:`(s - y)^2`: the best constant answer is the mean.

    >>> mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
    tensor(4.5000)
    """
    score, label, weight = clean(score, label, where, weight)
    return weighted_mean((score - label).square(), weight)


@full_precision
def mae(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Absolute error :math:`|s - y|`: the best constant answer is the median.

    >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
    tensor(1.5000)
    """
    score, label, weight = clean(score, label, where, weight)
    return weighted_mean((score - label).abs(), weight)


@full_precision
def huber(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, delta: float = 1.0
) -> Tensor:
    r"""Half the squared error up to `delta`, a straight line beyond it: outliers pull with a bounded force.

    >>> huber(torch.tensor([0.0]), torch.tensor([3.0]), delta=1.0)
    tensor(2.5000)
    """
    score, label, weight = clean(score, label, where, weight)
    return weighted_mean(F.huber_loss(score, label, reduction="none", delta=delta), weight)


@full_precision
def cross_entropy(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Multiclass cross entropy: score [..., C], label [...] of class numbers; where and weight like the label.

    .. math:: -\sum_c q_c \log \frac{e^{s_c}}{\sum_k e^{s_k}}, \qquad q_c = (1 - \epsilon)\, [c = y] + \epsilon / C

    `label_smoothing` :math:`\epsilon` as in `bce`. Raises DataError if the score is not one axis longer than the label,
    ConfigError for an :math:`\epsilon` outside 0 to 1.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3.0, 0.0]))  # log 4
    tensor(1.3863)
    """
    check("cross_entropy", "label_smoothing", label_smoothing, 0, 1)
    score, label, weight = clean_classes(score, label, where, weight)
    log_p = score.log_softmax(-1)
    value = -log_p.gather(-1, label.long().unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        value = (1 - label_smoothing) * value - label_smoothing * log_p.mean(-1)
    return weighted_mean(value, weight)
