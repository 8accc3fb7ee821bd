"""Personalized Approximate Pareto-Efficient Recommendation (Xie et al., WWW 2021).

https://doi.org/10.1145/3442381.3450039
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import tasks
from recstack.losses.rows import weighted_mean
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.mlp import MLP, Sides, flat, linear
from recstack.nn.pareto import pareto_reward
from recstack.nn.sequence.recurrent import GRU
from recstack.schema import Schema, Task


class PAPERec(MultiTask):
    r"""Weights of the tasks for each user and place in the list, chosen so that no task could gain without another's loss.

    .. math:: w(s) = \mathrm{softmax}(\mathrm{actor}(s)), \qquad
        r = -\Bigl\| \sum_k w_k \frac{\partial L_k}{\partial o_k} h_k \Bigr\|^2, \qquad
        Q(s_t, w_t) \to r_t + \gamma\, Q(s_{t+1}, w_{t+1})

    A row is Pareto-stationary where its tasks' gradients, weighted, cancel out. r says how near it is, by the gradients of
    the last layer alone: of :math:`o = W h` that is the error times h. The state s is that of a GRU over the list down to the
    row (a log without lists has lists of one). The critic Q learns from r, the actor to please it (DDPG). Each task learns
    from its own loss and, all together, from the losses weighted row by row with w. `weights` gives w; the sum of the
    predictions weighted by it is what the paper ranks by. `predict` gives the tasks as they are.

    Departs from the paper, of which neither code nor all details are public: targets come from the networks themselves, not
    from slow copies; the error is prediction less label whatever loss a task chose, of classes the length of that vector.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        hidden: widths of each task's tower, at least one.
        state: width of s.
        discount: :math:`\gamma`, of what comes further down the list.
        strength: of the losses weighted by w, beside the tasks' own.
        noise: standard deviation of what the actor's scores get added while the critic learns, so that it sees other weights;
            with little of it the actor settles in a corner before the critic knows better.
        norm: "batch", "layer" or None, in the towers.
        dropout: in the towers.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``.

    Raises:
        ConfigError: towers without a layer.

    Xie et al., WWW 2021, https://doi.org/10.1145/3442381.3450039

    >>> import recstack as rs
    >>> tasks = [rs.Task("click"), rs.Task("cart")]
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=tasks))
    >>> encoder = rs.Encoder(train.schema).fit(train)
    >>> model = rs.multitask.PAPERec(encoder.schema, hidden=(16,)).fit(train, valid=valid, epochs=1, progress=False)
    >>> batch = encoder.encode(test).batch(slice(0, 3))
    >>> weights = model.weights(batch)
    >>> bool(((weights["click"] + weights["cart"] - 1).abs() < 1e-6).all())
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        state: int = 16,
        discount: float = 0.9,
        strength: float = 1.0,
        noise: float = 1.0,
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk)
        if not hidden:
            raise ConfigError(
                "PAPERec looks at the gradient of the layer over the towers; give hidden= at least one width."
            )
        self.discount, self.strength, self.noise = discount, strength, noise
        self.towers_on(self.trunk.width, hidden, each=self.trunk.each, norm=norm, dropout=dropout)
        self.goals = [n for n in self.names if schema.task(n).weight] or self.names
        k, width = len(self.goals), self.trunk.width * (len(self.names) if self.trunk.each else 1)
        self.state = GRU(width, state)
        self.actor = linear(state, k)
        self.critic = MLP(state + k, (state,))
        self.value = linear(state, 1)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        return self.answer(x, batch, plus)

    @torch.no_grad()
    def weights(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{task: its weight float32 ``[R, L]``}, which sum to 1 over the tasks; those of weight 0 have none."""
        x, _ = self.trunk(batch)
        share = self.actor(self._states(x, batch)).float().softmax(-1)
        return dict(zip(self.goals, share.unbind(-1), strict=True))

    def _states(self, x: Sides, batch: Mapping[str, Tensor]) -> Tensor:
        """``[R, L, S]``; what reads it does not shape the trunk."""
        rows = (x.flatten(-2) if self.trunk.each else flat(x)).detach()  # type: ignore[union-attr]
        mask = batch.get("@mask")
        if mask is None:
            mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        return self.state(torch.where(mask.unsqueeze(-1), rows, 0), mask)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        h = self.towers(x, batch.get("@mask"))  # [R, L, T, H]
        logits = self.heads(self.by_task(h), plus)
        states = self._states(x, batch)
        with torch.autocast(h.device.type, enabled=False):
            h = torch.stack([one for name, one in self.by_task(h.float()).items() if name in self.goals], -2)
            own = tasks.losses(logits, batch, self.schema) | self._pareto(logits, h, states.float(), batch)
        return own | self.auxiliary_losses(batch)

    def _pareto(
        self, logits: dict[str, Tensor], h: Tensor, states: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        goals = [self.schema.task(name) for name in self.goals]
        targets = [tasks.target(batch, self.schema, task) for task in goals]
        live = torch.stack([t.where for t in targets], -1)  # [R, L, K]
        error = [_error(logits[task.name].detach(), t.label, task) for task, t in zip(goals, targets, strict=True)]
        score = self.actor(states.detach())
        chosen = score.softmax(-1)
        noise = torch.randn_like(score) * self.noise if self.training else 0.0
        tried = (score + noise).softmax(-1).detach()
        some = live.any(-1).to(h.dtype)

        reward = pareto_reward(tried, torch.stack(error, -1), h.detach(), live)
        after = self._value(states, chosen, still=True).detach()[:, 1:] * some[:, 1:]
        goal = reward + self.discount * torch.cat([after, after.new_zeros(len(after), 1)], 1)
        missed = (self._value(states, tried) - goal).square()
        out = {"critic": weighted_mean(missed, some)}
        out["actor"] = -weighted_mean(self._value(states.detach(), chosen, still=True), some)
        if self.strength:
            parts = []
            for task, t, share in zip(goals, targets, chosen.detach().unbind(-1), strict=True):
                given = torch.where(t.where, 1.0 if t.weight is None else t.weight, 0)
                one = tasks.loss(task)(logits[task.name], t.label, where=t.where, weight=given * share)
                parts.append(one * weighted_mean(share, given) * task.weight)  # a mean over rows, not over their shares
            out["pareto"] = self.strength * torch.stack(parts).sum()
        return out

    def _value(self, states: Tensor, weights: Tensor, still: bool = False) -> Tensor:
        """Q ``[R, L]``; with `still`, its own weights are constants: the actor must not teach the critic to be pleased."""
        x = torch.cat([states, weights], -1)
        if not still:
            return self.value(self.critic(x)).squeeze(-1)
        still_critic = {name: p.detach() for name, p in self.critic.named_parameters()}
        hidden = torch.func.functional_call(self.critic, still_critic, (x,))
        return nn.functional.linear(hidden, self.value.weight.detach(), self.value.bias.detach()).squeeze(-1)


def _error(logit: Tensor, label: Tensor, task: Task) -> Tensor:
    """Prediction less label ``[R, L]``; of classes, where these are vectors, the length of the difference."""
    if task.kind == "multiclass":
        truth = nn.functional.one_hot(label.long(), logit.shape[-1])
        return (logit.softmax(-1) - truth).square().sum(-1).clamp(min=1e-12).sqrt()
    score = tasks.score(logit, task)
    return (score.sigmoid() if task.kind == "binary" else score) - label
