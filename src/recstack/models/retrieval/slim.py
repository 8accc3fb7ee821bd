"""SLIM: Sparse Linear Methods for Top-N Recommender Systems (Ning and Karypis, ICDM 2011).

https://doi.org/10.1109/ICDM.2011.134
"""

from __future__ import annotations

from recstack.errors import ConfigError
from recstack.kernels.elastic_net import elastic_nets
from recstack.kernels.topk import Sparse
from recstack.models.counting import ItemToItem
from recstack.schema import Schema


class SLIM(ItemToItem):
    r"""Each item is explained by few others, with weights that are not negative: an elastic net per item.

    .. math:: \min_W \tfrac12 \|A - A W\|_F^2 + \tfrac{\beta}{2} \|W\|_F^2 + \lambda \|W\|_1,
        \quad W \ge 0,\ \mathrm{diag}(W) = 0, \qquad s(u, j) = \sum_{i \in I_u} W_{ij}

    A ``[users, N]`` of zeros and ones. Coordinate descent to the optimum, the columns in parallel.

    Args:
        schema: filled in by `fit`.
        l1: λ; pairs of items with no more common users than that get no weight.
        l2: β.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.

    Ning and Karypis, ICDM 2011, https://doi.org/10.1109/ICDM.2011.134

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.SLIM(l2=20).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        l1: float = 1.0,
        l2: float = 10.0,
        task: str | None = None,
        history: str | None = None,
    ):
        super().__init__(schema, 1, None, task, history, None, 1.0)  # as many neighbours as the penalty leaves
        if l1 < 0 or l2 < 0:
            raise ConfigError(f"l1 and l2 are at least 0; got {l1:g} and {l2:g}.")
        self.l1, self.l2 = l1, l2

    def similarities(self, users: Sparse) -> Sparse:
        return elastic_nets(users, self.l1, self.l2)
