"""What people decide: items that may not come, and items that stand at a place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recstack.candidates import Candidates
from recstack.errors import ConfigError, unknown
from recstack.rules.base import PageContext, Rule, arrange


@dataclass(frozen=True)
class Filter(Rule):
    """Drops items whose `column` has one of the `values`: out of stock, blocked.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> Filter("stock", (0,))(page, PageContext(3, attributes={"stock": torch.tensor([0, 0, 5, 0, 1])})).ids
    tensor([[2, 4, 0]])
    """

    column: str
    values: tuple[float, ...]

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        barred = torch.zeros_like(candidates.mask)
        for one in self.values:
            barred |= value == one
        kept = Candidates(candidates.ids, candidates.scores, candidates.mask & ~barred, candidates.source)
        return arrange(kept, torch.zeros_like(kept.ids))


@dataclass(frozen=True)
class Limit(Rule):
    """Drops items whose score `of` a classifier (click-bait, unsafe) is more than `most`; one without a score stays.

    `of` names a stage of the candidates' `source` or else an item column. Not `strict`, they go behind all others in
    their order, and come to the page only if nothing else is left to fill it.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> context = PageContext(3, attributes={"clickbait": torch.tensor([0.0, 0.0, 0.9, 0.1, 0.2])})
    >>> Limit("clickbait", 0.5)(page, context).ids, Limit("clickbait", 0.5, strict=False)(page, context).ids
    (tensor([[3, 4, 0]]), tensor([[3, 4, 2]]))
    """

    of: str
    most: float
    strict: bool = True

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        if self.of not in candidates.source and self.of not in context.attributes:
            raise unknown("stage or item column for Limit", self.of, [*candidates.source, *context.attributes])
        known = candidates.source.get(self.of)
        over = (context.attribute_of(self.of, candidates.ids) if known is None else known) > self.most
        if self.strict:
            candidates = Candidates(candidates.ids, candidates.scores, candidates.mask & ~over, candidates.source)
        return arrange(candidates, over.long())


@dataclass(frozen=True)
class Reserve(Rule):
    """These `places` (0 is the first) are kept for items whose `column` has one of the `values`: what is new, one's own.

    Each takes the best of them that does not stand before it already; without any left it stays as it is.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> Reserve("new", (1,), places=(1,))(page, PageContext(2, attributes={"new": torch.tensor([0, 0, 0, 0, 1])})).ids
    tensor([[2, 4, 3]])
    """

    column: str
    values: tuple[float, ...]
    places: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.places, default=-1) < 0 or len({*self.places}) != len(self.places):
            raise ConfigError(f"Reserve needs places from 0, each once; got {self.places}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        for place in sorted(self.places):
            if place >= candidates.width:
                break
            value = context.attribute_of(self.column, candidates.ids)
            chosen = torch.isin(value, torch.tensor(self.values, dtype=value.dtype)) & candidates.mask
            rank = 2 * torch.arange(candidates.width).expand_as(candidates.ids)
            chosen &= rank >= 2 * place
            first = chosen & (chosen.cumsum(1) == 1)
            candidates = arrange(candidates, torch.where(first, 2 * place - 1, rank))
        return candidates


@dataclass(frozen=True)
class Pins(Rule):
    """Puts items at places (0 is the first) wherever they are among the candidates; the others keep their order.

    `items` and `places` belong together one by one.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> Pins(items=(4,), places=(0,))(page, PageContext(3)).ids
    tensor([[4, 2, 3]])
    """

    items: tuple[int, ...]
    places: tuple[int, ...]

    def __post_init__(self) -> None:
        items, places = self.items, self.places
        if len(items) != len(places) or len({*items}) != len(items) or len({*places}) != len(places):
            raise ConfigError(f"Pins need as many items as places, each once; got {items} and {places}.")
        if min((*items, 1)) < 1 or min((*places, 0)) < 0:
            raise ConfigError(f"Pins need item ids from 1 and places from 0; got {items} and {places}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        pinned = torch.isin(candidates.ids, torch.tensor(self.items, dtype=torch.long)) & candidates.mask
        candidates = arrange(candidates, pinned.long())  # the pinned wait behind the others
        for place, item in sorted(zip(self.places, self.items, strict=True)):
            rank = 2 * torch.arange(candidates.width).expand_as(candidates.ids)
            rank = torch.where(candidates.ids == item, rank.clamp(max=2 * place - 1), rank)
            candidates = arrange(candidates, rank)
        return candidates
