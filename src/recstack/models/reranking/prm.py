"""Personalized Re-ranking for Recommendation (Pei et al., RecSys 2019).

https://arxiv.org/abs/1904.06813
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Reranker
from recstack.nn.lists import ListEncoder
from recstack.nn.mlp import linear, split_linear
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class PRM(Reranker):
    r"""A transformer lets the items of a list see each other; a softmax over the list is trained on the clicks.

    .. math:: E = [x_i; pv_i]\,W + PE_i, \qquad S = \mathrm{LN}(E + \mathrm{MHA}(E)), \quad
              F = \mathrm{LN}(S + \mathrm{FFN}(S)), \qquad L = -\sum_i \frac{y_i}{\sum y} \log \mathrm{softmax}(F w)_i

    Lists ``[R, L]`` come in the order of the ranker before; PE belongs to that order, never to a shown position. The
    personalised vector pv is a ``Vector(..., role="pair")`` of the schema: the last hidden layer of a click model
    (`rs.ranking.DIN.hidden`); without one this is PRM-BASE with whatever features are declared.

    Departs from the paper: positions are added after the projection (as the authors' code does), and the loss is
    divided by a list's number of clicks. Regression tasks keep their own loss.

    Args:
        schema: a fitted schema.
        dim: embedding width of ids.
        encoder: "transformer", or another way in which the items see each other: "flattened", "lite", "light_conv",
            "dynamic_conv", "conv_seq2seq", "sru", "bigru" (`nn.lists.ListEncoder`).
        width: of the encoder.
        layers, heads: of the encoder; hidden: of its position-wise network.
        kernel: places that its convolutions look at.
        max_list: positions that have an embedding of their own; later ones share the last.
        history: how each history becomes one vector beside an item's others, as `features.Inputs` takes it: "mean",
            "sum", "max", "last", "attention" or a `Pooling` class.
        dropout: in the encoder.

    Pei et al., RecSys 2019, https://arxiv.org/abs/1904.06813

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.PRM(rs.Encoder(train.schema).fit(train).schema, width=16)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("item",)

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        encoder: str = "transformer",
        width: int = 64,
        layers: int = 2,
        heads: int = 1,
        hidden: int = 128,
        kernel: int = 3,
        max_list: int = 100,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.1,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=history)
        self.project = linear(self.inputs.width(), width)
        self.encoder = ListEncoder(
            encoder, width, layers, heads, hidden, kernel=kernel, max_list=max_list, dropout=dropout
        )
        self.heads = Heads(schema, width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = split_linear(self.project, self.inputs(batch).sides())  # [R, L, width]
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        return self.heads(self.encoder(x, mask))
