"""MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by Instance-Guided Mask (Wang et al., DLP-KDD 2021).

https://arxiv.org/abs/2102.07619
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import MLP, linear
from recstack.schema import Schema


class MaskNet(Model):
    r"""Every hidden layer is first multiplied by a mask, which a small network makes from the embeddings of the same row.

    .. math:: M = W_d\,\mathrm{ReLU}(W_a e + b_a) + b_d, \qquad h' = \mathrm{ReLU}(\mathrm{LN}(W (M \odot h)))

    Inputs ``[R, L, F·dim]``. In "parallel" every block reads the embeddings, each field normalised, and an MLP reads all
    blocks; in "serial" each block reads the one before. The masks are made from raw embeddings. ``hidden=()`` ends in the
    last block, which is the paper's serial form. The published benchmarks have ``embedding_norm=False``.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        structure: "parallel" or "serial".
        blocks: width of each mask block.
        reduction: hidden width of a mask's network over the width of what it masks.
        embedding_norm: normalise the embedding of each field before the first mask.
        hidden: widths of the MLP on top.
        dropout: after each block and in the MLP.

    Wang et al., DLP-KDD 2021, https://arxiv.org/abs/2102.07619

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.MaskNet(rs.Encoder(train.schema).fit(train).schema, blocks=(8, 8), hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        structure: str = "parallel",
        blocks: Sequence[int] = (64, 64, 64),
        reduction: float = 2.0,
        embedding_norm: bool = True,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if structure not in ("parallel", "serial"):
            raise unknown("structure", structure, ("parallel", "serial"))
        self.parallel = structure == "parallel"
        self.inputs = Inputs(schema, dim, stacked=True)
        width = self.inputs.fields * dim
        self.norm = _FieldNorm(self.inputs.fields, dim) if embedding_norm else None
        shapes = [(width, w) for w in blocks] if self.parallel else list(pairwise([width, *blocks]))
        self.blocks = nn.ModuleList(_MaskBlock(width, a, b, reduction, dropout) for a, b in shapes)
        self.mlp = MLP(sum(blocks) if self.parallel else shapes[-1][1], hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = self.inputs(batch).stack()  # [R, L, F, D]
        x = fields.flatten(-2)
        h = x if self.norm is None else self.norm(fields).flatten(-2)
        if self.parallel:
            return self.heads(self.mlp(torch.cat([block(x, h) for block in self.blocks], -1)))
        for block in self.blocks:
            h = block(x, h)
        return self.heads(self.mlp(h))


class _MaskBlock(nn.Module):
    """``(embeddings [..., context], hidden [..., inputs]) → [..., width]``."""

    def __init__(self, context: int, inputs: int, width: int, reduction: float, dropout: float):
        super().__init__()
        between = max(1, int(reduction * inputs))
        self.mask = nn.Sequential(linear(context, between), nn.ReLU(), linear(between, inputs))
        self.layer = nn.Sequential(linear(inputs, width, bias=False), nn.LayerNorm(width), nn.ReLU(), Dropout(dropout))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.layer(self.mask(x) * h)


class _FieldNorm(nn.Module):
    """Layer normalisation of each field over its width, with a gain and a bias of its own: ``[..., F, D] → [..., F, D]``."""

    def __init__(self, fields: int, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.gain = nn.Parameter(torch.ones(fields, dim))
        self.bias = nn.Parameter(torch.zeros(fields, dim))

    def forward(self, fields: Tensor) -> Tensor:
        return self.norm(fields.float()) * self.gain + self.bias
