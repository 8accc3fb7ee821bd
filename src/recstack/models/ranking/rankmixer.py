"""RankMixer: Scaling Up Ranking Models in Industrial Recommenders (Zhu et al., CIKM 2025).

https://arxiv.org/abs/2507.15551
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.interaction.fields import PerField
from recstack.schema import Schema


class RankMixer(Model):
    r"""Tokens of features exchange pieces without a parameter; then each goes through a network of its own.

    .. math:: S = \mathrm{LN}(\mathrm{Mix}(X) + X), \qquad X'_t = \mathrm{LN}(W_t\,\mathrm{GELU}(V_t S_t) + S_t)

    All inputs behind each other, request side first, in the order of the schema, are cut into T tokens of equal length:
    features declared beside each other share a token. Tokens ``[R, L, T, width]``; Mix cuts each into T pieces and
    makes token h of the h-th piece of every token. The head reads their mean. With several `experts` each token has
    that many networks, and a gate that is 0 for those it does not need, held there by an L1 loss:

    .. math:: \sum_e g_{te} W_{te}\,\mathrm{GELU}(V_{te} S_t), \qquad g_t = \mathrm{ReLU}(R_t S_t + r_t), \qquad
        \mathcal L_{routing} = \lambda\, \mathrm{mean} \sum_{t,e} g_{te}

    Departs from the paper: one gate for training and serving, where the paper trains a second, dense one; experts whose
    gate is 0 are computed all the same.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        tokens: T; divides `width`.
        width: of a token.
        layers: blocks.
        expansion: hidden width of a token's network, in multiples of `width`.
        experts: networks of each token; 1 is without a gate.
        sparsity: λ, the weight of the routing loss; unused with one expert.
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
        experts: int = 1,
        sparsity: float = 1e-3,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if experts < 1:
            raise ConfigError(f"experts must be at least 1; got {experts}.")
        if width % tokens:
            raise ConfigError(f"tokens must divide the width; got {tokens} tokens for a width of {width}.")
        self.inputs = Inputs(schema, dim)
        self.tokens, length = tokens, -(-self.inputs.width() // tokens)
        self.missing = tokens * length - self.inputs.width()  # zeros at the end of the last token
        self.project = PerField(tokens, length, width)
        self.sparsity = sparsity if experts > 1 else 0.0
        self.blocks = nn.ModuleList(_Block(tokens, width, expansion * width, experts, dropout) for _ in range(layers))
        self.heads = Heads(schema, width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._logits(batch)[0]

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, gates = self._logits(batch)
        out = tasks.losses(logits, batch, self.schema)
        return out | self._routing(gates, batch) if self.sparsity else out

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._routing(self._logits(batch)[1], batch) if self.sparsity else {}

    def _routing(self, gates: list[Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        used = torch.stack([gate.float().sum((-2, -1)) for gate in gates])  # [layers, R, L]
        live = batch.get("@mask", torch.ones_like(used[0], dtype=torch.bool))
        return {"routing": self.sparsity * (used * live).sum() / (len(gates) * live.sum().clamp(min=1))}

    def _logits(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Logits, and the gates of each layer ``[R, L, T, experts]`` where there are several experts."""
        x = F.pad(self.inputs(batch).flat(), (0, self.missing))
        x = self.project(x.unflatten(-1, (self.tokens, -1)))  # [R, L, T, width]
        gates = []
        for block in self.blocks:
            x, gate = block(x)
            gates += [] if gate is None else [gate]
        return self.heads(x.mean(-2)), gates


class _Block(nn.Module):
    """``[..., T, W] → [..., T, W]``, and the gate ``[..., T, experts]`` or None."""

    def __init__(self, tokens: int, width: int, hidden: int, experts: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed: nn.Module
        if experts > 1:
            self.feed, self.dropout = _Routed(tokens, width, hidden, experts), Dropout(dropout)
        else:
            self.feed = nn.Sequential(
                PerField(tokens, width, hidden), nn.GELU(), PerField(tokens, hidden, width), Dropout(dropout)
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        s = self.norms[0](mixed(x) + x)
        if isinstance(self.feed, _Routed):
            fed, gate = self.feed(s)
            return self.norms[1](self.dropout(fed) + s), gate
        return self.norms[1](self.feed(s) + s), None


class _Routed(nn.Module):
    """Several networks for each token, added as a gate says: ``[..., T, W] → [..., T, W]`` and ``[..., T, experts]``."""

    def __init__(self, tokens: int, width: int, hidden: int, experts: int):
        super().__init__()
        self.experts = experts
        self.route = PerField(tokens, width, experts)
        self.first = PerField(tokens * experts, width, hidden)
        self.second = PerField(tokens * experts, hidden, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.route(x).relu()
        y = self.second(F.gelu(self.first(x.repeat_interleave(self.experts, -2)))).unflatten(-2, (-1, self.experts))
        return (gate.to(y.dtype).unsqueeze(-2) @ y).squeeze(-2), gate


def mixed(x: Tensor) -> Tensor:
    """Token h is the h-th piece of every token, in their order: ``[..., T, W] → [..., T, W]``."""
    return x.unflatten(-1, (x.shape[-2], -1)).transpose(-3, -2).flatten(-2)
