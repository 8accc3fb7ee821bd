"""Explicit crosses of bounded degree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.gates import Gate
from recstack.nn.mlp import linear


class Cross(nn.Module):
    r"""The cross network of DCN V2: each layer raises the degree of the polynomial by one.

    .. math:: x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l

    (Wang et al., WWW 2021, https://arxiv.org/abs/2008.13535.) ``[..., W] → [..., W]``.

    Args:
        width: W.
        layers: how many; 0 makes it the identity.
        rank: None for a full matrix; else W = U Vᵀ with that many columns.
        experts: above 1, the product is a mixture of that many low-rank experts, see `LowRankExperts`. Their gate, a
            softmax of :math:`x_l`, is shared by the layers.
    """

    def __init__(self, width: int, layers: int, rank: int | None = None, experts: int = 1):
        super().__init__()
        if experts < 1 or (experts > 1 and rank is None):
            raise ConfigError(f"experts={experts} needs rank=, the rank of each expert, and at least one expert.")
        self.width = width
        self.gate = Gate(width, experts) if experts > 1 else None
        self.layers = nn.ModuleList(_product(width, rank, experts) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for layer in self.layers:
            x = start * (layer(x) if self.gate is None else layer(x, self.gate(x))) + x
        return x

    def matrix(self) -> Tensor:
        """The first layer's W ``[W, W]``, as a product where it is of low rank.

        Raises:
            ConfigError: no layer, or several experts, which have no one matrix.
        """
        if not len(self.layers) or self.gate is not None:
            raise ConfigError("The cross network has no one matrix: it needs a layer, and a single expert.")
        layer = self.layers[0]
        return layer.weight if isinstance(layer, nn.Linear) else layer[1].weight @ layer[0].weight  # type: ignore[index,return-value]


def _product(width: int, rank: int | None, experts: int) -> nn.Module:
    if rank is None:
        return linear(width, width)
    if experts > 1:
        return LowRankExperts(width, rank, experts)
    return nn.Sequential(linear(width, rank, bias=False), linear(rank, width))


class LowRankExperts(nn.Module):
    r"""A mixture of E low-rank maps, each with a non-linearity in its small space.

    .. math:: \sum_i g_i\, U_i \tanh(C_i \tanh(V_i^\top x)) + b

    ``x [..., W]`` and weights ``g [..., E]`` that sum to one: ``[..., W]``. Three matrix products, however many experts.
    """

    def __init__(self, width: int, rank: int, experts: int):
        super().__init__()
        self.experts = experts
        self.down = linear(width, experts * rank, bias=False)
        self.core = nn.Parameter(torch.empty(experts, rank, rank))
        self.up = linear(experts * rank, width)
        down, up = self.down.weight.view(experts, rank, width), self.up.weight.view(width, experts, rank)
        for i in range(experts):  # as if each stood alone
            for weight in (down[i], self.core[i], up[:, i]):
                nn.init.xavier_normal_(weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        h = self.down(x).unflatten(-1, (self.experts, -1)).tanh()  # [..., E, rank]
        h = torch.einsum("...er,ers->...es", h, self.core).tanh()
        return self.up((h * gate.to(h.dtype).unsqueeze(-1)).flatten(-2))


class VectorCross(nn.Module):
    r"""The cross network of DCN, whose weights are vectors.

    .. math:: x_{l+1} = x_0 (w_l^\top x_l) + b_l + x_l

    (Wang et al., ADKDD 2017, https://arxiv.org/abs/1708.05123.) ``[..., W] → [..., W]``. All layers at once: by
    induction :math:`x_l = \alpha_l x_0 + \beta_l` with a number :math:`\alpha_l` of the row and a vector
    :math:`\beta_l = \sum_{k<l} b_k`, so that one product of x₀ with all weights is enough.

    Args:
        width: W.
        layers: how many; 0 makes it the identity.
    """

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(layers, width))
        self.bias = nn.Parameter(torch.zeros(layers, width))
        for i in range(layers):
            nn.init.xavier_normal_(self.weight[i : i + 1])

    def forward(self, x: Tensor) -> Tensor:
        score = F.linear(x, self.weight).float()  # [..., layers]
        scale, shift = score.new_ones(*x.shape[:-1], 1), score.new_zeros(self.width)
        for i, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            scale = scale + scale * score[..., i : i + 1] + (weight * shift).sum()
            shift = shift + bias
        return scale * x + shift

    def step(self, layer: int, start: Tensor, x: Tensor) -> Tensor:
        """One layer, for networks that change x between the layers."""
        return start * F.linear(x, self.weight[layer : layer + 1]) + self.bias[layer] + x
