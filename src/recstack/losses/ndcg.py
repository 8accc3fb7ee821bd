"""Losses that are 1 - NDCG of a soft order: of ranks that are smooth, drawn, or sorted by a relaxed permutation.

Everywhere: score and label ``[..., L]``, the last axis is the list, labels are grades ≥ 0. G is the gain of a grade,
"exponential", 2^y - 1, for grades of a few steps, or "linear", y; D(r) = 1 / log2(1 + r). ``k`` cuts NDCG. Lists with nothing
relevant count nothing; a list has the mean weight of its candidates, by their gains.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.losses.grades import check_cut, discount, discounts, gains, ideal
from recstack.losses.rows import check, clean, full_precision, weighted_mean


@full_precision
def approx_ndcg(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 1.0,
    k: int | None = None,
    gain: str = "exponential",
) -> Tensor:
    r"""ApproxNDCG (Qin, Liu and Li, Information Retrieval 2010): ranks by sigmoids instead of steps.

    .. math:: 1 - \frac{1}{\max \mathrm{DCG}} \sum_i G_i\, D(\hat r_i), \qquad
        \hat r_i = 1 + \sum_{j \ne i} \sigma\big((s_j - s_i) / \tau\big)

    The cut k is smooth too: :math:`\sigma((k + \tfrac12 - \hat r_i) / \tau)`. As the `temperature` :math:`\tau` goes to 0 it
    becomes 1 - NDCG@k.

    https://doi.org/10.1007/s10791-009-9124-x

    >>> approx_ndcg(torch.tensor([[2.2, -1.3, 5.4]]), torch.tensor([[1.0, 0.0, 0.0]]))
    tensor(0.3672)
    """
    check("approx_ndcg", "temperature", temperature, 1e-6)
    score, label, weight = clean(score, label, where, weight)
    above = ((score.unsqueeze(-2) - score.unsqueeze(-1)) / temperature).sigmoid()
    rank = 1 + (above * _others(score, where)).sum(-1)
    check_cut(k)
    shown = 1.0 if k is None else ((k + 0.5 - rank) / temperature).sigmoid()
    worth = gains(label, gain)
    return _missed((worth * discount(rank) * shown).sum(-1), worth, weight, k)


@full_precision
def softrank(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    sigma: float = 1.0,
    k: int | None = None,
    gain: str = "exponential",
) -> Tensor:
    r"""SoftRank (Taylor et al., WSDM 2008): scores are drawn, :math:`N(s, \sigma^2)`, and so are ranks; expected NDCG.

    .. math:: 1 - \frac{1}{\max \mathrm{DCG}} \sum_j G_j \sum_r D(r)\, p_j(r), \qquad
        p_j^{(i)}(r) = p_j^{(i-1)}(r - 1)\, \pi_{ij} + p_j^{(i-1)}(r)\, (1 - \pi_{ij}), \quad
        \pi_{ij} = \Phi\Big(\frac{s_i - s_j}{\sqrt 2\, \sigma}\Big)

    The paper's rank-binomial distribution: the others i push j down one after the other, as if independently. O(L³) time and
    memory, O(k L²) with a cut, which loses nothing. As :math:`\sigma` goes to 0 it becomes 1 - NDCG@k. Scores that are closer
    than :math:`\sigma` put every candidate of a long list far below a cut, and nothing is learned: choose it smaller there.

    https://doi.org/10.1145/1341531.1341544

    >>> softrank(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))  # 1 - (1 + 1 / log2(3)) / 2
    tensor(0.1845)
    """
    check("softrank", "sigma", sigma, 1e-6)
    score, label, weight = clean(score, label, where, weight)
    length = score.shape[-1]
    beats = torch.special.ndtr((score.unsqueeze(-1) - score.unsqueeze(-2)) / (math.sqrt(2) * sigma))  # i, j: i above j
    beats = beats * _others(score, where)
    check_cut(k)
    ranks = length if k is None else min(length, k)
    chance = torch.zeros(*score.shape, ranks, dtype=score.dtype, device=score.device)
    chance[..., :1] = 1
    for one in beats.unbind(-2):
        pushed = one.unsqueeze(-1)
        lower = torch.cat([torch.zeros_like(chance[..., :1]), chance[..., :-1]], -1)
        chance = lower * pushed + chance * (1 - pushed)
    place = torch.arange(1, ranks + 1, dtype=score.dtype, device=score.device)
    worth = gains(label, gain)
    return _missed((worth * (chance * discount(place)).sum(-1)).sum(-1), worth, weight, k)


@full_precision
def neural_ndcg(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 1.0,
    iterations: int = 20,
    k: int | None = None,
    gain: str = "exponential",
) -> Tensor:
    r"""NeuralNDCG (Pobrotyn and Bialobrzeski, 2021): gains sorted by NeuralSort's relaxed permutation.

    .. math:: 1 - \frac{1}{\max \mathrm{DCG}} \sum_{i \le k} D(i)\, (\hat P G)_i, \qquad
        \hat P_i = \mathrm{softmax}\Big(\frac{(n + 1 - 2i)\, s - A_s \mathbb 1}{\tau}\Big), \quad (A_s)_{ij} = |s_i - s_j|

    `iterations` of Sinkhorn's scaling, of columns and then rows, make P doubly stochastic, so that no gain is counted twice. As
    the `temperature` :math:`\tau` goes to 0 it becomes 1 - NDCG@k, averaged over the orders of equal scores. The stochastic
    variant of the paper, which adds Gumbel noise to the scores, is left out.

    https://arxiv.org/abs/2102.07831

    >>> score, label = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    >>> neural_ndcg(score, label, temperature=1e-3)  # the relevant one is third: 1 - 1 / log2(4)
    tensor(0.5000)
    """
    check("neural_ndcg", "temperature", temperature, 1e-6)
    if not isinstance(iterations, int) or iterations < 0:
        raise ConfigError(f"Option iterations of the loss 'neural_ndcg' is a whole number from 0; got {iterations!r}.")
    score, label, weight = clean(score, label, where, weight)
    live = torch.ones_like(score, dtype=torch.bool) if where is None else where.expand(score.shape)
    n = live.sum(-1, keepdim=True).to(score.dtype)
    place = torch.arange(1, score.shape[-1] + 1, dtype=score.dtype, device=score.device)
    apart = ((score.unsqueeze(-1) - score.unsqueeze(-2)).abs() * live.unsqueeze(-2)).sum(-1)
    logit = ((n + 1 - 2 * place).unsqueeze(-1) * score.unsqueeze(-2) - apart.unsqueeze(-2)) / temperature
    logit = logit.masked_fill(~live.unsqueeze(-2), torch.finfo(score.dtype).min)
    order = logit.softmax(-1) * live.unsqueeze(-2) * (place <= n).unsqueeze(-1)  # rows are ranks, columns candidates
    for _ in range(iterations):  # each candidate is the likeliest at its own rank: only sums of the dead are 0
        for along in (-2, -1):
            total = order.sum(along, keepdim=True)
            order = order / torch.where(total > 0, total, 1)
    worth = gains(label, gain)
    found = (order * worth.unsqueeze(-2)).sum(-1)
    return _missed((found * discounts(place, k)).sum(-1), worth, weight, k)


def _others(score: Tensor, where: Tensor | None) -> Tensor:
    """[..., L, L]: 1 for two different live candidates."""
    others = 1 - torch.eye(score.shape[-1], dtype=score.dtype, device=score.device)
    if where is None:
        return others
    live = where.expand(score.shape).to(score.dtype)
    return others * live.unsqueeze(-1) * live.unsqueeze(-2)


def _missed(found: Tensor, worth: Tensor, weight: Tensor, k: int | None) -> Tensor:
    """The mean over lists of 1 - DCG / ideal DCG."""
    total = worth.sum(-1)
    weight = (weight * worth).sum(-1) / torch.where(total > 0, total, 1)
    return weighted_mean(1 - found / ideal(worth, k), weight)
