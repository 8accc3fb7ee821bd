"""EulerNet: Adaptive Feature Interaction Learning via Euler's Formula for CTR Prediction (Tian et al., SIGIR 2023).

https://arxiv.org/abs/2304.10711
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.schema import Schema

LARGEST = 30.0  # of the logarithm of a modulus: its square is still far from the largest float32


class EulerNet(Model):
    r"""Products of fields with learned real orders, as sums of logarithms and of phases of complex numbers.

    .. math:: r + ip = \mu e^{i v}, \qquad \lambda_f + i\theta_f = \log(r_f + ip_f), \qquad
        r'_g + ip'_g = \exp\Big(\sum_f \alpha_{fg} (\lambda_f + i\theta_f) + \delta_g\Big)
        + \mathrm{ReLU}(W r + b)_g + i\,\mathrm{ReLU}(W p + b)_g

    Fields ``[R, L, F, dim]``, all in float32; :math:`z = w^\top (r + p)` of the last layer. The explicit products and the
    implicit, linear part (one W for both axes) share their inputs in every layer. The logarithm of a modulus is bounded
    at 30.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: how many.
        products: fields that a layer gives; None for as many as there are. With as many, the orders start at the
            identity, else at one field each.
        norm: layer normalisation of both axes after each layer.
        explicit_dropout: on logarithms and phases.
        implicit_dropout: on what the linear part reads.

    Tian et al., SIGIR 2023, https://arxiv.org/abs/2304.10711

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.EulerNet(rs.Encoder(train.schema).fit(train).schema, dim=4, products=3)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        layers: int = 1,
        products: int | None = None,
        norm: bool = False,
        explicit_dropout: float = 0.0,
        implicit_dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        fields = self.inputs.fields
        self.modulus = nn.Parameter(torch.ones(fields, 1))
        widths = [fields] + [products or fields] * layers
        self.layers = nn.ModuleList(
            _Layer(a, b, dim, norm, explicit_dropout, implicit_dropout) for a, b in pairwise(widths)
        )
        self.heads = Heads(schema, widths[-1] * dim)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        with torch.autocast(fields.device.type, enabled=False):
            v = fields.float()
            r, p = self.modulus * v.cos(), self.modulus * v.sin()
            for layer in self.layers:
                r, p = layer(r, p)
            return self.heads((r + p).flatten(-2))


class _Layer(nn.Module):
    """``(r, p) [..., F, D] → (r, p) [..., G, D]``."""

    def __init__(self, fields: int, outputs: int, dim: int, norm: bool, explicit: float, implicit: float):
        super().__init__()
        eye = torch.eye(fields)
        orders = eye if fields == outputs else (torch.randn(outputs, fields) / 0.01).softmax(-1)
        self.orders = nn.Parameter(orders)  # alpha, transposed
        self.log_shift = nn.Parameter(0.01 * torch.randn(outputs, dim))
        self.phase_shift = nn.Parameter(0.01 * torch.randn(outputs, dim))
        self.implicit = linear(fields * dim, outputs * dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if norm else nn.Identity() for _ in range(2))
        self.dropout, self.implicit_dropout = Dropout(explicit), Dropout(implicit)

    def forward(self, r: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        length = self.dropout(0.5 * (r.square() + p.square() + 1e-8).log())
        phase = self.dropout(torch.atan2(p, r))
        length = (self.orders @ length + self.log_shift).clamp(max=LARGEST).exp()
        phase = self.orders @ phase + self.phase_shift
        r, p = (
            self.implicit(self.implicit_dropout(x).flatten(-2)).relu().unflatten(-1, self.log_shift.shape)
            for x in (r, p)
        )
        return self.norms[0](r + length * phase.cos()), self.norms[1](p + length * phase.sin())
