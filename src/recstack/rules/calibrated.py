"""Calibrated Recommendations (Steck, RecSys 2018).

https://doi.org/10.1145/3240323.3240372
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, greedy, picked, scaled

SMOOTHING = 0.01  # of the page's shares with the history's, so that a value that is missing does not cost infinity


@dataclass(frozen=True)
class Calibrated(Rule):
    r"""The page holds the values of `column` in the shares in which the user's history holds them.

    .. math:: \max_S \; \lambda \sum_{i \in S} r_i - (1 - \lambda)\, \mathrm{KL}(p(\cdot \mid u) \,\|\, \tilde q(\cdot \mid S)),
              \qquad \tilde q = 0.99\, q + 0.01\, p

    chosen greedily. λ is `relevance` (1 changes nothing that is sorted), r the scores scaled to [0, 1] per request, p the
    mean over the history of each item's values in equal shares, q the same of the page. Pages of users without a history
    stay as they are. Needs `PageContext.history`.

    Departs from the paper: λ weighs the relevance, as in MMR, where the paper's weighs the divergence; all items of the
    history and the page count the same.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[1.0, 0.9, 0.8]]))
    >>> genre = {"genre": torch.tensor([0, 0, 7, 7, 8, 7, 8])}
    >>> Calibrated(0.1, column="genre")(page, PageContext(2, attributes=genre, history=torch.tensor([[5, 6]]))).ids
    tensor([[2, 4, 3]])
    """

    relevance: float
    column: str

    def __post_init__(self) -> None:
        if not 0 <= self.relevance <= 1:
            raise ConfigError(f"Calibrated needs a relevance between 0 and 1; got {self.relevance}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        relevance = scaled(candidates)
        aspects, met = context.shares_of(self.column, candidates.ids, context.past(candidates))
        past = met.sum(1)
        p = (past / past.sum(-1, keepdim=True).clamp(min=1e-9)).unsqueeze(1)  # [R, 1, A]
        page = torch.zeros(p.shape[0], p.shape[2])
        met_any = past.sum(-1, keepdim=True) > 0

        def worth() -> Tensor:
            q = page.unsqueeze(1) + aspects
            q = q / q.sum(-1, keepdim=True).clamp(min=1e-9)
            divergence = torch.where(p > 0, p * (p / ((1 - SMOOTHING) * q + SMOOTHING * p).clamp(min=1e-30)).log(), 0.0)
            known = self.relevance * relevance - (1 - self.relevance) * divergence.sum(-1)
            return torch.where(met_any, known, -torch.arange(candidates.width, dtype=torch.float32))

        return greedy(candidates, context.k, worth, lambda pick: page.add_(picked(aspects, pick)))
