"""Caps: not too many of one kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, arrange


@dataclass(frozen=True)
class CategoryCap(Rule):
    """At most `most` items of one value of `column`: later ones go behind all others, in their order.

    So they come to the page only if nothing else is left to fill it; with `strict` they are dropped, and the page is
    shorter. Items without a value (0) are not capped.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> context = PageContext(3, attributes={"genre": torch.tensor([0, 0, 7, 7, 8])})
    >>> CategoryCap("genre", 1)(page, context).ids, CategoryCap("genre", 1, strict=True)(page, context).ids
    (tensor([[2, 4, 3]]), tensor([[2, 4, 0]]))
    """

    column: str
    most: int = 2
    strict: bool = False

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"CategoryCap of {self.column!r} allows {self.most} items; give at least 1.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        over = (before(value.masked_fill(~candidates.mask, 0)) >= self.most) & (value != 0)
        if self.strict:
            mask = candidates.mask & ~over
            candidates = Candidates(candidates.ids, candidates.scores, mask, candidates.source)
        return arrange(candidates, over.long())


def before(value: Tensor) -> Tensor:
    """How many equal values stand before each place of its row [R, K]."""
    ordered, order = value.sort(dim=1, stable=True)
    place = torch.arange(value.shape[1])
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(new, place, 0).cummax(1).values
    return torch.empty_like(order).scatter_(1, order, place - start)
