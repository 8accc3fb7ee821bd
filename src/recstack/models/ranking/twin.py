"""TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR Prediction at Kuaishou (Chang et al., KDD 2023).

https://arxiv.org/abs/2302.02352
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence.search import SharedSearch
from recstack.schema import Schema


class TWIN(Model):
    r"""The attention that weighs past steps also finds them, so that search and attention agree on what matters.

    .. math:: \alpha_l = \frac{(e_l K)(e_t Q)^\top}{\sqrt d}, \qquad v_u(t) = \sum_{l \in \mathrm{top}_k \alpha}
        \mathrm{softmax}(\alpha)_l\, e_l V, \qquad z = \mathrm{MLP}([v_u(t); v^s_u(t); e_t; \dots])

    The search makes keys once per step, not once per candidate, and keeps none of them. Histories ``[R, T]``, candidates
    ``[R, L]``; keys and values that learn are those of the k steps found. The newest steps are read by DIN's attention
    besides, v^s. Departs from the paper: no bias by features of user and item together, and the steps are chosen by the
    mean of the heads.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        keep: k; 100 in the paper.
        heads: of the attention; 4 in the paper.
        recent: newest steps that target attention reads besides.
        hidden: widths of the MLP.
        activation: in the MLP.
        dropout: in the MLP.

    Chang et al., KDD 2023, https://arxiv.org/abs/2302.02352

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.TWIN(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        keep: int = 100,
        heads: int = 4,
        recent: int = 20,
        hidden: Sequence[int] = (200, 80),
        activation: str = "dice",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        own = partial(SharedSearch, keep=keep, heads=heads, recent=recent)
        self.inputs = Inputs(schema, dim, history=own, std=0.01)
        self.mlp = MLP(self.inputs.width(), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")))
