"""DCNv3: Towards Next Generation Deep Cross Network for CTR Prediction (Li et al., arXiv 2024).

https://arxiv.org/abs/2407.13349
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.schema import Schema

Logits = dict[str, Tensor]


class DCNv3(Model):
    r"""Two cross networks and no MLP: the degree of one doubles with each layer, that of the other grows by one.

    .. math:: c_l = W_l x_l + b_l, \quad m_l = c_l \odot \mathrm{ReLU}(\mathrm{LN}(c_l)), \quad
        x_{l+1} = x_l \odot [c_l; m_l] + x_l \ \text{ or } \ x_1 \odot [c_l; m_l] + x_l, \qquad z = \tfrac12 (z_E + z_L)

    The mask lets about half of the crosses through. In training each network has a loss of its own, weighed by how much
    worse than the common one it is (no gradient flows through the weight):

    .. math:: \mathcal{L} + \max(0, \mathcal{L}_E - \mathcal{L})\,\mathcal{L}_E + \max(0, \mathcal{L}_L - \mathcal{L})\,\mathcal{L}_L

    Fields ``[R, L, F, dim]`` are cut in two, so that one half of every field meets the crosses and the other half the
    masked ones; with several heads this is done within each, and the heads' logits are averaged.

    Args:
        schema: a fitted schema.
        dim: embedding width, a multiple of twice the heads.
        exponential_layers: layers of the network whose degree doubles.
        linear_layers: layers of the other.
        heads: parts of each embedding that go through the networks alone.
        exponential_dropout: after each layer of the first network.
        linear_dropout: after each layer of the second.

    Li et al., arXiv 2024, https://arxiv.org/abs/2407.13349

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DCNv3(rs.Encoder(train.schema).fit(train).schema, exponential_layers=2, linear_layers=2)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        exponential_layers: int = 4,
        linear_layers: int = 4,
        heads: int = 1,
        exponential_dropout: float = 0.1,
        linear_dropout: float = 0.3,
    ):
        super().__init__(schema)
        if heads < 1 or dim % (2 * heads):
            raise ConfigError(f"dim={dim} cannot be cut into two halves of heads={heads} equal parts.")
        self.parts = heads
        self.inputs = Inputs(schema, dim, stacked=True)
        width = self.inputs.fields * dim // heads
        self.exponential = _MaskedCross(width, exponential_layers, exponential_dropout, exponential=True)
        self.linear = _MaskedCross(width, linear_layers, linear_dropout, exponential=False)
        self.exponential_heads = Heads(schema, width)
        self.linear_heads = Heads(schema, width)

    def forward(self, batch: Mapping[str, Tensor]) -> Logits:
        return self._mean(*self.both(batch))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        both = self.both(batch)
        common = tasks.losses(self._mean(*both), batch, self.schema)
        out = dict(common)
        for part, logits in zip(("exponential", "linear"), both, strict=True):
            for name, loss in tasks.losses(logits, batch, self.schema).items():
                worse = (loss - common[name]).detach().clamp(min=0) / self.schema.task(name).weight
                out[f"{name}/{part}"] = worse * loss
        return out

    def both(self, batch: Mapping[str, Tensor]) -> tuple[Logits, Logits]:
        """The logits of the exponential and of the linear network."""
        fields = self.inputs(batch).stack().unflatten(-1, (self.parts, 2, -1))  # [R, L, F, heads, 2, half]
        x = fields.movedim(-4, -2).flatten(-3)  # [R, L, heads, F·dim/heads]: the first halves of all fields, the second
        hidden = [network(x).mean(-2) for network in (self.exponential, self.linear)]  # as the mean of the logits
        return self.exponential_heads(hidden[0]), self.linear_heads(hidden[1])

    def _mean(self, a: Logits, b: Logits) -> Logits:
        return tasks.derive(
            {t.name: (a[t.name] + b[t.name]) / 2 for t in self.schema.tasks if not t.derived}, self.schema
        )


class _MaskedCross(nn.Module):
    """``[..., W] → [..., W]``, W even."""

    def __init__(self, width: int, layers: int, dropout: float, *, exponential: bool):
        super().__init__()
        self.exponential = exponential
        self.layers = nn.ModuleList(linear(width, width // 2) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width // 2) for _ in range(layers))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for layer, norm in zip(self.layers, self.norms, strict=True):
            c = layer(x)
            c = torch.cat([c, c * norm(c).relu()], -1)
            x = self.dropout((x if self.exponential else start) * c + x)
        return x
