"""Losses of a whole list: the candidates on the last axis compete with each other.

Everywhere: score and label ``[..., L]``, labels ≥ 0. ``weight`` belongs to the candidate and counts in proportion to its
share of the target; one weight per list is given as ``[R, 1]``. Each list has one vote.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.losses.rows import clean, full_precision, weighted_mean


@full_precision
def softmax(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Listwise softmax over the last axis; lists without a positive count nothing.

    .. math:: -\sum_i \frac{y_i}{\sum_k y_k} \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    >>> softmax(torch.tensor([[2.2, -1.3, 5.4], [0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    tensor(3.2411)
    """
    score, label, weight = clean(score, label, where, weight)
    total = label.sum(-1, keepdim=True)
    return _list_cross_entropy(score, label / torch.where(total > 0, total, 1), where, weight)


@full_precision
def listnet(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""ListNet, top one (Cao et al., ICML 2007): the labels too go through a softmax.

    .. math:: -\sum_i \frac{e^{y_i}}{\sum_k e^{y_k}} \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    >>> listnet(torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]))  # log 2: the score says nothing
    tensor(0.6931)
    """
    score, label, weight = clean(score, label, where, weight)
    target = masked(label, where).softmax(-1)
    return _list_cross_entropy(score, target if where is None else target * where, where, weight)


def _list_cross_entropy(score: Tensor, target: Tensor, where: Tensor | None, weight: Tensor) -> Tensor:
    value = -masked(score, where).log_softmax(-1)
    if where is not None:
        value = torch.where(where, value, 0)
    return weighted_mean(value, weight * target)


def masked(score: Tensor, where: Tensor | None) -> Tensor:
    """The score with the least finite number in dead cells."""
    # Not -inf: a list with nothing live would have NaN gradients.
    return score if where is None else score.masked_fill(~where, torch.finfo(score.dtype).min)
