"""Deep Interest Network for Click-Through Rate Prediction: its base model (Zhou et al., KDD 2018).

https://arxiv.org/abs/1706.06978
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class DINBase(Model):
    r"""What DIN is measured against: the history is one sum, the same for every target item.

    .. math:: z = \mathrm{MLP}\Big(\Big[\sum_l e_l;\ e_t;\ \dots\Big]\Big)

    Histories ``[R, T]``, candidates ``[R, L]``; the history is summed once per request.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        hidden: widths of the MLP; (200, 80) in the paper.
        activation: "prelu" in the paper.
        history: the pooling by name or class; "sum" in the paper.
        dropout: in the MLP.

    Zhou et al., KDD 2018, https://arxiv.org/abs/1706.06978

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DINBase(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        activation: str = "prelu",
        history: str | Callable[..., Pooling] = "sum",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=history)
        self.mlp = MLP(self.inputs.width(), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(self.mlp(self.inputs(batch).sides(), batch.get("@mask")))
