"""Higher-Order Factorization Machines (Blondel et al., NIPS 2016).

https://arxiv.org/abs/1607.07195
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.anova import anova
from recstack.nn.interaction.fm import pairwise_sum
from recstack.nn.names import ByName
from recstack.schema import Schema


class HOFM(Model):
    r"""A factorisation machine of all products of up to m fields.

    .. math:: z = b + \sum_i w_i x_i + \sum_{t=2}^m \sum_{i_1 < \dots < i_t} \Big\langle 1, v^{(t)}_{i_1} x_{i_1} \odot
        \dots \odot v^{(t)}_{i_t} x_{i_t} \Big\rangle

    Fields ``[R, L, F, dim]`` for each order, in float32. The inner sums are ANOVA kernels, in time linear in F. Each task
    has its own linear part; the vectors are shared. Departs from the paper: a field of many values is pooled first.

    Args:
        schema: a fitted schema, its tasks binary or regressions.
        dim: length of the vectors.
        order: m, how many fields may meet.
        shared: one vector for all orders (the paper's HOFM with shared parameters) instead of one for each.

    Blondel et al., NIPS 2016, https://arxiv.org/abs/1607.07195

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.HOFM(rs.Encoder(train.schema).fit(train).schema, dim=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(self, schema: Schema, *, dim: int = 10, order: int = 3, shared: bool = False):
        super().__init__(schema)
        if order < 2:
            raise ConfigError(f"order is how many fields may meet, at least 2; got {order}.")
        self.order, self.shared = order, shared
        self.heads = Heads(schema, 0)
        self.first_order = ByName({t.name: FirstOrder(schema) for t in schema.tasks if not t.derived})
        self.inputs = Inputs(schema, dim if shared else (order - 1) * dim, stacked=True)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D], the orders' vectors behind each other unless shared
        if self.shared:
            kernels = anova(fields, self.order)[1:]
        else:
            second, *more = fields.chunk(self.order - 1, -1)
            kernels = [pairwise_sum(second), *(anova(v, order)[-1] for order, v in enumerate(more, 3))]
        score = sum(kernels[1:], kernels[0]).sum(-1)  # [R, L]
        return self.heads(None, plus={name: linear(batch) + score for name, linear in self.first_order.items()})
