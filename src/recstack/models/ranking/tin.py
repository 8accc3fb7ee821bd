"""Temporal Interest Network for User Response Prediction (Zhou et al., WWW 2024).

https://arxiv.org/abs/2308.08808
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence.temporal import TemporalInterest
from recstack.schema import Schema


class TIN(Model):
    r"""How much a past step matters, and what it means, both depend on the target and on how long ago it was.

    .. math::
        \tilde e_l = e_l + p_l, \qquad
        v_u(t) = \sum_l \mathrm{softmax}_l\Big(\frac{\langle Q\tilde e_t, K\tilde e_l \rangle}{\sqrt d}\Big)\,
        (V\tilde e_l \odot Q\tilde e_t), \qquad z = \mathrm{MLP}([v_u(t); e_t; \dots])

    Positions p are counted from the target, which has position 0. Histories ``[R, T]`` and candidates ``[R, L]`` meet
    without a copy per candidate.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        heads: of the attention.
        hidden: widths of the MLP.
        activation: in the MLP.
        dropout: in the MLP.

    Zhou et al., WWW 2024, https://arxiv.org/abs/2308.08808

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.TIN(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        heads: int = 1,
        hidden: Sequence[int] = (200, 80),
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        own = partial(TemporalInterest, heads=heads, steps=max(h.max_len for h in schema.histories))
        self.inputs = Inputs(schema, dim, history=own, std=0.01)
        self.mlp = MLP(self.inputs.width(), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")))
