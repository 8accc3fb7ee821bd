"""LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation (He et al., SIGIR 2020).

https://arxiv.org/abs/2002.02126
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.errors import SchemaError, TrainingError
from recstack.features import tasks
from recstack.features.inputs import check_ids, column
from recstack.models.base import Retriever
from recstack.models.counting import user_items
from recstack.nn.graph.propagation import Propagation
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns

Batch = Mapping[str, Tensor]


class LightGCN(Retriever):
    r"""Ids of users and items, smoothed over the graph of who chose what; no features, no weights, no activation.

    .. math:: e_u^{l+1} = \sum_{i \in I_u} \frac{e_i^l}{\sqrt{|I_u|}\sqrt{|U_i|}}, \quad
        e_i^{l+1} = \sum_{u \in U_i} \frac{e_u^l}{\sqrt{|U_i|}\sqrt{|I_u|}}, \quad
        s(u, i) = \Big\langle \tfrac{1}{L+1} \sum_{l=0}^L e_u^l,\ \tfrac{1}{L+1} \sum_{l=0}^L e_i^l \Big\rangle

    Trained with the paper's Adam, learning rate 0.001, batches of 2048 and one negative, unless `fit` is told otherwise.
    BPR over sampled negatives, plus :math:`\lambda / 2` times the squared length of :math:`e^0` of the batch's users and
    items, divided by the batch's requests. Every step propagates the whole graph, so large batches are cheaper; in eval
    the smoothed vectors are kept until the weights change.

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

    needs = ("user", "item")
    trainer: ClassVar[dict[str, Any]] = {
        "optimizer": ("adam", {"fused": True}),
        "lr": 1e-3,
        "batch_size": 2048,
        "negatives": 1,
    }

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        layers: int = 3,
        weight_decay: float = 1e-4,
    ):
        super().__init__(schema)
        if schema.user is None or schema.item is None:
            raise SchemaError("LightGCN needs a user key and an item key: a Categorical of each role, or user=, item=.")
        self.user, self.item = schema.user, schema.item
        user: Any = schema.feature(self.user)
        item: Any = schema.feature(self.item)
        self.users, self.items = (nn.Embedding(f.size, dim, padding_idx=0) for f in (user, item))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight[1:], std=0.1)  # 0 is padding and stays zeros
        self.propagation = Propagation(user.size, item.size, layers)
        self.weight_decay = weight_decay
        self._smoothed: tuple[Any, Tensor, Tensor] | None = None

    def prepare(self, train: Columns) -> None:
        """Take the graph from the interactions of `train`; `fit` does so."""
        users = user_items(train)
        self.propagation.connect(torch.from_numpy(users.offsets), torch.from_numpy(users.columns))
        self._smoothed = None

    def smoothed(self) -> tuple[Tensor, Tensor]:
        """Embeddings after propagation, by id; without gradients they are kept until the weights change."""
        if torch.compiler.is_compiling():
            return self.propagation(self.users.weight, self.items.weight)
        if torch.is_grad_enabled():
            self._smoothed = None  # a step may follow, and fused optimisers do not count versions
            return self.propagation(self.users.weight, self.items.weight)
        version = [(t.data_ptr(), t._version) for t in (self.users.weight, self.items.weight, self.propagation.columns)]
        if self._smoothed is None or self._smoothed[0] != version:
            self._smoothed = (version, *self.propagation(self.users.weight, self.items.weight))
        return self._smoothed[1:]

    def user_vectors(self, batch: Batch) -> Tensor:
        return F.embedding(self._ids(batch, self.user), self.smoothed()[0]).unsqueeze(-2)

    def item_vectors(self, batch: Batch) -> Tensor:
        return F.embedding(self._ids(batch, self.item), self.smoothed()[1])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        score = self._score(batch)
        return {t.name: tasks.lifted(score, t) for t in self.schema.tasks} or {"score": score}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if not self.propagation.columns.numel():
            raise TrainingError(
                "LightGCN has no graph. Use model.fit(train), or model.prepare(columns) before a Trainer."
            )
        task = next(t for t in self.schema.tasks if not t.derived)
        label, where, weight = tasks.target(batch, self.schema, task)
        bpr = losses.bpr(self._score(batch), label, where=where, weight=weight)
        user, item = self._rows(batch, self.users.weight, self.items.weight)
        if "@mask" in batch:
            item = item * batch["@mask"].unsqueeze(-1)
        length = user.square().sum() + item.square().sum()
        return {task.name: bpr, "l2": self.weight_decay / 2 * length / len(user)}

    def _rows(self, batch: Batch, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """[R, D] and [R, L, D] of a batch."""
        return F.embedding(self._ids(batch, self.user), users), F.embedding(self._ids(batch, self.item), items)

    def _score(self, batch: Batch) -> Tensor:
        user, item = self._rows(batch, *self.smoothed())  # one propagation for both sides
        return (user.unsqueeze(-2).float() * item.float()).sum(-1)

    def _ids(self, batch: Batch, key: str) -> Tensor:
        ids = column(batch, key)
        check_ids(ids, key, (self.users if key == self.user else self.items).num_embeddings)
        return ids
