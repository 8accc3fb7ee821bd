"""What every rule shares: what it knows of items, arranging places, saving."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.candidates import Candidates
from recstack.errors import ConfigError, unknown


@dataclass(frozen=True, eq=False)
class PageContext:
    """What rules may know: the length `k` of the page, `vectors` [N, D] and `attributes` [N] by item id.

    An item id beyond N is a new item: it has the vector and the attributes of padding, that is none.
    """

    k: int
    vectors: Tensor | None = None
    attributes: Mapping[str, Tensor] = field(default_factory=dict)

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
        if name not in self.attributes:
            raise unknown("item column for a rule", name, self.attributes)
        column = self.attributes[name]
        known = _known(ids, column)
        return column[known].masked_fill(known == 0, 0)


def _known(ids: Tensor, table: Tensor) -> Tensor:
    return torch.where(ids < table.shape[0], ids, 0)


class Rule:
    """A frozen dataclass whose fields are its configuration, called as ``rule(candidates, context)``."""

    def __call__(self, candidates: Candidates, context: PageContext) -> Candidates:
        raise NotImplementedError

    def to_piece(self) -> Piece:
        """This rule as a piece of a bundle."""
        config = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return Piece(bundle.class_path(type(self)), bundle.encode_config(config))

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The rule that `to_piece` saved."""
        return cls(**bundle.decode_config(piece.config))


def arrange(candidates: Candidates, rank: Tensor) -> Candidates:
    """The candidates by ascending `rank` [R, K], equal ranks as they were, empty places last."""
    last = torch.full_like(rank, torch.iinfo(rank.dtype).max)
    return candidates.select(torch.where(candidates.mask, rank, last).argsort(dim=1, stable=True))


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
