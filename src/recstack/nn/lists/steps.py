"""All histories of a request as one sequence, beside the list that it is read with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recstack.nn.mlp import linear
from recstack.nn.names import ByName
from recstack.nn.sequence.attention import Positions


class Steps(nn.Module):
    """Histories one behind the other, projected to one width: ``{name: (x [R, T, w], mask)} → ([R, ΣT, W], mask)``.

    Each step knows its history and its distance from now by a vector that is added.

    Args:
        widths: of each history's steps, by name.
        width: W.
        steps: distances told apart; what is older shares the last.
    """

    def __init__(self, widths: Mapping[str, int], width: int, steps: int):
        super().__init__()
        self.projections = ByName({name: linear(w, width) for name, w in widths.items()})
        self.places = ByName({name: Positions(width, steps) for name in widths})

    def forward(self, histories: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        found = []
        for name, (x, mask) in histories.items():
            x = self.projections[name](x) + self.places[name](mask)
            found.append(x * mask.unsqueeze(-1))
        return torch.cat(found, 1), torch.cat([mask for _, mask in histories.values()], 1)
