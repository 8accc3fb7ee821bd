"""Two towers beside cross features, after Wide & Deep Learning for Recommender Systems (Cheng et al., DLRS 2016).

https://arxiv.org/abs/1606.07792
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP, linear
from recstack.nn.sequence import Pooling
from recstack.schema import Schema

REQUEST = ("user", "context", "domain", "history")


class CrossTowers(Model):
    r"""Two towers whose product is all that a candidate costs, and beside it a small network on what only the pair tells.

    .. math:: y = w^\top (u \odot v) + a^\top \mathrm{MLP}(e_{\mathrm{pair}}) + b

    u is the user's vector, computed once a request, v the item's, which may be computed ahead. Features of role "pair" are what two
    towers cannot know: `rs.Crossed` of a user's and an item's, `rs.Hits` of the history, scores of earlier stages. Without any it is two
    towers.

    Departs from Wide & Deep: towers in place of the deep part, whose cost is the candidates'; the wide part reads vectors of
    the crosses through `cross`, and is linear in them with ``cross=()``.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of both towers; the last is that of u and v.
        cross: widths of the network on pair features.
        history: pooling of histories, by name or class; not one that looks at the target.
        dropout: in the towers.

    Cheng et al., DLRS 2016, https://arxiv.org/abs/1606.07792

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = train.schema.with_features(rs.Hits("met", target="category", history="clicked", last=(5,)))
    >>> model = rs.pre_ranking.CrossTowers(rs.Encoder(schema).fit(train).schema, hidden=(16, 8), cross=(4,))
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        cross: Sequence[int] = (32,),
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=history, std=0.02)
        self.user_tower = MLP(self.inputs.width(*REQUEST), hidden[:-1], dropout=dropout)
        self.item_tower = MLP(self.inputs.width("item"), hidden[:-1], dropout=dropout)
        self.user_out = linear(self.user_tower.width, hidden[-1])
        self.item_out = linear(self.item_tower.width, hidden[-1])
        pairs = self.inputs.width("pair")
        self.cross = MLP(pairs, cross) if pairs else None
        self.heads = Heads(schema, hidden[-1] + (self.cross.width if self.cross is not None else 0))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        user = self.user_out(self.user_tower(self.inputs(batch, *REQUEST).flat()))
        item = self.item_out(self.item_tower(self.inputs(batch, "item").flat()))
        match = user.unsqueeze(-2) * item
        if self.cross is None:
            return self.heads(match)
        return self.heads(torch.cat([match, self.cross(self.inputs(batch, "pair").flat())], -1))
