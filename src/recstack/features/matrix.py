"""A batch as a table with a row per candidate: what trees read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.features import derived
from recstack.features.columns import column, of_steps, padded
from recstack.features.tables import check_ids
from recstack.schema import CANDIDATE_ROLES, Crossed, Feature, History, Hits, Schema, Vector, is_embedded, is_multi

FEW = 3  # values of a list that have columns of their own
SMALL = 256  # a table of fewer ids is a category for trees; of more, they would have to try every id


class Table(NamedTuple):
    """`numbers` float32 ``[R, L, P]``, NaN where nothing is, and `ids` int64 ``[R, L, Q]``, 0 where nothing is."""

    numbers: Tensor
    ids: Tensor


class Matrix:
    """Reads batches as tables: what a request has once is repeated for each of its candidates.

    A number is a column, a vector one for each float. A list has its size and its first three values. A history has its length
    and, of each feature that it reads, how many of its steps have the candidate's value (`hits`) and how many steps ago
    the last of them was (`since`, 0 for the newest step). The value "unknown" hits nothing. A Hits is its statistics as they
    are; a Crossed is read as a list.

    Args:
        schema: a fitted one.
        small: a table of fewer ids is a category.

    Attributes:
        numbers: names of the columns of `Table.numbers`.
        categories: which of them are ids of a table of fewer than `small`.
        ids: {name of a column of `Table.ids`: rows of its table}, the larger ones.

    >>> from recstack.schema import Categorical, History, Schema
    >>> schema = Schema(
    ...     [Categorical("user", "user", size=900), Categorical("item", "item", size=9), History("seen", of="item")]
    ... )
    >>> matrix = Matrix(schema)
    >>> matrix.numbers, matrix.categories, matrix.ids
    (['item', 'seen@length', 'item@seen@hits', 'item@seen@since'], [0], {'user': 900})
    >>> batch = {"user": torch.tensor([4]), "item": torch.tensor([[3, 5]]), "item@seen": torch.tensor([[5, 2, 5, 7]])}
    >>> matrix(batch).numbers.tolist()
    [[[3.0, 4.0, 0.0, nan], [5.0, 4.0, 2.0, 1.0]]]
    """

    def __init__(self, schema: Schema, small: int = SMALL):
        self.schema, self.small = schema.require_fitted(), small
        self.numbers: list[str] = []
        self.categories: list[int] = []
        self.ids: dict[str, int] = {}
        for f in schema.fields:
            if isinstance(f, History):
                self.numbers.append(f"{f.name}@length")
                self.numbers += [f"{name}@{f.name}@{what}" for name in f.of for what in ("hits", "since")]
            elif isinstance(f, Hits):
                self.numbers += [f"{f.name}@{statistic}" for statistic in f.statistics]
            elif isinstance(f, Vector):
                self.numbers += [f"{f.name}@{i}" for i in range(f.size)]
            elif not is_embedded(f):
                self.numbers.append(f.name)
            elif is_multi(f):
                self.numbers.append(f"{f.name}@size")
                for i in range(FEW):
                    self._id(f"{f.name}@{i}", f.size or 0)
            else:
                self._id(f.name, f.size or 0)

    def _id(self, name: str, size: int) -> None:
        if size < self.small:
            self.categories.append(len(self.numbers))
            self.numbers.append(name)
        else:
            self.ids[name] = size

    def __call__(self, batch: Mapping[str, Tensor]) -> Table:
        """The table of a batch, on the CPU.

        Raises:
            DataError: naming a column that the batch lacks.
        """
        batch = {key: value.cpu() for key, value in batch.items()}
        lead = self._lead(batch)
        found: dict[str, Tensor] = {}
        for f in self.schema.fields:
            if isinstance(f, History):
                self._history(batch, f, lead, found)
                continue
            if isinstance(f, Hits):
                values = derived.hits(batch, self.schema, f, lead)
                found |= {f"{f.name}@{s}": v for s, v in zip(f.statistics, values, strict=True)}
                continue
            value = self._value(batch, f, lead)
            if is_multi(f):
                found[f"{f.name}@size"] = (value > 0).sum(-1)
                found |= {f"{f.name}@{i}": v for i, v in enumerate(F.pad(value, (0, FEW))[..., :FEW].unbind(-1))}
            elif isinstance(f, Vector):
                found |= {f"{f.name}@{i}": v for i, v in enumerate(value.unbind(-1))}
            else:
                found[f.name] = value

        def stacked(names: list[str], dtype: torch.dtype) -> Tensor:
            columns = [found[name].expand(lead).to(dtype) for name in names]
            return torch.stack(columns, -1) if columns else torch.zeros(*lead, 0, dtype=dtype)

        numbers = stacked(self.numbers, torch.float32)
        for i in self.categories:
            numbers[..., i].masked_fill_(numbers[..., i] == 0, torch.nan)
        return Table(numbers, stacked(list(self.ids), torch.int64))

    def _lead(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """R and L."""
        there = [f for f in self.schema.features if f.name in batch and f"{f.name}@offsets" not in batch]
        for f in there:
            if f.role in CANDIDATE_ROLES:
                return batch[f.name].shape[0], batch[f.name].shape[1]
        return (batch[there[0].name].shape[0] if there else 0), 1

    def _value(self, batch: Mapping[str, Tensor], f: Feature, lead: tuple[int, int]) -> Tensor:
        """``[R, L]`` or ``[R, 1]``, of lists and vectors with one axis more."""
        if isinstance(f, Crossed):
            value = derived.cross_ids(batch, self.schema, f, lead)
            return value if f.role in CANDIDATE_ROLES else value.unsqueeze(1)
        value, offsets = column(batch, f.name), batch.get(f"{f.name}@offsets")
        if is_embedded(f):
            check_ids(value, f.name, f.size or 0)
        if offsets is not None:
            value = padded(value, offsets)
            return value.view(*lead, -1) if f.role in CANDIDATE_ROLES else value.unsqueeze(1)
        return value if f.role in CANDIDATE_ROLES else value.unsqueeze(1)

    def _history(
        self, batch: Mapping[str, Tensor], h: History, lead: tuple[int, int], found: dict[str, Tensor]
    ) -> None:
        length = torch.zeros(0)
        for name in h.of:
            steps = of_steps(batch, name, h.name)
            if name == h.of[0]:
                length = (steps > 0).sum(-1, keepdim=True)  # [R, 1]
            f = self.schema.feature(name)
            wanted = self._value(batch, f, lead)
            if not is_multi(f):
                steps, wanted = steps.unsqueeze(-1), wanted.unsqueeze(-1)
            hit = torch.zeros(*lead, steps.shape[1], dtype=torch.bool)
            for one in wanted.unbind(-1):  # [R, L] against [R, T, K]
                one = one[..., None, None]
                hit |= ((steps.unsqueeze(1) == one) & (one > 1)).any(-1)
            last = (hit * torch.arange(1, hit.shape[-1] + 1)).amax(-1)
            found[f"{name}@{h.name}@hits"] = hit.sum(-1)
            found[f"{name}@{h.name}@since"] = torch.where(last > 0, (length - last).float(), torch.nan)
        found[f"{h.name}@length"] = length
