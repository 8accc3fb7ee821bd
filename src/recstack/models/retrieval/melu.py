"""MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation (Lee et al., KDD 2019).

https://arxiv.org/abs/1908.00413
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import Inputs, tasks
from recstack.features.columns import column, of_steps
from recstack.models.base import Retriever
from recstack.models.scored import best_of_all
from recstack.nn.local import LocalMLP
from recstack.schema import History, Schema

Batch = Mapping[str, Tensor]


class MeLU(Retriever):
    r"""A network over what users and items are, whose decision layers are fitted anew to each user's history.

    .. math:: s(u, i) = f_{\theta_u}([x_u; x_i]), \qquad \theta_u = \theta - \eta\, \nabla_\theta
        \frac{1}{|H_u|} \sum_{j \in H_u} -\log \sigma\big(f_\theta([x_u; x_j])\big)

    :math:`\theta` is learned so that it does best after these steps (MAML); the embeddings are the same for all. Users and
    items that training has not met are answered by what they are and by what the user has met, without training.

    Of items the features of the History beside the key are read, the key only where there is no other; of users everything
    but the key. The network scores pairs, so there are no vectors to index, and `recommend` scores every item. The steps of
    all users of a batch are taken at once.

    Departs from the paper: a History holds what was chosen, so the examples of the local steps are positives, where the
    paper has ratings; each of the last ten choices has its own past as examples, where the paper has one set for all ten.

    Args:
        schema: a fitted schema with a History.
        dim: embedding width.
        hidden: widths of the decision layers.
        steps: local ones.
        local_lr: η.
        second_order: whether the gradient passes through the local steps (MAML); else they count as constants (FOMAML).
        queries: `fit` trains on that many of each user's newest requests.

    Lee et al., KDD 2019, https://arxiv.org/abs/1908.00413

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.MeLU(rs.Encoder(train.schema).fit(train).schema, dim=8, hidden=(16,))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("history", "item")
    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 256, "negatives": 4}

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (64, 64),
        steps: int = 1,
        local_lr: float = 1.0,
        second_order: bool = True,
        queries: int = 10,
    ):
        super().__init__(schema)
        if steps < 1 or queries < 1 or local_lr <= 0:
            raise ConfigError(
                f"steps and queries are at least 1 and local_lr is positive; got {steps}, {queries} and {local_lr:g}."
            )
        self.history, self.queries = schema.histories[0], queries
        self.of_item = [n for n in self.history.of if n != schema.item] or [self.history.of[0]]
        of_user = [f.name for f in schema.by_role("user", "context", "domain") if f.name != schema.user]
        of_user = [name for name in of_user if not isinstance(schema.feature(name), History)]
        own = Schema([schema.feature(name) for name in (*of_user, *self.of_item)])
        self.inputs = Inputs(own, dim, std=0.02)
        self.user_width = self.inputs.width("user", "context", "domain")
        options = {"steps": steps, "lr": local_lr, "second_order": second_order}
        self.layers = LocalMLP(self.inputs.width(), hidden, **options)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ids = column(batch, self.schema.item)  # type: ignore[arg-type]
        items = self.item_vectors(batch)
        items = items.view(*ids.shape, items.shape[-1])  # lists of values do not say whose they are
        return tasks.of_score(self._score(self.user_vectors(batch)[:, 0], items), self.schema)

    def user_vectors(self, batch: Batch) -> Tensor:
        """``[R, 1, W]``: what the user is, and their weights; an inner product with an item says nothing."""
        first = of_steps(batch, self.history.of[0], self.history.name)
        live = first > 0 if first.dim() == 2 else (first > 0).any(-1)
        x = self.inputs({name: of_steps(batch, name, self.history.name) for name in self.of_item}, "item").flat()
        user = x.new_zeros(x.shape[0], 0)
        if self.user_width:
            user = self.inputs(batch, "user", "context", "domain").flat()
        weights = self.layers.adapt(self._pairs(user, x), torch.ones_like(live), live)
        return torch.cat([user.float(), weights], 1).unsqueeze(1)

    def item_vectors(self, batch: Batch) -> Tensor:
        """``[N, W]``: what the network reads of an item."""
        return self.inputs(batch, "item").flat()

    def _score(self, user: Tensor, items: Tensor) -> Tensor:
        """``[R, W]`` and ``[R, L, W]``, or ``[N, W]`` for the same items for all, to ``[R, L]`` float32."""
        user, weights = user[:, : self.user_width], user[:, self.user_width :]
        return self.layers(weights, self._pairs(user, items.expand(user.shape[0], -1, -1)))

    @staticmethod
    def _pairs(user: Tensor, items: Tensor) -> Tensor:
        return torch.cat([user.unsqueeze(1).expand(-1, items.shape[1], -1).to(items.dtype), items], -1)

    def training_columns(self, train: Any) -> Any:
        return train.select(np.flatnonzero(train.newer() < self.queries))

    # -- every item is scored -----------------------------------------------------------------------------------------
    def search(self, requests: Any, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        def scores(part: Any) -> Tensor:
            return self._score(self._users(part)[:, 0], self.catalog_vectors())

        return best_of_all(scores, requests, k, exclude_seen, allowed, cells=1 << 18)

    @torch.no_grad()
    def pair_scores(self, requests: Any, ids: Tensor) -> Tensor:
        """ids ``[R, K]`` → float32 ``[R, K]``"""
        items, parts = self.catalog_vectors(), range(0, max(len(requests), 1), 256)
        users = (self._users(requests.slice(i, i + 256))[:, 0] for i in parts)
        return torch.cat([self._score(u, items[ids[i : i + 256]]) for i, u in zip(parts, users, strict=True)])
