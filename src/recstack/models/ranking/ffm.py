"""Field-aware Factorization Machines for CTR Prediction (Juan et al., RecSys 2016).

https://doi.org/10.1145/2959100.2959134
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

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
        self.inputs = Inputs(schema, max(len(schema.features) - 1, 1) * dim, stacked=True)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pairs = field_aware(self.inputs(batch).stack().unflatten(-1, (-1, self.dim)))  # [R, L]
        return self.heads(None, plus={name: linear(batch) + pairs for name, linear in self.first_order.items()})


def field_aware(v: Tensor) -> Tensor:
    """``v [..., F, F - 1, D]``, field i's vectors for the other fields in their order, is ``[...]``, in float32.

    For i < j, field i keeps its vector for j in place j - 1, and j its vector for i in place i: without the last field, and
    without the first and transposed, both lie in row i and column j - 1, on or above the diagonal. No pair is copied.
    """
    v = v.float()
    products = (v[..., :-1, :, :] * v[..., 1:, :, :].transpose(-3, -2)).sum(-1)  # [..., F - 1, F - 1]
    return products.triu().sum((-2, -1))
