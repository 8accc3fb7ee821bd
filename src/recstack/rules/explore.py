"""Places of the page that a bandit fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.candidates import Candidates
from recstack.errors import ConfigError
from recstack.rules.bandits import Bandit
from recstack.rules.base import PageContext, Rule, arrange


@dataclass(frozen=True)
class Explore(Rule):
    """At these `places` (0 is the first) stands the candidate that a bandit chooses among those that would come later.

    The bandit's arms are item ids (``arms`` = items of the vocabulary), its context `PageContext.users`; one without
    arms of its own (``arms=None``) reads the vectors of the items. The chance with which each was chosen is in the
    candidates' `source` under "propensity" (NaN where the bandit did not choose). Learn with ``rule.bandit.update(item ids,
    rewards)``; the bandit is saved with the rule. `seed` None draws anew at each call.

    >>> from recstack.rules.bandits import UCB1
    >>> bandit = UCB1(6).update([1, 2, 3, 5], [1.0, 1.0, 0.0, 0.0])  # item 4 was never shown
    >>> page = Candidates(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    >>> Explore(bandit, places=(1,))(page, PageContext(2)).ids
    tensor([[1, 4, 2, 3]])
    """

    bandit: Bandit
    places: tuple[int, ...]
    seed: int | None = None

    def __post_init__(self) -> None:
        if min(self.places, default=-1) < 0 or len({*self.places}) != len(self.places):
            raise ConfigError(f"Explore needs places from 0, each once; got {self.places}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        generator = torch.Generator()
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        chance = torch.full(candidates.scores.shape, torch.nan)
        candidates = Candidates(
            candidates.ids, candidates.scores, candidates.mask, {**candidates.source, "propensity": chance}
        )
        for place in sorted(self.places):
            here = torch.arange(candidates.width).expand_as(candidates.ids)
            waiting = candidates.mask & (here >= place)
            if self.bandit.arms is not None:
                waiting &= candidates.ids < self.bandit.arms  # newer items are no arms yet
            live = waiting.any(1).nonzero().squeeze(1)
            if not len(live):
                break
            chosen, odds = self._choose(candidates.ids[live], waiting[live], live, context, generator)
            chance = candidates.source["propensity"].clone()
            chance[live, chosen] = odds.float()
            source = {**candidates.source, "propensity": chance}
            rank = 2 * here
            rank[live, chosen] = 2 * place - 1
            candidates = arrange(Candidates(candidates.ids, candidates.scores, candidates.mask, source), rank)
        return candidates

    def _choose(
        self, ids: Tensor, waiting: Tensor, rows: Tensor, context: PageContext, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The columns chosen among those that wait, and their chances."""
        arms = self.bandit.arms
        if arms is None:
            return self.bandit.choose(context.vectors_of(ids), where=waiting, generator=generator)
        allowed = torch.zeros(len(ids), arms + 1, dtype=torch.bool)
        allowed.scatter_(1, ids.masked_fill(~waiting, arms), True)
        x = None if context.users is None else context.users[rows]
        arm, odds = self.bandit.choose(x, where=allowed[:, :arms], generator=generator)
        return (ids == arm.unsqueeze(1)).int().argmax(1), odds

    def to_piece(self) -> Piece:
        """This rule with its bandit as a piece of a bundle."""
        piece = self.bandit.to_piece()
        config = {"places": self.places, "seed": self.seed}
        config = {**bundle.encode_config(config), "bandit": piece.class_path, "options": dict(piece.config)}
        return Piece(bundle.class_path(type(self)), config, piece.tensors)

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The rule that `to_piece` saved."""
        config = dict(piece.config)
        path, options = config.pop("bandit"), config.pop("options")
        bandit = bundle.resolve(path).from_piece(Piece(path, options, piece.tensors))  # type: ignore[attr-defined]
        return cls(bandit, **bundle.decode_config(config))
