"""DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems (Wang et al., WWW 2021).

https://arxiv.org/abs/2008.13535
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.interaction.cross import Cross
from recstack.nn.interaction.pairs import by_pair
from recstack.nn.mlp import MLP, flat
from recstack.schema import Schema


class DCNv2(Model):
    r"""Explicit crosses of all inputs beside, or below, an MLP.

    .. math:: x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l, \qquad z = w^\top [x_L; \mathrm{MLP}(x_0)]

    With several experts the product is :math:`\sum_i g_i(x_l)\, U_l^i \tanh(C_l^i \tanh(V_l^{i\top} x_l)) + b_l`, its gate
    :math:`g` a softmax that all layers share. Inputs ``[R, L, W]``, of any widths. Departs from the paper: batch
    normalisation in the MLP and the parallel form as default, as the published benchmarks have them.
    ``structure="stacked", hidden=()`` is the cross network alone.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: cross layers.
        rank: None for full matrices W; else W = U Vᵀ of that rank.
        experts: above 1, a mixture of that many low-rank experts, each of rank `rank`; 4 in the paper.
        structure: "parallel" (both read the inputs) or "stacked" (the MLP reads the crosses).
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Wang et al., WWW 2021, https://arxiv.org/abs/2008.13535

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DCNv2(rs.Encoder(train.schema).fit(train).schema, rank=4, hidden=(32,))
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
        rank: int | None = None,
        experts: int = 1,
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
        self.cross = Cross(self.inputs.width(), layers, rank, experts)
        self.mlp = MLP(self.inputs.width(), hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width + self.cross.width * self.parallel)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, mask = self.inputs(batch).sides(), batch.get("@mask")
        crossed = self.cross(flat(x))  # [R, L, W]
        if not self.parallel:
            return self.heads(self.mlp(crossed, mask))
        return self.heads(torch.cat([crossed, self.mlp(x, mask)], -1))

    @torch.no_grad()
    def strengths(self) -> dict[tuple[str, str], float]:
        r"""The size of each pair's blocks in the first cross matrix: :math:`\sqrt{\|W_{ij}\|_F^2 + \|W_{ji}\|_F^2}`.

        Raises:
            ConfigError: no cross layer, or a mixture of experts, which has no one matrix.
        """
        widths = list(self.inputs.widths.values())
        squares = self.cross.matrix().square()
        sums = torch.stack([rows.sum(0) for rows in squares.split(widths)])  # [F, W]
        sums = torch.stack([columns.sum(1) for columns in sums.split(widths, 1)], 1)  # [F, F]
        first, second = torch.triu_indices(len(widths), len(widths), 1)
        return by_pair(self.inputs.widths, (sums + sums.T)[first, second].sqrt())
