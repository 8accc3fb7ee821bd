"""Losses of pairs: the better of two candidates of one list should score higher.

Everywhere: score and label ``[..., L]``, the last axis is the list; a pair (i, j) exists where both are live and
label i > label j, and has the weight of i, the better one. O(L²) memory. Lists without a pair count nothing. With a cut
``k``, a pair needs a member among the first k of its list by score: the order below the cut is nobody's business.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import unknown
from recstack.losses.grades import check_cut, discount, discounts, gains, ideal, rank
from recstack.losses.rows import check, clean, full_precision, weighted_mean

SCHEMES = ("ndcg1", "ndcg2", "ndcg2++")


@full_precision
def bpr(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, k: int | None = None
) -> Tensor:
    r"""Bayesian personalised ranking (Rendle et al., UAI 2009): the mean over all pairs, whatever list they are from.

    .. math:: -\log \sigma(s_i - s_j)

    https://arxiv.org/abs/1205.2618

    >>> bpr(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))  # log(1 + e^-1)
    tensor(0.3133)
    """
    difference, weight = _pairs(score, label, where, weight, k)
    return weighted_mean(F.softplus(-difference), weight)


@full_precision
def pairwise_logistic(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, k: int | None = None
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
    difference, weight = _pairs(score, label, where, weight, k)
    return weighted_mean(F.softplus(-difference), _one_vote_per_list(weight))


@full_precision
def pairwise_hinge(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    margin: float = 1.0,
    k: int | None = None,
) -> Tensor:
    r"""Zero once the better candidate leads by `margin`: :math:`\max(0, m - (s_i - s_j))`; each list has one vote.

    >>> pairwise_hinge(torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 0.0]]), margin=1.0)
    tensor(0.5000)
    """
    difference, weight = _pairs(score, label, where, weight, k)
    return weighted_mean(F.relu(margin - difference), _one_vote_per_list(weight))


@full_precision
def lambdarank(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    gain: str = "exponential",
) -> Tensor:
    r"""LambdaRank (Burges et al., NIPS 2006): each pair counts as much as NDCG would change if the two changed places.

    .. math:: \sum_{y_i > y_j} |\Delta_{ij}| \log(1 + e^{-(s_i - s_j)}), \qquad
        \Delta_{ij} = \frac{(G_i - G_j)\, (D(r_i) - D(r_j))}{\max \mathrm{DCG}}, \quad D(r) = \frac{1}{\log_2(1 + r)}

    r is the rank by the present scores; of equal scores the worse candidate stands first, so that a pair that is not yet told
    apart counts too. The weights are held: no gradient passes through them. With a cut k it is NDCG@k. `gain` G is
    "exponential", :math:`2^y - 1`, for grades of a few steps, or "linear", y.

    Burges, "From RankNet to LambdaRank to LambdaMART", MSR-TR-2010-82

    >>> score, label = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> lambdarank(score, label)  # (1 - 1 / log2(3)) * log(1 + e)
    tensor(0.4847)
    """
    difference, pair = _pairs(score, label, where, weight, None)
    place, top, worth = _places(score, label, where, k, gain)
    swap = (worth.unsqueeze(-1) - worth.unsqueeze(-2)).abs()
    swap = swap * (discounts(place, k).unsqueeze(-1) - discounts(place, k).unsqueeze(-2)).abs() / top
    return _sum_of_pairs(F.softplus(-difference) * swap, pair)


@full_precision
def lambdaloss(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    scheme: str = "ndcg2++",
    mu: float = 10.0,
    k: int | None = None,
    gain: str = "exponential",
) -> Tensor:
    r"""LambdaLoss (Wang et al., CIKM 2018): weights of pairs under which the sum of log losses bounds 1 - NDCG.

    .. math:: \sum_{i, j} \rho_{ij} \log_2(1 + e^{-(s_i - s_j)}), \qquad
        \delta_{ij} = |D(|r_i - r_j|) - D(|r_i - r_j| + 1)|

    - "ndcg1": :math:`\rho_{ij} = G_i D(r_i)`, over all pairs, also of equal grades
    - "ndcg2": :math:`\rho_{ij} = \delta_{ij} |G_i - G_j|`
    - "ndcg2++": :math:`\rho_{ij} = (|D(r_i) - D(r_j)| + \mu\, \delta_{ij})\, |G_i - G_j|`: LambdaRank's and that of "ndcg2"

    G is the gain over the greatest possible DCG; ranks, gains and the held weights are as in `lambdarank`. Raises ConfigError
    for another scheme or a negative mu.

    https://research.google/pubs/the-lambdaloss-framework-for-ranking-metric-optimization/

    >>> score, label = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> lambdaloss(score, label, scheme="ndcg2") * torch.tensor(2.0).log()  # of two candidates it is LambdaRank
    tensor(0.4847)
    """
    if scheme not in SCHEMES:
        raise unknown("scheme of the loss 'lambdaloss'", scheme, SCHEMES)
    check("lambdaloss", "mu", mu, 0)
    place, top, worth = _places(score, label, where, k, gain)
    difference, pair = _pairs(score, label, where, weight, k, every=scheme == "ndcg1")
    worth = worth / top.squeeze(-1)
    if scheme == "ndcg1":
        rho = (worth * discounts(place, k)).unsqueeze(-1).expand(pair.shape)
    else:
        apart = (place.unsqueeze(-1) - place.unsqueeze(-2)).abs().clamp(min=1)
        rho = discount(apart) - discount(apart + 1)
        if scheme == "ndcg2++":
            at = discounts(place, k)
            rho = (at.unsqueeze(-1) - at.unsqueeze(-2)).abs() + mu * rho
        rho = rho * (worth.unsqueeze(-1) - worth.unsqueeze(-2)).abs()
    return _sum_of_pairs(F.softplus(-difference) * rho / math.log(2), pair)


def _pairs(
    score: Tensor,
    label: Tensor,
    where: Tensor | None,
    weight: Tensor | None,
    k: int | None = None,
    *,
    every: bool = False,
) -> tuple[Tensor, Tensor]:
    """s_i - s_j and the pair's weight, both [..., L, L]; weight 0 where (i, j) is no pair. `every`: whatever the labels."""
    score, label, weight = clean(score, label, where, weight)
    live = torch.ones_like(label, dtype=torch.bool) if where is None else where.expand(score.shape)
    both = live.unsqueeze(-1) & live.unsqueeze(-2)
    pair = (label.unsqueeze(-1) > label.unsqueeze(-2)) & both
    if every:  # of the lists that order something
        some = pair.any(-1, keepdim=True).any(-2, keepdim=True)
        pair = some & both & ~torch.eye(label.shape[-1], dtype=torch.bool, device=label.device)
    if k is not None:
        first = rank(score, label, where) <= check_cut(k)
        pair = pair & (first.unsqueeze(-1) | first.unsqueeze(-2))
    return score.unsqueeze(-1) - score.unsqueeze(-2), torch.where(pair, weight.unsqueeze(-1), 0)


def _one_vote_per_list(weight: Tensor) -> Tensor:
    return weight / (weight > 0).sum((-1, -2), keepdim=True).clamp(min=1)


def _places(
    score: Tensor, label: Tensor, where: Tensor | None, k: int | None, gain: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank [..., L], greatest DCG [..., 1, 1] and gain [..., L] of each candidate."""
    score, label, _ = clean(score.detach(), label, where, None)
    worth = gains(label, gain)
    return rank(score, label, where), ideal(worth, k)[..., None, None], worth


def _sum_of_pairs(value: Tensor, weight: Tensor) -> Tensor:
    """The mean over lists of Σ w·v over their pairs; a list has the mean weight of its pairs."""
    total = _one_vote_per_list(weight).sum()
    return (value * weight).sum() / torch.where(total > 0, total, 1)
