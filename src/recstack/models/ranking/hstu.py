"""Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations (Zhai et al., ICML 2024).

https://arxiv.org/abs/2402.17152
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.features.columns import moments
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.nn.sequence.hstu import TargetHSTU
from recstack.schema import Schema


class HSTU(Model):
    r"""Candidates stand at the end of the history and read it through SiLU attention, gated step by step.

    .. math::
        U, V, Q, K = \mathrm{SiLU}(W_1\,\mathrm{LN}(X)), \qquad
        X \leftarrow X + W_2\Big(\mathrm{LN}\big(\tfrac1N\,\mathrm{SiLU}(Q K^\top + r_{pos} + r_{time})\, V\big) \odot
            U\Big),
        \qquad z = \mathrm{MLP}([x_t; e_t; \dots])

    Histories ``[R, T]`` are read once for all candidates ``[R, L]``, which do not see one another. Distances in time
    need a loader with ``times=True``; without times all steps share one bucket. Departs from the paper: a history holds
    steps of one kind, so there are no action tokens between them; features that are no history go into the MLP instead
    of the sequence; each history has a stack of its own.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        layers: units of the stack, at least one.
        heads: of the attention; need not divide the width.
        hidden: widths of the MLP.
        activation: in the MLP.
        dropout: of what a unit adds, and in the MLP.

    Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.HSTU(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("history", "item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        layers: int = 2,
        heads: int = 1,
        hidden: Sequence[int] = (200, 80),
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.inputs = Inputs(schema, dim, history=None, std=0.01)
        widths = {h.name: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.stacks = ByName(
            {h.name: TargetHSTU(widths[h.name], layers, heads, h.max_len, dropout) for h in schema.histories}
        )
        self.mlp = MLP(self.inputs.width() + sum(widths.values()), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        sides = slots.sides()
        request, candidate = sides if isinstance(sides, tuple) else (None, sides)
        parts = [candidate]
        for h in self.schema.histories:
            target = torch.cat([slots[name] for name in h.of], -1)
            found = self.stacks[h.name](target, *slots.sequence(h.name), times=moments(batch, h.name))
            parts.append(found.to(candidate.dtype))
        candidate = torch.cat(parts, -1)
        return self.heads(self.mlp(candidate if request is None else (request, candidate), batch.get("@mask")))
