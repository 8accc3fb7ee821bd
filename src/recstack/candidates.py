"""Candidates: what retrievers return, rankers score and rules read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError, unknown

_MERGE = ("rrf", "max", "sum")


@dataclass(frozen=True, eq=False)
class Candidates:
    """K candidate items for each of R requests.

    `ids` int64 [R, K] (item ids of the vocabulary), `scores` float32 [R, K], `mask` bool [R, K], True where there is a
    candidate (default: where the id is not 0), and `source`: for each stage that saw the candidates its score, float32
    [R, K], NaN where that stage did not propose the item. Cells that are not live hold id 0, score 0 and NaN sources,
    whatever was given. Raises DataError if the shapes differ.

    >>> few = Candidates(torch.tensor([[7, 5, 0]]), torch.tensor([[1.0, 2.0, 9.0]]))
    >>> few.top(2).ids
    tensor([[5, 7]])
    """

    ids: Tensor
    scores: Tensor
    mask: Tensor = None  # type: ignore[assignment]  # filled in below
    source: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mask = self.ids > 0 if self.mask is None else self.mask.bool()
        for name, tensor in {"scores": self.scores, "mask": mask, **self.source}.items():
            if tensor.shape != self.ids.shape or tensor.dim() != 2:
                raise DataError(
                    f"Candidates: ids are {list(self.ids.shape)}, {name} {list(tensor.shape)}; give [R, K]."
                )
        source = {name: score.float().masked_fill(~mask, torch.nan) for name, score in self.source.items()}
        set_ = object.__setattr__  # frozen: only here
        set_(self, "mask", mask)
        set_(self, "ids", self.ids.long().masked_fill(~mask, 0))
        set_(self, "scores", self.scores.float().masked_fill(~mask, 0.0))
        set_(self, "source", source)

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def width(self) -> int:
        """K, the number of places per request."""
        return self.ids.shape[1]

    def select(self, index: Tensor) -> Candidates:
        """The candidates at `index` int64 [R, k], in that order."""
        source = {name: score.gather(1, index) for name, score in self.source.items()}
        return Candidates(self.ids.gather(1, index), self.scores.gather(1, index), self.mask.gather(1, index), source)

    def order(self) -> Tensor:
        """Places from the best score to the worst [R, K]: equal scores keep their order, NaN comes last, then the empty."""
        lowest = torch.finfo(torch.float32).min
        score = self.scores.nan_to_num(nan=lowest, neginf=lowest, posinf=torch.inf).masked_fill(~self.mask, -torch.inf)
        return score.argsort(dim=1, descending=True, stable=True)

    def top(self, k: int | None = None) -> Candidates:
        """The k best by score, best first (all of them if there are fewer, or without k)."""
        return self.select(self.order()[:, :k])

    def head(self, k: int) -> Candidates:
        """The first k places as they are: the page, once rules have put it in order."""
        source = {name: score[:, :k] for name, score in self.source.items()}
        return Candidates(self.ids[:, :k], self.scores[:, :k], self.mask[:, :k], source)

    def rescore(self, scores: Tensor, name: str) -> Candidates:
        """The same candidates in the same order with new scores [R, K], remembered in `source` under `name`."""
        return Candidates(self.ids, scores, self.mask, {**self.source, name: scores})

    def shares(self, rule: str = "rrf") -> Tensor:
        """What each candidate, these being best first, gives to a merged score [R, K]; rules as in `merge`."""
        if rule == "max":
            return self.scores
        if rule == "rrf":
            return (1 / torch.arange(61.0, 61.0 + self.width)).expand_as(self.scores)
        high = self.scores.masked_fill(~self.mask, -torch.inf).amax(1, keepdim=True) if self.width else self.scores
        low = self.scores.masked_fill(~self.mask, torch.inf).amin(1, keepdim=True) if self.width else self.scores
        return torch.where(high > low, (self.scores - low) / (high - low), 1.0)

    @staticmethod
    def merge(
        parts: Sequence[Candidates],
        k: int | None = None,
        *,
        rule: str = "rrf",
        quota: Mapping[str, int] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Candidates:
        r"""The union, per request, of what several retrievers propose for the same requests; best first.

        Every part names itself by its `source`. `rule` makes the merged score: ``"rrf"`` is :math:`\sum 1 / (60 + rank)`
        over the parts that propose the item (reciprocal rank fusion, Cormack et al., SIGIR 2009), ``"max"`` the highest
        score as it is, ``"sum"`` the sum of the scores, each part first scaled to [0, 1] per request. `quota` lets a
        part contribute at most its n best; `weights` are factors of what each part gives to the merged score, 1 by default,
        such as `rs.merge_weights` learns. Equal scores keep the order of the parts.

        >>> a = Candidates(torch.tensor([[3, 4]]), torch.tensor([[0.9, 0.8]]), source={"a": torch.tensor([[0.9, 0.8]])})
        >>> b = Candidates(
        ...     torch.tensor([[5, 4]]), torch.tensor([[20.0, 10.0]]), source={"b": torch.tensor([[20.0, 10.0]])}
        ... )
        >>> Candidates.merge([a, b]).ids, Candidates.merge([a, b], k=1, rule="max").ids
        (tensor([[4, 3, 5]]), tensor([[5]]))
        """
        if rule not in _MERGE:
            raise unknown("merge rule", rule, _MERGE)
        names = [name for part in parts for name in part.source]
        if not parts or len(set(names)) != len(names) or not all(part.source for part in parts):
            raise ConfigError(f"Parts to merge need different names in their source; they have {names or 'none'}.")
        if len({len(part) for part in parts}) != 1:
            raise DataError(
                f"Parts to merge have {', '.join(str(len(part)) for part in parts)} requests; give the same."
            )
        for what, given in (("quota", quota), ("weight", weights)):
            for name in given or {}:
                if name not in names:
                    raise unknown(f"{what} for a source", name, names)
        for name, weight in (weights or {}).items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"The weight of source {name!r} is a finite number of at least 0; got {weight}.")
        parts = [part.top(min((quota or {}).get(name, part.width) for name in part.source)) for part in parts]

        slot, width = _slots(torch.cat([part.ids for part in parts], 1))
        spread = list(zip(parts, slot.split([part.width for part in parts], 1), strict=True))
        ids = slot.new_zeros(len(parts[0]), width + 1)  # one place more, where the empty cells go
        for part, place in spread:
            ids.scatter_(1, place, part.ids)
        source = {
            name: _place(score.nan_to_num(nan=-torch.inf), place, width, torch.nan)
            for part, place in spread
            for name, score in part.source.items()
        }
        factors = [next((weights[n] for n in part.source if n in weights), 1.0) if weights else 1.0 for part in parts]
        absent = -torch.inf if rule == "max" else 0.0
        shares = [
            _place(part.shares(rule) * factor, place, width, absent)
            for (part, place), factor in zip(spread, factors, strict=True)
        ]
        scores = torch.stack(shares).amax(0) if rule == "max" else torch.stack(shares).sum(0)
        return Candidates(ids[:, :width], scores, source=source).top(k)


def _slots(ids: Tensor) -> tuple[Tensor, int]:
    """The place of each cell [R, M] in the union of its row, in order of first appearance, and the longest union.

    Empty cells (id 0) go to the place after the last one.
    """
    if not ids.numel():
        return ids, 0
    ordered, order = ids.sort(dim=1, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = torch.where(new, torch.arange(ids.shape[1]), 0).cummax(1).values  # where the run of equal ids begins
    first = torch.empty_like(ids).scatter_(1, order, order.gather(1, run))  # each cell: the column of its first equal
    fresh = (first == torch.arange(ids.shape[1])) & (ids > 0)
    place = (fresh.cumsum(1) - 1).gather(1, first)
    width = int(fresh.sum(1).max())
    return place.masked_fill(ids == 0, width), width


def _place(values: Tensor, place: Tensor, width: int, absent: float) -> Tensor:
    """Values [R, K] at their places [R, width], `absent` elsewhere; of several for one place the highest."""
    out = values.new_full((values.shape[0], width + 1), -torch.inf).scatter_reduce_(1, place, values, "amax")
    return out.masked_fill(out == -torch.inf, absent)[:, :width]
