r"""Explicit diversification by aspects: xQuAD (Santos et al., WWW 2010) and submodular coverage (El-Arini et al., KDD 2009).

https://doi.org/10.1145/1772690.1772780, https://doi.org/10.1145/1557019.1557056
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, greedy, picked, scaled


@dataclass(frozen=True)
class XQuAD(Rule):
    r"""Each place goes to the item that is relevant and serves an interest that the page has not served yet.

    .. math:: \arg\max_i \; \lambda\, r_i + (1 - \lambda) \sum_c p(c \mid u)\, p(i \mid c) \prod_{j \in S} (1 - p(j \mid c))

    λ is `relevance` (1 changes nothing that is sorted), r the scores scaled to [0, 1] per request, c the values of
    `column` (an item may have several). :math:`p(i \mid c)` is r, times the share of c among the item's values;
    :math:`p(c \mid u)` the share of c in the user's history or, without one, among the candidates.

    Departs from the paper: λ weighs the relevance, as in MMR, where the paper's weighs the diversity.

    >>> page = Candidates(torch.tensor([[2, 3, 4, 5]]), torch.tensor([[1.0, 0.9, 0.8, 0.0]]))
    >>> context = PageContext(2, attributes={"genre": torch.tensor([0, 0, 7, 7, 8, 7])})
    >>> XQuAD(0.9, column="genre")(page, context).ids, XQuAD(0.1, column="genre")(page, context).ids
    (tensor([[2, 3, 4, 5]]), tensor([[2, 4, 3, 5]]))
    """

    relevance: float
    column: str

    def __post_init__(self) -> None:
        if not 0 <= self.relevance <= 1:
            raise ConfigError(f"XQuAD needs a relevance between 0 and 1; got {self.relevance}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        relevance = scaled(candidates)
        aspects, interest = _aspects(self.column, candidates, context)
        chance, unserved = relevance.unsqueeze(-1) * aspects, interest.clone()

        def worth() -> Tensor:
            served = (chance @ unserved.unsqueeze(-1)).squeeze(-1)
            return self.relevance * relevance + (1 - self.relevance) * served

        return greedy(candidates, context.k, worth, lambda pick: unserved.mul_(1 - picked(chance, pick)))


@dataclass(frozen=True)
class Coverage(Rule):
    r"""The page of the highest relevance and coverage of the values of `column`, chosen greedily.

    .. math:: \max_S \; \sum_{i \in S} r_i + \lambda \sum_c p(c \mid u) \log\Big(1 + \sum_{i \in S} p(c \mid i)\Big)

    λ is `weight` (0 changes nothing that is sorted), r the scores scaled to [0, 1] per request, :math:`p(c \mid i)`
    equal shares of the item's values, :math:`p(c \mid u)` as in `XQuAD`. The sum is monotone and submodular, so that the
    greedy page has at least 1 - 1/e of the best one's.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[1.0, 0.9, 0.8]]))
    >>> genre = {"genre": torch.tensor([0, 0, 7, 7, 8])}
    >>> context = PageContext(2, attributes=genre, history=torch.tensor([[4, 4]]))
    >>> Coverage(0.1, column="genre")(page, context).ids, Coverage(9.0, column="genre")(page, context).ids
    (tensor([[2, 3, 4]]), tensor([[4, 2, 3]]))
    """

    weight: float
    column: str

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"Coverage needs a finite weight of at least 0; got {self.weight}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        relevance = scaled(candidates)
        aspects, interest = _aspects(self.column, candidates, context)
        covered = torch.zeros(interest.shape)

        def worth() -> Tensor:
            more = torch.log1p(aspects / (1 + covered.unsqueeze(1)))  # log(1 + C + a) - log(1 + C)
            return relevance + self.weight * (more @ interest.unsqueeze(-1)).squeeze(-1)

        return greedy(candidates, context.k, worth, lambda pick: covered.add_(picked(aspects, pick)))


def _aspects(column: str, candidates: Candidates, context: PageContext) -> tuple[Tensor, Tensor]:
    """The items' shares [R, K, A] of the values of a column, and the users' interest [R, A] in each."""
    if context.history is None:
        (aspects,) = context.shares_of(column, candidates.ids)
        past = torch.zeros(len(candidates), aspects.shape[-1])
    else:
        aspects, met = context.shares_of(column, candidates.ids, context.past(candidates))
        past = met.sum(1)
    total = past.where(past.sum(-1, keepdim=True) > 0, aspects.sum(1))
    return aspects, total / total.sum(-1, keepdim=True).clamp(min=1e-9)
