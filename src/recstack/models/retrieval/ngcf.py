"""Neural Graph Collaborative Filtering (Wang et al., SIGIR 2019).

https://arxiv.org/abs/1905.08108
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.models.graph import Smoothed
from recstack.nn.dropout import Dropout
from recstack.schema import Schema


class NGCF(Smoothed):
    r"""Messages over the graph that say what a neighbour is and what it has in common; layers are put side by side.

    .. math:: e_u^{l+1} = \mathrm{LeakyReLU}\Big(W_1 \big(e_u^l + \sum_{i \in I_u} p_{ui} e_i^l\big)
        + W_2 \sum_{i \in I_u} p_{ui}\, e_i^l \odot e_u^l\Big), \qquad p_{ui} = \frac{1}{\sqrt{|I_u| |U_i|}}

    Items likewise, with the same matrices. Compared are :math:`[e^0; e^1; \dots; e^L]`.

    Trained with the paper's Adam and one negative, in batches of 1024 at learning rate 0.0001, unless `fit` is told
    otherwise. A user is an id here: a user whom training has not met is refused, in one sentence.

    Departs from the paper: no node dropout, which its Gowalla run does not use; only the batch's initial vectors are
    decayed, no matrices; each layer's vectors are scaled to length 1 before they are put side by side, as in the authors'
    code. That code has biases, a LeakyReLU for each of the two terms, and the mean over a node and its neighbours for p.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: embedding width.
        hidden: width of each layer.
        dropout: of messages, after each layer.
        weight_decay: of the batch's initial vectors, as in LightGCN.

    Wang et al., SIGIR 2019, https://arxiv.org/abs/1905.08108

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.NGCF(rs.Encoder(train.schema).fit(train).schema, dim=8, hidden=(8, 4))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {**Smoothed.trainer, "lr": 1e-4, "batch_size": 1024}

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        hidden: Sequence[int] = (64, 64, 64),
        dropout: float = 0.1,
        weight_decay: float = 1e-5,
    ):
        super().__init__(schema, dim, len(hidden), weight_decay)
        for table in (self.users, self.items):
            nn.init.xavier_uniform_(table.weight[1:])
        widths = list(pairwise((dim, *hidden)))
        self.alike, self.common = (
            nn.ModuleList(nn.Linear(width, wider, bias=False) for width, wider in widths) for _ in range(2)
        )
        for matrix in (*self.alike, *self.common):
            nn.init.xavier_uniform_(matrix.weight)  # type: ignore[arg-type]
        self.dropout = Dropout(dropout)

    def propagate(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        now, found = (users, items), ([users], [items])
        for alike, common in zip(self.alike, self.common, strict=True):
            heard = self.propagation.hop(*now)
            now = tuple(
                self.dropout(F.leaky_relu(alike(e + near) + common(e * near), 0.2))
                for e, near in zip(now, heard, strict=True)
            )
            for side, e in zip(found, now, strict=True):
                side.append(F.normalize(e, dim=-1, eps=1e-6))
        return torch.cat(found[0], -1), torch.cat(found[1], -1)
