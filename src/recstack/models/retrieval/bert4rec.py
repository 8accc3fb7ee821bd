"""BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer (Sun et al., CIKM 2019).

https://arxiv.org/abs/1904.06690
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.features.inputs import column
from recstack.models.next_item import NextItem
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.nn.sequence.lengths import places
from recstack.nn.sequence.transformer import Transformer, TransformerLayer
from recstack.schema import Schema

LAST = 1 / 11  # of the sequences only the last item is hidden: one copy in eleven, in the authors' code


class BERT4Rec(NextItem):
    r"""A transformer that sees both sides fills in items that were hidden; a hidden item at the end is the query.

    .. math:: F = \mathrm{Block}_b(\dots \mathrm{Block}_1(\mathrm{LN}(E[h] + P))), \qquad
        s_{t,i} = \langle \mathrm{LN}(\mathrm{GELU}(W F_t + b)), E_i \rangle \quad \text{where } h_t \text{ is hidden}

    The history ``[R, T]`` and its target are one sequence; a share of it is hidden, anew at each step of training, and
    only what is hidden is learned. Item ids only. Positions count from the end.

    Departs from the paper: items have no bias; a hidden item is always replaced by the mask (as in the authors' code).

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        layers, heads: of the transformer.
        dropout: of embeddings and layers.
        hidden: share of the items that are hidden; 0.2 for MovieLens, 0.6 for sparse data in the paper.
        loss: "softmax" over all items, "sampled_softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a hidden one, uniformly; the softmax draws none.

    Sun et al., CIKM 2019, https://arxiv.org/abs/1904.06690

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.BERT4Rec(rs.Encoder(train.schema).fit(train).schema, dim=16)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        hidden: float = 0.2,
        loss: str = "softmax",
        negatives: int = 256,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        self.hidden = hidden
        self.mask = nn.Parameter(0.02 * torch.randn(dim))
        self.positions = nn.Parameter(0.02 * torch.randn(self.history.max_len + 1, dim))
        self.before, self.dropout = nn.LayerNorm(dim), Dropout(dropout)
        self.blocks = Transformer(
            TransformerLayer(dim, heads, 4 * dim, activation="gelu", dropout=dropout) for _ in range(layers)
        )
        self.out = nn.Sequential(linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))

    def filled(self, x: Tensor, live: Tensor, hidden: Tensor, at: Tensor) -> Tensor:
        """What stands at places ``at [R, H]`` of sequences ``x [R, T, D]``: ``[R, H, D]``, with `hidden` steps not seen."""
        back = live.sum(-1, keepdim=True) - 1 - torch.arange(x.shape[1], device=x.device)  # 0: the last
        x = torch.where(hidden.unsqueeze(-1), self.mask.to(x.dtype), x)
        x = x + F.embedding(back.clamp(0, self.history.max_len), self.positions)
        return self.blocks(self.dropout(self.before(x)) * live.unsqueeze(-1), live, at=at)  # type: ignore[no-any-return]

    def extended(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The history with one place more: vectors ``[R, T + 1, D]``, which are live, where the last one is."""
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        place = torch.arange(x.shape[1] + 1, device=x.device)
        end = mask.sum(-1, keepdim=True)
        return F.pad(x, (0, 0, 0, 1)), place <= end, place == end

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        x, live, last = self.extended(batch)
        return self.out(self.filled(x, live, last, live.sum(-1, keepdim=True) - 1))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The items that are hidden, and no others."""
        x, live, last = self.extended(batch)
        ids = F.pad(self.inputs.history_ids(batch, self.history.name), (0, 1))
        wanted = self.sought(batch)
        item = self.item_vectors({self.schema.item: column(batch, self.schema.item)[:, 0]})  # type: ignore[dict-item,arg-type]
        x = torch.where(last.unsqueeze(-1), item.unsqueeze(1).to(x.dtype), x)
        ids = torch.where(last, wanted.unsqueeze(-1).to(ids.dtype), ids)
        live = live & (~last | (wanted > 0).unsqueeze(-1))
        last = live & (live.sum(-1, keepdim=True) - 1 == torch.arange(live.shape[1], device=x.device))
        chance = torch.rand(live.shape, device=x.device)
        hidden = live & (chance < self.hidden)
        only = (torch.rand(live.shape[0], 1, device=x.device) < LAST) | ~hidden.any(-1, keepdim=True)
        hidden = torch.where(only, last, hidden)
        at = places(hidden & (ids > 1))
        row, place = (at >= 0).nonzero(as_tuple=True)
        x = self.filled(x, live, hidden, at)[row, place]
        return {"hidden": self.item_loss(self.out(x), ids[row, at[row, place]])}
