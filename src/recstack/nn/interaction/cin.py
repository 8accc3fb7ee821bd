"""Crosses of whole field vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.mlp import linear, make_activation


class CIN(nn.Module):
    r"""The compressed interaction network of xDeepFM: maps of products of field vectors, one degree more a layer.

    .. math:: X^k_h = \phi\Big(\sum_{i,j} W^{k,h}_{ij}\, X^{k-1}_i \odot X^0_j + b^k_h\Big), \qquad
        p = \Big[\textstyle\sum_d X^k_{h,d}\Big]_{k,h}

    (Lian et al., KDD 2018, https://arxiv.org/abs/1803.05170.) ``[..., F, D] → [..., width]``. A layer is one matrix
    product over the outer product ``[..., D, H·F]``, its largest tensor.

    Args:
        fields: F.
        maps: how many maps H each layer has, at least one layer.
        activation: of the maps, one without batch statistics; "none" in the paper.
        split_half: of each layer but the last, one half goes on to the next layer and only the other half comes out.
    """

    def __init__(self, fields: int, maps: Sequence[int], activation: str = "none", split_half: bool = False):
        super().__init__()
        if not maps:
            raise ConfigError("CIN needs the number of maps of at least one layer.")
        if split_half and any(h % 2 for h in maps[:-1]):
            raise ConfigError(f"split_half=True needs even maps in each layer but the last; got {tuple(maps)}.")
        self.passed = [h // 2 if split_half else h for h in maps[:-1]]
        self.split_half = split_half
        self.width = sum(maps) - (sum(self.passed) if split_half else 0)
        self.layers = nn.ModuleList(linear(fields * h, n) for h, n in zip([fields, *self.passed], maps, strict=True))
        self.activations = nn.ModuleList(make_activation(activation, n) for n in maps)

    def forward(self, fields: Tensor) -> Tensor:
        start = x = fields.mT  # [..., D, F]
        pooled: list[Tensor] = []
        for i, (layer, activation) in enumerate(zip(self.layers, self.activations, strict=True)):
            x = activation(layer((x.unsqueeze(-1) * start.unsqueeze(-2)).flatten(-2)))  # [..., D, H]
            out = x
            if self.split_half and i < len(self.passed):
                x, out = x.split(self.passed[i], -1)
            pooled.append(out.float().sum(-2))
        return torch.cat(pooled, -1)
