"""Continuous control with deep reinforcement learning (Lillicrap et al., ICLR 2016), acting on lists.

https://arxiv.org/abs/1509.02971
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


class DDPG(Agent):
    r"""An actor hands out attention to the candidates of a list; a critic says what lists so attended to are worth.

    .. math:: a(s) = \mathrm{softmax}_i\, f(s, x_i), \qquad Q(s, a) = \mathrm{MLP}\big(s, \textstyle\sum_i a_i x_i\big), \qquad
              L = \big(r + \gamma\, Q^-(s', a^-(s')) - Q(s, a)\big)^2 - Q(s, a(s))

    The log's action is the order in which it showed: attention :math:`a_i \propto 1 / \log_2(1 + k)` to the k-th row that has a
    label of the first task, none to the others, which were not shown. r is the sum of those labels. The logits of the first task
    are f ``[R, L]``: the page is the list sorted by them. Other tasks keep their own heads and losses.

    Departs from the paper: what explores is the log, so the actor adds no noise; actor and critic stand on the same tables, which
    their slow copies share.

    Args:
        schema: a fitted schema; its first task is what a page earns, one output.
        dim: embedding width of ids.
        hidden: widths of the actor and of the critic.
        history: how each history becomes one vector: "gru", "mean", ...
        discount: γ.
        rate: by which the slow copies follow, at each step.

    Raises:
        ConfigError: a first task of several outputs, or made of others; a discount or rate that is none.

    Lillicrap et al., ICLR 2016, https://arxiv.org/abs/1509.02971

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(lists=True))
    >>> model = rs.reranking.DDPG(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        history: str = "gru",
        discount: float = 0.8,
        rate: float = 1e-3,
    ):
        super().__init__(schema, discount, rate)
        first = schema.tasks[0] if schema.tasks else None
        if first is None or first.derived or tasks.outputs(first) > 1:
            raise ConfigError("DDPG learns what a page earns: its first task has one output, and is no product.")
        self.task = first
        self.inputs = Inputs(schema, dim, history=history)
        known = self.inputs.width("user", "context", "domain", "history")
        self.actor = _Actor(schema, self.inputs.width(), hidden)
        self.actor.heads.layers[first.name].bias.requires_grad_(False)  # a softmax does not feel it
        self.critic = _Critic(known, self.inputs.width() - known, hidden)
        self.slow_actor, self.slow_critic = Slow(self.actor, rate), Slow(self.critic, rate)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.actor(self.inputs(batch).sides())

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the critic, of the actor, and of the other tasks."""
        if self.training:
            self.slow_actor.follow(self.actor)
            self.slow_critic.follow(self.critic)
        sides = self.inputs(batch).sides()
        logits = self.actor(sides)
        label, shown, weight = tasks.target(batch, self.schema, self.task)
        of_row = shown.float() if weight is None else torch.where(shown, weight, 0)
        of_list = of_row.sum(-1) / shown.sum(-1).clamp(min=1)
        place = shown.cumsum(-1).clamp(min=1)
        done = shown / torch.log2(1.0 + place)
        done = done / done.sum(-1, keepdim=True).clamp(min=1e-6)
        goal = torch.where(shown, label, 0).sum(-1) + self.after(batch)
        missed = (self.critic(sides, done) - goal).square()
        # The actor is to please the critic, and neither the critic nor its tables are to be pleased.
        still = {name: p.detach() for name, p in self.critic.named_parameters()}
        read = tuple(side.detach() for side in sides) if isinstance(sides, tuple) else sides.detach()
        live = batch.get("@mask", torch.ones_like(shown))
        pleased = torch.func.functional_call(self.critic, still, (read, _attention(logits[self.task.name], live)))
        out = self.list_losses(logits, batch)
        out.pop(self.task.name, None)
        return {"critic": weighted_mean(missed, of_list), "actor": -weighted_mean(pleased, of_list), **out}

    def value(self, batch: Mapping[str, Tensor]) -> Tensor:
        sides = self.inputs(batch).sides()
        z = self.slow_actor(sides)[self.task.name]
        return self.slow_critic(sides, _attention(z, batch.get("@mask", torch.ones_like(z, dtype=torch.bool))))


def _attention(z: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, z, -1e30).softmax(-1) * mask


class _Actor(nn.Module):
    """Logits of all tasks of the candidates."""

    def __init__(self, schema: Schema, width: int, hidden: Sequence[int]):
        super().__init__()
        self.mlp = MLP(width, hidden)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, sides: Sides) -> dict[str, Tensor]:
        return self.heads(self.mlp(sides))


class _Critic(nn.Module):
    """``(request [R, S], candidates [R, L, W]), attention [R, L] → Q [R]`` in float32."""

    def __init__(self, known: int, width: int, hidden: Sequence[int]):
        super().__init__()
        self.mlp = MLP(known + width, hidden)
        self.out = linear(self.mlp.width, 1)

    def forward(self, sides: Sides, attention: Tensor) -> Tensor:
        request, candidates = sides if isinstance(sides, tuple) else (sides[:, 0, :0], sides)
        with torch.autocast(attention.device.type, enabled=False):
            # Where nothing is attended to, dead candidates may hold anything.
            held = torch.where(attention.unsqueeze(-1) > 0, candidates.float(), 0)
            seen = torch.einsum("rl,rlw->rw", attention.float(), held)
            return self.out(self.mlp(torch.cat([request.float(), seen], -1))).squeeze(-1)
