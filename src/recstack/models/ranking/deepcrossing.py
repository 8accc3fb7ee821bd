"""Deep Crossing: Web-Scale Modeling without Manually Crafted Combinatorial Features (Shan et al., KDD 2016).

https://doi.org/10.1145/2939672.2939704
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import flat, linear
from recstack.schema import Schema


class DeepCrossing(Model):
    r"""A stack of residual units over all inputs: each adds what a two-layer network makes of them.

    .. math:: x_{l+1} = \mathrm{ReLU}\big(x_l + W_l'\, \mathrm{ReLU}(W_l x_l + b_l) + b_l'\big)

    Inputs ``[R, L, W]`` of any widths; every unit has W in and out.

    Departs from the paper: embeddings are not rectified, for half of a new row would never learn; features of few values
    are embedded too; an embedding width of 16 for 256.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: inner width of each residual unit.
        dropout: of the inner layers.

    Shan et al., KDD 2016, https://doi.org/10.1145/2939672.2939704

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DeepCrossing(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (512, 512, 256, 128, 64),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim)
        width = self.inputs.width()
        self.units = nn.ModuleList(
            nn.Sequential(linear(width, inner), nn.ReLU(), Dropout(dropout), linear(inner, width)) for inner in hidden
        )
        self.heads = Heads(schema, width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = flat(self.inputs(batch).sides())  # [R, L, W]
        for unit in self.units:
            x = (x + unit(x)).relu()
        return self.heads(x)
