r"""The Use of MMR, Diversity-Based Reranking for Reordering Documents (Carbonell and Goldstein, SIGIR 1998).

https://dl.acm.org/doi/10.1145/290941.291025
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, arrange


@dataclass(frozen=True)
class MMR(Rule):
    r"""Each place goes to the item that is relevant and unlike those already on the page.

    .. math:: \arg\max_i \; \lambda\, r_i - (1 - \lambda) \max_{j \in S} s_{ij}

    λ is `relevance` (1 changes nothing); r are the scores, scaled to [0, 1] per request; s is the cosine of the item
    vectors or, with a `column`, 1 for items of one value and 0 otherwise. Items without vector or value resemble nothing.
    `window` compares with the last places only. O(k K) similarities per request.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[1.0, 0.9, 0.0]]))
    >>> context = PageContext(2, attributes={"genre": torch.tensor([0, 0, 7, 7, 8])})
    >>> MMR(0.8, column="genre")(page, context).ids, MMR(0.4, column="genre")(page, context).ids
    (tensor([[2, 3, 4]]), tensor([[2, 4, 3]]))
    """

    relevance: float = 0.7
    column: str | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.relevance <= 1 or (self.window is not None and self.window < 1):
            raise ConfigError(
                f"MMR needs a relevance between 0 and 1 and a window of at least 1; got {self.relevance}, {self.window}."
            )

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        mask, (count, width) = candidates.mask, candidates.ids.shape
        if not width:
            return candidates
        score = candidates.scores.clamp(-1e30, 1e30).nan_to_num(-1e30)  # infinite ones would scale to NaN
        high = score.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
        low = score.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
        gain = self.relevance * torch.where(high > low, (score - low) / (high - low), 1.0)
        if self.column is None:
            vectors = context.vectors_of(candidates.ids)
        else:
            value = context.attribute_of(self.column, candidates.ids)

        row, free = torch.arange(count), mask.clone()
        rank = torch.arange(width).expand(count, width) + width  # behind the page, in the order they came
        nearest = torch.zeros(count, width)
        recent: list[torch.Tensor] = []
        for place in range(min(context.k, width)):
            worth = (gain - (1 - self.relevance) * nearest).masked_fill(~free, -torch.inf)
            pick = worth.argmax(1)
            rank[row, pick] = torch.where(free[row, pick], place, rank[row, pick])  # nothing free: nothing changes
            free[row, pick] = False
            if self.column is None:
                likeness = (vectors @ vectors[row, pick].unsqueeze(-1)).squeeze(-1)
            else:
                likeness = ((value == value[row, pick].unsqueeze(-1)) & (value != 0)).float()
            if self.window is not None:
                recent = [*recent[1 - self.window :], likeness] if self.window > 1 else [likeness]
                nearest = torch.stack(recent).amax(0)
            else:
                nearest = torch.maximum(nearest, likeness) if place else likeness
        return arrange(candidates, rank)
