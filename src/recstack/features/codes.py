"""How the ids of a table become rows of an arena, where that is not one row an id.

A code names its parts (blocks of rows), tells which row of each part an id has (0 is padding, in each), and how the rows
that were found make the id's vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recstack.kernels.id_table import FIRST, IdTable
from recstack.schema.features import Embedded

_MIXERS = (-0x61C8864680B583EB, -0x4B47D0C58D2E9A6D)  # odd 64-bit multipliers, one a hash


def hashed(ids: Tensor, rows: int, which: int) -> Tensor:
    """Rows 1 … `rows` of ids > 0 by one of two independent hashes, 0 of id 0; int64, by plain torch."""
    h = ids.long() * _MIXERS[which]
    h = (h ^ ((h >> 32) & 0xFFFFFFFF)) * 0x2545F4914F6CDD1D
    return (((h >> 33) & 0x7FFFFFFF) % rows + 1) * (ids > 0)


@dataclass(frozen=True)
class Hash:
    """One of `rows` rows; ids that meet in one share it."""

    name: str
    size: int
    rows: int

    @cached_property
    def parts(self) -> dict[str, int]:
        """Rows of each part, its padding row included."""
        return {self.name: self.rows + 1}

    def look(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        """(part, row in it) of each id."""
        return [(self.name, hashed(ids, self.rows, 0))]

    def vector(self, found: list[Tensor]) -> Tensor:
        """An id's vector from its rows of the parts."""
        return found[0]


class DoubleHash(Hash):
    """The sum of two of `rows` rows: two ids are one only if both hashes meet (Svenstrup et al., NeurIPS 2017)."""

    def look(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        return [(self.name, hashed(ids, self.rows, which)) for which in (0, 1)]

    def vector(self, found: list[Tensor]) -> Tensor:
        return found[0] + found[1]


class QuotientRemainder(Hash):
    r"""Every id has a vector of its own: :math:`E_1[n \bmod m] \odot E_2[\lfloor n / m \rfloor]`, n = id - 1, m = `rows`.

    E2 starts near 1, so that products start as E1's rows would (Shi et al., KDD 2020, https://arxiv.org/abs/1909.02107).
    """

    @cached_property
    def parts(self) -> dict[str, int]:
        return {self.name: self.rows + 1, self.quotient: math.ceil((self.size - 1) / self.rows) + 1}

    @property
    def quotient(self) -> str:
        """The name of E2; '@' never occurs in a table's name."""
        return f"{self.name}@quotient"

    def look(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        live, n = ids > 0, (ids.long() - 1).clamp(min=0)
        return [
            (self.name, (n % self.rows + 1) * live),
            (self.quotient, (torch.div(n, self.rows, rounding_mode="floor") + 1) * live),
        ]

    def vector(self, found: list[Tensor]) -> Tensor:
        return found[0] * found[1]


class Dynamic(Hash):
    """Rows belong to ids for a time: `recstack.kernels.id_table.IdTable`. Row 1 is that of ids without one."""

    def __init__(self, name: str, size: int, rows: int, admit: int, evict: str | None, ttl: int | None):
        super().__init__(name, size, rows)
        object.__setattr__(self, "table", IdTable(rows, admit, evict, ttl))

    table: IdTable

    @cached_property
    def parts(self) -> dict[str, int]:
        return {self.name: self.rows + FIRST}

    def look(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        return [(self.name, self.table.find(ids))]


def code(table: str, size: int, declared: Embedded) -> Hash | None:
    """What a feature declares for its table of `size` ids; None where each id has its row."""
    if declared.rows is None:
        return None
    if declared.dynamic:
        return Dynamic(table, size, declared.rows, declared.admit, declared.evict, declared.ttl)
    kinds = {"hash": Hash, "double_hash": DoubleHash, "quotient_remainder": QuotientRemainder}
    assert declared.compress is not None
    return kinds[declared.compress](table, size, declared.rows)
