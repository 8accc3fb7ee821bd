"""Two towers with sampled softmax: DSSM (Huang et al., CIKM 2013) trained as in Yi et al., RecSys 2019.

https://research.google/pubs/pub48840
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recstack.features import Inputs
from recstack.features.columns import column
from recstack.models.base import Retriever
from recstack.models.in_batch import InBatchSoftmax, shown
from recstack.models.two_towers import Towers
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
        senet: weigh each tower's features by squeeze and excitation, anew for each user and item.
        loss: "sampled_softmax", "nce", or one of cosines, for which τ is not used: "triplet", "cosine_contrastive" and
            "direct_au"; with options as in ``("triplet", {"margin": 0.3})``. See `recstack.losses`.
        memory: items of earlier batches that are negatives too, corrected as the batch's own are (cross-batch negative
            sampling, Wang et al., SIGIR 2021).

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
        senet: bool = False,
        loss: str | tuple[str, Mapping[str, Any]] = "sampled_softmax",
        memory: int = 0,
    ):
        super().__init__(schema)
        self.examples_per_user = examples_per_user
        self.towers = Towers(schema, dim, hidden, history=history, dropout=dropout, senet=senet)
        size = schema.feature(schema.item).size  # type: ignore[arg-type, attr-defined]
        self.softmax = InBatchSoftmax(size, loss=loss, memory=memory, dim=hidden[-1])
        if self.softmax.logits:
            self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    @property
    def inputs(self) -> Inputs:
        return self.towers.inputs

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        users = self.towers.user(batch).unsqueeze(1)
        return users / self.log_temperature.exp() if self.softmax.logits else users

    def item_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.towers.item(batch)

    def training_columns(self, train: Any) -> Any:
        if self.examples_per_user is None:
            return train
        return train.select(np.flatnonzero(train.newer() < self.examples_per_user))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In-batch softmax of the positives. Rows without a positive, and items out of vocabulary, count nothing."""
        found = shown(batch, self.schema)
        users, items = self.user_vectors(batch), self.towers.item(batch).view(*found.ids.shape, -1)
        chosen, others = (found.live & (found.label > 0), found.live & (found.label == 0))
        who = None if self.schema.user is None else column(batch, self.schema.user)
        value = self.softmax(users, items, found.ids, chosen, others, found.weight, who)
        return {"softmax": value}
