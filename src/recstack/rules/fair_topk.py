"""FA*IR: A Fair Top-k Ranking Algorithm (Zehlike et al., CIKM 2017).

https://arxiv.org/abs/1706.06368
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, greedy, picked


@dataclass(frozen=True)
class FairTopK(Rule):
    r"""Every beginning of the page holds as many protected items as a fair coin would, up to a significance.

    .. math:: m(i) = F^{-1}(\alpha_c;\, i, p), \qquad i = 1 \dots k

    Items are protected whose `column` has one of the values of `protected`; p is the `share` of the page that they should
    have. Where the first i places would hold less than m(i) of them, the best protected one comes next, else the best of
    all. :math:`\alpha_c` is the significance of each of the k tests at which a page of coin tosses fails one of them with
    a chance of at most `significance`, exactly (`minimum_protected`). Without protected items left, the rest follows.

    >>> page = Candidates(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    >>> context = PageContext(4, attributes={"new": torch.tensor([0, 0, 0, 0, 1])})
    >>> FairTopK("new", (1,), share=0.7)(page, context).ids
    tensor([[1, 2, 4, 3]])
    """

    column: str
    protected: tuple[float, ...]
    share: float
    significance: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 < self.significance < 1):
            raise ConfigError(
                f"FairTopK needs a share and a significance between 0 and 1; got {self.share}, {self.significance}."
            )

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        protected = torch.isin(value, torch.tensor(self.protected, dtype=value.dtype)) & candidates.mask
        needed = minimum_protected(min(context.k, candidates.width), self.share, self.significance)
        place, held, at = torch.arange(candidates.width), torch.zeros(len(candidates), 1), 0

        def worth() -> torch.Tensor:
            first = protected & (held < needed[at])
            return (candidates.width * first - place).float()

        def take(pick: torch.Tensor) -> None:
            nonlocal at
            held.add_(picked(protected, pick).unsqueeze(-1))
            at += 1

        return greedy(candidates, context.k, worth, take)


@functools.lru_cache(maxsize=1024)
def minimum_protected(k: int, share: float, significance: float, adjusted: bool = True) -> tuple[int, ...]:
    """How many protected items the first 1, 2, ..., k places must hold.

    `adjusted` for k tests being made: the largest significance of a single test with which fair pages fail any of them
    with a chance of at most `significance`. That chance is a step function, its steps are searched.

    >>> minimum_protected(10, 0.5, 0.1, adjusted=False), minimum_protected(10, 0.5, 0.1)
    ((0, 0, 0, 1, 1, 1, 2, 2, 3, 3), (0, 0, 0, 0, 1, 1, 1, 2, 2, 3))
    """
    below = [  # [i][m]: the chance of at most m protected ones among i + 1
        [math.fsum(math.comb(i, j) * share**j * (1 - share) ** (i - j) for j in range(m + 1)) for m in range(i + 1)]
        for i in range(1, k + 1)
    ]

    def table(alpha: float) -> tuple[int, ...]:
        return tuple(next((m for m, chance in enumerate(row) if chance >= alpha), len(row)) for row in below)

    if not adjusted:
        return table(significance)
    steps = sorted({significance, *(chance for row in below for chance in row if chance < significance)})
    low, high = -1, len(steps) - 1  # table(0), that nobody fails, and the strictest
    while low < high:
        middle = (low + high + 1) // 2
        if failing(table(steps[middle]), share) <= significance:
            low = middle
        else:
            high = middle - 1
    return table(steps[low]) if low >= 0 else (0,) * k


def failing(needed: tuple[int, ...], share: float) -> float:
    """The chance that a page of independent draws, protected with chance `share`, is short of `needed` somewhere.

    >>> round(failing((0, 1), 0.5), 4)
    0.25
    """
    chance = [1.0]  # of so many protected ones so far, without having failed
    for minimum in needed:
        chance = [
            (chance[m] * (1 - share) if m < len(chance) else 0.0) + (chance[m - 1] * share if m else 0.0)
            for m in range(len(chance) + 1)
        ]
        chance[:minimum] = [0.0] * min(minimum, len(chance))
    return 1 - math.fsum(chance)
