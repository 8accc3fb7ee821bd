"""Spreading items of one kind over the page: taking turns, and keeping a distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, arrange, greedy, picked
from recstack.rules.caps import before


@dataclass(frozen=True)
class RoundRobin(Rule):
    """The values of `column` take turns, in the order of their first items: each one's first item, then each one's second.

    Items without a value (0) are each a value of their own.

    >>> page = Candidates(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    >>> RoundRobin("genre")(page, PageContext(4, attributes={"genre": torch.tensor([0, 7, 7, 7, 8])})).ids
    tensor([[1, 4, 2, 3]])
    """

    column: str

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        place = torch.arange(candidates.width)
        value = torch.where(candidates.mask & (value != 0), value, -1 - place)  # each its own
        if not candidates.width:
            return candidates
        first = (value.unsqueeze(-1) == value.unsqueeze(1)).int().argmax(-1)
        return arrange(candidates, before(value) * candidates.width + first)


@dataclass(frozen=True)
class MinimumGap(Rule):
    """Any `window` neighbouring places hold at most `most` items of one value of `column`.

    Each place takes the first waiting item that may stand there; where none may, the first of all, so that the page is
    full even if the rule cannot be kept. Items without a value (0) stand anywhere.

    >>> page = Candidates(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    >>> MinimumGap("genre", 2)(page, PageContext(4, attributes={"genre": torch.tensor([0, 7, 7, 8, 8])})).ids
    tensor([[1, 3, 2, 4]])
    """

    column: str
    window: int = 3
    most: int = 1

    def __post_init__(self) -> None:
        if self.window < 2 or self.most < 1:
            raise ConfigError(
                f"MinimumGap needs a window of at least 2 and at least 1 item; got {self.window}, {self.most}."
            )

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        place = torch.arange(candidates.width)
        recent: list[Tensor] = []  # of the last places, who is of the value that stands there

        def worth() -> Tensor:
            over = sum(recent, torch.zeros_like(value)) >= self.most
            return -(place + candidates.width * (over & (value != 0))).float()

        def take(pick: Tensor) -> None:
            recent.append((value == picked(value, pick).unsqueeze(-1)).long())
            del recent[: max(len(recent) - self.window + 1, 0)]

        return greedy(candidates, context.k, worth, take)
