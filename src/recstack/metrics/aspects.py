"""Ordered lists whose items are relevant to several aspects (subtopics, intents, tastes): α-nDCG and ERR-IA.

Score ``[..., L]``, label ``[..., L, A]``: how relevant each item is to each aspect. Other arguments are those of `lists`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError, unknown
from recstack.metrics.lists import list_weight, mean_of_sums
from recstack.metrics.ranks import expected_reciprocal_rank


def alpha_ndcg(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    reduction: str = "mean",
    alpha: float = 0.5,
) -> Tensor:
    r"""NDCG in which an aspect that was served :math:`c` times before counts :math:`(1 - \alpha)^c`.

    .. math:: \frac1Z \sum_{r \le k} \frac{1}{\log_2(1 + r)} \sum_a [y_{ra} > 0]\, (1 - \alpha)^{c_{ra}},
        \qquad c_{ra} = \sum_{i < r} [y_{ia} > 0]

    Z is the sum of the list ordered greedily, as in the paper (the best order is NP-hard to find). Equal scores stand in the order of
    input. Lists without anything relevant are left out, and NaN under reduction="none"; lists with a live NaN score are NaN.

    Clarke et al., SIGIR 2008, https://doi.org/10.1145/1390334.1390446

    Raises:
        ConfigError: alpha outside 0 to 1, or a cut below 1.
        DataError: shapes that do not fit, or a live label that is NaN.

    >>> label = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # two items of one aspect before one of the other
    >>> alpha_ndcg(torch.tensor([3.0, 2.0, 1.0]), label)  # (1 + ½ / log2(3) + ½) / (1 + 1 / log2(3) + ½ · ½)
    tensor(0.9652, dtype=torch.float64)
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is a number from 0 to 1; got {alpha!r}.")
    if k is not None and k < 1:
        raise ConfigError(f"A list is cut at k = {k}. Give k=None or a number from 1.")
    live, grade = _lists(score, label, where, reduction)
    has = (grade > 0).double()
    length = score.shape[-1]
    discount = 1 / torch.log2(2 + torch.arange(length, dtype=torch.float64, device=score.device))
    discount = discount * (torch.arange(length, device=score.device) < (length if k is None else k))

    # Dead cells serve no aspect: stable, after all others, they change no sum.
    key = score.detach().double().masked_fill(~live, -torch.inf)
    order = key.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, (~live).byte().gather(-1, order).argsort(dim=-1, stable=True))
    shown = has.gather(-2, order.unsqueeze(-1).expand(has.shape))
    gain = (shown * (1 - alpha) ** (shown.cumsum(-2) - shown)).sum(-1)
    found = (gain * discount).sum(-1)

    served, waiting, ideal = torch.zeros_like(has[..., 0, :]), live.clone(), torch.zeros_like(found)
    for place in range(min(length, k or length)):
        gain = (has * ((1 - alpha) ** served).unsqueeze(-2)).sum(-1).masked_fill(~waiting, -1.0)
        best = gain.argmax(-1, keepdim=True)
        ideal = ideal + discount[place] * gain.gather(-1, best).squeeze(-1).clamp(min=0)
        served = served + has.gather(-2, best.unsqueeze(-1).expand(*best.shape, has.shape[-1])).squeeze(-2)
        waiting = waiting.scatter(-1, best, False)
    broken = (score.isnan() & live).any(-1)
    return _reduced(torch.where(broken, torch.nan, found / ideal), has.sum((-1, -2)) == 0, weight, live, reduction)


def intent_aware_err(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    reduction: str = "mean",
    top_grade: float = 1.0,
    share: Tensor | None = None,
) -> Tensor:
    r"""ERR for a user who wants aspect a with chance :math:`p_a` (ERR-IA): :math:`\sum_a p_a\, \mathrm{ERR}_a`.

    `share` ``[..., A]`` is :math:`p_a`; None: even over the aspects that something in the list serves. `top_grade` as in
    `expected_reciprocal_rank`. Lists without anything relevant are left out.

    Chapelle et al., Information Retrieval 2011, https://doi.org/10.1007/s10791-011-9167-7

    >>> label = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> intent_aware_err(torch.tensor([3.0, 2.0, 1.0]), label)  # ½ (½ + ½ · ½ / 2) + ½ (½ / 3)
    tensor(0.3958, dtype=torch.float64)
    """
    live, grade = _lists(score, label, where, reduction)
    there = (grade > 0).any(-2)  # [..., A]
    if share is None:
        share = there.double() / there.sum(-1, keepdim=True)
    each = expected_reciprocal_rank(
        score.unsqueeze(-2).expand(*there.shape, score.shape[-1]),
        grade.mT,
        where=live.unsqueeze(-2),
        k=k,
        ties=ties,
        reduction="none",
        top_grade=top_grade,
    )
    value = (share.double() * torch.where(there, each, 0)).sum(-1)
    return _reduced(value, ~there.any(-1), weight, live, reduction)


def _lists(score: Tensor, label: Tensor, where: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
    """(live cells ``[..., L]``, labels ``[..., L, A]`` in float64, 0 where dead)."""
    if not score.dim() or label.shape[:-1] != score.shape:
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. Give [..., L] and, of A aspects, [..., L, A]."
        )
    if reduction not in ("mean", "none", "sums"):
        raise unknown("reduction", reduction, ("mean", "none", "sums"))
    live = torch.ones_like(score, dtype=torch.bool) if where is None else where.expand(score.shape)
    grade = torch.where(live.unsqueeze(-1), label, 0).double()
    if (missing := int(grade.isnan().sum())) > 0:
        raise DataError(f"Label is NaN in {missing} live cells. Leave them out with where=.")
    return live, grade


def _reduced(each: Tensor, blank: Tensor, weight: Tensor | None, live: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return torch.where(blank, torch.nan, each)
    w = list_weight(weight, live)
    sums = torch.stack([(w * torch.where(blank, 0, each)).sum(), (w * ~blank).sum()])
    return sums if reduction == "sums" else mean_of_sums(*sums)
