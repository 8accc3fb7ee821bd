"""Fairness of Exposure in Rankings (Singh and Joachims, KDD 2018).

https://arxiv.org/abs/1802.07281
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, arrange, scaled


@dataclass(frozen=True)
class FairExposure(Rule):
    r"""Pages are drawn so that two groups of items are exposed alike on average, at the least cost of relevance.

    .. math:: \max_P \; u^\top P v \quad \text{s.t.} \quad P \text{ doubly stochastic}, \;
              \frac{1}{|G|} \sum_{i \in G} (P v)_i = \frac{1}{|G'|} \sum_{i \in G'} (P v)_i

    Items are in G whose `column` has one of the values of `protected`; u are the scores scaled to [0, 1] per request,
    :math:`v_j = 1 / \log_2(1 + j)` on the page and 0 behind it. With `merit`, exposure is in proportion to the groups'
    mean u in place of equal. The program is solved over the first `pool` candidates, P is taken apart into permutations
    (Birkhoff and von Neumann) and one is drawn. Where there is no such P, or only one group, the page stays as it is.

    `seed` None draws anew at each call; a number makes the draws of each call the same.

    >>> page = Candidates(torch.tensor([[1, 2]]), torch.tensor([[2.0, 1.0]]))
    >>> context = PageContext(2, attributes={"new": torch.tensor([0, 0, 1])})
    >>> firsts = {int(FairExposure("new", (1,), seed=s)(page, context).ids[0, 0]) for s in range(20)}
    >>> sorted(firsts)
    [1, 2]
    """

    column: str
    protected: tuple[float, ...]
    merit: bool = False
    pool: int = 30
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.pool < 2:
            raise ConfigError(f"FairExposure needs a pool of at least 2 candidates; got {self.pool}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        protected = torch.isin(value, torch.tensor(self.protected, dtype=value.dtype)).numpy()
        utility, chance = scaled(candidates).double().numpy(), np.random.default_rng(self.seed)
        rank = torch.arange(candidates.width).expand_as(candidates.ids).clone()
        for r in range(len(candidates)):
            live = np.flatnonzero(candidates.mask[r].numpy())[: self.pool]
            matrix = fair_matrix(utility[r, live], protected[r, live], context.k, self.merit)
            if matrix is None:
                continue
            weights, orders = permutations(matrix)
            drawn = orders[chance.choice(len(weights), p=weights / weights.sum())]  # drawn[i]: the place of item i
            rank[r, torch.from_numpy(live)] = torch.from_numpy(live)[torch.from_numpy(drawn)]
        return arrange(candidates, rank)


def exposure(n: int, k: int) -> np.ndarray:
    """How much each of n places is seen where the page has k."""
    return np.where(np.arange(n) < k, 1 / np.log2(np.arange(n) + 2.0), 0.0)


def fair_matrix(utility: np.ndarray, protected: np.ndarray, k: int, merit: bool = False) -> np.ndarray | None:
    """The doubly stochastic P [n, n], items by places, of the highest utility with equal (or deserved) exposure of two groups.

    None where a group is empty, has no merit, or cannot be given what it deserves.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, kron, vstack

    n = len(utility)
    deserved = [utility[g].sum() if merit else g.sum() for g in (protected, ~protected)]
    if min(deserved) <= 0:
        return None
    seen = exposure(n, k)
    fair = np.where(protected, 1 / deserved[0], -1 / deserved[1])
    ones, eye = csr_array(np.ones((1, n))), eye_array(n)
    equal = vstack([kron(eye, ones), kron(ones, eye), csr_array(np.outer(fair, seen).reshape(1, -1))])
    right = np.concatenate([np.ones(2 * n), [0.0]])
    solved = linprog(-np.outer(utility, seen).ravel(), A_eq=equal, b_eq=right, bounds=(0, 1), method="highs")
    return solved.x.reshape(n, n) if solved.status == 0 else None


def permutations(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A doubly stochastic [n, n] as weights [m] of permutations [m, n], the place of each item."""
    from scipy.optimize import linear_sum_assignment

    left, rows = matrix.clip(min=0), np.arange(len(matrix))
    weights, orders = [], []
    while left.sum(1).min() > 1e-7:
        places = linear_sum_assignment(left > 1e-9, maximize=True)[1]
        weight = left[rows, places].min()
        if weight <= 1e-9:
            break  # what is left is rounding
        weights.append(weight)
        orders.append(places)
        left[rows, places] -= weight
    return np.array(weights), np.array(orders)
