"""xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems (Lian et al., KDD 2018).

https://arxiv.org/abs/1803.05170
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from recstack.features import FirstOrder, Heads, Inputs
from recstack.features.tasks import derive
from recstack.models.base import Model
from recstack.nn.interaction.cin import CIN
from recstack.nn.mlp import MLP
from recstack.schema import Schema


class xDeepFM(Model):
    r"""Crosses of whole field vectors, a linear model and an MLP over one set of embeddings.

    .. math:: X^k_h = \sum_{i,j} W^{k,h}_{ij}\, X^{k-1}_i \odot X^0_j + b^k_h, \qquad
        z = \sum_i w_i x_i + w^\top \Big[\textstyle\sum_d X^k_{h,d}\Big]_{k,h} + \mathrm{MLP}(X^0)

    Fields ``[R, L, F, dim]``; each layer k of the compressed interaction network adds a degree. Batch normalisation in the
    MLP follows the published benchmarks, not the paper. ``hidden=()`` leaves the MLP out. Fields of another width than
    `dim` are lifted to it by a matrix, numbers by a vector.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        maps: feature maps of each layer of the interaction network, 100 to 200 in the paper.
        activation: of the maps; the paper finds none best.
        split_half: half of the maps of a layer go on to the next, only the other half comes out (the authors' code).
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Lian et al., KDD 2018, https://arxiv.org/abs/1803.05170

    >>> import recstack as rs
    >>> from recstack.models.ranking.xdeepfm import xDeepFM
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = xDeepFM(rs.Encoder(train.schema).fit(train).schema, maps=(8,), hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    ends_in_heads = False

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        maps: Sequence[int] = (200, 200, 200),
        activation: str = "none",
        split_half: bool = False,
        hidden: Sequence[int] = (400, 400),
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.first_order = FirstOrder(schema)
        self.inputs = Inputs(schema, dim, stacked=True)
        self.cin = CIN(self.inputs.fields, maps, activation, split_half)
        self.heads = Heads(schema, self.cin.width)
        self.mlp = MLP(self.inputs.fields * dim, hidden, norm=norm, dropout=dropout) if hidden else None
        self.deep_heads = Heads(schema, self.mlp.width) if self.mlp is not None else None

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        logits = self.heads(self.cin(fields), plus=self.first_order(batch))
        if self.mlp is None or self.deep_heads is None:
            return logits
        deep = self.deep_heads(self.mlp(fields.flatten(-2), batch.get("@mask")))
        return derive({t.name: logits[t.name] + deep[t.name] for t in self.schema.tasks if not t.derived}, self.schema)
