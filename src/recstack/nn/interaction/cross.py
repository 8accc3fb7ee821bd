"""Explicit crosses of bounded degree."""

from __future__ import annotations

from torch import Tensor, nn

from recstack.nn.mlp import linear


class Cross(nn.Module):
    r"""The cross network of DCN V2: each layer raises the degree of the polynomial by one.

    .. math:: x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l

    (Wang et al., WWW 2021, https://arxiv.org/abs/2008.13535.) ``[..., W] → [..., W]``.

    Args:
        width: W.
        layers: how many; 0 makes it the identity.
        rank: None for a full matrix; else W = U Vᵀ with that many columns.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None):
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(
            linear(width, width)
            if rank is None
            else nn.Sequential(linear(width, rank, bias=False), linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for layer in self.layers:
            x = start * layer(x) + x
        return x
