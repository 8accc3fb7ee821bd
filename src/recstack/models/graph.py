"""What retrievers share that know users and items by the graph of who chose what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack import losses
from recstack.errors import ConfigError, DataError, TrainingError
from recstack.features import tasks
from recstack.models.counting import user_items
from recstack.models.id_tables import IdTables
from recstack.models.scored import chosen_only
from recstack.nn.graph.propagation import Propagation
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns

Batch = Mapping[str, Tensor]


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
        return tasks.of_score(self._score(batch), self.schema)

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
