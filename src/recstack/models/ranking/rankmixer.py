"""RankMixer: Scaling Up Ranking Models in Industrial Recommenders (Zhu et al., CIKM 2025).

https://arxiv.org/abs/2507.15551
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.fields import PerField
from recstack.schema import Schema


class RankMixer(Model):
    r"""Tokens of features exchange pieces without a parameter; then each goes through a network of its own.

    .. math:: S = \mathrm{LN}(\mathrm{Mix}(X) + X), \qquad X'_t = \mathrm{LN}(W_t\,\mathrm{GELU}(V_t S_t) + S_t)

    All inputs behind each other, request side first, in the order of the schema, are cut into T tokens of equal length:
    features declared beside each other share a token. Tokens ``[R, L, T, width]``; Mix cuts each into T pieces and makes
    token h of the h-th piece of every token. The head reads their mean. Departs from the paper: dense networks, without
    its sparse mixture of experts.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        tokens: T; divides `width`.
        width: of a token.
        layers: blocks.
        expansion: hidden width of a token's network, in multiples of `width`.
        dropout: after each token's network.

    Zhu et al., CIKM 2025, https://arxiv.org/abs/2507.15551

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.RankMixer(rs.Encoder(train.schema).fit(train).schema, tokens=4, width=16)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        tokens: int = 8,
        width: int = 128,
        layers: int = 2,
        expansion: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if width % tokens:
            raise ConfigError(f"tokens must divide the width; got {tokens} tokens for a width of {width}.")
        self.inputs = Inputs(schema, dim)
        self.tokens, length = tokens, -(-self.inputs.width() // tokens)
        self.missing = tokens * length - self.inputs.width()  # zeros at the end of the last token
        self.project = PerField(tokens, length, width)
        self.blocks = nn.ModuleList(_Block(tokens, width, expansion * width, dropout) for _ in range(layers))
        self.heads = Heads(schema, width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = F.pad(self.inputs(batch).flat(), (0, self.missing))
        x = self.project(x.unflatten(-1, (self.tokens, -1)))  # [R, L, T, width]
        for block in self.blocks:
            x = block(x)
        return self.heads(x.mean(-2))


class _Block(nn.Module):
    """``[..., T, W] → [..., T, W]``."""

    def __init__(self, tokens: int, width: int, hidden: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed = nn.Sequential(
            PerField(tokens, width, hidden), nn.GELU(), PerField(tokens, hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        s = self.norms[0](mixed(x) + x)
        return self.norms[1](self.feed(s) + s)


def mixed(x: Tensor) -> Tensor:
    """Token h is the h-th piece of every token, in their order: ``[..., T, W] → [..., T, W]``."""
    return x.unflatten(-1, (x.shape[-2], -1)).transpose(-3, -2).flatten(-2)
