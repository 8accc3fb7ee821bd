"""Attentional Factorization Machines: Learning the Weight of Feature Interactions via Attention Networks (Xiao et al., IJCAI 2017).

https://arxiv.org/abs/1708.04617
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.interaction.fm import pairwise_sum
from recstack.nn.interaction.pairs import by_pair, pair_products
from recstack.nn.mlp import linear
from recstack.schema import Schema


class AFM(Model):
    r"""A factorisation machine that weighs its pairs by attention, anew for each row.

    .. math:: z = b + \sum_i w_i x_i + p^\top \sum_{i<j} a_{ij}\, v_i \odot v_j\, x_i x_j, \qquad
        a = \mathrm{softmax}_{ij}\big(h^\top \mathrm{ReLU}(W (v_i \odot v_j) x_i x_j + b_a)\big)

    Pairs ``[R, L, P, dim]`` in float32, P = F (F - 1) / 2; the memory is theirs. Each task has its own p. Departs from the
    paper: no pretraining by a factorisation machine; a field of many values is pooled first.

    Args:
        schema: a fitted schema.
        dim: length of the vectors.
        attention: width of the attention network; None sums the pairs, as a factorisation machine with a learned p.
        attention_dropout: on the weights of the pairs.
        dropout: on the weighted sum, as in the paper.

    Xiao et al., IJCAI 2017, https://arxiv.org/abs/1708.04617

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.AFM(rs.Encoder(train.schema).fit(train).schema, dim=4, attention=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        attention: int | None = 16,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.first_order = FirstOrder(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        self.attention = None
        if attention is not None:
            self.attention = nn.Sequential(linear(dim, attention), nn.ReLU(), linear(attention, 1, bias=False))
        self.attention_dropout, self.dropout = Dropout(attention_dropout), Dropout(dropout)
        self.heads = Heads(schema, dim)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        if self.attention is None:
            pooled = pairwise_sum(fields)
        else:
            products = pair_products(fields)  # [R, L, P, D]
            pooled = (self.attention_dropout(self.weights(products)) * products).sum(-2)
        return self.heads(self.dropout(pooled), plus=self.first_order(batch))

    def weights(self, products: Tensor) -> Tensor:
        """The attention of each pair: ``[..., P, D] → [..., P, 1]``, summing to 1."""
        assert self.attention is not None
        return self.attention(products).float().softmax(-2)

    @torch.no_grad()
    def strengths(self, batch: Mapping[str, Tensor]) -> dict[tuple[str, str], float]:
        """The mean attention of each pair of fields over the live rows of a batch: ``{(field, field): a}``."""
        products = pair_products(self.inputs(batch).stack())
        if self.attention is None:
            mean = products.new_full(products.shape[-2:-1], 1 / max(products.shape[-2], 1))
        else:
            weights, mask = self.weights(products).squeeze(-1), batch.get("@mask")
            mean = (weights.flatten(0, -2) if mask is None else weights[mask]).mean(0)
        return by_pair(self.inputs.widths, mean)
