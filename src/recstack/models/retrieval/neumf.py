"""Neural Collaborative Filtering (He et al., WWW 2017): neural matrix factorisation, and its MLP.

https://arxiv.org/abs/1708.05031
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import tasks
from recstack.models.id_tables import IdTables
from recstack.models.scored import best_of_all
from recstack.nn.mlp import MLP
from recstack.schema import Schema

Batch = Mapping[str, Tensor]


class NeuMF(IdTables):
    r"""A weighted inner product and an MLP, each with tables of its own, meet in one layer.

    .. math:: s(u, i) = h^\top \big[\, p_u \odot q_i \,;\, \mathrm{MLP}([p'_u; q'_i]) \,\big] + b

    ``dim=0`` leaves the product out: the paper's MLP. A network scores the pair, so there are no vectors to index, and
    `recommend` scores every item. Trained with the paper's Adam and four negatives drawn anew for each positive in each
    epoch, in batches of 256 positives (in the authors' code 256 of both), unless `fit` is told otherwise; the paper's best
    results start from two trained parts, by `pretrain`, and go on with plain SGD.

    A user is an id here: a user whom training has not met is refused, in one sentence.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: factors of the product.
        mlp_dim: width of the MLP's own embeddings.
        hidden: widths of the MLP; in the paper the last is `dim`.

    He et al., WWW 2017, https://arxiv.org/abs/1708.05031

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> options = {"epochs": 1, "progress": False}
    >>> mlp, gmf = (
    ...     rs.retrieval.NeuMF(schema, dim=0).fit(train, **options),
    ...     rs.retrieval.GMF(schema).fit(train, **options),
    ... )
    >>> model = rs.retrieval.NeuMF(schema).pretrain(gmf, mlp).fit(train, optimizer="sgd", **options)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 256, "negatives": 4}

    def __init__(self, schema: Schema, *, dim: int = 8, mlp_dim: int = 32, hidden: Sequence[int] = (32, 16, 8)):
        super().__init__(schema, dim + mlp_dim, std=0.01)  # the factors of both parts side by side: one gather
        self.dim, self.mlp_dim, self.hidden = dim, mlp_dim, tuple(hidden)
        self.mlp = MLP(2 * mlp_dim, hidden)
        self.head = nn.Linear(dim + self.mlp.width, 1)
        nn.init.uniform_(self.head.weight, -((3 / self.head.in_features) ** 0.5), (3 / self.head.in_features) ** 0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return tasks.of_score(self._score(self.user_vectors(batch)[:, 0], self.item_vectors(batch)), self.schema)

    def _score(self, user: Tensor, item: Tensor) -> Tensor:
        """``[R, W]`` and ``[R, L, W]``, or ``[N, W]`` for the same items for all, to ``[R, L]`` float32."""
        d = self.dim
        deep = self.mlp((user[:, d:], item[..., d:]))
        with torch.autocast(user.device.type, enabled=False):
            wide = ((user[:, None, :d] * self.head.weight[0, :d]).float() * item[..., :d].float()).sum(-1)
            return wide + (deep.float() * self.head.weight[0, d:]).sum(-1) + self.head.bias

    def user_vectors(self, batch: Batch) -> Tensor:
        """``[R, 1, dim + mlp_dim]``: what the network reads of a user; its inner product with an item says nothing."""
        return super().user_vectors(batch)

    def item_vectors(self, batch: Batch) -> Tensor:
        """``[N, dim + mlp_dim]``: what the network reads of an item."""
        return super().item_vectors(batch)

    def pretrain(self, gmf: Any, mlp: Any, alpha: float = 0.5) -> Self:
        """Start from a trained GMF and a trained MLP (a `NeuMF` with ``dim=0``), h being α times the one's, 1 - α the other's.

        Raises:
            ConfigError: parts of other widths or vocabularies.
        """
        for name in ("users", "items"):
            own, parts = getattr(self, name).weight, [getattr(m, name).weight for m in (gmf, mlp)]
            if [tuple(p.shape) for p in parts] != [(len(own), self.dim), (len(own), self.mlp_dim)]:
                raise ConfigError(
                    f"NeuMF with dim={self.dim} and mlp_dim={self.mlp_dim} starts from a GMF of that dim and a NeuMF with dim=0 "
                    f"of that mlp_dim over the same ids; the parts' {name} are {list(parts[0].shape)} and {list(parts[1].shape)}."
                )
        if mlp.hidden != self.hidden:
            raise ConfigError(f"The MLP has hidden={mlp.hidden}, this model {self.hidden}; give both the same.")
        with torch.no_grad():
            for name in ("users", "items"):
                parts = [getattr(m, name).weight for m in (gmf, mlp)]
                getattr(self, name).weight.copy_(torch.cat(parts, 1))
            self.mlp.load_state_dict(mlp.mlp.state_dict())
            self.head.weight.copy_(torch.cat([alpha * gmf.head, (1 - alpha) * mlp.head.weight[0]])[None])
            self.head.bias.copy_((1 - alpha) * mlp.head.bias)
        return self

    # -- every item is scored -----------------------------------------------------------------------------------------
    def search(self, requests: Any, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        def scores(part: Any) -> Tensor:
            return self._score(self._users(part)[:, 0], self.catalog_vectors())

        return best_of_all(scores, requests, k, exclude_seen, allowed, cells=1 << 20)

    @torch.no_grad()
    def pair_scores(self, requests: Any, ids: Tensor) -> Tensor:
        """ids ``[R, K]`` → float32 ``[R, K]``"""
        return self._score(self._users(requests)[:, 0], self.catalog_vectors()[ids])
