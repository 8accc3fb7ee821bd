"""Towards a Better Tradeoff between Effectiveness and Efficiency in Pre-Ranking: A Learnable Feature Selection based Approach
(Ma et al., SIGIR 2021).

https://arxiv.org/abs/2105.07706
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads
from recstack.models.feature_groups import ReadsGroups, check_costs
from recstack.nn.mlp import MLP, flat
from recstack.schema import Schema


class FSCD(ReadsGroups):
    r"""A small network whose feature groups drop out at random, with learned chances: the dearer a group, the less it may stay.

    .. math:: y = \mathrm{MLP}([z_1 e_1; \dots; z_m e_m]), \qquad z_j \sim \mathrm{Bernoulli}(\delta_j), \qquad
        L = L_y + \lambda \sum_j \log\frac{1 - \theta_j}{\theta_j}\, \delta_j, \qquad \theta_j = 1 - \sigma(c_j)

    θ is the prior chance to stay of a group that costs c, so the factor of δ is c itself. While training z is relaxed (the concrete
    distribution), :math:`z = \sigma((\mathrm{logit}\,\delta + \mathrm{logit}\,u) / t)`, with u uniform for each row and group; at serving it is
    its mean δ. Then the network to be served is trained on the groups that `select` names::

        scout = FSCD(schema, cost=cost).fit(train)
        model = FSCD(schema, keep=scout.select(8), gates=False).fit(train)

    Departs from the paper: δ, not z, in the regulariser, which is its mean; the served network is trained anew instead of
    fine-tuned; given numbers pass through COLD's linear-log.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the MLP.
        cost: {group: c}, from 0, such as the paper's :math:`\gamma_1 o + \gamma_2 e` of the complexity at serving and the number of
            keys; None is 1 for each.
        strength: λ, over the number of training rows.
        temperature: t; near 0 gates are open or shut.
        keep: the feature groups to read; None for all.
        gates: the dropout of groups.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.
        history: the pooling of histories, by name: "mean", or "sum", which also tells how long they are.

    Raises:
        ConfigError: a cost below 0, a group without one, or a temperature that is not above 0.

    Ma et al., SIGIR 2021, https://arxiv.org/abs/2105.07706

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> cost = {name: 3.0 if name == "clicked" else 1.0 for name in schema.names}
    >>> scout = rs.pre_ranking.FSCD(schema, hidden=(32,), cost=cost).fit(train, epochs=1, progress=False)
    >>> best = scout.select(3)
    >>> model = rs.pre_ranking.FSCD(schema, hidden=(32,), keep=best, gates=False).fit(train, epochs=1, progress=False)
    >>> len(best), model.score(test)["click"].shape == (len(test),)
    (3, True)
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64, 32),
        cost: Mapping[str, float] | None = None,
        strength: float = 1e-3,
        temperature: float = 0.1,
        keep: Sequence[str] | None = None,
        gates: bool = True,
        norm: str | None = "batch",
        dropout: float = 0.0,
        history: str = "mean",
    ):
        super().__init__(schema, dim, keep, history)
        if not 0 < temperature < math.inf:
            raise ConfigError(f"A temperature is a number above 0; got {temperature!r}.")
        cost = dict.fromkeys(self.known, 1.0) if cost is None else cost
        check_costs(cost, self.known)
        self.cost, self.strength = [float(cost[name]) for name in self.groups], strength
        self.gate = _GroupDropout(len(self.groups), temperature) if gates else None
        self.mlp = MLP(sum(self.widths.values()), hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self._columns(batch)
        if self.gate is not None:
            x = flat(x)
            x = x * self.gate(x).to(x.dtype).index_select(-1, self.place)
        return self.heads(self.mlp(x, batch.get("@mask")))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each task's own, and "cost", what the groups that stay are expected to cost."""
        losses = super().losses(batch)
        if self.gate is not None:
            chance = self.gate.logit.float().sigmoid()
            losses["cost"] = self.strength * (chance * chance.new_tensor(self.cost)).sum()
        return losses

    def chances(self) -> dict[str, float]:
        """The learned chance δ of each group to stay, the greatest first."""
        if self.gate is None:
            raise ConfigError("This FSCD was built with gates=False, so no group drops out; ask the one with gates.")
        chance = dict(zip(self.groups, self.gate.logit.detach().float().sigmoid().tolist(), strict=True))
        return dict(sorted(chance.items(), key=lambda pair: -pair[1]))

    def select(self, groups: int) -> tuple[str, ...]:
        """The names of the groups most likely to stay, for ``keep=``; at least one of them the items'."""
        return self._best(self.chances(), groups)


class _GroupDropout(nn.Module):
    """Relaxed Bernoulli gates of learned chances, one draw for each row and group: ``[..., W] → [..., G]`` in float32."""

    def __init__(self, groups: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.logit = nn.Parameter(torch.zeros(groups))

    def forward(self, x: Tensor) -> Tensor:
        logit = self.logit.float()
        if not self.training:
            return logit.sigmoid().expand(*x.shape[:-1], -1)
        u = torch.rand(*x.shape[:-1], len(logit), device=x.device).clamp(1e-6, 1 - 1e-6)
        return ((logit + u.logit()) / self.temperature).sigmoid()
