"""Collaborative Filtering (etrec) (Alibaba Cloud, PAI 2018).

https://help.aliyun.com/en/pai/user-guide/collaborative-filtering-etrec
"""

from __future__ import annotations

import numpy as np

from recstack.errors import ConfigError, unknown
from recstack.kernels.cooccurrence import active, co_counts
from recstack.kernels.topk import Sparse
from recstack.models.counting import ItemToItem
from recstack.schema import Schema

_COUNTED_AS = {"wbcosine": "weighted_cosine", "asymcosine": "cosine", "jaccard": "jaccard"}


class ETREC(ItemToItem):
    r"""ItemCF under the names and defaults of PAI's etrec component.

    .. math:: \mathrm{wbcosine:}\; S_{ij} = \frac{\sum_{u \in U_i \cap U_j} w_u}
        {\sqrt{\sum_{u \in U_i} w_u \sum_{u \in U_j} w_u}},\; w_u = \frac{1}{\log_2(3 + |I_u|)}, \qquad
        \mathrm{asymcosine:}\; \Big(\frac{|U_i \cap U_j|}{|U_i|^{\alpha} |U_j|^{1 - \alpha}}\Big)^{\mathrm{weight}}

    ``ETREC()`` is ``ItemCF(similarity="weighted_cosine", exponent=0.5, user_weight="log2", neighbours=2000,
    normalise=None, max_items=500)``.

    Departs from the component: PAI documents names and defaults, not formulas. The formula of wbcosine is the one that its
    users describe; alpha and weight are read as the asymmetry and the locality of Aiolli (RecSys 2013). Its deprecated
    ``operator``, which it says has no effect, does not exist.

    Args:
        schema: filled in by `fit`.
        similarity_type: "wbcosine", "asymcosine" or "jaccard".
        top_n: similar items kept for each item.
        min_user_behavior, max_user_behavior: users with fewer or more items are not counted.
        alpha: of asymcosine, the share of the exponents that the item of the history has.
        weight: of asymcosine, the exponent of the similarity.
        normalise: "sum", "max" or None; PAI leaves rows as they are.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history are asked for their neighbours; None: all.
        decay: weight of an item of the history for each step that it lies back.

    https://help.aliyun.com/en/pai/user-guide/collaborative-filtering-etrec

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.ETREC(top_n=50).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        similarity_type: str = "wbcosine",
        top_n: int = 2000,
        min_user_behavior: int = 2,
        max_user_behavior: int = 500,
        alpha: float = 0.5,
        weight: float = 1.0,
        normalise: str | None = None,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
    ):
        if similarity_type not in _COUNTED_AS:
            raise unknown("similarity_type", similarity_type, _COUNTED_AS)
        if top_n < 1 or weight <= 0:
            raise ConfigError(f"top_n is at least 1 and weight is positive; got {top_n} and {weight:g}.")
        super().__init__(schema, top_n, normalise, task, history, last, decay)
        self.similarity_type, self.alpha, self.weight = similarity_type, alpha, weight
        self.min_user_behavior, self.max_user_behavior = min_user_behavior, max_user_behavior

    def similarities(self, users: Sparse) -> Sparse:
        users = active(users, self.min_user_behavior, self.max_user_behavior)
        asymmetric = self.similarity_type == "asymcosine"
        each = 1 / np.log2(3 + users.counts) if self.similarity_type == "wbcosine" else np.ones(users.height)
        found = co_counts(
            users,
            each,
            similarity=_COUNTED_AS[self.similarity_type],
            exponent=1 - self.alpha if asymmetric else 0.5,
            k=self.neighbours,
        )
        assert found.values is not None
        return found._replace(values=found.values**self.weight) if asymmetric else found
