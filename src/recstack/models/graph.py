"""What retrievers share that know users and items by their ids, and by the graph of who chose what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError, DataError, SchemaError, TrainingError
from recstack.features import tasks
from recstack.features.columns import column
from recstack.features.tables import check_ids
from recstack.models.base import Retriever
from recstack.models.counting import user_items
from recstack.models.scored import chosen_only, require_known
from recstack.nn.graph.propagation import Propagation
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns

Batch = Mapping[str, Tensor]


class IdTables(Retriever):
    """A vector for each user id and each item id, `users` and `items`; rows 0 are padding and stay zeros.

    A user whom training has not met is refused, in one sentence.

    Args:
        schema: a fitted schema with a user and an item key.
        dim: width of the vectors.
        std: deviation of the initial ones.
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    def __init__(self, schema: Schema, dim: int, *, std: float):
        super().__init__(schema)
        if schema.user is None or schema.item is None:
            raise SchemaError(
                f"{type(self).__name__} needs a user key and an item key: a Categorical of each role, or user=, item=."
            )
        self.user, self.item = schema.user, schema.item
        sizes = [schema.feature(name).size for name in (self.user, self.item)]  # type: ignore[attr-defined]
        self.users, self.items = (nn.Embedding(size, dim, padding_idx=0) for size in sizes)  # type: ignore[arg-type]
        for table in (self.users, self.items):
            nn.init.normal_(table.weight[1:], std=std)

    def user_vectors(self, batch: Batch) -> Tensor:
        return F.embedding(self._ids(batch, self.user), self.users.weight).unsqueeze(-2)

    def item_vectors(self, batch: Batch) -> Tensor:
        return F.embedding(self._ids(batch, self.item), self.items.weight)

    def _ids(self, batch: Batch, key: str) -> Tensor:
        ids = column(batch, key)
        check_ids(ids, key, (self.users if key == self.user else self.items).num_embeddings)
        return ids

    def _users(self, requests: Any) -> Tensor:
        require_known(self, requests)
        return super()._users(requests)

    @property
    def task(self) -> Any:
        """The task that is learned: the schema's first."""
        return next(t for t in self.schema.tasks if not t.derived)


class Smoothed(IdTables):
    r"""Ids smoothed over the graph of who chose what, trained by BPR over sampled negatives.

    `propagate` says how they are smoothed. The loss adds :math:`\lambda / 2` times the squared length of the initial vectors
    of the batch's users and items, divided by the batch's requests. Every step propagates the whole graph, so large batches
    are cheaper; in eval the smoothed vectors are kept until the weights change. `fit` compares each positive with drawn
    items, unless requests have several candidates.

    Args:
        schema, dim, std: as in `IdTables`.
        layers: how often a vector goes to its neighbours.
        weight_decay: :math:`\lambda`.
    """

    trainer: ClassVar[dict[str, Any]] = {
        "optimizer": ("adam", {"fused": True}),
        "lr": 1e-3,
        "batch_size": 2048,
        "negatives": 1,
    }

    def __init__(self, schema: Schema, dim: int, layers: int, weight_decay: float, *, std: float = 0.1):
        super().__init__(schema, dim, std=std)
        self.propagation = Propagation(self.users.num_embeddings, self.items.num_embeddings, layers)
        self.weight_decay = weight_decay
        self._smoothed: tuple[Any, Tensor, Tensor] | None = None

    def propagate(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """From initial vectors ``[U, D]`` and ``[N, D]`` to those that are compared."""
        return self.propagation(users, items)

    def prepare(self, train: Columns) -> None:
        """Take the graph from the interactions of `train`; `fit` does so."""
        users = user_items(train)
        self.propagation.connect(torch.from_numpy(users.offsets), torch.from_numpy(users.columns))
        self._smoothed = None

    def link(self, one: Sequence[Any], other: Sequence[Any], strength: float = 1.0) -> Self:
        r"""Social links: vectors go from user to user too, before `fit`, with ``model.link(users, friends).fit(train)``.

        .. math:: A = \begin{pmatrix} \lambda S & R \\ R^\top & 0 \end{pmatrix}, \qquad \hat A = D^{-1/2} A D^{-1/2}

        Args:
            one, other: raw user ids ``[n]`` and ``[n]``; a link goes both ways. Users that the Encoder does not know are left
                out.
            strength: λ; with 0 it is as if there were none.

        Raises:
            DataError: not as many of the one as of the other; no Encoder that knows raw ids.
            ConfigError: a negative strength.
        """
        if len(one) != len(other):
            raise DataError(f"link() needs two users for each link; got {len(one)} and {len(other)}.")
        if strength < 0:
            raise ConfigError(f"strength is at least 0; got {strength:g}.")
        if self.schema.encoder is None:
            raise DataError(
                "This model's schema knows no Encoder, so raw users have no ids; build it from encoder.schema."
            )
        ids = [torch.from_numpy(self.schema.encoder.encode_values(self.user, list(side))) for side in (one, other)]
        known = (ids[0] > 1) & (ids[1] > 1)
        self.propagation.link(ids[0][known], ids[1][known], strength)
        self._smoothed = None
        return self

    def training_columns(self, train: Columns) -> Columns:
        return chosen_only(train)

    def smoothed(self) -> tuple[Tensor, Tensor]:
        """Embeddings after propagation, by id; without gradients they are kept until the weights change."""
        if torch.compiler.is_compiling():
            return self.propagate(self.users.weight, self.items.weight)
        if torch.is_grad_enabled() or self.training:
            self._smoothed = None  # a step may follow, and fused optimisers do not count versions
            return self.propagate(self.users.weight, self.items.weight)
        version = [(t.data_ptr(), t._version) for t in (*self.parameters(), self.propagation.weights)]
        if self._smoothed is None or self._smoothed[0] != version:
            self._smoothed = (version, *self.propagate(self.users.weight, self.items.weight))
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
            name = type(self).__name__
            raise TrainingError(
                f"{name} has no graph. Use model.fit(train), or model.prepare(columns) before a Trainer."
            )
        label, where, weight = tasks.target(batch, self.schema, self.task)
        bpr = losses.bpr(self._score(batch), label, where=where, weight=weight)
        user, item = self._rows(batch, self.users.weight, self.items.weight)
        if "@mask" in batch:
            item = item * batch["@mask"].unsqueeze(-1)
        length = user.square().sum() + item.square().sum()
        return {self.task.name: bpr, "l2": self.weight_decay / 2 * length / len(user)}

    def _rows(self, batch: Batch, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """[R, D] and [R, L, D] of a batch."""
        return F.embedding(self._ids(batch, self.user), users), F.embedding(self._ids(batch, self.item), items)

    def _score(self, batch: Batch) -> Tensor:
        user, item = self._rows(batch, *self.smoothed())  # one propagation for both sides
        return (user.unsqueeze(-2).float() * item.float()).sum(-1)
