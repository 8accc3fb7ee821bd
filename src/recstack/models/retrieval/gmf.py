"""Neural Collaborative Filtering (He et al., WWW 2017): generalised matrix factorisation.

https://arxiv.org/abs/1708.05031
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recstack.models.id_tables import IdTables
from recstack.schema import Schema

Batch = Mapping[str, Tensor]


class GMF(IdTables):
    r"""Matrix factorisation whose dimensions have weights, trained to tell what was chosen from what was drawn.

    .. math:: s(u, i) = h^\top (p_u \odot q_i), \qquad L = -\sum y \log \sigma(s) + (1 - y) \log(1 - \sigma(s))

    Still an inner product, of :math:`h \odot p_u` and :math:`q_i`. Trained with the paper's Adam and four negatives drawn anew
    for each positive in each epoch, in batches of 256 positives (in the authors' code 256 of both), unless `fit` is told
    otherwise.

    A user is an id here: a user whom training has not met is refused, in one sentence.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: predictive factors.

    He et al., WWW 2017, https://arxiv.org/abs/1708.05031

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.GMF(rs.Encoder(train.schema).fit(train).schema, dim=16)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 256, "negatives": 4}

    def __init__(self, schema: Schema, *, dim: int = 8):
        super().__init__(schema, dim, std=0.01)
        self.head = nn.Parameter(torch.empty(dim).uniform_(-1, 1) * (3 / dim) ** 0.5)  # LeCun's uniform

    def user_vectors(self, batch: Batch) -> Tensor:
        return super().user_vectors(batch) * self.head
