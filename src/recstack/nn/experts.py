"""Several small networks over one input, computed together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.nn.mlp import Sides, linear, split_linear


class Experts(nn.Module):
    """E multi-layer perceptrons side by side: ``[..., W] → [..., E, H]``, H the last of `hidden`.

    The first layer of all experts is one matrix product, further layers one product over stacked weights
    ``[E, in, out]``. Every expert is initialised as if it stood alone.

    Args:
        width: W; of both sides together where a pair (request, candidate) is given.
        hidden: widths of each expert, at least one; ReLU after each.
        experts: E.
        dropout: after each layer.
    """

    def __init__(self, width: int, hidden: Sequence[int], experts: int, dropout: float = 0.0):
        super().__init__()
        self.experts, self.width = experts, hidden[-1]
        self.first = linear(width, experts * hidden[0])
        self.weights = nn.ParameterList(torch.empty(experts, a, b) for a, b in pairwise(hidden))
        self.biases = nn.ParameterList(torch.zeros(experts, b) for b in hidden[1:])
        for one in (self.first.weight.view(experts, hidden[0], width), *self.weights):
            for weight in one:
                nn.init.xavier_normal_(weight)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Sides) -> Tensor:
        hidden = split_linear(self.first, x).unflatten(-1, (self.experts, -1))
        hidden = self.dropout(hidden.relu())
        for weight, bias in zip(self.weights, self.biases, strict=True):
            hidden = self.dropout((torch.einsum("...ei,eio->...eo", hidden, weight) + bias).relu())
        return hidden
