"""Field-Embedded Factorization Machines for Click-through Rate Prediction (Pande, arXiv 2020).

https://arxiv.org/abs/2009.09931
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.pairs import PairMatrices, by_pair
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.schema import Schema


class FEFM(Model):
    r"""A factorisation machine with a symmetric matrix for each pair of fields; DeepFEFM with an MLP beside it.

    .. math:: z = b + \sum_i w_i x_i + \sum_{i<j} s_{ij} + \mathrm{MLP}([v; s]), \qquad
        s_{ij} = v_i^\top W_{F(i)F(j)} v_j\, x_i x_j, \quad W = U + U^\top

    Fields ``[R, L, F, dim]``, s in float32. ``hidden=()`` is FEFM: no MLP, and all pairs are one matrix multiplication.
    With `hidden` it is DeepFEFM, whose MLP reads the fields and the pairs' scores s ``[R, L, P]``. Each task has its own
    linear part; vectors and matrices are shared. The matrices begin as identities: FEFM starts as a factorisation machine.
    Departs from the paper: a field of many values is pooled first.

    Args:
        schema: a fitted schema; without `hidden`, its tasks are binary or regressions.
        dim: length of the vectors.
        hidden: widths of the MLP; none makes it FEFM, some DeepFEFM.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Pande, 2020, https://arxiv.org/abs/2009.09931

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FEFM(rs.Encoder(train.schema).fit(train).schema, dim=4, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        hidden: Sequence[int] = (),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.first_order = ByName({t.name: FirstOrder(schema) for t in schema.tasks if not t.derived})
        self.inputs = Inputs(schema, dim, stacked=True)
        fields = self.inputs.fields
        self.pairs = PairMatrices((dim,) * fields, symmetric=True)
        width = fields * dim + fields * (fields - 1) // 2
        self.mlp = MLP(width, hidden, norm=norm, dropout=dropout) if hidden else None
        self.heads = Heads(schema, self.mlp.width if self.mlp else 0)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        deep = None
        if self.mlp is None:
            pairs = self.pairs(fields.flatten(-2))
        else:
            each = self.pairs.each(fields)  # [R, L, P]
            deep, pairs = self.mlp(torch.cat([fields.flatten(-2), each], -1), batch.get("@mask")), each.sum(-1)
        return self.heads(deep, plus={name: linear(batch) + pairs for name, linear in self.first_order.items()})

    def strengths(self) -> dict[tuple[str, str], float]:
        """The Frobenius norm of each pair's matrix: ``{(field, field): norm}``."""
        return by_pair(self.inputs.widths, self.pairs.norms())
