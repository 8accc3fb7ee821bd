"""Learning Groupwise Multivariate Scoring Functions Using Deep Neural Networks (Ai et al., ICTIR 2019).

https://arxiv.org/abs/1811.04415
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs
from recstack.models.base import Reranker
from recstack.nn.lists.layers import live_order
from recstack.nn.mlp import MLP, linear
from recstack.nn.sequence import Pooling
from recstack.schema import Schema


class GSF(Reranker):
    r"""A network scores a few items together; an item's score is the mean over the groups it was in.

    .. math:: z_i = \frac{1}{m\,S} \sum_{s=1}^{S} \sum_{j=1}^{m} g_j(x_{i - js}, \dots, x_{i}, \dots)

    A group of m holds items s places apart, around the end of the list: every item stands in every slot j once, whatever
    s is, and with m = 2 and S = L - 1 all ordered pairs are scored.

    Departs from the paper: strides 1 … S instead of shuffled lists, so that no score depends on chance. Where a list is
    too short for a stride, an item meets itself.

    Args:
        schema: a fitted schema.
        dim: embedding width of ids.
        group: m; 1 scores each item alone.
        strides: S.
        hidden: widths of the network.
        history: how each history becomes one vector: "mean", "sum", "max", "last", "attention" or a `Pooling` class.
        dropout: in the network.

    Ai et al., ICTIR 2019, https://arxiv.org/abs/1811.04415

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.GSF(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        group: int = 2,
        strides: int = 4,
        hidden: Sequence[int] = (256, 128, 64),
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if group < 1 or strides < 1:
            raise ConfigError(f"GSF needs group= and strides= of at least 1; got {group} and {strides}.")
        self.group, self.strides = group, strides
        self.inputs = Inputs(schema, dim, history=history)
        self.network = MLP(group * self.inputs.width(), hidden, dropout=dropout)
        self.slots = linear(self.network.width, group * self.network.width)  # what each slot takes from its group
        self.heads = Heads(schema, self.network.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.inputs(batch).flat()  # [R, L, W]
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        order = live_order(mask)
        rank, n = mask.cumsum(-1) - 1, mask.sum(-1, keepdim=True).clamp(min=1)

        def away(x: Tensor, places: int) -> Tensor:
            """The live item so many places further, around the end."""
            at = order.gather(1, (rank + places) % n)
            return x.gather(1, at.unsqueeze(-1).expand(*at.shape, x.shape[-1]))

        total = torch.zeros_like(x[..., :1])
        for stride in range(1, self.strides + 1):
            groups = torch.cat([away(x, j * stride) for j in range(self.group)], -1)
            slots = self.slots(self.network(groups)).chunk(self.group, -1)
            for j, slot in enumerate(slots):
                total = total + away(slot, -j * stride)
        return self.heads(total / (self.group * self.strides))
