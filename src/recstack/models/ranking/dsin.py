"""Deep Session Interest Network for Click-Through Rate Prediction (Feng et al., IJCAI 2019).

https://arxiv.org/abs/1905.06482
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack.features import Heads, Inputs
from recstack.features.inputs import padded
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.nn.sequence.sessions import SessionInterest, by_position, by_time
from recstack.schema import Schema


class DSIN(Model):
    r"""The history falls into sessions: one interest each, how they follow each other, and which matter to the target.

    .. math::
        I_k = \mathrm{mean}\,\mathrm{Transformer}(Q_k + w^K_k + w^T + w^C), \qquad H = \mathrm{BiLSTM}(I), \qquad
        z = \mathrm{MLP}\Big(\Big[\sum_k a^I_k(e_t) I_k;\ \sum_k a^H_k(e_t) H_k;\ e_t;\ \dots\Big]\Big)

    Weights a are softmaxes over sessions. A session ends where `gap` seconds pass without a step; where a batch has no
    times (a loader adds them with ``times=True``), every `items` steps are one, counted back from the target. Sessions
    ``[R, S, items, W]`` are read once per request, candidates ``[R, L]`` weigh them.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        sessions: kept, the most recent ones.
        items: kept of each session, the most recent ones; 10 in the paper.
        gap: seconds between sessions; 30 minutes in the paper.
        heads: of the attention; 8 in the paper.
        hidden: widths of the MLP; (200, 80) in the authors' code.
        activation: in the MLP.
        dropout: in transformer and MLP.

    Feng et al., IJCAI 2019, https://arxiv.org/abs/1905.06482

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DSIN(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        sessions: int = 5,
        items: int = 10,
        gap: float = 1800.0,
        heads: int = 8,
        hidden: Sequence[int] = (200, 80),
        activation: str = "relu",
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.items, self.gap = items, gap
        self.inputs = Inputs(schema, dim, history=None, std=0.01)
        widths = {h.name: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.interests = ByName(
            {name: SessionInterest(width, sessions, items, heads, dropout) for name, width in widths.items()}
        )
        self.mlp = MLP(self.inputs.width() + 2 * sum(widths.values()), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = self.inputs(batch)
        sides = slots.sides()
        request, candidate = sides if isinstance(sides, tuple) else (None, sides)
        parts = [candidate]
        for h in self.schema.histories:
            target, (sequence, mask) = torch.cat([slots[name] for name in h.of], -1), slots.sequence(h.name)
            found = self.interests[h.name](target, sequence, mask, parts=self.divided(batch, h.name, mask))
            parts.append(found.to(candidate.dtype))
        candidate = torch.cat(parts, -1)
        return self.heads(self.mlp(candidate if request is None else (request, candidate), batch.get("@mask")))

    def divided(self, batch: Mapping[str, Tensor], name: str, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Session and place of each step of a history ``[R, T]``, 0 the most recent."""
        times, offsets = batch.get(f"@time@{name}"), batch.get(f"{name}@offsets")
        if times is None:
            return by_position(mask, self.items)
        return by_time(times if offsets is None else padded(times, offsets), mask, self.gap)
