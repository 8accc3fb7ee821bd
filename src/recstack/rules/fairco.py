"""Controlling Fairness and Bias in Dynamic Learning-to-Rank (Morik et al., SIGIR 2020).

https://arxiv.org/abs/2005.14713
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Self

import torch

from recstack.bundle import Piece
from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.base import PageContext, Rule, arrange, scaled


@dataclass
class Shown:
    """What was shown so far: the number of pages, and for each group its exposure and its merit, summed."""

    pages: int = 0
    groups: dict[float, tuple[float, float]] = field(default_factory=dict)

    def received(self) -> dict[float, float]:
        """Exposure per merit of each group."""
        return {group: exposed / max(merit, 1e-9) for group, (exposed, merit) in self.groups.items()}


@dataclass(frozen=True)
class FairCo(Rule):
    r"""Groups of items that were seen less than they deserve rise, until over many pages all are seen as they deserve.

    .. math:: \arg\operatorname{sort}_i \; r_i + gain \cdot \tau \max_{g} (D_g - D_{g(i)}), \qquad
              D_g = \frac{\sum_{t \le \tau} E_t(g)}{\sum_{t \le \tau} M_t(g)}

    Groups are the values of `column`; :math:`E_t(g)` is the mean exposure, :math:`1 / \log_2(1 + place)` on the page and 0
    behind it, of the group's candidates in page t, :math:`M_t(g)` the mean of their scores r, scaled to [0, 1] per
    request. `gain` is the proportional controller's. Items without a value (0) belong to no group.

    It remembers: each call counts as a page that was shown, its requests one after the other. What it remembers is saved
    with it; several processes each control their own pages.

    Departs from the paper: merit is the score, the paper's is an unbiased estimate of relevance learned beside.

    >>> page = Candidates(torch.tensor([[1, 2]]).expand(20, 2), torch.tensor([[1.0, 0.9]]).expand(20, 2))
    >>> context = PageContext(1, attributes={"shop": torch.tensor([0, 5, 6])})
    >>> shown = FairCo("shop", gain=0.1)(page, context).ids[:, 0]
    >>> shown.unique().tolist()
    [1, 2]
    """

    column: str
    gain: float = 0.1
    shown: Shown = field(default_factory=Shown, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.gain < float("inf"):
            raise ConfigError(f"FairCo needs a finite gain of at least 0; got {self.gain}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value, relevance = context.attribute_of(self.column, candidates.ids), scaled(candidates)
        rank, memory = torch.zeros_like(candidates.ids), self.shown
        for r in range(len(candidates)):
            groups = value[r].masked_fill(~candidates.mask[r], 0)
            kinds = [float(g) for g in groups.unique() if g != 0]
            received = memory.received()
            most = max(received.values(), default=0.0)
            error = torch.zeros(candidates.width)
            for g in kinds:
                error[groups == g] = memory.pages * (most - received.get(g, 0.0))
            score = (relevance[r] + self.gain * error).masked_fill(~candidates.mask[r], -torch.inf)
            rank[r, score.argsort(descending=True, stable=True)] = torch.arange(candidates.width)
            seen = torch.where(rank[r] < context.k, 1 / (rank[r] + 2.0).log2(), 0.0)
            for g in kinds:
                exposed, merit = memory.groups.get(g, (0.0, 0.0))
                of = groups == g
                memory.groups[g] = (exposed + float(seen[of].mean()), merit + float(relevance[r][of].mean()))
            memory.pages += 1
        return arrange(candidates, rank)

    def to_piece(self) -> Piece:
        """This rule and what it remembers as a piece of a bundle."""
        rows = [(group, *sums) for group, sums in self.shown.groups.items()]
        tensors = {
            "groups": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3),
            "pages": torch.tensor(self.shown.pages),
        }
        return dataclasses.replace(super().to_piece(), tensors=tensors)

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The rule that `to_piece` saved, with what it remembers."""
        new = super().from_piece(piece)
        groups = torch.as_tensor(piece.tensors["groups"])
        new.shown.pages = int(torch.as_tensor(piece.tensors["pages"]))
        new.shown.groups.update({g: (exposed, merit) for g, exposed, merit in groups.tolist()})
        return new
