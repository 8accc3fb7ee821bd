"""Adaptive Factorization Network: Learning Adaptive-Order Feature Interactions (Cheng et al., AAAI 2020).

https://arxiv.org/abs/1909.03276
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs
from recstack.features.tasks import derive
from recstack.models.base import Model
from recstack.nn.mlp import MLP, BatchNorm, linear, on_live_rows
from recstack.nn.names import ByName
from recstack.schema import Schema


class AFN(Model):
    r"""Products of fields to powers that are learned: sums of logarithms, so that the order of an interaction adapts.

    .. math:: y_n = \exp\Big(\sum_f a_{nf} \ln |v_f|\Big) = \prod_f |v_f|^{a_{nf}}, \qquad z = \mathrm{MLP}([y_1; \dots; y_N])

    Fields ``[R, L, F, dim]``, crosses ``[R, L, dim, N]``, both normalised over the live rows of the batch, logarithms and
    powers in float32. ``deep=(400, 400, 400)`` is AFN+: an MLP with embeddings of its own, and a learned weight for the logit
    of each; both are trained together.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        neurons: N, how many crosses are learned.
        hidden: widths of the MLP over the crosses.
        norm: "batch", "layer" or None, in the MLPs.
        dropout: in the MLP over the crosses.
        deep: widths of the MLP beside it; empty for AFN alone.
        deep_dropout: in that one.
        smallest: what a logarithm is taken of, at least; the paper's. Published figures of the open benchmarks have 1e-5.

    Cheng et al., AAAI 2020, https://arxiv.org/abs/1909.03276

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.AFN(rs.Encoder(train.schema).fit(train).schema, neurons=8, hidden=(16,), deep=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    ends_in_heads = False

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        neurons: int = 600,
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = None,
        dropout: float = 0.0,
        deep: Sequence[int] = (),
        deep_dropout: float = 0.0,
        smallest: float = 1e-7,
    ):
        super().__init__(schema)
        if smallest <= 0:
            raise ConfigError(f"A logarithm is taken of numbers above 0; got smallest={smallest:g}.")
        self.neurons, self.smallest = neurons, smallest
        self.inputs = Inputs(schema, dim, stacked=True)
        self.crosses = _Powers(self.inputs.fields, neurons)
        self.mlp = MLP(dim * neurons, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)
        self.deep_inputs = Inputs(schema, dim, stacked=True) if deep else None
        if deep:
            self.deep_mlp = MLP(self.inputs.fields * dim, deep, norm=norm, dropout=deep_dropout)
            self.deep_heads = Heads(schema, self.deep_mlp.width)
            self.join = ByName({t.name: _sum() for t in schema.tasks if not t.derived})

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = batch.get("@mask")
        device = next(iter(batch.values())).device.type
        with torch.autocast(device, enabled=False):  # the lifting of fields too: near 0, a logarithm sees every bit
            fields = self.inputs(batch).stack().float()  # [R, L, F, D]
            logs = fields.abs().clamp(min=self.smallest).log().transpose(-1, -2)  # [R, L, D, F]
            live = None if mask is None else mask.unsqueeze(-1).expand(logs.shape[:-1])
            crosses = on_live_rows(self.crosses, logs, live, self.neurons)  # [R, L, D, N]
        logits = self.heads(self.mlp(crosses.flatten(-2), mask))
        if self.deep_inputs is None:
            return logits
        other = self.deep_heads(self.deep_mlp(self.deep_inputs(batch).stack().flatten(-2), mask))
        with torch.autocast(device, enabled=False):
            both = {n: join(torch.stack([logits[n], other[n]], -1)).squeeze(-1) for n, join in self.join.items()}
        return derive(both, self.schema)


class _Powers(nn.Module):
    """Logarithms ``[rows, F] → [rows, N]``: exponentials of their weighted sums, normalised before and after."""

    def __init__(self, fields: int, neurons: int):
        super().__init__()
        self.before = BatchNorm(fields)
        self.powers = linear(fields, neurons, bias=False)
        self.after = BatchNorm(neurons)

    def forward(self, logs: Tensor) -> Tensor:
        return self.after(self.powers(self.before(logs)).exp())


def _sum() -> nn.Linear:
    """A weight for each of two logits and a bias, which begin as their sum."""
    layer = nn.Linear(2, 1)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
