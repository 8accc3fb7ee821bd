"""Deep & Cross Network for Ad Click Predictions (Wang et al., ADKDD 2017).

https://arxiv.org/abs/1708.05123
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.cross import VectorCross
from recstack.nn.mlp import MLP, flat
from recstack.schema import Schema


class DCN(Model):
    r"""Crosses of all inputs whose weights are vectors, beside an MLP.

    .. math:: x_{l+1} = x_0 (w_l^\top x_l) + b_l + x_l, \qquad z = w^\top [x_L; \mathrm{MLP}(x_0)]

    Inputs ``[R, L, W]``, of any widths. But for the biases :math:`x_l` stays a multiple of :math:`x_0`: DCN V2 has matrices.
    ``structure="stacked", hidden=()`` is the cross network alone.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: cross layers.
        structure: "parallel" (both read the inputs, as in the paper) or "stacked" (the MLP reads the crosses).
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Wang et al., ADKDD 2017, https://arxiv.org/abs/1708.05123

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DCN(rs.Encoder(train.schema).fit(train).schema, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        layers: int = 3,
        structure: str = "parallel",
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if structure not in ("parallel", "stacked"):
            raise unknown("structure", structure, ("parallel", "stacked"))
        self.parallel = structure == "parallel"
        self.inputs = Inputs(schema, dim)
        self.cross = VectorCross(self.inputs.width(), layers)
        self.mlp = MLP(self.inputs.width(), hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width + self.cross.width * self.parallel)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, mask = self.inputs(batch).sides(), batch.get("@mask")
        crossed = self.cross(flat(x))  # [R, L, W]
        if not self.parallel:
            return self.heads(self.mlp(crossed, mask))
        return self.heads(torch.cat([crossed, self.mlp(x, mask)], -1))
