"""Poly-encoders: Architectures and Pre-training Strategies for Fast Multi-sentence Scoring (Humeau et al., ICLR 2020).

https://arxiv.org/abs/1905.01969
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.features import tasks
from recstack.features.columns import column
from recstack.models.base import Batch
from recstack.models.next_item import ReadsPrefixes
from recstack.models.scored import best_of_all, of_pairs
from recstack.nn.dropout import Dropout
from recstack.nn.sequence.attention import masked_softmax
from recstack.nn.sequence.transformer import Transformer, TransformerLayer
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Requests


class PolyEncoder(ReadsPrefixes):
    r"""Learned codes read a history, each in its own way, and the candidate attends to what they read.

    .. math::
        y_k = \sum_t \mathrm{softmax}_t(c_k^\top h_t)\, h_t, \qquad
        s(u, i) = \Big\langle \sum_k \mathrm{softmax}_k(e_i^\top y_k)\, y_k,\ e_i \Big\rangle
        = \sum_k \mathrm{softmax}_k(z)\, z_k, \quad z_k = e_i^\top y_k

    The history ``[R, T]``, its transformer's states h, codes c ``[K, D]``. `forward`, `recommend` and `pair_scores` give s,
    from K inner products a candidate: richer than one vector, and cheap enough for pre-ranking. An index searches
    `user_vectors` ``[R, K, D]`` by the nearest of them, :math:`\max_k z_k`, which is never below s and less than (K - 1) / e
    above it. One code is a bi-encoder. Every prefix is trained, in one pass; targets of other steps of the batch are the
    negatives, with logQ correction.

    Departs from the paper: items are their ids, the transformer is causal, so that prefixes share its states, and nothing
    is pre-trained; negatives are drawn from the batch's targets instead of taking all.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        codes: K; 16, 64 or 360 in the paper, whose contexts are longer.
        layers, heads: of the transformer.
        dropout: of embeddings and layers.
        negatives: drawn from the batch's targets, for all steps of the batch.

    Humeau et al., ICLR 2020, https://arxiv.org/abs/1905.01969

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.PolyEncoder(rs.Encoder(train.schema).fit(train).schema, dim=16, codes=4)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        codes: int = 16,
        layers: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
        negatives: int = 256,
    ):
        super().__init__(schema, dim, loss="sampled_softmax", negatives=negatives, alpha=1.0)
        self.positions = nn.Parameter(0.02 * torch.randn(self.history.max_len, dim))
        self.dropout = Dropout(dropout)
        self.blocks = Transformer(TransformerLayer(dim, heads, dropout=dropout, before=True) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.codes = nn.Parameter(torch.randn(codes, dim) * dim**-0.5)
        self.scale = dim**0.5

    def interests(self, batch: Batch, prefix: Tensor) -> Tensor:
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        step = torch.arange(x.shape[1], device=x.device).clamp(max=self.history.max_len - 1)
        x = self.dropout(x * self.scale + F.embedding(step, self.positions)) * mask.unsqueeze(-1)
        x = self.norm(self.blocks(x, mask, causal=True))
        score = (x @ self.codes.T).transpose(1, 2).unsqueeze(1)  # [R, 1, K, T]
        return masked_softmax(score, prefix.unsqueeze(2)).to(x.dtype) @ x.unsqueeze(1)

    def item_loss(self, state: Tensor, ids: Tensor) -> Tensor:
        """Of states ``[n, K, D]`` that look for items ``[n]``, among items that other steps look for."""
        wanted, codes = ids.long() - 2, state.shape[1]
        if not len(wanted):
            return state.sum() * 0.0
        name = self.schema.feature(self.schema.item).table_name  # type: ignore[arg-type, attr-defined]
        table = self.inputs.tables.weight(name)[1:]  # id 2 first
        drawn = wanted[torch.randint(len(wanted), (1, self.negatives), device=wanted.device)]
        z, where = losses.drawn_scores(state.flatten(0, 1), table, wanted.repeat_interleave(codes), drawn)
        score = attended(z.unflatten(0, (-1, codes)).transpose(1, 2))  # [n, 1 + negatives]
        log_q = self.log_share.to(score.device)[torch.cat([wanted.unsqueeze(-1), drawn.expand(len(wanted), -1)], -1)]
        label = torch.zeros_like(score)
        label[:, 0] = 1
        return losses.sampled_softmax(score, label, where=where[::codes], log_q=log_q)

    # -- the exact score ----------------------------------------------------------------------------------------------
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        users, ids = self.user_vectors(batch), column(batch, self.schema.item)  # type: ignore[arg-type]
        items = self.item_vectors({self.schema.item: ids.flatten()}).view(*ids.shape, -1)  # type: ignore[dict-item]
        with torch.autocast(users.device.type, enabled=False):
            score = attended(items.float() @ users.float().transpose(1, 2))
        return tasks.of_score(score, self.schema)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        cells = (1 << 24) // len(self.codes)
        return best_of_all(self._scores, requests, k, exclude_seen, allowed, cells)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        return of_pairs(self._scores, requests, ids)

    @torch.no_grad()
    def _scores(self, requests: Requests) -> Tensor:
        return attended(self.catalog_vectors() @ self._users(requests).transpose(1, 2))


def attended(z: Tensor) -> Tensor:
    """The candidate's attention to K vectors that it meets in inner products z ``[..., K]``: ``[...]``."""
    return (z.softmax(-1) * z).sum(-1)
