"""STAMP: Short-Term Attention/Memory Priority Model for Session-based Recommendation (Liu et al., KDD 2018).

https://doi.org/10.1145/3219819.3219950
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence.short_term import ShortTermMemory
from recstack.schema import Schema


class STAMP(Model):
    r"""What a user is interested in, and what they did last, meet the target in a three-way product.

    .. math::
        m_a = \sum_l w_0^\top \sigma(W_1 e_l + W_2 e_T + W_3 \bar e + b)\, e_l, \quad h_s = \tanh(W_s m_a + b_s), \quad
        h_t = \tanh(W_t e_T + b_t), \qquad z = \langle h_s, h_t \odot e \rangle + \mathrm{MLP}([h_s; h_t; e; \dots])

    Both memories are computed once per request ``[R, T]``, candidates are ``[R, L]``. Departs from the paper: as a ranker
    it reads other features too, in an MLP, and the product is a logit instead of an entry of a softmax over all items.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        hidden: widths of the MLP.
        dropout: in the MLP.

    Liu et al., KDD 2018, https://doi.org/10.1145/3219819.3219950

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.STAMP(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("history", "item")

    def __init__(self, schema: Schema, *, dim: int = 64, hidden: Sequence[int] = (64,), dropout: float = 0.0):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=ShortTermMemory, std=0.01)
        self.mlp = MLP(self.inputs.width(), hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        product = []
        for h in self.schema.histories:
            general, current = slots[h.name].chunk(2, -1)
            target = torch.cat([slots[name] for name in h.of], -1)  # [R, L, W]
            product.append(((general * current).unsqueeze(-2) * target).sum(-1))
        return self.heads(self.mlp(slots.sides(), batch.get("@mask")), plus=torch.stack(product).sum(0))
