r"""The Use of MMR, Diversity-Based Reranking for Reordering Documents (Carbonell and Goldstein, SIGIR 1998).

https://dl.acm.org/doi/10.1145/290941.291025
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, greedy, picked, scaled


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
        count, width = candidates.ids.shape
        gain, nearest = self.relevance * scaled(candidates), torch.zeros(count, width)
        if self.column is None:
            vectors = context.vectors_of(candidates.ids)
        else:
            value = context.attribute_of(self.column, candidates.ids)
        recent: list[torch.Tensor] = []

        def take(pick: torch.Tensor) -> None:
            nonlocal nearest, recent
            if self.column is None:
                likeness = (vectors @ picked(vectors, pick).unsqueeze(-1)).squeeze(-1)
            else:
                likeness = ((value == picked(value, pick).unsqueeze(-1)) & (value != 0)).float()
            if self.window is None:
                nearest = torch.maximum(nearest, likeness) if recent else likeness
                recent = [nearest]
            else:
                recent = [*recent[max(len(recent) + 1 - self.window, 0) :], likeness]
                nearest = torch.stack(recent).amax(0)

        return greedy(candidates, context.k, lambda: gain - (1 - self.relevance) * nearest, take)
