"""Edges from item to item, each with numbers of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from recstack.nn.sized import Sized


class ItemEdges(Sized):
    """Which items lead to which, in the order of their two ids, and C numbers of each edge.

    Args:
        size: N, one more than the largest id.
        width: C.
    """

    sized: ClassVar[tuple[str, ...]] = ("keys", "clues")

    keys: Tensor  # j · N + i of an edge j → i, ascending; one more at the end that no pair has
    clues: Tensor  # [E + 1, C]

    def __init__(self, size: int, width: int):
        super().__init__()
        self.size = size
        self.register_buffer("keys", torch.tensor([size**2]))
        self.register_buffer("clues", torch.zeros(1, width))

    def connect(self, source: Tensor, target: Tensor, clues: Tensor) -> None:
        """In place of all edges so far: int64 ``[E]`` twice, and float32 ``[E, C]``."""
        key, order = (source * self.size + target).sort()
        where = self.keys.device
        self.keys = torch.cat([key, key.new_tensor([self.size**2])]).to(where)
        self.clues = torch.cat([clues[order], clues.new_zeros(1, clues.shape[1])]).to(where)

    def find(self, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The place of each edge from ids ``[R, T]`` to ids ``[R, L]``, and whether there is one: ``[R, T, L]``."""
        asked = sources.long().unsqueeze(-1) * self.size + targets.long().unsqueeze(-2)
        place = torch.searchsorted(self.keys, asked)
        return place, self.keys[place] == asked

    @property
    def sources(self) -> Tensor:
        """``[E]``"""
        return self.keys[:-1] // self.size

    @property
    def targets(self) -> Tensor:
        """``[E]``"""
        return self.keys[:-1] % self.size

    def starts(self) -> Tensor:
        """Where the edges of each item begin, and where the last ones end: ``[N + 1]``."""
        first = torch.arange(self.size + 1, device=self.keys.device) * self.size
        return torch.searchsorted(self.keys, first)
