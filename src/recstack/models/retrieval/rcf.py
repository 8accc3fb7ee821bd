"""Relational Collaborative Filtering: Modeling Multiple Item Relations for Recommendation (Xin et al., SIGIR 2019).

https://arxiv.org/abs/1904.12796
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError, SchemaError, TrainingError, unknown
from recstack.features import tasks
from recstack.features.columns import column, of_steps
from recstack.features.tables import check_ids
from recstack.models.base import Retriever
from recstack.models.counting import value_table
from recstack.models.scored import best_of_all, chosen_only
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import MLP, linear
from recstack.nn.modes import evaluating
from recstack.nn.sequence.relations import RelationPooling, SharedValues
from recstack.schema import Categorical, Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

Batch = Mapping[str, Tensor]
CELLS = 1 << 23  # numbers of the second attention that are held at once, where all items are scored


class RCF(Retriever):
    r"""A user is what they are and, for each relation, the items of their history that have it with the target.

    .. math:: s(u, i) = \mathrm{MLP}\Big(\big(p_u + \sum_t \alpha_t \sum_{j \in I_{ui}^t} \beta_j q_j\big) \odot q_i\Big), \qquad
        \alpha = \mathrm{softmax}_t\ h^\top \mathrm{ReLU}(W (p_u \odot x_t) + c)

    .. math:: \beta_j = \frac{e^{b_j}}{\big(\sum_{k \in I_{ui}^t} e^{b_k}\big)^{\rho}}, \qquad
        b_j = z_t^\top \tanh(W_t^1 q_i + W_t^2 q_j + W_t^3 z_v)

    A relation is a type t, one of `features`, and the value v that two items share (several: their mean); type 0 holds the
    items of the history that share nothing with the target, and has no z. Trained by BPR, and beside it the vectors learn to
    tell what is related, :math:`f(i, j) = q_i^\top \mathrm{diag}(x_t + z_v)\, q_j`:

    .. math:: L = \sum \mathrm{softplus}(s_{uk} - s_{ui}) + \gamma \sum_t \mathrm{softplus}\big(f(i, j^-) - f(i, j^+)\big)

    j⁺ shares with the positive i a value drawn from those of i, j⁻ is drawn uniformly and does not; each sum is a mean over the
    batch. Trained with Adagrad, 0.05, and one negative, unless `fit` is told otherwise.

    What is near depends on the target, so there are no vectors to index and `recommend` takes every item through both attentions:
    better to let it rank what others found, by `pair_scores`. A user whom training has not met has p = 0 and is known by their
    history.

    Args:
        schema: a fitted schema with a user and an item key and a History.
        dim: width of all vectors.
        features: the types, categories of the items; None: all.
        attention: width of both attentions.
        hidden: widths of the MLP.
        dropout: of what the MLP reads and in it.
        smoothing: ρ; 1 is a softmax.
        relation_weight: γ.

    Xin et al., SIGIR 2019, https://arxiv.org/abs/1904.12796

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.RCF(rs.Encoder(train.schema).fit(train).schema, dim=8, attention=4, hidden=(8,))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "history", "item")
    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adagrad", "lr": 0.05, "batch_size": 512, "negatives": 1}

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        features: Sequence[str] | None = None,
        attention: int = 32,
        hidden: Sequence[int] = (64,),
        dropout: float = 0.5,
        smoothing: float = 0.5,
        relation_weight: float = 0.01,
    ):
        super().__init__(schema)
        if schema.user is None or schema.item is None:
            raise SchemaError("RCF needs a user key and an item key: a Categorical of each role, or user=, item=.")
        if not 0 <= smoothing <= 1 or relation_weight < 0:
            raise ConfigError(
                f"smoothing lies in [0, 1] and relation_weight is at least 0; got {smoothing:g} and {relation_weight:g}."
            )
        self.user, self.item, self.history = schema.user, schema.item, schema.histories[0]
        able = {f.name: f for f in schema.by_role("item") if isinstance(f, Categorical) and f.name != schema.item}
        for name in features or ():
            if name not in able:
                raise unknown("category of items", name, able, SchemaError)
        self.types = list(able.values()) if features is None else [able[name] for name in features]
        self.relation_weight = relation_weight
        sizes = [schema.feature(name).size for name in (self.user, self.item)]  # type: ignore[attr-defined]
        self.size = sizes[1]
        self.shared = SharedValues(self.size, [f.size for f in self.types])  # type: ignore[arg-type, misc]
        self.users, self.items, self.of_values = (
            nn.Embedding(n, dim, padding_idx=0)
            for n in (*sizes, self.shared.rows)  # type: ignore[arg-type]
        )
        for table in (self.users, self.items, self.of_values):
            nn.init.normal_(table.weight[1:], std=0.05)
        nn.init.zeros_(self.users.weight[:2])  # padding, and who is not known
        self.relation = RelationPooling(dim, len(self.types), attention, smoothing)
        self.dropout, self.mlp = Dropout(dropout), MLP(dim, hidden, dropout=dropout)
        self.out = linear(self.mlp.width, 1, bias=False)  # BPR would not see one

    # -- the score -----------------------------------------------------------------------------------------------------
    def user_vectors(self, batch: Batch) -> Tensor:
        """``[R, 1, D]``: p; its inner product with an item's vector says nothing."""
        return F.embedding(self._ids(batch, self.user, self.users), self.users.weight).unsqueeze(-2)

    def item_vectors(self, batch: Batch) -> Tensor:
        """``[N, D]``: q."""
        return F.embedding(self._ids(batch, self.item, self.items), self.items.weight)

    def _ids(self, batch: Batch, key: str, table: nn.Embedding) -> Tensor:
        ids = column(batch, key)
        check_ids(ids, key, table.num_embeddings)
        return ids.long()

    def _steps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The items of the history ``[R, T]`` and which of them count: each once."""
        key = f"{self.item}@{self.history.name}"
        ids = self._ids({key: of_steps(batch, self.item, self.history.name)}, key, self.items)
        return ids, (ids > 0) & ~(ids.unsqueeze(-1) == ids.unsqueeze(-2)).triu(1).any(-1)

    def score_items(self, user: Tensor, steps: Tensor, live: Tensor, targets: Tensor) -> Tensor:
        """Float32 ``[R, L]``, of users ``[R, D]``."""
        target, q = F.embedding(targets, self.items.weight), F.embedding(steps, self.items.weight)
        values = F.embedding(self.shared.of_items[targets], self.of_values.weight)
        said = self.relation(user, target, q, live, self.shared.same(steps, targets), values)
        return self.out(self.mlp(self.dropout((user.unsqueeze(-2) + said) * target))).squeeze(-1).float()

    def _score(self, batch: Batch) -> Tensor:
        targets = self._ids(batch, self.item, self.items)
        return self.score_items(self.user_vectors(batch).squeeze(-2), *self._steps(batch), targets)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return tasks.of_score(self._score(batch), self.schema)

    # -- training ------------------------------------------------------------------------------------------------------
    def prepare(self, train: Columns) -> None:
        """Read the relations from the catalogue; `fit` does so."""
        tables = (torch.from_numpy(value_table(self.catalog, f)) for f in self.types)
        self.shared.read([table.to(self.shared.members) for table in tables])

    def training_columns(self, train: Columns) -> Columns:
        return chosen_only(train)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if self.types and not len(self.shared.members):
            raise TrainingError(
                "RCF has no relations. Use model.fit(train), or model.prepare(columns) before a Trainer."
            )
        task = next(t for t in self.schema.tasks if not t.derived)
        label, where, weight = tasks.target(batch, self.schema, task)
        bpr = losses.bpr(self._score(batch), label, where=where, weight=weight)
        items = column(batch, self.item)[(label > 0) & where].long()
        return {task.name: bpr, "relations": self.relation_weight * self.relations(items)}

    def relations(self, items: Tensor) -> Tensor:
        """How badly related items are told from others: a sum over types of means over items ``[n]``; drawn anew each time."""
        if not len(self.shared.members):
            return self.relation.of_types.new_zeros(())
        value, related, other, live = self.shared.draw(items)
        r = (self.relation.of_types[1:] + F.embedding(value, self.of_values.weight)).float()
        q, one, two = (F.embedding(i, self.items.weight).float() for i in (items[:, None], related, other))
        return (F.softplus((q * r * (two - one)).sum(-1)) * live).sum() / max(len(items), 1)

    # -- every item is scored ------------------------------------------------------------------------------------------
    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        def scores(part: Requests) -> Tensor:
            return self.pair_scores(part, torch.arange(self.size).expand(len(part), -1))

        return best_of_all(scores, requests, k, exclude_seen, allowed, cells=8 * self.size)

    @torch.no_grad()
    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """ids ``[R, K]`` → float32 ``[R, K]``"""
        batch = self._here(requests.batch)
        user, (steps, live) = self.user_vectors(batch).squeeze(-2), self._steps(batch)
        size = max(1, CELLS // max(1, steps.numel() * self.relation.step_out.numel()))
        parts = ids.to(user.device).split(size, 1)
        with evaluating(self):
            found = [self.score_items(user, steps, live, part).cpu() for part in parts]
        return torch.cat(found, 1)
