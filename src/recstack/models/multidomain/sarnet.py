"""SAR-Net: A Scenario-Aware Ranking Network for Personalized Fair Recommendation in Hundreds of Travel Scenarios (Shen et al., CIKM 2021).

https://arxiv.org/abs/2110.06475
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads
from recstack.models.domains import DomainColumn, MultiDomain, once
from recstack.nn.domains import DomainNetworks, by_domain, own
from recstack.nn.experts import Experts
from recstack.nn.gates import Gates, mixtures
from recstack.nn.mlp import linear
from recstack.nn.names import ByName
from recstack.nn.sequence.target_attention import TargetAttention
from recstack.schema import Schema


class SARNet(MultiDomain):
    r"""Behaviours weighed by the item and by the scenario; experts that a scenario shares with others, and its own.

    .. math:: v = \sum_j a(q, h_j)\, a'(s, h_j)\, h_j, \qquad z = w_p \odot [x; v] + b_p, \qquad
        \mathrm{out} = \sum_e g_e E_e(z), \qquad g = \mathrm{softmax}(W [s; z])

    Each history ``[R, T, W]`` is read by two attention units: the candidate's and that of the current scenario s, whatever
    scenario the behaviour came from. Experts E ``[R, L, E, H]`` are those of the row's own domain, which rows meet grouped
    by domain, and the shared ones. A gate for each task sees the scenario too. The paper's fairness coefficient weighs a row
    by how little its exposure was forced: give it as the log's weight, which enters the loss. A domain that training has
    not met keeps z = [x; v] and is served by the mean of the domains' own experts. Departs from the paper: it
    multiplies predictions inside of the experts by that coefficient, and compares s with the scenario of each behaviour, which
    here takes part where the history's steps hold it; several tasks, each with its gate; experts are not normalised over the
    batch, in which all scenarios would be mixed.

    Args:
        schema: a fitted schema; its first feature of role "domain" is a Categorical that names the domain.
        dim: embedding width.
        shared: experts of all domains.
        specific: experts of each domain.
        hidden: widths of each expert, at least one.
        attention: widths of both attention units.
        gate_dropout: chance that an expert is out for a row and a task while training, against gates that collapse.
        dropout: in the experts.

    Raises:
        ConfigError: no expert of either kind, or experts without a layer.

    Shen et al., CIKM 2021, https://arxiv.org/abs/2110.06475

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.SARNet(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("domain",)

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        shared: int = 8,
        specific: int = 2,
        hidden: Sequence[int] = (64, 32),
        attention: Sequence[int] = (36,),
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
    ):
        if min(shared, specific) < 1 or not hidden:
            raise ConfigError("SARNet needs a shared expert, one of each domain, and hidden= with at least one layer.")
        super().__init__(schema, dim, None, None)
        self.domain = DomainColumn(schema, "SARNet")
        domains, scene, width = self.domain.count, self.width_of(*self.steering), self.trunk.width
        self.by_item, self.by_scene, self.queries = ByName(), ByName(), ByName()
        for h in schema.histories:
            steps = self.width_of(*h.of)
            self.by_item[h.name] = TargetAttention(steps, attention, "prelu")
            self.by_scene[h.name] = TargetAttention(steps, attention, "prelu")
            self.queries[h.name] = linear(scene, steps)
            width += steps
        self.scale = nn.Parameter(torch.ones(domains, width))
        self.shift = nn.Parameter(torch.zeros(domains, width))
        self.experts = Experts(width, hidden, shared, dropout)
        self.own = DomainNetworks(width, hidden, specific, domains, dropout)
        self.gates = Gates(scene + width, specific + shared, len(self.names), gate_dropout)
        self.heads = Heads(schema, hidden[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, slots, _ = self.read(batch)
        assert slots is not None
        domain, mask, scene = self.domain(batch), batch.get("@mask"), once(slots, self.steering)
        parts = [x]
        for h in self.schema.histories:
            steps, live = slots.sequence(h.name)
            query = torch.cat([slots.candidate[name] for name in h.of], -1)
            weight = self.by_item[h.name].weights(query, steps, live, mask)  # type: ignore[operator]  # [R, L, T]
            here = self.queries[h.name](scene).unsqueeze(-2)
            weight = weight * self.by_scene[h.name].weights(here, steps, live)  # type: ignore[operator]
            parts.append(weight @ steps)
        (scale,), (shift,) = own(self.scale, [domain], 1.0), own(self.shift, [domain], 0.0)
        z = torch.cat(parts, -1) * scale.unsqueeze(-2) + shift.unsqueeze(-2)
        theirs = by_domain(self.own, z, domain, mask if self.training else None)
        experts = torch.cat([theirs.unflatten(-1, (self.own.networks, -1)), self.experts(z)], -2)
        return self.heads(self.by_task(mixtures(self.gates((scene, z)), experts)))
