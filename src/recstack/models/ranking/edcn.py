"""Enhancing Explicit and Implicit Feature Interactions via Information Sharing for Parallel Deep CTR Models (Chen et al., CIKM 2021).

https://dlp-kdd.github.io/assets/pdf/DLP-KDD_2021_paper_12.pdf
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.interaction.cross import VectorCross
from recstack.nn.mlp import NORMS, linear, on_live_rows
from recstack.schema import Schema

BRIDGES = ("product", "sum", "concat", "attention")


class EDCN(Model):
    r"""A cross network and an MLP that meet after every layer, and part again with a gate on each field.

    .. math:: c_l = c_0 (w_l^\top c'_l) + b_l + c'_l, \quad h_l = \mathrm{ReLU}(W_l h'_l + v_l), \quad
        f_l = c_l \odot h_l, \qquad c'_{l+1}, h'_{l+1} = g^c_l \odot f_l,\; g^h_l \odot f_l, \qquad z = w^\top [c_L; h_L; f_L]

    The gates :math:`g = \mathrm{softmax}(\theta / \tau)` weigh the fields, for the first layer those of the embeddings
    (:math:`c_0 = c'_1`); batch normalisation follows them. Fields ``[R, L, F, dim]``; the MLP's layers are F·dim wide.
    "attention" weighs the two branches by a softmax over one score of each, so that their weights add up to one; the public
    code takes its softmax over the width of each branch.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: of both branches, at least 1.
        bridge: how the branches meet: "product" (the paper's choice), "sum", "concat" (a layer reads both) or "attention".
        temperature: τ of the gates.
        norm: "batch", "layer" or None, of what the gates let through.
        dropout: after each layer of the MLP.

    Chen et al., CIKM 2021, https://dlp-kdd.github.io/assets/pdf/DLP-KDD_2021_paper_12.pdf

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.EDCN(rs.Encoder(train.schema).fit(train).schema, layers=2)
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
        bridge: str = "product",
        temperature: float = 1.0,
        norm: str | None = "batch",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if layers < 1:
            raise ConfigError(f"EDCN needs at least one layer; got layers={layers}.")
        if norm is not None and norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        self.inputs = Inputs(schema, dim, stacked=True)
        fields, width = self.inputs.fields, self.inputs.fields * dim
        self.regulations = nn.ModuleList(_Regulation(fields, dim, temperature, norm) for _ in range(layers))
        self.cross = VectorCross(width, layers)
        self.deep = nn.ModuleList(
            nn.Sequential(linear(width, width), nn.ReLU(), Dropout(dropout)) for _ in range(layers)
        )
        self.bridges = nn.ModuleList(_Bridge(width, bridge) for _ in range(layers))
        self.heads = Heads(schema, 3 * width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = batch.get("@mask")
        shared = self.inputs(batch).stack().flatten(-2)  # [R, L, W]
        start = cross = deep = shared
        for i, (regulation, layer, bridge) in enumerate(zip(self.regulations, self.deep, self.bridges, strict=True)):
            cross, deep = regulation(shared, mask)
            if i == 0:
                start = cross
            cross, deep = self.cross.step(i, start, cross), layer(deep)
            shared = bridge(cross, deep)
        return self.heads(torch.cat([cross, deep, shared], -1))


class _Regulation(nn.Module):
    """``[..., W]`` → what each branch gets of it, twice ``[..., W]``."""

    def __init__(self, fields: int, dim: int, temperature: float, norm: str | None):
        super().__init__()
        self.dim, self.temperature = dim, temperature
        self.theta = nn.Parameter(torch.ones(2, fields))
        self.norms = nn.ModuleList(NORMS[norm](fields * dim) if norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        gates = (self.theta / self.temperature).softmax(-1).repeat_interleave(self.dim, -1)  # [2, W]
        return [on_live_rows(norm, x * gate, mask, x.shape[-1]) for norm, gate in zip(self.norms, gates, strict=True)]


class _Bridge(nn.Module):
    """``(cross [..., W], deep [..., W]) → [..., W]``."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        if kind not in BRIDGES:
            raise unknown("bridge", kind, BRIDGES)
        self.kind = kind
        self.concat = nn.Sequential(linear(2 * width, width), nn.ReLU()) if kind == "concat" else None
        self.scores = nn.ModuleList(
            nn.Sequential(linear(width, width), nn.ReLU(), linear(width, 1, bias=False))
            for _ in range(2 * (kind == "attention"))
        )

    def forward(self, cross: Tensor, deep: Tensor) -> Tensor:
        if self.kind == "product":
            return cross * deep
        if self.kind == "sum":
            return cross + deep
        if self.concat is not None:
            return self.concat(torch.cat([cross, deep], -1))
        scores = [score(x) for score, x in zip(self.scores, (cross, deep), strict=True)]
        weight = torch.cat(scores, -1).float().softmax(-1)
        return weight[..., :1] * cross + weight[..., 1:] * deep
