"""SetRank: Learning a Permutation-Invariant Ranking Model for Information Retrieval (Pang et al., SIGIR 2020).

https://arxiv.org/abs/1912.05891
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from recstack.features import Heads, Inputs
from recstack.models.base import Reranker
from recstack.nn.lists import InducedAttention
from recstack.nn.mlp import linear, split_linear
from recstack.nn.sequence import Pooling
from recstack.nn.sequence.attention import AttentionLayer
from recstack.schema import Schema


class SetRank(Reranker):
    r"""Attention without positions: however the list was ordered, each item gets the same score.

    .. math:: \mathrm{MAB}(Q, K) = \mathrm{LN}(B + \mathrm{FFN}(B)), \quad B = \mathrm{LN}(Q + \mathrm{MHA}(Q, K)), \qquad
              X' = \mathrm{MAB}(X, \mathrm{MAB}(I, X))

    I ``[induced, width]`` are learned, so that the cost of a list grows with its length and not with the square.
    With ``induced=0`` items attend to each other, :math:`\mathrm{MAB}(X, X)`; with `max_list` the place that the ranker
    before gave (the paper's ordinal embedding) is added to an item.

    Departs from the paper: LeakyReLU in the position-wise network, and the listwise softmax, which is the first half of its
    attention loss.

    Args:
        schema: a fitted schema.
        dim: embedding width of ids.
        width: of the encoder.
        layers, heads: of the encoder.
        induced: how many learned queries stand between the items; 0 for none.
        max_list: places of the initial order that have a vector; later ones share the last. None: the order is not read.
        history: how each history becomes one vector: "mean", "sum", "max", "last", "attention" or a `Pooling` class.
        dropout: in the encoder.

    Pang et al., SIGIR 2020, https://arxiv.org/abs/1912.05891

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.SetRank(rs.Encoder(train.schema).fit(train).schema, width=16, layers=2, heads=2)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        induced: int = 20,
        max_list: int | None = None,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.1,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=history)
        self.project = linear(self.inputs.width(), width)
        self.places = None if max_list is None else nn.Parameter(0.02 * torch.randn(max_list, width))
        self.layers = nn.ModuleList(
            InducedAttention(width, heads, induced, dropout) if induced else AttentionLayer(width, heads, dropout)
            for _ in range(layers)
        )
        self.heads = Heads(schema, width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = split_linear(self.project, self.inputs(batch).sides())  # [R, L, width]
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        if self.places is not None:
            x = x + self.places[torch.arange(x.shape[1], device=x.device).clamp(max=self.places.shape[0] - 1)]
        for layer in self.layers:
            x = layer(x, x, mask)
        return self.heads(x)
