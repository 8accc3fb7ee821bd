"""Self-Attentive Sequential Recommendation (Kang and McAuley, ICDM 2018).

https://arxiv.org/abs/1808.09781
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.models.next_item import NextItem
from recstack.nn.dropout import Dropout
from recstack.nn.sequence.transformer import Transformer, TransformerLayer
from recstack.schema import Schema


class SASRec(NextItem):
    r"""A causal transformer reads what a user did, and its state after each step is the query for the next item.

    .. math:: F = \mathrm{Block}_b(\dots \mathrm{Block}_1(\sqrt{d}\,E[h] + P)), \qquad s_{t,i} = \langle F_t, E_i \rangle

    The history ``[R, T]``, and each of its steps is trained to predict the next (the last one the target), so that one
    pass over a sequence trains all of it; `fit` picks the requests that cover each event once. Item ids only.

    Departs from the paper: the loss is a softmax over the whole catalogue, which all recent reproductions found better
    than one negative per positive (``loss="bce"`` is the paper's; "gbce" is Petrov and Macdonald's, RecSys 2023; both are of
    scores beside a constant, see `models.next_item.balance`).
    Positions count from the most recent step, and heads are put together by a matrix.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        layers, heads: of the transformer; 2 and 1 in the paper.
        dropout: of embeddings and layers; 0.2 for MovieLens, 0.5 for sparse data.
        loss: "softmax", "sampled_softmax", "bpr_max", "bce" or "gbce"; see `models.next_item.NextItem`.
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.SASRec(rs.Encoder(train.schema).fit(train).schema, dim=16)
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
        heads: int = 1,
        dropout: float = 0.2,
        loss: str = "softmax",
        negatives: int = 256,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        self.positions = nn.Parameter(0.02 * torch.randn(self.history.max_len, dim))
        self.dropout = Dropout(dropout)
        self.blocks = Transformer(TransformerLayer(dim, heads, dropout=dropout, before=True) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.scale = dim**0.5

    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The state after each step and which are live: ``[R, T, D]``, ``[R, T]``."""
        x, mask = self.steps(batch)
        return self.norm(self.blocks(x, mask, causal=True)) * mask.unsqueeze(-1), mask

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        x, mask = self.steps(batch)
        last = mask.sum(-1, keepdim=True) - 1  # -1 where there is none
        return self.norm(self.blocks(x, mask, causal=True, at=last)) * mask.any(-1)[:, None, None]

    def steps(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What goes into the layers and which steps are live: ``[R, T, D]``, ``[R, T]``."""
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        back = mask.sum(-1, keepdim=True) - 1 - torch.arange(x.shape[1], device=x.device)  # 0: the most recent
        x = x * self.scale + F.embedding(back.clamp(0, self.history.max_len - 1), self.positions)
        return self.dropout(x) * mask.unsqueeze(-1), mask
