"""Collaborative Memory Network for Recommendation Systems (Ebesu, Shen and Fang, SIGIR 2018).

https://arxiv.org/abs/1804.10862
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError, TrainingError
from recstack.features import tasks
from recstack.kernels.cooccurrence import transpose
from recstack.models.counting import user_items
from recstack.models.id_tables import IdTables
from recstack.models.scored import best_of_all, require_known
from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import masked_softmax
from recstack.nn.sequence.lengths import longest, of_like_length
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns

Batch = Mapping[str, Tensor]
BLOCK = 128  # items that are scored at a time


class CMN(IdTables):
    r"""A pair is judged by those who chose the item, each heard as far as they resemble the user and the item.

    .. math:: p_v = \mathrm{softmax}_{v \in N(i)} z^\top m_v, \qquad o = \sum_v p_v c_v, \qquad
        z \leftarrow \mathrm{ReLU}(W_h z + b_h + o) \quad \text{from } z = m_u + e_i

    .. math:: s(u, i) = w^\top \mathrm{ReLU}\big(U (m_u \odot e_i) + W o + b\big), \qquad L = -\log \sigma(s(u, i) - s(u, j))

    with `hops` readings o of the memory, the last of which is scored. N(i) are users of the training data, without u, who is
    not among them at serving either; of an item with many, `neighbours` drawn ones. Trained with the paper's RMSProp,
    batches of 128 positives, four drawn items for each, and gradients of norm 5 at most, unless `fit` is told otherwise; the
    paper starts from a trained GMF, by `pretrain`.

    Reads O(neighbours · dim) for each pair, and there are no vectors to index: `recommend` scores every item, which suits small
    catalogues and candidates of another retriever (`pair_scores`). A user whom training has not met is refused, in one
    sentence.

    Departs from the paper: its L2 on the layers is left to ``fit(regularization=...)``.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: width of m, e and c.
        hops: how often the memory is read.
        neighbours: users of an item that are kept, at most.
        seed: of those that are drawn.

    Ebesu et al., SIGIR 2018, https://arxiv.org/abs/1804.10862

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> options = {"epochs": 1, "progress": False}
    >>> gmf = rs.retrieval.GMF(schema, dim=8).fit(train, **options)
    >>> model = rs.retrieval.CMN(schema, dim=8, neighbours=20).pretrain(gmf).fit(train, **options)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {
        "optimizer": ("rmsprop", {"alpha": 0.9, "momentum": 0.9}),
        "lr": 1e-3,
        "batch_size": 128,
        "negatives": 4,
        "clip": 5.0,
    }

    near: Tensor  # int [items, neighbours], user ids from the left, 0 where there are fewer

    def __init__(self, schema: Schema, *, dim: int = 50, hops: int = 2, neighbours: int = 100, seed: int = 0):
        super().__init__(schema, dim, std=0.01)
        if min(hops, neighbours) < 1:
            raise ConfigError(f"hops and neighbours are at least 1; got {hops} and {neighbours}.")
        self.seed = seed
        self.memory = nn.Embedding(self.users.num_embeddings, dim, padding_idx=0)  # c
        nn.init.normal_(self.memory.weight[1:], std=0.01)
        self.hops = nn.ModuleList(linear(dim, dim) for _ in range(hops - 1))
        self.product, self.reading = linear(dim, dim, bias=False), linear(dim, dim)
        self.head = linear(dim, 1, bias=False)
        self.register_buffer("near", torch.zeros(self.items.num_embeddings, neighbours, dtype=torch.int64))

    def pretrain(self, gmf: Any) -> Self:
        """Start m and e from the tables of a trained GMF.

        Raises:
            ConfigError: one of another width or vocabulary.
        """
        for own, given in ((self.users, gmf.users), (self.items, gmf.items)):
            if own.weight.shape != given.weight.shape:
                raise ConfigError(
                    f"CMN starts from a GMF with dim={own.embedding_dim} over the same ids; its table is "
                    f"{list(given.weight.shape)}, and {list(own.weight.shape)} is needed."
                )
            own.load_state_dict(given.state_dict())
        return self

    def prepare(self, train: Columns) -> None:
        """Who chose each item; `fit` does so."""
        chosen, rng = transpose(user_items(train)), np.random.default_rng(self.seed)
        most, near = self.near.shape[1], np.zeros(tuple(self.near.shape), np.int64)
        order = np.lexsort((rng.random(len(chosen.columns)), chosen.rows))  # of many, those that were drawn first
        place = np.arange(len(order)) - np.repeat(chosen.offsets[:-1], chosen.counts)
        kept = place < most
        near[chosen.rows[kept], place[kept]] = chosen.columns[order][kept]
        self.near = torch.from_numpy(near).to(self.near.device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return tasks.of_score(self._score(self._ids(batch, self.user), self._ids(batch, self.item)), self.schema)

    def _score(self, users: Tensor, items: Tensor) -> Tensor:
        """User ids ``[R]`` and item ids ``[R, L]`` to ``[R, L]`` float32; items of like many neighbours are read together."""
        each, item = users.unsqueeze(1).expand_as(items).flatten(), items.flatten()
        near = F.embedding(item, self.near)
        order = of_like_length(near > 0)
        parts = [near[rows] for rows in order]
        if not torch.compiler.is_compiling():  # what no item of a part has is not computed
            parts = [part[:, : max(int(longest(part > 0).amax()), 1) if part.numel() else 1] for part in parts]
        at_once = torch.cat([part.flatten() for part in parts])  # one gradient of each table, not one of each part
        sizes = [part.numel() for part in parts]
        keys, values = (F.embedding(at_once, t.weight).split(sizes) for t in (self.users, self.memory))
        m, e = F.embedding(each, self.users.weight), F.embedding(item, self.items.weight)
        read = [
            self._read(m[rows] + e[rows], k.view(*part.shape, -1), v.view(*part.shape, -1), part, each[rows])
            for rows, part, k, v in zip(order, parts, keys, values, strict=True)
        ]
        o = torch.cat(read)[torch.cat(order).argsort()]
        return self.head(F.relu(self.product(m * e) + self.reading(o))).view(items.shape).float()

    def _read(self, z: Tensor, keys: Tensor, values: Tensor, near: Tensor, users: Tensor) -> Tensor:
        """The last reading o ``[n, D]`` from queries ``[n, D]`` and neighbours ``[n, N]``, their m and their c ``[n, N, D]``."""
        live = (near > 0) & (near != users.unsqueeze(1))
        o = z
        for hop in range(len(self.hops) + 1):
            if hop:
                z = F.relu(self.hops[hop - 1](z) + o)
            p = masked_softmax((keys * z.unsqueeze(1)).sum(-1), live)
            o = (p.to(values.dtype).unsqueeze(1) @ values).squeeze(1)
        return o

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if not self.near[:, 0].any():
            raise TrainingError(
                "CMN has no neighbours. Use model.fit(train), or model.prepare(columns) before a Trainer."
            )
        label, where, weight = tasks.target(batch, self.schema, self.task)
        score = self._score(self._ids(batch, self.user), self._ids(batch, self.item))
        return {self.task.name: losses.bpr(score, label, where=where, weight=weight)}

    # -- every item is scored -----------------------------------------------------------------------------------------
    def search(self, requests: Any, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        def scores(part: Any) -> Tensor:
            every = torch.arange(len(allowed)).expand(len(part), -1)
            return torch.cat([self.pair_scores(part, ids) for ids in every.split(BLOCK, 1)], 1)

        return best_of_all(scores, requests, k, exclude_seen, allowed, cells=16 * len(allowed))

    @torch.no_grad()
    def pair_scores(self, requests: Any, ids: Tensor) -> Tensor:
        """ids ``[R, K]`` → float32 ``[R, K]``"""
        require_known(self, requests)
        users, where = torch.from_numpy(requests.users), self.users.weight.device
        parts = zip(users.split(16), ids.split(16), strict=True)
        return torch.cat([self._score(u.to(where), i.to(where)).cpu() for u, i in parts] or [torch.zeros(ids.shape)])
