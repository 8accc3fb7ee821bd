"""Self-Attentive Sequential Recommendation (Kang and McAuley, ICDM 2018).

https://arxiv.org/abs/1808.09781
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError
from recstack.features import Inputs
from recstack.features.inputs import column
from recstack.features.tasks import target
from recstack.models.base import Retriever
from recstack.nn.sequence.transformer import TransformerLayer
from recstack.schema import Schema


class SASRec(Retriever):
    r"""A causal transformer reads what a user did, and its state after each step is the query for the next item.

    .. math:: F = \mathrm{Block}_b(\dots \mathrm{Block}_1(\sqrt{d}\,E[h] + P)), \qquad s_{t,i} = \langle F_t, E_i \rangle

    The history ``[R, T]``, and each of its steps is trained to predict the next (the last one the target), so that one
    pass over a sequence trains all of it; `fit` picks the requests that cover each event once. Item ids only.

    Departs from the paper: the loss is a softmax over the whole catalogue, which all recent reproductions found better
    than one negative per positive (``loss="bce"`` is the paper's; "gbce" is Petrov and Macdonald's, RecSys 2023).
    Positions count from the most recent step.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        layers, heads: of the transformer; 2 and 1 in the paper.
        dropout: of embeddings and layers; 0.2 for MovieLens, 0.5 for sparse data.
        loss: "softmax", "bce" or "gbce".
        negatives: items drawn per step, uniformly, by "bce" and "gbce"; the softmax draws none.

    Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.SASRec(rs.Encoder(train.schema).fit(train).schema, dim=16)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("history", "item")

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
        super().__init__(schema)
        if loss not in ("softmax", "bce", "gbce"):
            raise ConfigError(f"SASRec's loss is 'softmax', 'bce' or 'gbce'; got {loss!r}.")
        history = schema.histories[0]
        item = schema.item
        assert item is not None  # a History cannot be declared without
        self.history, self.loss, self.negatives = history, loss, negatives
        own = Schema(
            [schema.feature(item), type(history)(history.name, of=(item,), max_len=history.max_len)], item=item
        )
        self.inputs = Inputs(own, dim, history=None, uniform=True, std=0.02)
        self.table = schema.feature(item).table_name  # type: ignore[attr-defined]
        self.positions = nn.Parameter(0.02 * torch.randn(history.max_len, dim))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerLayer(dim, heads, dropout=dropout, before=True) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.scale = dim**0.5

    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The state after each step and which are live: ``[R, T, D]``, ``[R, T]``."""
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        age = (mask.sum(-1, keepdim=True) - 1 - torch.arange(x.shape[1], device=x.device)).clamp(
            min=0
        )  # 0: most recent
        x = x * self.scale + self.positions[age.clamp(max=self.history.max_len - 1)]
        x = self.dropout(x) * mask.unsqueeze(-1)
        for block in self.blocks:
            x = block(x, mask, causal=True)
        return self.norm(x) * mask.unsqueeze(-1), mask

    def user_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        x, mask = self.states(batch)
        last = (mask.sum(-1) - 1).clamp(min=0)
        return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1]))

    def item_vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.inputs(batch, "item").flat()

    def training_columns(self, train: Any) -> Any:
        """From each user's newest request backwards, every `max_len`-th: each event is then a target about once."""
        return train.select(np.flatnonzero(train.newer() % self.history.max_len == 0))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next item at every step. The target of the last step is the first candidate, if its label is positive."""
        x, mask = self.states(batch)
        item = column(batch, self.schema.item)  # type: ignore[arg-type]
        ids = self.inputs.history_ids(batch, self.history.name)
        following = torch.cat([ids[:, 1:], ids.new_zeros(len(ids), 1)], 1)
        last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
        first = item[:, :1]
        if self.schema.tasks:
            label, where, _ = target(batch, self.schema, self.schema.tasks[0])
            first = torch.where((label[:, :1] > 0) & where[:, :1], first, 0)
        following = following.scatter(1, last, first.to(following.dtype))
        where = mask & (following > 1)  # neither padding nor out-of-vocabulary can be learned as a target
        table = self.inputs.tables.weight(self.table)  # id 1 first
        if self.loss == "softmax":
            value = losses.full_softmax(x, table[1:], (following.long() - 2).clamp(min=0), where=where)
        else:
            drawn = torch.randint(1, len(table), (*following.shape, self.negatives), device=x.device)
            candidates = torch.cat([(following.long() - 1).clamp(min=0).unsqueeze(-1), drawn], -1)
            score = torch.einsum("rtd,rtnd->rtn", x, table[candidates])
            label = torch.zeros_like(score)
            label[..., 0] = 1
            live = where.unsqueeze(-1) & ((candidates != candidates[..., :1]) | (label > 0))
            loss = partial(losses.gbce, n_items=len(table) - 1) if self.loss == "gbce" else losses.bce
            value = loss(score, label, where=live)
        return {"next": value}
