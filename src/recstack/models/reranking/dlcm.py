"""Learning a Deep Listwise Context Model for Ranking Refinement (Ai et al., SIGIR 2018).

https://arxiv.org/abs/1804.05936
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.features import Heads, Inputs
from recstack.models.base import Reranker
from recstack.nn.dropout import Dropout
from recstack.nn.lists.layers import states_in_order
from recstack.nn.mlp import linear
from recstack.nn.sequence import Pooling
from recstack.nn.sequence.recurrent import GRU
from recstack.schema import Schema


class DLCM(Reranker):
    r"""A GRU reads the list from its end to its top; its last state says in which light each item is to be seen.

    .. math:: o_i, s = \mathrm{GRU}([x_n; e_n], \dots, [x_1; e_1]), \qquad
              z_i = v^\top \big(o_i \odot \tanh(W s + b)\big)

    where :math:`e = \mathrm{ELU}(W_2\,\mathrm{ELU}(W_1 x))`. Lists ``[R, L]`` come in the order of the ranker before: its
    best are read last, so that s remembers them best.

    Departs from the paper: one product instead of several slices of W, and the listwise softmax, which is the first half of
    its attention loss.

    Args:
        schema: a fitted schema.
        dim: embedding width of ids.
        hidden: widths of the network that makes e.
        width: of the GRU.
        history: how each history becomes one vector: "mean", "sum", "max", "last", "attention" or a `Pooling` class.
        dropout: on what the GRU reads.

    Ai et al., SIGIR 2018, https://arxiv.org/abs/1804.05936

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.DLCM(rs.Encoder(train.schema).fit(train).schema, width=16)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        width: int = 64,
        history: str | Callable[..., Pooling] = "mean",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=history)
        width_in = self.inputs.width()
        sizes = zip((width_in, *hidden), hidden, strict=False)
        self.abstract = nn.Sequential(*(part for a, b in sizes for part in (linear(a, b), nn.ELU())))
        self.dropout = Dropout(dropout)
        self.gru = GRU(width_in + (hidden[-1] if hidden else width_in), width)
        self.light = linear(width, width)
        self.heads = Heads(schema, width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.inputs(batch).flat()  # [R, L, W]
        mask = batch.get("@mask", torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        x = self.dropout(torch.cat([x, self.abstract(x)], -1)) * mask.unsqueeze(-1)
        states = states_in_order(self.gru, x, mask, upward=True)  # [R, L, width]
        top = mask.int().argmax(-1, keepdim=True).unsqueeze(-1)  # the first live item, which is read last
        last = states.gather(1, top.expand(-1, 1, states.shape[-1]))
        return self.heads(states * self.light(last).tanh())
