"""SlateQ: A Tractable Decomposition for Reinforcement Learning with Recommendation Sets (Ie et al., IJCAI 2019).

https://arxiv.org/abs/1905.12767
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads, Inputs, tasks
from recstack.losses.rows import weighted_mean
from recstack.models.agent import Agent
from recstack.nn.mlp import MLP, Sides, linear
from recstack.nn.slow import Slow
from recstack.schema import Schema

LOW = -1e30  # below any gain
ROUNDS = 4  # of Dinkelbach's method, which is there after two or three


class SlateQ(Agent):
    r"""The value of a page is that of its items, each times the chance that it is the one that is chosen.

    .. math:: P(i \mid s, A) = \frac{e^{z_i}}{e^{z_\bot} + \sum_{j \in A} e^{z_j}}, \qquad
              Q(s, A) = \sum_{i \in A \cup \{\bot\}} P(i \mid s, A)\, \bar Q(s, i)

    .. math:: \bar Q(s, i) \to r_i + \gamma \max_{A'} Q^-(s', A'), \qquad
              \max_A Q = \lambda: \quad \lambda = \max_A \sum_{i \in A \cup \{\bot\}} P(i \mid s, A)\, \bar Q(s, i)

    z is learned by the choice itself, :math:`\bar Q` only on what was chosen: an item that was clicked earns 1, :math:`\bot`
    (nothing was) earns 0, and then comes the next page. A page has `places` items; the best one is that of the greatest
    :math:`e^{z_i} (\bar Q(s, i) - \lambda)`, which is what the logits of the first task are: they order, and are no log-odds.
    Rows whose label is missing were not shown, and teach nothing. Other tasks keep their own heads and losses.

    Departs from the paper: items are arranged by the exact maximum (Dinkelbach's method) where it takes a linear programme or
    greedy steps; of several clicks on a page each counts as a choice by itself, in shares.

    Args:
        schema: a fitted schema; its first task is the choice, binary.
        dim: embedding width of ids.
        hidden: widths of the network of choices, and of that of values.
        places: items of a page, of the candidates of a request.
        history: how each history becomes one vector: "gru", "mean", ...
        discount: γ.
        rate: by which the slow copy follows, at each step.

    Raises:
        ConfigError: a first task that is not binary or is made of others; a discount or rate that is none.

    Ie et al., IJCAI 2019, https://arxiv.org/abs/1905.12767

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.SlateQ(rs.Encoder(train.schema).fit(train).schema, hidden=(16,), places=3)
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
        places: int = 10,
        history: str = "gru",
        discount: float = 0.8,
        rate: float = 0.01,
    ):
        super().__init__(schema, discount, rate)
        first = schema.tasks[0] if schema.tasks else None
        if first is None or first.kind != "binary" or first.derived or tasks.outputs(first) > 1:
            raise ConfigError("SlateQ learns from choices: its first task is binary, of one output, and no product.")
        if places < 1:
            raise ConfigError(f"places must be at least 1; got {places}.")
        self.task, self.places = first, places
        self.inputs = Inputs(schema, dim, history=history)
        self.choice = MLP(self.inputs.width(), hidden)
        self.heads = Heads(schema, self.choice.width)
        known = self.inputs.width("user", "context", "domain", "history")
        self.values = _Values(self.inputs.width(), known, hidden)
        self.slow = Slow(self.values, rate)

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Sides, dict[str, Tensor], Tensor]:
        """Both sides, all logits, and which candidates are live ``[R, L]``."""
        sides = self.inputs(batch).sides()
        logits = self.heads(self.choice(sides))
        z = logits[self.task.name]
        return sides, logits, batch.get("@mask", torch.ones_like(z, dtype=torch.bool))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sides, logits, mask = self._read(batch)
        q, null, worth = self.values(sides)
        return {**logits, self.task.name: best_slate(logits[self.task.name], q, null, worth, mask, self.places)[0]}

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the choice, of the values, and of the other tasks."""
        if self.training:
            self.slow.follow(self.values)
        sides, logits, _ = self._read(batch)
        label, shown, weight = tasks.target(batch, self.schema, self.task)
        of_row = shown.float() if weight is None else torch.where(shown, weight, 0)
        of_list = of_row.sum(-1) / shown.sum(-1).clamp(min=1)  # a row's weight is its list's, nearly always
        with torch.autocast(label.device.type, enabled=False):
            clicked = torch.where(shown, label, 0)
            nothing = (clicked.sum(-1, keepdim=True) == 0).float()
            chosen = torch.cat([clicked, nothing], -1)
            chosen = chosen / chosen.sum(-1, keepdim=True)
            q, null, nothing_q = self.values(sides)
            z = torch.cat([logits[self.task.name].masked_fill(~shown, LOW), null], -1)
            missed_choice = -(chosen * z.log_softmax(-1)).sum(-1)
            goal = torch.cat([torch.ones_like(q), torch.zeros_like(nothing_q)], -1) + self.after(batch).unsqueeze(-1)
            missed = (chosen * (torch.cat([q, nothing_q], -1) - goal).square()).sum(-1)
        out = self.list_losses(logits, batch)
        if self.task.name in out:
            out[self.task.name] = weighted_mean(missed_choice, of_list) * self.task.weight
        return {**out, "value": weighted_mean(missed, of_list)}

    def value(self, batch: Mapping[str, Tensor]) -> Tensor:
        sides, logits, mask = self._read(batch)
        q, null, worth = self.slow(sides)
        return best_slate(logits[self.task.name], q, null, worth, mask, self.places)[1]


class _Values(nn.Module):
    """What candidates are worth if chosen ``[R, L]``, the logit of choosing none and what that is worth, both ``[R, 1]``."""

    def __init__(self, width: int, known: int, hidden: Sequence[int]):
        super().__init__()
        self.known = known
        self.of_item, self.of_state = MLP(width, hidden), MLP(known, hidden)
        self.item, self.nothing = linear(self.of_item.width, 1), linear(self.of_state.width, 2)

    def forward(self, sides: Sides) -> tuple[Tensor, Tensor, Tensor]:
        state = sides[0] if isinstance(sides, tuple) else sides[:, 0, :0]
        item, nothing = self.of_item(sides), self.of_state(state)
        with torch.autocast(item.device.type, enabled=False):
            null, worth = self.nothing(nothing.float()).split(1, -1)
            return self.item(item.float()).squeeze(-1), null, worth


def best_slate(z: Tensor, q: Tensor, null: Tensor, worth: Tensor, mask: Tensor, places: int) -> tuple[Tensor, Tensor]:
    r"""By which candidates of the best page are found, ``[R, L]`` the greatest first, and what that page is worth, ``[R]``.

    Dinkelbach's method for :math:`\lambda = \max_A (v_\bot q_\bot + \sum_A v_i q_i) / (v_\bot + \sum_A v_i)`, v = exp(z), A of
    `places` candidates: the best of them by :math:`v_i (q_i - \lambda)`, then λ anew.

    Args:
        z, q: logits and values of candidates ``[R, L]``; null, worth: of choosing none ``[R, 1]``; mask: live ones.
    """
    z = torch.where(mask, z, LOW)
    top = torch.maximum(z.amax(-1, keepdim=True), null).detach()
    v, v0 = (z - top).exp() * mask, (null - top).exp()
    q, least = torch.where(mask, q, 0), torch.finfo(q.dtype).min
    value = (v0 * worth + (v * q).sum(-1, keepdim=True)) / (v0 + v.sum(-1, keepdim=True))
    rank = torch.arange(z.shape[1], device=z.device)
    for _ in range(ROUNDS):
        gain = torch.where(mask, v * (q - value), least)
        order = gain.argsort(dim=-1, descending=True, stable=True)
        chosen = v.gather(-1, order) * (rank < places)
        value = (v0 * worth + (chosen * q.gather(-1, order)).sum(-1, keepdim=True)) / (
            v0 + chosen.sum(-1, keepdim=True)
        )
    return torch.where(mask, v * (q - value), 0), value.squeeze(-1)
