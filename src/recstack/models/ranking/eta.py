"""End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model (Chen et al., arXiv 2021).

https://arxiv.org/abs/2108.04468
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence.search import HashSearch
from recstack.schema import Schema


class ETA(Model):
    r"""Each target reads the past steps whose hash codes are nearest to its own, found while the embeddings change.

    .. math:: c(e) = \mathrm{sign}(e R), \qquad v_u(t) = \mathrm{MultiHead}\big(e_t, \{e_l : l \in
        \mathrm{top}_k\, {-\mathrm{Hamming}}(c(e_l), c(e_t))\}\big), \qquad z = \mathrm{MLP}([v_u(t); v^s_u(t); e_t; \dots])

    R is random, fixed and saved. Histories ``[R, T]``, candidates ``[R, L]``; vectors are kept for the k steps found
    ``[R, L, k]``, of all others only a distance. The newest steps are read by DIN's attention besides, v^s.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        keep: k.
        heads: of the attention over what was found.
        bits: of a code.
        recent: newest steps that target attention reads besides.
        hidden: widths of the MLP.
        activation: in the MLP.
        dropout: in the MLP.

    Chen et al., arXiv 2021, https://arxiv.org/abs/2108.04468

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.ETA(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("history", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        keep: int = 50,
        heads: int = 2,
        bits: int = 32,
        recent: int = 20,
        hidden: Sequence[int] = (200, 80),
        activation: str = "dice",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        own = partial(HashSearch, keep=keep, heads=heads, recent=recent, bits=bits)
        self.inputs = Inputs(schema, dim, history=own, std=0.01)
        self.mlp = MLP(self.inputs.width(), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")))
