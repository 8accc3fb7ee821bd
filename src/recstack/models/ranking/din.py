"""Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018).

https://arxiv.org/abs/1706.06978
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence import Pooling
from recstack.nn.sequence.target_attention import TargetAttention
from recstack.schema import Schema


class DIN(Model):
    r"""The history is pooled anew for each target item, by a small network that weighs every past step.

    .. math:: v_u(t) = \sum_l a(e_l, e_t)\, e_l, \qquad z = \mathrm{MLP}([v_u(t); e_t; \dots])

    Weights are not normalised, so that the strength of an interest survives. Histories ``[R, T]`` and candidates
    ``[R, L]`` meet without a copy per candidate. The mini-batch-aware L2 of the paper is the optimiser's business.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        hidden: widths of the MLP; (200, 80) in the paper.
        activation: "dice" in the paper.
        attention: hidden widths of the activation unit; (36,) in the paper.
        history: another pooling by name or class, e.g. "mean" for the paper's base model.
        dropout: in the MLP.

    Zhou et al., KDD 2018, https://arxiv.org/abs/1706.06978

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DIN(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        hidden: Sequence[int] = (200, 80),
        activation: str = "dice",
        attention: Sequence[int] = (36,),
        history: str | Callable[..., Pooling] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        own = partial(TargetAttention, hidden=tuple(attention), activation=activation)
        self.inputs = Inputs(schema, dim, history=own if history is None else history)
        self.mlp = MLP(self.inputs.width(), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.hidden(batch))

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The last hidden layer ``[R, L, W]``: what a re-ranker takes as personalised vectors."""
        return self.mlp(self.inputs(batch).sides(), batch.get("@mask"))
