"""Controllable Multi-Interest Framework for Recommendation (Cen et al., KDD 2020): its rule of aggregation.

https://arxiv.org/abs/2005.09347
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, greedy, picked


@dataclass(frozen=True)
class Diversity(Rule):
    r"""Each place goes to the item whose score, less `weight` for every item of its own value on the page, is highest.

    .. math:: \arg\max_i \; s_i - \lambda\, |\{j \in S : c_j = c_i\}|

    Greedily the page of the highest :math:`\sum_i s_i + \lambda \sum_{i<j} [c_i \neq c_j]` (ComiRec's controllable
    diversity): λ is `weight`, in the unit of the scores (0 changes nothing), c the `column`. Items without a value
    resemble nothing.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[1.0, 0.9, 0.5]]))
    >>> context = PageContext(2, attributes={"genre": torch.tensor([0, 0, 7, 7, 8])})
    >>> Diversity(0.1, column="genre")(page, context).ids, Diversity(0.5, column="genre")(page, context).ids
    (tensor([[2, 3, 4]]), tensor([[2, 4, 3]]))
    """

    weight: float
    column: str

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"Diversity needs a finite weight of at least 0; got {self.weight}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        score, alike = candidates.scores.clamp(-1e30, 1e30).nan_to_num(-1e30), torch.zeros(value.shape)

        def take(pick: torch.Tensor) -> None:
            alike.add_((value == picked(value, pick).unsqueeze(-1)) & (value != 0))

        return greedy(candidates, context.k, lambda: score - self.weight * alike, take)
