"""FiBiNet++: Reducing Model Size by Low Rank Feature Interaction Layer for CTR Prediction (Zhang et al., CIKM 2023).

https://arxiv.org/abs/2209.05016
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP, BatchNorm, linear, on_live_rows
from recstack.schema import Schema, is_embedded


class FiBiNetPlusPlus(Model):
    r"""FiBiNET with one number for each pair of fields and a weight for each bit: a small fraction of its parameters.

    .. math:: p = W_c\,\big[\langle v_i W, v_j \rangle\big]_{i<j}, \quad
        s_i = \mathrm{LN}(a_i \odot v_i + v_i), \quad a = W_2\, \mathrm{ReLU}(W_1 u), \qquad z = \mathrm{MLP}([p; s])

    Fields :math:`v` ``[R, L, F, dim]`` are normalised: ids and histories over the batch, numbers each by itself. Of each of
    the `groups` parts of a field, u has the mean and the greatest element. No linear part.

    Args:
        schema: a fitted schema.
        dim: embedding width, a multiple of `groups`.
        compressed: width of p, the pairs compressed.
        groups: parts of a field that are squeezed alone.
        reduction: width of u over the hidden width of the importance network.
        hidden: widths of the MLP.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.

    Zhang et al., CIKM 2023, https://arxiv.org/abs/2209.05016

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FiBiNetPlusPlus(rs.Encoder(train.schema).fit(train).schema, dim=4, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        compressed: int = 50,
        groups: int = 2,
        reduction: float = 3.0,
        hidden: Sequence[int] = (400, 400, 400),
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if groups < 1 or dim % groups:
            raise ConfigError(f"dim={dim} cannot be cut into groups={groups} equal parts.")
        self.inputs = Inputs(schema, dim, stacked=True)
        self.norm = _FieldNorm([self._counted(name) for name in self.inputs.widths], dim)
        self.pairs = _Pairs(self.inputs.fields, dim, compressed)
        self.importance = _Importance(self.inputs.fields, dim, groups, reduction)
        self.mlp = MLP(compressed + self.inputs.fields * dim, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def _counted(self, name: str) -> bool:
        return is_embedded(self.schema.feature(name)) or name in self.inputs.poolings

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = batch.get("@mask")
        fields = self.norm(self.inputs(batch).stack(), mask)  # [R, L, F, D]
        hidden = torch.cat([self.pairs(fields), self.importance(fields).flatten(-2)], -1)
        return self.heads(self.mlp(hidden, mask))


class _FieldNorm(nn.Module):
    """Batch normalisation of each coordinate of the fields where `counted`, layer normalisation of each other field.

    ``[..., F, D] → [..., F, D]``, the counted ones first.
    """

    def __init__(self, counted: Sequence[bool], dim: int):
        super().__init__()
        self.dim = dim
        self.ids: Tensor
        self.numbers: Tensor
        self.register_buffer("ids", torch.tensor([i for i, c in enumerate(counted) if c]).long(), persistent=False)
        self.register_buffer(
            "numbers", torch.tensor([i for i, c in enumerate(counted) if not c]).long(), persistent=False
        )
        self.batch = BatchNorm(sum(counted) * dim) if any(counted) else None
        self.layer = nn.LayerNorm(dim) if not all(counted) else None

    def forward(self, fields: Tensor, mask: Tensor | None) -> Tensor:
        parts = []
        if self.batch is not None:
            ids = fields.index_select(-2, self.ids).flatten(-2)
            parts.append(on_live_rows(self.batch, ids, mask, ids.shape[-1]).unflatten(-1, (-1, self.dim)))
        if self.layer is not None:
            parts.append(self.layer(fields.index_select(-2, self.numbers)))
        return torch.cat(parts, -2)


class _Pairs(nn.Module):
    """One number for each pair of fields, compressed: ``[..., F, D] → [..., compressed]``."""

    def __init__(self, fields: int, dim: int, compressed: int):
        super().__init__()
        left, right = torch.triu_indices(fields, fields, 1)
        self.places: Tensor
        self.register_buffer("places", left * fields + right, persistent=False)
        self.bilinear = linear(dim, dim, bias=False)
        self.compress = linear(left.shape[0], compressed)

    def forward(self, fields: Tensor) -> Tensor:
        products = (self.bilinear(fields) @ fields.mT).flatten(-2)  # [..., F·F]
        return self.compress(products.index_select(-1, self.places))


class _Importance(nn.Module):
    """Each bit weighed, the field added, and normalised: ``[..., F, D] → [..., F, D]``."""

    def __init__(self, fields: int, dim: int, groups: int, reduction: float):
        super().__init__()
        squeezed = 2 * groups * fields
        between = max(1, int(squeezed / reduction))
        self.groups = groups
        self.squeeze = linear(squeezed, between, bias=False)
        self.excite = linear(between, fields * dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, fields: Tensor) -> Tensor:
        groups = fields.unflatten(-1, (self.groups, -1))
        squeezed = torch.cat([groups.mean(-1), groups.amax(-1)], -1).flatten(-2)  # [..., F·2·groups]
        weight = self.excite(self.squeeze(squeezed).relu()).unflatten(-1, fields.shape[-2:])
        return self.norm(fields * weight + fields)
