"""Towards Deeper, Lighter and Interpretable Cross Network for CTR Prediction (Wang et al., CIKM 2023).

https://arxiv.org/abs/2311.04635
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP, flat, linear
from recstack.schema import Schema


class GDCN(Model):
    r"""Explicit crosses, each with a gate that decides how much of its degree goes on.

    .. math:: x_{l+1} = x_0 \odot (W_l x_l + b_l) \odot \sigma(V_l x_l) + x_l, \qquad z = w^\top [x_L; \mathrm{MLP}(x_0)]

    Inputs ``[R, L, W]``, of any widths. Thanks to the gates more layers, 8 to 16, do not hurt. ``structure="stacked"`` is
    GDCN-S, with ``hidden=()`` the gated cross network alone. Departs from the paper: batch normalisation in the MLP, as
    the published benchmarks have it.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: gated cross layers.
        structure: "parallel" (GDCN-P: both read the inputs) or "stacked" (GDCN-S: the MLP reads the crosses).
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Wang et al., CIKM 2023, https://arxiv.org/abs/2311.04635

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.GDCN(rs.Encoder(train.schema).fit(train).schema, hidden=(32,))
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
        self.cross = _GatedCross(self.inputs.width(), layers)
        self.mlp = MLP(self.inputs.width(), hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width + self.inputs.width() * self.parallel)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, mask = self.inputs(batch).sides(), batch.get("@mask")
        crossed = self.cross(flat(x))  # [R, L, W]
        if not self.parallel:
            return self.heads(self.mlp(crossed, mask))
        return self.heads(torch.cat([crossed, self.mlp(x, mask)], -1))


class _GatedCross(nn.Module):
    """``[..., W] → [..., W]``."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(linear(width, width) for _ in range(layers))
        self.gates = nn.ModuleList(linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        start = x
        for layer, gate in zip(self.layers, self.gates, strict=True):
            x = start * layer(x) * gate(x).sigmoid() + x
        return x
