"""Losses that ask for good probabilities and a good order at once: `alpha` is the share of the probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.errors import DataError
from recstack.losses.listwise import masked
from recstack.losses.pairwise import pairwise_logistic
from recstack.losses.pointwise import bce
from recstack.losses.rows import check, clean_classes, full_precision, weighted_mean


@full_precision
def bce_pairwise(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    alpha: float = 0.5,
) -> Tensor:
    r"""Log loss joined to the pairs of each list; score and label [..., L].

    .. math:: \alpha\, \mathrm{BCE} + (1 - \alpha)\, \mathrm{pairwise}, \qquad
              \mathrm{pairwise} = \operatorname{mean}_{y_i > y_j} -\log \sigma(s_i - s_j)

    The pairs are those of `pairwise_logistic`, each list having one vote; a list of one has none. Raises ConfigError
    for an `alpha` outside 0 to 1.

    Sculley, "Combined Regression and Ranking", KDD 2010; Li et al., "Click-through Prediction for Advertising in
    Twitter Timeline", KDD 2015

    >>> score, label = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    >>> bce_pairwise(score, label, alpha=0.3)  # both are log 2
    tensor(0.6931)
    """
    check("bce_pairwise", "alpha", alpha, 0, 1)
    point = bce(score, label, where=where, weight=weight)
    return alpha * point + (1 - alpha) * pairwise_logistic(score, label, where=where, weight=weight)


@full_precision
def jrc(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    alpha: float = 0.5,
) -> Tensor:
    r"""Joint ranking and calibration: two logits a row; their difference is the log-odds, and each competes in its list.

    .. math:: -\frac1N \sum_i \Big[ \alpha \log \frac{e^{f_{y_i}(i)}}{e^{f_0(i)} + e^{f_1(i)}}
              + (1 - \alpha) \log \frac{e^{f_{y_i}(i)}}{\sum_{j \in \mathrm{list}(i)} e^{f_{y_i}(j)}} \Big]

    Score [..., L, 2], label [..., L] of 0 and 1; the last axis of the label is the context. The first term is the
    discriminative half, P(y | x) with :math:`\operatorname{logit} P(1) = f_1 - f_0`; the second the generative one, P(x
    | y, list), which is 0 in a list of one. Raises ConfigError for an `alpha` outside 0 to 1, DataError if the score is
    not two logits.

    Sheng et al., "Joint Optimization of Ranking and Calibration with Contextualized Hybrid Model", KDD 2023,
    https://arxiv.org/abs/2208.06164

    >>> jrc(torch.zeros(1, 4, 2), torch.tensor([[1.0, 0.0, 0.0, 0.0]]), alpha=0.0)  # log 4: one of four
    tensor(1.3863)
    """
    check("jrc", "alpha", alpha, 0, 1)
    if score.shape[-1:] != (2,):
        raise DataError(f"jrc takes two logits a row, [..., L, 2], and the score has shape {list(score.shape)}.")
    score, label, weight = clean_classes(score, label, where, weight)
    rival = score if where is None else masked(score, where.expand(label.shape).unsqueeze(-1).expand(score.shape))
    generative = rival.log_softmax(-2)
    if where is not None:
        generative = torch.where(where.unsqueeze(-1), generative, 0)
    each = alpha * score.log_softmax(-1) + (1 - alpha) * generative
    return weighted_mean(-(each[..., 1] * label + each[..., 0] * (1 - label)), weight)
