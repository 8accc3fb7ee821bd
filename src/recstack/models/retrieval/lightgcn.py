"""LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation (He et al., SIGIR 2020).

https://arxiv.org/abs/2002.02126
"""

from __future__ import annotations

from recstack.models.graph import Smoothed
from recstack.schema import Schema


class LightGCN(Smoothed):
    r"""Ids of users and items, smoothed over the graph of who chose what; no features, no weights, no activation.

    .. math:: e_u^{l+1} = \sum_{i \in I_u} \frac{e_i^l}{\sqrt{|I_u|}\sqrt{|U_i|}}, \quad
        e_i^{l+1} = \sum_{u \in U_i} \frac{e_u^l}{\sqrt{|U_i|}\sqrt{|I_u|}}, \quad
        s(u, i) = \Big\langle \tfrac{1}{L+1} \sum_{l=0}^L e_u^l,\ \tfrac{1}{L+1} \sum_{l=0}^L e_i^l \Big\rangle

    Trained with the paper's Adam, learning rate 0.001, batches of 2048 and one negative, unless `fit` is told otherwise.
    BPR over sampled negatives, plus :math:`\lambda / 2` times the squared length of :math:`e^0` of the batch's users and
    items, divided by the batch's requests. Every step propagates the whole graph, so large batches are cheaper; in eval
    the smoothed vectors are kept until the weights change.

    A user is an id here: a user whom training has not met is refused, in one sentence.

    Departs from the paper: normal initial values of deviation 0.1 (as in the authors' PyTorch code; the paper says
    Xavier); an epoch visits each interaction once, where that code draws users uniformly; no early stopping of its own.
    A user or item without an interaction keeps :math:`e^0 / (L + 1)`.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: embedding width.
        layers: L.
        weight_decay: :math:`\lambda`.

    He et al., SIGIR 2020, https://arxiv.org/abs/2002.02126

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.LightGCN(rs.Encoder(train.schema).fit(train).schema, dim=8, layers=2)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        layers: int = 3,
        weight_decay: float = 1e-4,
    ):
        super().__init__(schema, dim, layers, weight_decay)
