"""Fields that attend to each other."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear


class FieldAttention(nn.Module):
    r"""AutoInt's interacting layer: ``[..., F, inputs] → [..., F, width]``.

    .. math:: E' = \mathrm{ReLU}\big([\mathrm{softmax}(Q_1 K_1^\top) V_1; \dots; \mathrm{softmax}(Q_h K_h^\top) V_h] + W E\big)

    (Song et al., CIKM 2019, https://arxiv.org/abs/1810.11921.) No projection has a bias; W is the identity where the widths
    are equal.

    Args:
        inputs: width of the fields.
        width: of all heads together.
        heads: h.
        scale: divide the scores by the root of a head's width; the paper does not.
        residual: with the term W E.
        norm: layer normalisation before the ReLU.
        dropout: of what the heads give.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int = 1,
        *,
        scale: bool = False,
        residual: bool = True,
        norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads must divide the width; got {heads} heads for a width of {width}.")
        self.heads, self.scale, self.keeps = heads, None if scale else 1.0, residual
        self.project = linear(inputs, 3 * width, bias=False)
        for part in self.project.weight.data.chunk(3):
            nn.init.xavier_normal_(part)
        self.residual = linear(inputs, width, bias=False) if residual and inputs != width else nn.Identity()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.dropout = Dropout(dropout)

    def attention(self, x: Tensor) -> Tensor:
        """How much each field (row) attends to each (column), the mean over the heads: ``[..., F, F]`` in float32."""
        q, k, _ = self.project(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # [..., F, heads, d] each
        q, k = (part.transpose(-2, -3).float() for part in (q, k))
        return (q @ k.mT * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)).softmax(-1).mean(-3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -3)
        q, k, v = self.project(rows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, F, d] each
        y = self.dropout(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(-2))
        if self.keeps:
            y = y + self.residual(rows)
        return self.norm(y).relu().unflatten(0, x.shape[:-2])
