"""Factorization Machines (Rendle, ICDM 2010).

https://doi.org/10.1109/ICDM.2010.127
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.fm import pairwise_sum
from recstack.nn.names import ByName
from recstack.schema import Schema


class FM(Model):
    r"""A linear model and all pairwise interactions, factorised.

    .. math:: z = b + \sum_i w_i x_i + \sum_{i<j} \langle v_i, v_j \rangle x_i x_j

    Fields ``[R, L, F, dim]``, their products in float32. A number x multiplies its vector: it appears as x·v. Each task
    has its own linear part; the vectors are shared. Departs from the paper: a field of many values (a list, a history) is
    pooled first, so that its values do not pair with each other; fields of another width than `dim` are lifted to it.

    Args:
        schema: a fitted schema, its tasks binary or regressions.
        dim: length of the vectors.

    Rendle, ICDM 2010, https://doi.org/10.1109/ICDM.2010.127

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FM(rs.Encoder(train.schema).fit(train).schema, dim=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(self, schema: Schema, *, dim: int = 10):
        super().__init__(schema)
        self.heads = Heads(schema, 0)
        self.first_order = ByName({t.name: FirstOrder(schema) for t in schema.tasks if not t.derived})
        self.inputs = Inputs(schema, dim, stacked=True)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pairs = pairwise_sum(self.inputs(batch).stack()).sum(-1)  # [R, L]
        return self.heads(None, plus={name: linear(batch) + pairs for name, linear in self.first_order.items()})
