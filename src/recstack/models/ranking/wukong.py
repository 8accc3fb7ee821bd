"""Wukong: Towards a Scaling Law for Large-Scale Recommendation (Zhang et al., ICML 2024).

https://arxiv.org/abs/2403.02545
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.fields import AcrossFields
from recstack.nn.mlp import MLP, linear
from recstack.schema import Schema


class Wukong(Model):
    r"""Stacked factorisation machines: each layer doubles the degree of the interactions.

    .. math:: X_{l+1} = \mathrm{LN}\big([\mathrm{FMB}(X_l);\, W_L X_l] + W_R X_l\big), \qquad
        \mathrm{FMB}(X) = \mathrm{MLP}\big(\mathrm{LN}(X X^\top Y)\big)

    Tokens ``[R, L, N, dim]``, at first the fields. :math:`X X^\top Y` with Y ``[N, rank]`` costs no more than X Y, and is
    computed in float32. The residual is X itself where a layer keeps the number of tokens. Y is a learned matrix (the
    paper's attentive form computes it from X).

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: how many.
        products: tokens that the factorisation machine of each layer gives.
        compressed: tokens that are linear combinations of those before.
        rank: columns of Y.
        inner: hidden widths of the MLP in each layer.
        hidden: widths of the MLP on top.
        dropout: in the MLPs.

    Zhang et al., ICML 2024, https://arxiv.org/abs/2403.02545

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.Wukong(rs.Encoder(train.schema).fit(train).schema, layers=1, inner=(16,), hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        layers: int = 2,
        products: int = 16,
        compressed: int = 16,
        rank: int = 24,
        inner: Sequence[int] = (256,),
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        tokens = [self.inputs.fields] + [products + compressed] * layers
        self.layers = nn.ModuleList(_Layer(n, dim, products, compressed, rank, inner, dropout) for n in tokens[:-1])
        self.mlp = MLP(tokens[-1] * dim, hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.inputs(batch).stack()
        for layer in self.layers:
            x = layer(x)
        return self.heads(self.mlp(x.flatten(-2)))


class _Layer(nn.Module):
    """``[..., N, D] → [..., products + compressed, D]``."""

    def __init__(
        self, tokens: int, dim: int, products: int, compressed: int, rank: int, inner: Sequence[int], dropout: float
    ):
        super().__init__()
        self.shape = (products, dim)
        self.directions = nn.Parameter(torch.empty(tokens, rank))  # Y
        nn.init.xavier_normal_(self.directions)
        self.norm_products = nn.LayerNorm(tokens * rank)
        self.mlp = MLP(tokens * rank, inner, dropout=dropout)
        self.last = linear(self.mlp.width, products * dim)
        self.compress = AcrossFields(tokens, compressed)
        self.residual = None if tokens == products + compressed else AcrossFields(tokens, products + compressed)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            v = x.float()
            machine = self.norm_products((v @ (v.transpose(-1, -2) @ self.directions)).flatten(-2))
        made = self.last(self.mlp(machine)).unflatten(-1, self.shape)
        kept = x if self.residual is None else self.residual(x)
        return self.norm(torch.cat([made, self.compress(x)], -2) + kept)
