"""What losses of graded lists share: gains, ranks, discounts, and weights of positions among equal grades."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recstack.errors import ConfigError, unknown


def check_cut(k: Any) -> Any:
    """The cut itself. Raises ConfigError, in one sentence, unless it is None or a whole number from 1."""
    if k is not None and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise ConfigError(f"A loss is cut at k = {k!r}. Give k=None or a whole number from 1.")
    return k


def gains(label: Tensor, gain: str) -> Tensor:
    """2^y - 1 ("exponential") or y ("linear"); labels of dead cells are 0, and so is their gain."""
    if gain not in ("exponential", "linear"):
        raise unknown("gain of NDCG", gain, ("exponential", "linear"))
    return label.exp2() - 1 if gain == "exponential" else label


def discount(rank: Tensor) -> Tensor:
    """1 / log2(1 + r)."""
    return 1 / torch.log2(1 + rank)


def discounts(rank: Tensor, k: int | None) -> Tensor:
    """`discount` of the ranks up to k, 0 beyond."""
    check_cut(k)
    return discount(rank) if k is None else discount(rank) * (rank <= k)


def ideal(gain: Tensor, k: int | None) -> Tensor:
    """The greatest possible DCG@k ``[...]`` of gains ``[..., L]``; 1 where there is nothing to gain."""
    place = torch.arange(1, gain.shape[-1] + 1, dtype=gain.dtype, device=gain.device)
    best = (gain.sort(-1, descending=True).values * discounts(place, k)).sum(-1)
    return torch.where(best > 0, best, 1)


def rank(score: Tensor, label: Tensor, where: Tensor | None) -> Tensor:
    """The rank ``[..., L]`` of each candidate by score, from 1; of equal scores the worse first, dead cells last."""
    order = label.argsort(dim=-1, stable=True)
    score = score.detach()
    order = order.gather(-1, score.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    if where is not None:
        dead = (~where.expand(score.shape)).byte()
        order = order.gather(-1, dead.gather(-1, order).argsort(dim=-1, stable=True))
    return (order.argsort(-1) + 1).to(score.dtype)


def share_of_positions(label: Tensor, live: Tensor, of_position: Tensor) -> Tensor:
    """What positions weigh, ``of_position [..., L]``, handed to candidates in the order of their labels.

    The candidates of one grade share the weight of the positions that they hold together equally.
    """
    both = live.unsqueeze(-2)
    better = ((label.unsqueeze(-2) > label.unsqueeze(-1)) & both).sum(-1)
    equal = ((label.unsqueeze(-2) == label.unsqueeze(-1)) & both).sum(-1).clamp(min=1)
    sums = torch.cat([torch.zeros_like(of_position[..., :1]), of_position], -1).cumsum(-1)
    last = (better + equal).clamp(max=label.shape[-1])
    return (sums.gather(-1, last) - sums.gather(-1, better)) / equal * live
