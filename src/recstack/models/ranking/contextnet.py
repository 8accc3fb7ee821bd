"""ContextNet: A Click-Through Rate Prediction Framework Using Contextual information to Refine Feature Embedding (Wang et al., arXiv 2021).

https://arxiv.org/abs/2107.12025
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from recstack.errors import unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.dropout import Dropout
from recstack.nn.interaction.fields import PerField
from recstack.nn.mlp import linear
from recstack.schema import Schema


class ContextNet(Model):
    r"""Field by field, embeddings are refined by what all fields of the row say about them.

    .. math:: c_f = P_f\,\mathrm{ReLU}(A e + a) + p_f, \qquad m_f = x_f \odot c_f, \qquad
        x'_f = \mathrm{LN}(W_2\,\mathrm{ReLU}(W_1 m_f) + m_f)

    Fields ``[R, L, F, dim]``, e all embeddings behind each other: every block reads its context from the raw embeddings, and
    only what it refines comes from the block before. Each block has its own weights. "pffn" is the block
    above, "sffn" the single layer :math:`\mathrm{LN}(W m_f)`. Embeddings start a hundred times larger than elsewhere,
    because the products of tiny ones would vanish.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        layers: blocks.
        block: "pffn" or "sffn".
        aggregation: width of A e.
        shared_aggregation: one A for all fields, or one for each.
        shared_feed_forward: one W for all fields, or one for each.
        dropout: after each block.

    Wang et al., 2021, https://arxiv.org/abs/2107.12025

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.ContextNet(rs.Encoder(train.schema).fit(train).schema, layers=1, aggregation=8)
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
        block: str = "pffn",
        aggregation: int = 64,
        shared_aggregation: bool = True,
        shared_feed_forward: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if block not in ("pffn", "sffn"):
            raise unknown("block", block, ("pffn", "sffn"))
        self.inputs = Inputs(schema, dim, stacked=True, std=0.01)
        fields = self.inputs.fields
        self.contexts = nn.ModuleList(_Context(fields, dim, aggregation, shared_aggregation) for _ in range(layers))
        own = None if shared_feed_forward else fields
        self.blocks = nn.ModuleList(_FeedForward(dim, block == "pffn", own) for _ in range(layers))
        self.dropout = Dropout(dropout)
        self.heads = Heads(schema, fields * dim)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.inputs(batch).stack()  # [R, L, F, D]
        embeddings = x.flatten(-2)
        for context, block in zip(self.contexts, self.blocks, strict=True):
            x = self.dropout(block(x * context(embeddings)))
        return self.heads(x.flatten(-2))


class _Context(nn.Module):
    """All embeddings of a row ``[..., F·D]`` as one vector for each field: ``[..., F, D]``."""

    def __init__(self, fields: int, dim: int, width: int, shared: bool):
        super().__init__()
        self.shape = (fields, dim)
        self.aggregate = linear(fields * dim, width if shared else fields * width)
        self.project = linear(width, fields * dim) if shared else PerField(fields, width, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.aggregate(x).relu()
        if isinstance(self.project, PerField):
            return self.project(hidden.unflatten(-1, (self.shape[0], -1)))
        return self.project(hidden).unflatten(-1, self.shape)


class _FeedForward(nn.Module):
    """``[..., F, D] → [..., F, D]``, with the same weights for all fields, or with those of `own` fields."""

    def __init__(self, dim: int, deep: bool, own: int | None):
        super().__init__()

        def layer() -> nn.Module:
            return linear(dim, dim, bias=False) if own is None else PerField(own, dim, dim, bias=False)

        self.deep = deep
        self.layer = nn.Sequential(layer(), nn.ReLU(), layer()) if deep else layer()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(x + y if self.deep else y)
