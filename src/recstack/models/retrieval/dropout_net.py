"""DropoutNet: Addressing Cold Start in Recommender Systems (Volkovs, Yu and Poutanen, NIPS 2017).

https://papers.nips.cc/paper/7081-dropoutnet-addressing-cold-start-in-recommender-systems
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError, SchemaError, TrainingError
from recstack.features import Inputs
from recstack.features.columns import column, of_steps
from recstack.features.tables import Ask, check_ids
from recstack.features.tasks import target
from recstack.models.base import Retriever
from recstack.nn.mlp import MLP
from recstack.schema import History, Schema, is_derived

if TYPE_CHECKING:
    from recstack.data import Columns

Batch = Mapping[str, Tensor]


class DropoutNet(Retriever):
    r"""Towers over given preference vectors and content, which learn to do without the preferences.

    .. math:: \hat u = f([m_u U_u ; \Phi_u]), \qquad \hat v = g([m_v V_v ; \Phi_v]), \qquad
        L = \mathbb{E} \big( U_u^\top V_v - \hat u^\top \hat v \big)^2

    U and V are another model's, given by `pretrain`; :math:`\Phi` is everything else that the schema declares of a user
    (attributes, context, what the items of the history are made of) and of an item. In training :math:`m` is 0 with the
    chance `dropout`, on either side; half of the users that lose their vector get the mean of V over their history instead,
    if there is one. So a user or an item that the other model never met is answered from content, and a new user from the
    items met so far, without training anew: new users have that mean, new items nothing.

    ``user_vectors [R, 1, dim]``, ``item_vectors [N, dim]``. Trained on the positives and drawn items, of which the label is
    not read; a pair counts where both sides have a preference vector.

    Departs from the paper: no batch normalisation; of new items no mean of U over those who chose them; the items that a
    user is trained on are not sampled by their score.

    Args:
        schema: a fitted schema with a user and an item key.
        dim: width of the preference vectors, and of what comes out.
        width: of the embeddings of content.
        hidden: widths of each tower.
        dropout: the chance that a preference vector is left out.

    Volkovs et al., NIPS 2017, https://papers.nips.cc/paper/7081-dropoutnet-addressing-cold-start-in-recommender-systems

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> preferences = rs.retrieval.iALS(dim=16, iterations=5, unobserved=0.3).fit(train)
    >>> model = rs.retrieval.DropoutNet(preferences.schema, dim=16).pretrain(preferences)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> stranger = max(train.events["user_id"]) + 1
    >>> model.recommend([*train.events["user_id"][:2], stranger], k=5).ids.shape
    torch.Size([3, 5])
    """

    USER: ClassVar[tuple[str, ...]] = ("user", "context", "domain")
    needs: ClassVar[tuple[str, ...]] = ("user", "item")
    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 256, "negatives": 4}

    users: Tensor  # [users, dim], of root mean square 1; zeros of whom the other model has not met
    items: Tensor
    scale: Tensor  # of a product of the two, in the other model's unit

    def __init__(
        self, schema: Schema, *, dim: int = 64, width: int = 16, hidden: Sequence[int] = (256,), dropout: float = 0.5
    ):
        super().__init__(schema)
        if schema.user is None or schema.item is None:
            raise SchemaError(
                "DropoutNet needs a user key and an item key: a Categorical of each role, or user=, item=."
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is a chance, at least 0 and below 1; got {dropout:g}.")
        self.user, self.item, self.dropout = schema.user, schema.item, dropout
        keys = (self.user, self.item)
        content = [f for f in schema.by_role("user", "context", "domain", "item") if f.name not in keys]
        content = [f for f in content if not is_derived(f) and not isinstance(f, History)]
        self.inputs = Inputs(Schema(content), width, std=0.02) if content else None
        self.steps = [(h, name) for h in schema.histories for name in h.of if name != self.item]
        of_user, of_item = (0 if self.inputs is None else self.inputs.width(*r) for r in (self.USER, ("item",)))
        of_user += sum(self.inputs.tables.dims[schema.feature(n).table_name] for _, n in self.steps)  # type: ignore[union-attr, attr-defined]
        self.user_tower, self.item_tower = (
            nn.Sequential(mlp := MLP(dim + w, hidden, "tanh"), nn.Linear(mlp.width, dim)) for w in (of_user, of_item)
        )
        for name, key in (("users", self.user), ("items", self.item)):
            self.register_buffer(name, torch.zeros(schema.feature(key).size, dim))  # type: ignore[attr-defined]
        self.register_buffer("scale", torch.ones(()))

    def pretrain(self, model: Any) -> Self:
        """Take the preference vectors of a fitted model that has `users` and `items` by id: iALS, BPR, GMF, LightGCN ...

        Raises:
            ConfigError: one without them, of another width, or over another vocabulary.
        """
        given = {}
        for name in ("users", "items"):
            found = getattr(model, name, None)
            found = getattr(found, "weight", found)  # a table, or the array itself
            own = getattr(self, name)
            if found is None or tuple(found.shape) != tuple(own.shape):
                what = "none" if found is None else list(found.shape)
                raise ConfigError(
                    f"DropoutNet with dim={own.shape[1]} needs {name} of shape {list(own.shape)} over the ids of its schema; "
                    f"{type(model).__name__} has {what}. Fit it on the same Encoder, with that dim."
                )
            given[name] = torch.as_tensor(found).detach().to(own).clone()
            given[name][:2] = 0
        self.scale.fill_(1)
        for name, vectors in given.items():
            live = vectors.any(-1)
            size = (vectors.square().sum() / (live.sum() * vectors.shape[1]).clamp(min=1)).sqrt().clamp(min=1e-12)
            getattr(self, name).copy_(vectors / size)
            self.scale.mul_(size)
        return self

    def prepare(self, train: Columns) -> None:
        """What `train` has not met has no preferences, whatever the other model had begun it with; `fit` does so."""
        positive = train.positives()
        request = np.repeat(np.arange(train.n_requests), np.diff(train.lists))[positive]
        for own, ids in ((self.users, train.user_ids[request]), (self.items, train.item_ids[positive])):
            met = np.bincount(ids, minlength=len(own)) > 0
            own.mul_(torch.from_numpy(met).to(own).unsqueeze(-1))

    # -- the two sides ------------------------------------------------------------------------------------------------
    def user_vectors(self, batch: Batch) -> Tensor:
        own, other = self._preferences(batch, self.user, self.users), self._mean_of_history(batch)
        return self._user(batch, torch.where(own.any(-1, keepdim=True), own, other))

    def item_vectors(self, batch: Batch) -> Tensor:
        return self._item(batch, self._preferences(batch, self.item, self.items))

    def _user(self, batch: Batch, preferences: Tensor) -> Tensor:
        parts = [preferences, *self._content(batch, *self.USER)]
        for h, name in self.steps:
            table, key = self.schema.feature(name).table_name, f"{name}@{h.name}"  # type: ignore[attr-defined]
            ids = of_steps(batch, name, h.name)
            vectors = self.inputs.tables.gather([Ask(table, ids, column=key)])[0]  # type: ignore[union-attr]
            live = (ids > 0).flatten(1).sum(1, keepdim=True)  # of several values a step, each counts
            parts.append(vectors.flatten(1, -2).sum(1) / live.clamp(min=1))
        return self.user_tower(torch.cat(parts, -1)).unsqueeze(1)

    def _item(self, batch: Batch, preferences: Tensor) -> Tensor:
        content = [x.view(*preferences.shape[:-1], x.shape[-1]) for x in self._content(batch, "item")]
        return self.item_tower(torch.cat([preferences, *content], -1))

    def _content(self, batch: Batch, *roles: str) -> list[Tensor]:
        return [self.inputs(batch, *roles).flat()] if self.inputs is not None and self.inputs.width(*roles) else []

    def _preferences(self, batch: Batch, key: str, table: Tensor) -> Tensor:
        ids = column(batch, key)
        check_ids(ids, key, len(table))
        return F.embedding(ids, table)

    def _mean_of_history(self, batch: Batch) -> Tensor:
        """The mean of V over the items of the user's histories ``[R, dim]``; zeros where there are none."""
        ids = [of_steps(batch, self.item, h.name) for h in self.schema.histories if self.item in h.of]
        if not ids:
            return self.users.new_zeros(column(batch, self.user).shape[0], self.users.shape[1])
        vectors = F.embedding(torch.cat(ids, 1), self.items)
        return vectors.sum(1) / vectors.any(-1).sum(1, keepdim=True).clamp(min=1)

    # -- training -----------------------------------------------------------------------------------------------------
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The squared error of the other model's scores, preferences being left out at random."""
        if not (self.users.any() and self.items.any()):
            raise TrainingError("DropoutNet has no preference vectors; call model.pretrain(a fitted iALS) before fit.")
        u, v = self._preferences(batch, self.user, self.users), self._preferences(batch, self.item, self.items)
        where = u.any(-1, keepdim=True) & v.any(-1)
        weight = target(batch, self.schema, self.schema.tasks[0]).weight if self.schema.tasks else None
        wanted = (u.unsqueeze(1) * v).sum(-1) * self.scale
        chance = torch.rand(len(u), 1, device=u.device)
        shown = torch.where(chance < self.dropout / 2, 0, self._mean_of_history(batch))
        users = self._user(batch, torch.where(chance < self.dropout, shown, u))
        kept = torch.rand(v.shape[:-1], device=v.device).unsqueeze(-1) >= self.dropout
        items = {f.name: batch[f.name] for f in self.schema.by_role("item") if f.name in batch}
        items |= {f"{n}@offsets": batch[f"{n}@offsets"] for n in items if f"{n}@offsets" in batch}
        score = (users.float() * self._item(items, v * kept).float()).sum(-1)
        if "@mask" in batch:
            where = where & batch["@mask"]
        return {"preferences": losses.mse(score, wanted, where=where, weight=weight)}
