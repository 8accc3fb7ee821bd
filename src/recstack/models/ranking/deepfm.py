"""DeepFM: A Factorization-Machine based Neural Network for CTR Prediction (Guo et al., IJCAI 2017).

https://arxiv.org/abs/1703.04247
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.fm import pairwise_sum
from recstack.nn.mlp import MLP
from recstack.schema import Schema


class DeepFM(Model):
    r"""A factorisation machine and an MLP over one set of embeddings.

    .. math:: z = b + \sum_i w_i x_i + \sum_{i<j} \langle v_i, v_j \rangle + \mathrm{MLP}([v_1; \dots; v_F])

    Fields ``[R, L, F, dim]``; one logit per task. Batch normalisation in the MLP follows the published benchmarks, not
    the paper. Fields of another width than `dim` are lifted to it by a matrix, numbers by a vector.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None.
        dropout: in the MLP.

    Guo et al., IJCAI 2017, https://arxiv.org/abs/1703.04247

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DeepFM(rs.Encoder(train.schema).fit(train).schema, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.first_order = FirstOrder(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        self.mlp = MLP(self.inputs.fields * dim, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        fm = self.first_order(batch) + pairwise_sum(fields).sum(-1)
        return self.heads(self.mlp(fields.flatten(-2), batch.get("@mask")), plus=fm)
