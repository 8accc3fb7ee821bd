"""Losses of a whole list: the candidates on the last axis compete with each other.

Everywhere: score and label ``[..., L]``, labels ≥ 0. ``weight`` belongs to the candidate and counts in proportion to its
share of the target; one weight per list is given as ``[R, 1]``. Each list has one vote. With a cut ``k`` only the first k
positions of the ideal order are learned; candidates of one grade on both sides of the cut share what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recstack.losses.grades import check_cut, share_of_positions
from recstack.losses.rows import clean, full_precision, weighted_mean


@full_precision
def softmax(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, k: int | None = None
) -> Tensor:
    r"""Listwise softmax over the last axis; lists without a positive count nothing.

    .. math:: -\sum_i \frac{y_i}{\sum_k y_k} \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    >>> softmax(torch.tensor([[2.2, -1.3, 5.4], [0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    tensor(3.2411)
    """
    score, label, weight = clean(score, label, where, weight)
    return _list_cross_entropy(score, _first(label, label, where, k), where, weight)


@full_precision
def listnet(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, k: int | None = None
) -> Tensor:
    r"""ListNet, top one (Cao et al., ICML 2007): the labels too go through a softmax.

    .. math:: -\sum_i \frac{e^{y_i}}{\sum_k e^{y_k}} \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    >>> listnet(torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]))  # log 2: the score says nothing
    tensor(0.6931)
    """
    score, label, weight = clean(score, label, where, weight)
    target = masked(label, where).softmax(-1)
    target = target if where is None else target * where
    return _list_cross_entropy(score, _first(target, label, where, k), where, weight)


@full_precision
def listmle(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, k: int | None = None
) -> Tensor:
    r"""ListMLE (Xia et al., ICML 2008): the ideal order, chosen from the top, each time from all that are left.

    .. math:: -\frac{1}{n} \sum_i \log \frac{e^{s_i}}{e^{s_i} + \sum_{y_j < y_i} e^{s_j}}

    Without equal grades it is the likelihood of Plackett and Luce. Candidates of one grade do not compete: the paper's order
    among them would be drawn, and taught. Departs from the paper also in the mean over the n choices of a list, those with
    something worse below them, so that each list has one vote.

    https://doi.org/10.1145/1390156.1390306

    >>> listmle(torch.tensor([[1.5, 0.3]]), torch.tensor([[2.0, 1.0]]))  # log(1 + e^-1.2)
    tensor(0.2633)
    """
    return _choices(score, label, where, weight, k, lambda place, n: torch.ones_like(place))


@full_precision
def p_listmle(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, k: int | None = None
) -> Tensor:
    r"""Position-aware ListMLE (Lan et al., UAI 2014): early choices count more, position i of n :math:`2^{n - i} - 1`.

    Otherwise as `listmle`; the weights of a list's choices are scaled to sum to 1.

    http://auai.org/uai2014/proceedings/individuals/164.pdf

    >>> score, label = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    >>> listmle(score, label), p_listmle(score, label)  # the first choice is the wrong one
    (tensor(0.9324), tensor(1.2419))
    """
    return _choices(score, label, where, weight, k, lambda place, n: (-place).exp2() - (-n).exp2())


def _choices(
    score: Tensor,
    label: Tensor,
    where: Tensor | None,
    weight: Tensor | None,
    k: int | None,
    of_position: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    score, label, weight = clean(score, label, where, weight)
    live = torch.ones_like(score, dtype=torch.bool) if where is None else where.expand(score.shape)
    worse = (label.unsqueeze(-1) > label.unsqueeze(-2)) & live.unsqueeze(-1) & live.unsqueeze(-2)
    left = worse | torch.eye(score.shape[-1], dtype=torch.bool, device=score.device)
    lost = score.unsqueeze(-2).expand(left.shape).masked_fill(~left, torch.finfo(score.dtype).min)
    place = torch.arange(1, score.shape[-1] + 1, dtype=score.dtype, device=score.device)
    positions = of_position(place.expand(score.shape), live.sum(-1, keepdim=True).to(score.dtype)).clamp(min=0)
    check_cut(k)
    if k is not None:
        positions = positions * (place <= k)
    share = share_of_positions(label, live, positions) * worse.any(-1)
    total = share.sum(-1, keepdim=True)
    return weighted_mean(lost.logsumexp(-1) - score, weight * share / torch.where(total > 0, total, 1))


def _first(target: Tensor, label: Tensor, where: Tensor | None, k: int | None) -> Tensor:
    """The target of the first k positions of the ideal order, summing to 1 where there is any."""
    check_cut(k)
    if k is not None:
        live = torch.ones_like(label, dtype=torch.bool) if where is None else where.expand(label.shape)
        place = torch.arange(1, label.shape[-1] + 1, dtype=label.dtype, device=label.device)
        target = target * share_of_positions(label, live, (place <= k).to(label.dtype).expand(label.shape))
    total = target.sum(-1, keepdim=True)
    return target / torch.where(total > 0, total, 1)


def _list_cross_entropy(score: Tensor, target: Tensor, where: Tensor | None, weight: Tensor) -> Tensor:
    value = -masked(score, where).log_softmax(-1)
    if where is not None:
        value = torch.where(where, value, 0)
    return weighted_mean(value, weight * target)


def masked(score: Tensor, where: Tensor | None) -> Tensor:
    """The score with the least finite number in dead cells."""
    # Not -inf: a list with nothing live would have NaN gradients.
    return score if where is None else score.masked_fill(~where, torch.finfo(score.dtype).min)
