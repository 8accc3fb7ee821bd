"""One side of a two-tower model: an MLP that ends in a direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.mlp import MLP, linear


class Tower(nn.Module):
    """An MLP whose last layer has no activation, cut into parts of length 1: ``[..., width] → [..., parts, D]``, float32.

    Args:
        width: of the input.
        hidden: widths of the MLP; the last is D, of each part.
        parts: how many vectors come out.
        dropout: after each activation.
    """

    def __init__(self, width: int, hidden: Sequence[int], parts: int = 1, dropout: float = 0.0):
        super().__init__()
        self.parts = parts
        self.mlp = MLP(width, hidden[:-1], dropout=dropout)
        self.out = linear(self.mlp.width, parts * hidden[-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.out(self.mlp(x)).float().unflatten(-1, (self.parts, -1)), dim=-1)
