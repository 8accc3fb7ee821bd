"""Linear layers over the axes of stacked fields."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AcrossFields(nn.Module):
    r"""New fields as linear combinations of the old: ``[..., F, D] → [..., G, D]``, :math:`y_g = \sum_f W_{gf} x_f + b_g`.

    The compression of Wukong and DHEN, and the field gate of FinalNet.
    """

    def __init__(self, fields: int, outputs: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, fields))
        self.bias = nn.Parameter(torch.zeros(outputs, 1)) if bias else None
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight @ x
        return y if self.bias is None else y + self.bias


class PerField(nn.Module):
    r"""A matrix for each field: ``[..., F, D] → [..., F, H]``, :math:`y_f = W_f x_f + b_f`.

    The projections of ContextNet and the feed-forward networks of RankMixer. Each is initialised as if it stood alone.
    """

    def __init__(self, fields: int, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fields, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(fields, outputs)) if bias else None
        for weight in self.weight:
            nn.init.xavier_normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("...fi,fio->...fo", x, self.weight)
        return y if self.bias is None else y + self.bias
