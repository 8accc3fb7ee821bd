"""Field-aware Factorization Machines for CTR Prediction (Juan et al., RecSys 2016).

https://doi.org/10.1145/2959100.2959134
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.names import ByName
from recstack.schema import Schema


class FFM(Model):
    r"""A factorisation machine in which each feature has a vector for every other field.

    .. math:: z = b + \sum_i w_i x_i + \sum_{i<j} \langle v_{i,F(j)}, v_{j,F(i)} \rangle x_i x_j

    The F - 1 vectors of a feature lie behind each other in one table: ``[R, L, F, F - 1, dim]``, their products in
    float32. Each task has its own linear part; the vectors are shared. Departs from the paper: rows are not scaled to unit
    length; a field of many values is pooled first; a field whose declared width is another is lifted by a matrix.

    Args:
        schema: a fitted schema, its tasks binary or regressions.
        dim: length of each vector; a table has (F - 1)·dim columns.

    Juan et al., RecSys 2016, https://doi.org/10.1145/2959100.2959134

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FFM(rs.Encoder(train.schema).fit(train).schema, dim=2)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(self, schema: Schema, *, dim: int = 10):
        super().__init__(schema)
        self.dim = dim
        self.heads = Heads(schema, 0)
        self.first_order = ByName({t.name: FirstOrder(schema) for t in schema.tasks if not t.derived})
        self.inputs = Inputs(schema, max(len(schema.fields) - 1, 1) * dim, stacked=True)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pairs = field_aware(self.inputs(batch).stack().unflatten(-1, (-1, self.dim)))  # [R, L]
        return self.heads(None, plus={name: linear(batch) + pairs for name, linear in self.first_order.items()})


def field_aware(v: Tensor) -> Tensor:
    """``v [..., F, F - 1, D]``, field i's vectors for the other fields in their order, is ``[...]``, in float32."""
    v = v.float()
    if v.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _Pairs.apply(v)
    return _sum(v, _partners(v))


def _partners(v: Tensor) -> Tensor:
    """Each vector's other half, ``[..., F, F - 1, D]``: for i < j, i keeps its vector for j in place j - 1, j its for i in i."""
    fields = v.shape[-3]
    if fields == 1:
        return torch.zeros_like(v)
    i, j = torch.triu_indices(fields, fields - 1, device=v.device)  # j is one less than the field
    ahead, behind = i * (fields - 1) + j, (j + 1) * (fields - 1) + i
    place = torch.empty(fields * (fields - 1), dtype=torch.long, device=v.device)
    place = place.index_copy(0, ahead, behind).index_copy(0, behind, ahead)
    rows = v.reshape(-1, fields * (fields - 1), v.shape[-1])  # with more axes index_select takes five times as long
    return rows.index_select(1, place).view(v.shape)


def _sum(v: Tensor, partners: Tensor) -> Tensor:
    return 0.5 * (v * partners).sum((-3, -2, -1))  # each pair is met twice


class _Pairs(torch.autograd.Function):
    """Its gradient is `g · partners`: one pass over the vectors, where autograd's own takes seven."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        partners = _partners(v)
        ctx.save_for_backward(partners)
        return _sum(v, partners)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (partners,) = ctx.saved_tensors
        return partners * grad[..., None, None, None]
