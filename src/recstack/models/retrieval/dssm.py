"""Two towers with sampled softmax: DSSM (Huang et al., CIKM 2013) trained as in Yi et al., RecSys 2019.

https://research.google/pubs/pub48840
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.features import Inputs
from recstack.features.inputs import column
from recstack.features.tasks import target
from recstack.models.base import Retriever
from recstack.nn.mlp import MLP
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class DSSM(Retriever):
    r"""A user tower and an item tower that meet in a cosine.

    .. math:: s(u, i) = \frac{\cos(f(u), g(i))}{\tau}, \qquad
              L = -\log \frac{e^{s(u, i) - \log q_i}}{\sum_{j \in \text{batch}} e^{s(u, j) - \log q_j}}

    ``f(u), g(i): [R, D], [N, D]``. The other rows' items are the negatives; q, how often an item is drawn, is counted
    while training (a streaming estimate with one counter per item), and an accidental hit (the same item in another
    row) is no negative. Candidates with label 0 of the batch join as further negatives of all rows, as drawn uniformly
    (mixed negative sampling, Yang et al., WWW 2020). The history reads the item tower's tables.

    Departs from DSSM: no letter trigrams; ReLU; the softmax is sampled.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of both towers; the last is D.
        temperature: τ, where learning starts.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.
        examples_per_user: `fit` trains on that many of each user's newest requests, so that heavy users do not outvote
            the rest (Covington et al., RecSys 2016); None takes all.

    Huang et al., CIKM 2013, https://dl.acm.org/doi/10.1145/2505515.2505665; Yi et al., RecSys 2019,
    https://research.google/pubs/pub48840

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.DSSM(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    drawn: Tensor  # how often each item was a target

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (256, 128, 64),
        temperature: float = 0.05,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
        examples_per_user: int | None = None,
    ):
        super().__init__(schema)
        self.examples_per_user = examples_per_user
        own = schema.without(*[f.name for f in schema.fields if f.role == "pair"])  # a pair is known to neither tower
        self.inputs = Inputs(own, dim, history=history, std=0.02)
        self.user_tower = MLP(self.inputs.width("user", "context", "domain", "history"), hidden[:-1], dropout=dropout)
        self.item_tower = MLP(self.inputs.width("item"), hidden[:-1], dropout=dropout)
        self.user_out = nn.Linear(self.user_tower.width, hidden[-1])
        self.item_out = nn.Linear(self.item_tower.width, hidden[-1])
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        size = schema.feature(schema.item).size  # type: ignore[arg-type, attr-defined]
        self.register_buffer("drawn", torch.zeros(size))

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        x = self.inputs(batch, "user", "context", "domain", "history").flat()
        return F.normalize(self.user_out(self.user_tower(x)).float(), dim=-1).unsqueeze(1) / self.log_temperature.exp()

    def item_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(self.item_out(self.item_tower(self.inputs(batch, "item").flat())).float(), dim=-1)

    def training_columns(self, train: Any) -> Any:
        if self.examples_per_user is None:
            return train
        return train.select(np.flatnonzero(train.newer() < self.examples_per_user))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In-batch softmax of the positives. Rows without a positive, and items out of vocabulary, count nothing."""
        ids = column(batch, self.schema.item).long()  # type: ignore[arg-type]
        users, items = self.user_vectors(batch), self._items(batch, ids)
        label, where, weight = target(batch, self.schema, self.schema.tasks[0])
        positive = where & (label > 0) & (ids > 1)
        row, place = positive.nonzero(as_tuple=True)
        drawn = where & (label == 0) & (ids > 1)
        if self.training:
            self.drawn.index_add_(0, ids[row, place], torch.ones(len(row)))
        n, m, size = len(row), int(drawn.sum()), self.drawn.shape[0] - 2
        share = (self.drawn + 1) / (self.drawn.sum() + size)
        log_q = ((n * share + m / size) / max(n + m, 1)).log()
        other = ids[drawn]
        value = losses.in_batch_softmax(
            users[row],
            items[row, place],
            ids[row, place],
            log_q=log_q[ids[row, place]],
            extra_item=items[drawn],
            extra_ids=other,
            extra_log_q=log_q[other],
            weight=None if weight is None else weight[row, place],
        )
        return {"softmax": value}

    def _items(self, batch: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        x = self.inputs(batch, "item").flat()
        return F.normalize(self.item_out(self.item_tower(x)).float(), dim=-1).view(*ids.shape, -1)
