"""Item-Based Top-N Recommendation Algorithms (Deshpande & Karypis, ACM TOIS 2004).

https://doi.org/10.1145/963770.963776
"""

from __future__ import annotations

import numpy as np

from recstack.errors import ConfigError, unknown
from recstack.kernels.cooccurrence import active, co_counts
from recstack.kernels.topk import Sparse
from recstack.models.counting import ItemToItem
from recstack.schema import Schema

_WEIGHTS = {
    "one": lambda n: np.ones(len(n)),
    "log": lambda n: 1 / np.log1p(n),
    "log2": lambda n: 1 / np.log2(3 + n),
    "sqrt": lambda n: n**-0.5,
    "inverse": lambda n: 1 / n,
}


class ItemCF(ItemToItem):
    r"""Two items are similar if many users chose both, more than their popularity explains.

    .. math:: S_{ij} = \frac{\sum_{u \in U_i \cap U_j} w_u}{|U_i|^{1-b}\, |U_j|^{b}},
        \qquad s(u, j) = \sum_{i \in I_u} \frac{S_{ij}}{\sum_k S_{ik}}

    The paper's conditional probability with its exponent is ``user_weight="sqrt", exponent=b`` (users of unit length);
    its cosine is ``exponent=0.5``, and IUF is ``user_weight="log"``. Once the rows are normalised only the exponent of
    the *proposed* item matters. The defaults, ``"inverse"`` and 0.2, are those of RP3beta (three steps of a random walk,
    Paudel et al., 2016) and do best on Gowalla, where the plain cosine ``user_weight="one", exponent=0.5`` loses a third.

    Any other exponent makes the cosine asymmetric (Aiolli, RecSys 2013, whose :math:`\alpha` is 1 - b).

    Args:
        schema: filled in by `fit`.
        similarity: "cosine", as above; "weighted_cosine", whose norms are sums of the users' weights :math:`c_{ii}, c_{jj}`
            too; or "jaccard": :math:`c_{ij} / (c_{ii} + c_{jj} - c_{ij})` of the weighted counts.
        exponent: b, how much the popularity of the proposed item is held against it; without meaning for "jaccard".
        user_weight: "one", "log" (1 / log(1 + n)), "log2" (1 / log₂(3 + n)), "sqrt" (1 / √n) or "inverse" (1 / n) for a
            user of n items.
        shrinkage: :math:`\lambda`; similarities are multiplied by :math:`c_{ij} / (c_{ij} + \lambda)`, so that those of few
            users count less.
        neighbours: kept for each item.
        normalise: "sum", "max" or None.
        min_items, max_items: users with fewer or more items are not counted; None: no limit.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history are asked for their neighbours; None: all.
        decay: weight of an item of the history for each step that it lies back.

    Deshpande and Karypis, ACM TOIS 2004, https://doi.org/10.1145/963770.963776

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.ItemCF(user_weight="log", exponent=0.5).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        similarity: str = "cosine",
        exponent: float = 0.2,
        user_weight: str = "inverse",
        shrinkage: float = 0.0,
        neighbours: int = 100,
        normalise: str | None = "sum",
        min_items: int = 2,
        max_items: int | None = None,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
    ):
        super().__init__(schema, neighbours, normalise, task, history, last, decay)
        if user_weight not in _WEIGHTS:
            raise unknown("user_weight", user_weight, _WEIGHTS)
        if shrinkage < 0:
            raise ConfigError(f"shrinkage is at least 0; got {shrinkage:g}.")
        self.similarity, self.exponent, self.user_weight, self.shrinkage = similarity, exponent, user_weight, shrinkage
        self.min_items, self.max_items = min_items, max_items

    def similarities(self, users: Sparse) -> Sparse:
        users = active(users, self.min_items, self.max_items)
        weight = _WEIGHTS[self.user_weight](users.counts.clip(min=1).astype(float))
        options = {"similarity": self.similarity, "exponent": self.exponent, "shrinkage": self.shrinkage}
        return co_counts(users, weight, **options, k=self.neighbours)  # type: ignore[arg-type]
