"""What attention over histories is made of: distances from the target, a masked softmax, heads, a transformer's layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear


def age(mask: Tensor) -> Tensor:
    """Distance of each step from the target ``[..., T]``: 1 for the most recent, 0 and below where nothing is."""
    return mask.sum(-1, keepdim=True) - torch.arange(mask.shape[-1], device=mask.device)


def masked_softmax(score: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the live of the last axis, in float32; over nothing it gives zeros."""
    score = score.float()
    return score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(-1) * mask


class Positions(nn.Module):
    """Learned vectors by distance from the target: row 0 is the target's own, what is older than `steps` shares the last."""

    def __init__(self, width: int, steps: int):
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(0.02 * torch.randn(steps + 1, width))

    def forward(self, mask: Tensor) -> Tensor:
        """``mask [..., T] → [..., T, W]``."""
        return self.weight[age(mask).clamp(0, self.steps)]

    @property
    def target(self) -> Tensor:
        """The target's own vector ``[W]``."""
        return self.weight[0]


class MultiHead(nn.Module):
    r"""Several queries read one sequence: ``query [..., L, W], steps [..., T, W], mask [..., T] → [..., L, W]``.

    .. math:: \mathrm{softmax}\big((q W_q)(h W_k)^\top / \sqrt d\big)\, h W_v

    (Vaswani et al., NeurIPS 2017.) Keys and values are computed once per step, not once per query. Heads need not divide
    the width: each is as wide as the next larger part. Keys have no bias, which a softmax could not see.

    Args:
        width: of queries, steps and what comes out.
        heads: how many.
    """

    def __init__(self, width: int, heads: int = 1):
        super().__init__()
        self.heads, self.size = heads, -(-width // heads)
        inner = heads * self.size
        self.query, self.key = linear(width, inner), linear(width, inner, bias=False)
        self.value, self.out = linear(width, inner), linear(inner, width)

    def split(self, x: Tensor) -> Tensor:
        """``[..., n, heads · d] → [..., heads, n, d]``."""
        return x.unflatten(-1, (self.heads, self.size)).transpose(-2, -3)

    def forward(self, query: Tensor, steps: Tensor, mask: Tensor, own: bool = False) -> Tensor:
        """With `own`, each query reads itself too, as if it stood at the end; `mask` may be ``[..., L, T]``, by query."""
        q, k, v = self.split(self.query(query)), self.split(self.key(steps)), self.split(self.value(steps))
        score = q @ k.transpose(-1, -2)  # [..., heads, L, T]
        if not own:
            live = mask if mask.dim() == steps.dim() else mask.unsqueeze(-2)
            weight = masked_softmax(score / self.size**0.5, live.unsqueeze(-3))
            y = weight.to(v.dtype) @ v
        else:
            of_itself = (q * self.split(self.key(query))).sum(-1, keepdim=True)
            live = torch.cat([mask, torch.ones_like(mask[..., :1])], -1).unsqueeze(-2).unsqueeze(-3)
            weight = masked_softmax(torch.cat([score, of_itself], -1) / self.size**0.5, live).to(v.dtype)
            y = weight[..., :-1] @ v + weight[..., -1:] * self.split(self.value(query))
        return self.out(y.transpose(-2, -3).flatten(-2))


class AttentionLayer(nn.Module):
    r"""A transformer's layer: attention, then a position-wise network, each with dropout, residual, normalisation.

    .. math:: S = \mathrm{LN}(q + \mathrm{MultiHead}(q, h)), \qquad \mathrm{LN}(S + W_2\, \mathrm{LeakyReLU}(W_1 S))
    """

    def __init__(self, width: int, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        self.attention = MultiHead(width, heads)
        self.feed = nn.Sequential(linear(width, width), nn.LeakyReLU(), linear(width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = Dropout(dropout)

    def forward(self, query: Tensor, steps: Tensor, mask: Tensor, own: bool = False) -> Tensor:
        """As `MultiHead`; self-attention where `query` is `steps`."""
        first, second = self.norms
        x = first(query + self.dropout(self.attention(query, steps, mask, own)))
        return second(x + self.dropout(self.feed(x)))
