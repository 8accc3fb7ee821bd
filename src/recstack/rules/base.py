"""What every rule shares: what it knows of items and users, arranging places, what it moved and cost, saving."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.candidates import Candidates
from recstack.errors import ConfigError, unknown


@dataclass(frozen=True, eq=False)
class PageContext:
    """What rules may know: the length `k` of the page, `vectors` [N, D] and `attributes` [N] by item id.

    An item id beyond N is a new item: it has the vector and the attributes of padding, that is none. An attribute of
    several values is [N, M], 0 where there are fewer. Of the requests: `history` int64 [R, T], the items that the user
    met (0 where there are fewer), and `users` float [R, D], a vector for what a contextual bandit knows of the request.
    `now` is the moment, in the unit of the columns that hold times.
    """

    k: int
    vectors: Tensor | None = None
    attributes: Mapping[str, Tensor] = field(default_factory=dict)
    history: Tensor | None = None
    users: Tensor | None = None
    now: float | None = None

    def vectors_of(self, ids: Tensor) -> Tensor:
        """Vectors of length one [..., D]; zeros for an item without a (finite) vector."""
        if self.vectors is None:
            raise ConfigError("This rule compares item vectors, and the page has none; give it the name of a column.")
        known = _known(ids, self.vectors)
        found = self.vectors[known].float()
        found = torch.where((known > 0)[..., None] & found.isfinite().all(-1, keepdim=True), found, 0.0)
        return torch.nn.functional.normalize(found, dim=-1)

    def attribute_of(self, name: str, ids: Tensor) -> Tensor:
        """The values of a column for these items; 0 for an item that is not there."""
        column = self._column(name)
        if column.dim() != 1:
            raise ConfigError(f"This rule reads one value per item, and column {name!r} has several; name another one.")
        known = _known(ids, column)
        return column[known].masked_fill(known == 0, 0)

    def shares_of(self, name: str, *ids: Tensor) -> tuple[Tensor, ...]:
        """Each item's values of a column as equal shares [..., A] of the A values that occur; zeros for one without any."""
        column = self._column(name)
        column = column if column.dim() == 2 else column.unsqueeze(-1)
        values = [
            column[known].masked_fill((known == 0).unsqueeze(-1), 0) for known in (_known(i, column) for i in ids)
        ]
        kinds = torch.cat([v.flatten() for v in values]).unique()
        kinds = kinds[kinds != 0]
        has = [
            torch.stack([(v == kind).any(-1) for kind in kinds], -1).float()
            if len(kinds)
            else torch.zeros(*v.shape[:-1], 0)
            for v in values
        ]
        return tuple(h / h.sum(-1, keepdim=True).clamp(min=1) for h in has)

    def past(self, candidates: Candidates) -> Tensor:
        """The history [R, T] of these requests; ConfigError where there is none."""
        if self.history is None:
            raise ConfigError("This rule reads what users met before; give the page history=, item ids [R, T].")
        if self.history.shape[0] != len(candidates):
            raise ConfigError(f"The page has histories of {len(self.history)} requests for {len(candidates)}.")
        return self.history

    def _column(self, name: str) -> Tensor:
        if name not in self.attributes:
            raise unknown("item column for a rule", name, self.attributes)
        return self.attributes[name]


def _known(ids: Tensor, table: Tensor) -> Tensor:
    return torch.where(ids < table.shape[0], ids, 0)


class Rule:
    """A frozen dataclass whose fields are its configuration, called as ``rule(candidates, context)``."""

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        raise NotImplementedError

    def to_piece(self) -> Piece:
        """This rule as a piece of a bundle."""
        config = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}  # type: ignore[arg-type]
        return Piece(bundle.class_path(type(self)), bundle.encode_config(config))

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The rule that `to_piece` saved."""
        return cls(**bundle.decode_config(piece.config))


def arrange(candidates: Candidates, rank: Tensor) -> Candidates:
    """The candidates by ascending `rank` [R, K], equal ranks as they were, empty places last."""
    last = torch.full_like(rank, torch.iinfo(rank.dtype).max)
    return candidates.select(torch.where(candidates.mask, rank, last).argsort(dim=1, stable=True))


def scaled(candidates: Candidates) -> Tensor:
    """The scores brought to [0, 1] within each request, 1 where all are equal, 0 in empty places; float32 [R, K]."""
    if not candidates.width:
        return candidates.scores
    score = candidates.scores.clamp(-1e30, 1e30).nan_to_num(-1e30)  # infinite ones would scale to NaN
    high = score.masked_fill(~candidates.mask, -torch.inf).amax(1, keepdim=True)
    low = score.masked_fill(~candidates.mask, torch.inf).amin(1, keepdim=True)
    return torch.where(high > low, (score - low) / (high - low), 1.0).masked_fill(~candidates.mask, 0.0)


def greedy(
    candidates: Candidates, k: int, worth: Callable[[], Tensor], take: Callable[[Tensor], object] | None = None
) -> Candidates:
    """Fill k places, one by one, with the candidate of the highest worth; the others follow in the order they came.

    `worth()` gives [R, K], finite; among equals the first wins. `take(pick [R])` is told what was chosen.
    """
    count, width = candidates.ids.shape
    row, free = torch.arange(count), candidates.mask.clone()
    rank = torch.arange(width).expand(count, width) + width  # behind the page, in the order they came
    for place in range(min(k, width)):
        pick = worth().masked_fill(~free, -torch.inf).argmax(1)
        rank[row, pick] = torch.where(free[row, pick], place, rank[row, pick])  # nothing free: nothing changes
        free[row, pick] = False
        if take is not None:
            take(pick)
    return arrange(candidates, rank)


def picked(table: Tensor, pick: Tensor) -> Tensor:
    """The entry [R, ...] of each row of a table [R, K, ...]."""
    return table[torch.arange(len(pick)), pick]


def moved(before: Candidates, after: Candidates) -> Tensor:
    """For each place of `after` the place its item had `before`, int64 [R, K]; -1 where it was not, or is empty.

    >>> before = Candidates(torch.tensor([[5, 6, 7]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> moved(before, before.select(torch.tensor([[0, 2, 1]])))
    tensor([[0, 2, 1]])
    """
    same = (after.ids[:, :, None] == before.ids[:, None, :]) & after.mask[:, :, None]
    if not before.width:
        return torch.full_like(after.ids, -1)
    return torch.where(same.any(-1), same.int().argmax(-1), -1)


def cost(before: Candidates, after: Candidates, k: int) -> Tensor:
    r"""The share of a page's relevance that a rule gave up, float32 [R]; negative where it won some.

    .. math:: \frac{\sum_{p \le k} (r_{before(p)} - r_{after(p)}) / \log_2 (1 + p)}{\sum_{p \le k} r_{best(p)} / \log_2 (1 + p)}

    r are the scores before, scaled to [0, 1] per request; best is their order. Costs of rules that follow each other and
    leave the scores alone add up.

    >>> before = Candidates(torch.tensor([[5, 6, 7]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> cost(before, before.select(torch.tensor([[2, 1, 0]])), 1)
    tensor([1.])
    """
    relevance = scaled(before)
    was = moved(before, after)
    found = relevance.gather(1, was.clamp(min=0)).masked_fill(was < 0, 0.0) if before.width else was.float()
    best = relevance.sort(1, descending=True).values

    def gain(r: Tensor) -> Tensor:
        page = r[:, :k]
        return (page / torch.arange(2.0, 2.0 + page.shape[1]).log2()).sum(1)

    return (gain(relevance) - gain(found)) / gain(best).clamp(min=1e-9)


class Step(NamedTuple):
    """What one rule did: the place each item came from (see `moved`), and the relevance it cost (see `cost`)."""

    rule: Rule
    moved: Tensor
    cost: Tensor


def apply(rules: Iterable[Rule], candidates: Candidates, context: PageContext) -> tuple[Candidates, list[Step]]:
    """The candidates after all rules in turn, and what each of them did.

    >>> from recstack.rules import Pins
    >>> page = Candidates(torch.tensor([[2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0]]))
    >>> page, steps = apply([Pins(items=(4,), places=(0,))], page, PageContext(1))
    >>> page.ids, steps[0].moved, steps[0].cost
    (tensor([[4, 2, 3]]), tensor([[2, 0, 1]]), tensor([1.]))
    """
    steps = []
    for rule in rules:
        before, candidates = candidates, rule(candidates, context)
        steps.append(Step(rule, moved(before, candidates), cost(before, candidates, context.k)))
    return candidates, steps
