"""Swing: Large Scale Product Graph Construction for Recommendation in E-commerce (Yang et al., 2020).

https://arxiv.org/abs/2010.05525
"""

from __future__ import annotations

from recstack.kernels.cooccurrence import active, swing
from recstack.kernels.topk import Sparse
from recstack.models.counting import ItemToItem
from recstack.schema import Schema


class Swing(ItemToItem):
    r"""Two items are similar if many pairs of users chose both, and pairs that share little else count most.

    .. math:: S_{ij} = \sum_{\{u, v\} \subseteq U_i \cap U_j} \frac{w_u w_v}{\alpha + |I_u \cap I_v|},
        \qquad w_u = (\alpha_u + |I_u|)^{-\beta_u}, \qquad s(u, j) = \sum_{i \in I_u} \frac{S_{ij}}{\sum_k S_{ik}}

    Departs from the paper: its weights are 1 (``user_beta=0``; :math:`1/\sqrt{|I_u|}` is later practice), and the rows of
    S are normalised before they are summed (``normalise=None`` leaves them): on Gowalla that is worth a third of the
    recall. Each pair of users counts once. Other libraries' settings: ``user_alpha=15, user_beta=0.3, alpha=0`` (Flink);
    ``user_alpha=5, user_beta=-0.35`` (Alink's default, whose sign favours heavy users).

    Args:
        schema: filled in by `fit`.
        alpha: smooths the overlap of two users.
        user_alpha, user_beta: the weight of a user with n items, :math:`(\alpha_u + n)^{-\beta_u}`.
        neighbours: kept for each item.
        normalise: "sum", "max" or None.
        max_users: of an item with more users a uniform sample of this size, drawn by `seed`, is counted.
        min_items, max_items: users with fewer or more items are not counted; None: no limit.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history are asked for their neighbours; None: all.
        decay: weight of an item of the history for each step that it lies back.
        seed: of the sample of users.

    Yang et al., 2020, https://arxiv.org/abs/2010.05525

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> swing = rs.retrieval.Swing(neighbours=50).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> swing.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        alpha: float = 1.0,
        user_alpha: float = 0.0,
        user_beta: float = 0.5,
        neighbours: int = 100,
        normalise: str | None = "sum",
        max_users: int = 1000,
        min_items: int = 2,
        max_items: int | None = None,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(schema, neighbours, normalise, task, history, last, decay)
        self.alpha, self.user_alpha, self.user_beta = alpha, user_alpha, user_beta
        self.max_users, self.min_items, self.max_items, self.seed = max_users, min_items, max_items, seed

    def similarities(self, users: Sparse) -> Sparse:
        users = active(users, self.min_items, self.max_items)
        weight = (self.user_alpha + users.counts.clip(min=1)) ** -float(self.user_beta)
        return swing(users, weight, alpha=self.alpha, k=self.neighbours, max_users=self.max_users, seed=self.seed)
