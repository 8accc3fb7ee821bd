"""Losses of pairs: the better of two candidates of one list should score higher.

Everywhere: score and label ``[..., L]``, the last axis is the list; a pair (i, j) exists where both are live and
label i > label j, and has the weight of i, the better one. O(L²) memory. Lists without a pair count nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.losses.rows import clean, full_precision, weighted_mean


@full_precision
def bpr(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Bayesian personalised ranking (Rendle et al., UAI 2009): the mean over all pairs, whatever list they are from.

    .. math:: -\log \sigma(s_i - s_j)

    https://arxiv.org/abs/1205.2618

    >>> bpr(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))  # log(1 + e^-1)
    tensor(0.3133)
    """
    difference, weight = _pairs(score, label, where, weight)
    return weighted_mean(F.softplus(-difference), weight)


@full_precision
def pairwise_logistic(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    r"""RankNet (Burges et al., ICML 2005): the terms of `bpr`, but each list has one vote, however many its pairs.

    >>> score, label = (
    ...     torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 9.0]]),
    ...     torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    ... )
    >>> where = torch.tensor([[True, True, True], [True, True, False]])
    >>> bpr(score, label, where=where), pairwise_logistic(score, label, where=where)  # votes 2 : 1 and 1 : 1
    (tensor(0.5665), tensor(0.5032))
    """
    difference, weight = _pairs(score, label, where, weight)
    return weighted_mean(F.softplus(-difference), _one_vote_per_list(weight))


@full_precision
def pairwise_hinge(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, margin: float = 1.0
) -> Tensor:
    r"""Zero once the better candidate leads by `margin`: :math:`\max(0, m - (s_i - s_j))`; each list has one vote.

    >>> pairwise_hinge(torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 0.0]]), margin=1.0)
    tensor(0.5000)
    """
    difference, weight = _pairs(score, label, where, weight)
    return weighted_mean(F.relu(margin - difference), _one_vote_per_list(weight))


def _pairs(score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """s_i - s_j and the pair's weight, both [..., L, L]; weight 0 where (i, j) is no pair."""
    score, label, weight = clean(score, label, where, weight)
    pair = label.unsqueeze(-1) > label.unsqueeze(-2)
    if where is not None:
        where = where.expand(score.shape)
        pair = pair & where.unsqueeze(-1) & where.unsqueeze(-2)
    return score.unsqueeze(-1) - score.unsqueeze(-2), torch.where(pair, weight.unsqueeze(-1), 0)


def _one_vote_per_list(weight: Tensor) -> Tensor:
    return weight / (weight > 0).sum((-1, -2), keepdim=True).clamp(min=1)
