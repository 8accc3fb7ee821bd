"""Attention of a set with itself through a few learned queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.nn.sequence.attention import AttentionLayer


class InducedAttention(nn.Module):
    r"""Items read a few vectors that have read all items: ``x [R, L, W], steps [R, T, W], mask [R, T] → [R, L, W]``.

    .. math:: \mathrm{MAB}(X, \mathrm{MAB}(I, H))

    The order of items is not seen, and the cost grows with L and T, not with L · T.
    (Lee et al., ICML 2019, https://arxiv.org/abs/1810.00825.)

    Args:
        width: W.
        heads: of both attentions.
        queries: how many learned vectors I has.
        dropout: in both attentions.
    """

    def __init__(self, width: int, heads: int, queries: int, dropout: float = 0.0):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) / width**0.5)
        self.gather, self.spread = (AttentionLayer(width, heads, dropout) for _ in range(2))

    def forward(self, x: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
        queries = self.queries.expand(x.shape[0], -1, -1).to(x.dtype)
        found = self.gather(queries, steps, mask)
        return self.spread(x, found, torch.ones_like(found[..., 0], dtype=torch.bool))
