"""Rules that change scores, and the order with them: put them before rules that arrange."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.candidates import Candidates
from recstack.errors import ConfigError, DataError, unknown
from recstack.rules.base import PageContext, Rule, scaled
from recstack.rules.caps import before


@dataclass(frozen=True)
class Boost(Rule):
    r"""Items whose `column` has one of the `values` score :math:`s \cdot factor + add`.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> Boost("brand", (5,), add=1.5)(page, PageContext(3, attributes={"brand": torch.tensor([0, 0, 4, 4, 5])})).ids
    tensor([[2, 4, 3]])
    """

    column: str
    values: tuple[float, ...]
    factor: float = 1.0
    add: float = 0.0

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        value = context.attribute_of(self.column, candidates.ids)
        chosen = torch.zeros_like(candidates.mask)
        for one in self.values:
            chosen |= value == one
        if self.factor != 1:
            _positive(candidates, "Boost")
        return _again(candidates, torch.where(chosen, candidates.scores * self.factor + self.add, candidates.scores))


@dataclass(frozen=True)
class Freshness(Rule):
    r"""What is new scores more, by a half-life.

    .. math:: s \cdot 2^{-age / h} \qquad \text{or, with a weight,} \qquad s + weight \cdot 2^{-age / h}

    `column` holds ages or, where the page has a `now`, the moments at which items appeared; h is `half_life` in their
    unit. Items from the future are new. Multiplying asks for scores of at least 0.

    >>> page = Candidates(torch.tensor([[2, 3]]), torch.tensor([[3.0, 2.0]]))
    >>> Freshness("age", 7.0)(page, PageContext(2, attributes={"age": torch.tensor([0.0, 0.0, 7.0, 0.0])})).scores
    tensor([[2.0000, 1.5000]])
    """

    column: str
    half_life: float
    weight: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.half_life < math.inf:
            raise ConfigError(f"Freshness needs a positive half-life; got {self.half_life}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        age = context.attribute_of(self.column, candidates.ids).double()
        age = age if context.now is None else context.now - age
        fresh = torch.exp2(-age.clamp(min=0) / self.half_life).nan_to_num(0.0).float()
        if self.weight is not None:
            return _again(candidates, candidates.scores + self.weight * fresh)
        _positive(candidates, "Freshness")
        return _again(candidates, candidates.scores * fresh)


@dataclass(frozen=True)
class Repeats(Rule):
    r"""Each further item of one value of `column` (an author, a shop) scores less: :math:`s \cdot factor^{earlier}`.

    Earlier are those of its value with a higher score. Items without a value (0) keep their scores. Asks for scores of at
    least 0.

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.5]]))
    >>> Repeats("author", 0.5)(page, PageContext(3, attributes={"author": torch.tensor([0, 0, 4, 4, 5])})).ids
    tensor([[2, 4, 3]])
    """

    column: str
    factor: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ConfigError(f"Repeats needs a factor between 0 and 1; got {self.factor}.")

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        _positive(candidates, "Repeats")
        candidates = candidates.top()
        value = context.attribute_of(self.column, candidates.ids)
        earlier = before(value.masked_fill(~candidates.mask, 0)).masked_fill(value == 0, 0)
        return _again(candidates, candidates.scores * self.factor**earlier)


@dataclass(frozen=True)
class Personalised(Rule):
    r"""The score, the item's likeness to what the user met, and what other stages said of it, in one sum.

    .. math:: r_i + \lambda \cos(\bar f_u, f_i) + \sum_j \lambda_j\, r_i^{(j)}

    r are scores scaled to [0, 1] per request, the candidates' own and those of the stages named in `sources` (an item
    that a stage did not propose has 0 there); λ is `likeness`, :math:`\bar f_u` the mean of the vectors of
    `PageContext.history`, which is asked for only if λ is not 0. A user without a history has a likeness of 0 to all.

    >>> page = Candidates(torch.tensor([[1, 2]]), torch.tensor([[2.0, 1.0]]))
    >>> vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> Personalised(likeness=2.0)(page, PageContext(2, vectors, history=torch.tensor([[3]]))).scores
    tensor([[2., 1.]])
    """

    likeness: float = 0.0
    sources: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        total = scaled(candidates)
        if self.likeness:
            met = context.vectors_of(context.past(candidates))
            profile = F.normalize(met.sum(1), dim=-1)
            total = total + self.likeness * (context.vectors_of(candidates.ids) @ profile.unsqueeze(-1)).squeeze(-1)
        for name, weight in self.sources.items():
            if name not in candidates.source:
                raise unknown("stage for Personalised", name, candidates.source)
            said = candidates.source[name]
            proposed = Candidates(candidates.ids, said, candidates.mask & ~said.isnan())
            total = total + weight * scaled(proposed)
        return _again(candidates, total)


TRANSFORMS = {
    "sigmoid": lambda c: c.scores.sigmoid(),
    "exp": lambda c: c.scores.exp(),
    "log1p": lambda c: c.scores.log1p(),
    "scale": scaled,
    "rank": lambda c: 1 / (1 + c.order().argsort(1).float()),
    "softmax": lambda c: c.scores.masked_fill(~c.mask, -torch.inf).softmax(1).nan_to_num(0.0),
}


@dataclass(frozen=True)
class Transform(Rule):
    """Scores in another unit, the order unchanged: "sigmoid", "exp", "log1p", "scale" (to [0, 1] per request), "rank" (1 / rank) or "softmax".

    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[4.0, 3.0, 0.0]]))
    >>> Transform("scale")(page, PageContext(3)).scores
    tensor([[1.0000, 0.7500, 0.0000]])
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in TRANSFORMS:
            raise unknown("transform of scores", self.kind, TRANSFORMS)

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        if self.kind == "log1p":
            _positive(candidates, "The log1p of scores")
        return _again(candidates, TRANSFORMS[self.kind](candidates))


def _again(candidates: Candidates, scores: Tensor) -> Candidates:
    """The candidates by new scores, what stages said of them unchanged."""
    return Candidates(candidates.ids, scores, candidates.mask, candidates.source).top()


def _positive(candidates: Candidates, who: str) -> None:
    if (candidates.scores < 0).any():
        raise DataError(
            f"{who} multiplies, and there are scores below 0; put Transform('sigmoid') or Transform('scale') before it."
        )
