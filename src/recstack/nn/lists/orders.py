"""Orders of a list: which candidate stands at which place, the way there and the way back, and what a page is worth."""

from __future__ import annotations

import torch
from torch import Tensor


def best_first(score: Tensor, mask: Tensor) -> Tensor:
    """The order from the greatest score down, equal ones as they came, the dead last: ``[..., L]`` candidates by place.

    >>> best_first(torch.tensor([1.0, 3.0, 9.0, 3.0]), torch.tensor([True, True, False, True]))
    tensor([1, 3, 0, 2])
    """
    return score.masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)


def chosen_first(turn: Tensor, score: Tensor, mask: Tensor) -> Tensor:
    """The order of what was chosen place by place: the greatest `turn` first, those of turn 0 by score, the dead last.

    >>> chosen_first(torch.tensor([0, 1, 0, 2]), torch.tensor([1.0, 0.0, 5.0, 0.0]), torch.ones(4, dtype=torch.bool))
    tensor([3, 1, 2, 0])
    """
    order = best_first(score, mask)
    return order.gather(-1, turn.gather(-1, order).argsort(dim=-1, descending=True, stable=True))


def placed(x: Tensor, order: Tensor) -> Tensor:
    """What stands at each place: ``x [..., L]`` or ``[..., L, W]`` by candidate, ``order [..., L]``."""
    if x.dim() == order.dim():
        return x.gather(-1, order)
    return x.gather(-2, order.unsqueeze(-1).expand(*order.shape, x.shape[-1]))


def by_candidate(y: Tensor, order: Tensor) -> Tensor:
    """The way back: `y` by place, and each candidate's part of it."""
    return placed(y, order.argsort(-1))


def handed_out(score: Tensor, order: Tensor, mask: Tensor) -> Tensor:
    """The live candidates' scores ``[..., L]``, the greatest to who stands first: sorting by them gives the order.

    The dead keep theirs.

    >>> handed_out(torch.tensor([0.5, 2.0, 1.0]), torch.tensor([2, 0, 1]), torch.ones(3, dtype=torch.bool))
    tensor([1.0000, 0.5000, 2.0000])
    """
    values = placed(score, best_first(score, mask))
    return torch.where(mask, by_candidate(values, order), score)


def page_value(chance: Tensor, mask: Tensor) -> Tensor:
    r"""What a list is worth, by place: :math:`\sum_t p_t / \log_2(t + 1)`; chances and mask ``[..., L]`` in the list's order."""
    return (place_weights(chance) * chance * mask).sum(-1)


def place_weights(x: Tensor) -> Tensor:
    r""":math:`1 / \log_2(t + 1)` for the places t = 1 … L of ``x [..., L]``: what stands high is seen by more."""
    return 1 / (torch.arange(x.shape[-1], device=x.device, dtype=torch.float32) + 2).log2()
