"""Deep Interest Evolution Network for Click-Through Rate Prediction (Zhou et al., AAAI 2019).

https://arxiv.org/abs/1809.03672
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from recstack import losses
from recstack.features import Heads, Inputs, tasks
from recstack.features.inputs import Slots
from recstack.models.base import Model
from recstack.nn.mlp import MLP, linear
from recstack.nn.names import ByName
from recstack.nn.sequence.augru import InterestEvolution
from recstack.schema import History, Schema


class DIEN(Model):
    r"""A GRU finds the interest behind every step, and a second one, steered by the target, follows how it evolves.

    .. math::
        h_l = \mathrm{GRU}(e_1 \dots e_l), \quad a_l = \mathrm{softmax}_l(h_l^\top W e_t), \quad
        h'_l = (1 - a_l u_l) \odot h'_{l-1} + a_l u_l \odot \tilde h'_l, \qquad
        z = \mathrm{MLP}\Big(\Big[h'_T;\ \sum_l e_l;\ e_t \odot \sum_l e_l;\ e_t;\ \dots\Big]\Big)

    In training each state also has to tell the step that follows from a drawn one, by :math:`\mathrm{MLP}([h_l; e])`, with weight
    alpha. Drawn are steps of the batch's histories, so by how often an item is met. Histories ``[R, T]`` are read once, a
    second state is kept per candidate ``[R, L]``; both in float32. Departs from the paper: the MLP also reads the sum of the
    steps and its product with the target, as in the authors' program.

    Args:
        schema: a fitted schema with at least one History.
        dim: embedding width.
        cell: "augru", where attention scales the update gate; "agru", where it replaces it; "aigru", where it scales the
            input.
        hidden: widths of the MLP; (200, 80) in the paper.
        activation: "dice" in the paper.
        alpha: weight of the auxiliary loss; 0 leaves it out.
        auxiliary: widths of the network that judges what follows.
        dropout: in the MLP.

    Zhou et al., AAAI 2019, https://arxiv.org/abs/1809.03672

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.DIEN(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        cell: str = "augru",
        hidden: Sequence[int] = (200, 80),
        activation: str = "dice",
        alpha: float = 1.0,
        auxiliary: Sequence[int] = (100, 50),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.alpha = alpha
        self.inputs = Inputs(schema, dim, history=None, std=0.01)
        widths = {h.name: sum(self.inputs.widths[name] for name in h.of) for h in schema.histories}
        self.evolutions = ByName({name: InterestEvolution(width, cell) for name, width in widths.items()})
        self.judges = ByName({name: _Judge(2 * width, auxiliary) for name, width in widths.items()} if alpha else {})
        self.mlp = MLP(self.inputs.width() + 3 * sum(widths.values()), hidden, activation, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._logits(batch, *self._states(batch))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots, states = self._states(batch)
        out = tasks.losses(self._logits(batch, slots, states), batch, self.schema)
        return out | self._judged(batch, slots, states) if self.alpha else out

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._judged(batch, *self._states(batch)) if self.alpha else {}

    def _judged(self, batch: Mapping[str, Tensor], slots: Slots, states: dict[str, Tensor]) -> dict[str, Tensor]:
        each = [self._auxiliary(batch, h, slots, states[h.name]) for h in self.schema.histories]
        return {"auxiliary": self.alpha * torch.stack(each).mean()}

    def _states(self, batch: Mapping[str, Tensor]) -> tuple[Slots, dict[str, Tensor]]:
        slots = self.inputs(batch)
        return slots, {n: block.extract(*slots.sequence(n)) for n, block in self.evolutions.items()}  # type: ignore

    def _logits(self, batch: Mapping[str, Tensor], slots: Slots, states: dict[str, Tensor]) -> dict[str, Tensor]:
        sides = slots.sides()
        once, candidate = ([sides[0]], [sides[1]]) if isinstance(sides, tuple) else ([], [sides])
        for h in self.schema.histories:
            target = torch.cat([slots[name] for name in h.of], -1)
            steps, mask = slots.sequence(h.name)
            total = (steps * mask.unsqueeze(-1)).sum(1)
            evolved = self.evolutions[h.name].interest(target, states[h.name], mask)  # type: ignore
            once.append(total)
            candidate += [evolved.to(target.dtype), target * total.unsqueeze(1)]
        return self.heads(self.mlp((torch.cat(once, -1), torch.cat(candidate, -1)), batch.get("@mask")))

    def _auxiliary(self, batch: Mapping[str, Tensor], h: History, slots: Slots, states: Tensor) -> Tensor:
        """Each state against the step that follows (1) and one drawn from the live steps of the batch (0)."""
        sequence, mask = slots.sequence(h.name)
        ids = self.inputs.history_ids(batch, h.name)
        live = mask.flatten()
        first = live.to(torch.uint8).argsort(descending=True, stable=True)  # the live steps, then the others
        place = (torch.rand(states[:, 1:, 0].shape, device=states.device) * live.sum()).long()
        drawn = first[place.clamp(max=live.numel() - 1)]
        judge, where = self.judges[h.name], mask[:, 1:]
        follows = judge(states[:, :-1], sequence[:, 1:])
        other = judge(states[:, :-1], sequence.flatten(0, 1)[drawn])
        differs = where & (ids.flatten()[drawn] != ids[:, 1:])  # what does follow is no negative
        right = losses.bce(follows, torch.ones_like(follows), where=where)
        return right + losses.bce(other, torch.zeros_like(other), where=differs)


class _Judge(MLP):
    """The logit that a step follows a state: ``[..., H], [..., W] → [...]``."""

    def __init__(self, width: int, hidden: Sequence[int]):
        super().__init__(width, hidden, "sigmoid")
        self.score = linear(self.width, 1)

    def forward(self, states: Tensor, steps: Tensor) -> Tensor:  # type: ignore[override]
        return self.score(super().forward(torch.cat([states.to(steps.dtype), steps], -1))).squeeze(-1)
