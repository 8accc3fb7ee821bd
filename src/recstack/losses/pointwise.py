"""Losses of one cell at a time: every candidate is judged on its own.

Everywhere: score and label ``[...]``, ``where`` (True = live) and ``weight`` broadcast to them; the result is the
weighted mean over live cells, 0 if there are none. What stands in a dead cell touches neither value nor gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import DataError
from recstack.losses.rows import clean, full_precision, weighted_mean


@full_precision
def bce(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Binary cross entropy of a logit; labels may be soft, between 0 and 1.

    .. math:: -y \log \sigma(s) - (1 - y) \log(1 - \sigma(s))

    >>> score, label = torch.tensor([0.0, 3.0]), torch.tensor([1.0, float("nan")])
    >>> bce(score, label, where=label.isfinite())  # a missing label is a dead cell: log 2 is left
    tensor(0.6931)
    """
    score, label, weight = clean(score, label, where, weight)
    return weighted_mean(F.binary_cross_entropy_with_logits(score, label, reduction="none"), weight)


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
def cross_entropy(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Multiclass cross entropy: score [..., C], label [...] of class numbers; where and weight like the label.

    .. math:: -\log \frac{e^{s_y}}{\sum_c e^{s_c}}

    Raises DataError if the score is not one axis longer than the label.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3.0, 0.0]))  # log 4
    tensor(1.3863)
    """
    if score.shape[:-1] != label.shape:
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. "
            "A multiclass score has the label's shape and one more axis, the classes."
        )
    if where is not None:
        score = torch.where(where.expand(label.shape).unsqueeze(-1), score, 0)
    _, label, weight = clean(score[..., 0], label, where, weight)
    value = -score.log_softmax(-1).gather(-1, label.long().unsqueeze(-1)).squeeze(-1)
    return weighted_mean(value, weight)
