"""Leaving No One Behind: A Multi-Scenario Multi-Task Meta Learning Approach for Advertiser Modeling (Zhang et al., WSDM 2022).

https://arxiv.org/abs/2201.06814
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError, SchemaError
from recstack.features import Heads
from recstack.models.base import Model
from recstack.models.domains import DomainColumn, MultiDomain, once
from recstack.nn.domains import Domain, by_domain
from recstack.nn.experts import Experts
from recstack.nn.gates import mixtures
from recstack.nn.mlp import MLP
from recstack.schema import REQUEST_ROLES, Schema

Unit = tuple[Tensor, Tensor]  # matrices [G, H, H] and biases [G, H] of G scenarios


class M2M(MultiDomain):
    r"""What is known of the scenario writes the weights of the attention over experts and of the towers.

    .. math:: \tilde S = \mathrm{MLP}(S), \qquad W = \mathrm{Reshape}(V_w \tilde S + v_w), \quad b = V_b \tilde S + v_b, \qquad
        \mathrm{Meta}(h) = \mathrm{LeakyReLU}(W h + b)

    .. math:: \alpha_{te} = \mathrm{softmax}_e\, v^\top \mathrm{Meta}([E_e; T_t]), \qquad R_t = \sum_e \alpha_{te} E_e, \qquad
        L^{j}_t = \mathrm{LeakyReLU}\big(\mathrm{Meta}^{j}(L^{j - 1}_t) + L^{j - 1}_t\big), \quad L^0_t = R_t

    E ``[R, L, E, H]`` are the experts' outputs, T a learned vector for each task, the towers residual. Where S is the
    domain alone, weights are written once for each domain in the batch, and rows grouped by it; else once for each
    request. Nothing attends across the batch. A domain that training has not met has the embedding of what is out of
    vocabulary, nearly zero: its weights are nearly the biases' of the MLP and v, which all domains share. Departs from the
    paper: histories become vectors by any pooling, not by a transformer, and a task's vector is learned as it is.

    Args:
        schema: a fitted schema; its first feature of role "domain" is a Categorical that names the domain.
        dim: embedding width.
        experts: E.
        hidden: widths of each expert, at least one; H is the last.
        layers: of each tower.
        knowledge: the features S, of users, contexts and domains; None: all of role "domain".
        dropout: in the experts.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what experts read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: experts without a layer.
        SchemaError: knowledge that differs between the candidates of a request.

    Zhang et al., WSDM 2022, https://arxiv.org/abs/2201.06814

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.M2M(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
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
        experts: int = 4,
        hidden: Sequence[int] = (64, 32),
        layers: int = 2,
        knowledge: Sequence[str] | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if not hidden:
            raise ConfigError("M2M needs hidden= with at least one layer.")
        for name in knowledge or ():
            if schema.feature(name).role not in REQUEST_ROLES:
                raise SchemaError(
                    f"M2M's knowledge {name!r} differs between candidates; name one that a request has once."
                )
        super().__init__(schema, dim, history, trunk, knowledge)
        self.domain = DomainColumn(schema, "M2M")
        self.alone = self.steering == [self.domain.name]
        width, h, tasks = self.width_of(*self.steering), hidden[-1], len(self.names)
        self.experts = Experts(self.trunk.width, hidden, experts, dropout)
        self.scenario = MLP(width, (h,))
        self.task = nn.Parameter(torch.randn(tasks, h) * h**-0.5)
        self.attention, self.vote = _Meta(h, 2 * h), nn.Linear(2 * h, 1, bias=False)
        self.layers = nn.ModuleList(_Meta(h, h) for _ in range(layers))
        self.heads = Heads(schema, h)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, slots, plus = self.read(batch)
        experts = self.experts(x).flatten(-2)  # [R, L, E H]
        knowledge = once(slots, self.steering).unsqueeze(-2).expand(*x.shape[:-1], -1)
        together = torch.cat([experts, knowledge.to(experts.dtype)], -1)
        domain, mask = batch[self.domain.name], batch.get("@mask") if self.training else None
        if self.alone:
            h = by_domain(self._network, together, domain, mask)
        else:
            (h,) = self._network([together], [domain])
        return self.heads(self.by_task(h.unflatten(-1, (len(self.names), -1))), plus)

    def _network(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        one = parts[0].dim() == 2  # parts of one domain each
        cut = self.experts.experts * self.experts.width
        rows = [part.unsqueeze(0) for part in parts] if one else parts
        scenario = self.scenario(torch.cat([x[:, :1, cut:].sum(1) for x in rows]))  # [G, H], of the first of equal rows
        attention = self.attention(scenario)
        layers: list[Unit] = [layer(scenario) for layer in self.layers]
        if not one:
            return [self._read(rows[0][..., :cut], attention, layers)]
        # split once, so that backward makes one gradient and not one per domain
        units = [zip(weight.split(1), bias.split(1), strict=True) for weight, bias in (attention, *layers)]
        out = []
        for x, first, *rest in zip(rows, *units, strict=True):
            out.append(self._read(x[..., :cut], first, rest).squeeze(0))
        return out

    def _read(self, x: Tensor, attention: Unit, layers: list[Unit]) -> Tensor:
        """The experts' outputs ``[G, n, E H]`` of G scenarios as the tasks' vectors ``[G, n, T H]``."""
        experts = x.unflatten(-1, (self.experts.experts, -1))
        of_expert = experts.unsqueeze(-3).expand(*x.shape[:-1], len(self.names), -1, -1)
        of_task = self.task.to(x.dtype).unsqueeze(-2).expand_as(of_expert)
        score = self.vote(_meta(torch.cat([of_expert, of_task], -1), attention)).squeeze(-1)  # [G, n, T, E]
        h = mixtures(score.float().softmax(-1), experts)  # [G, n, T, H]
        for unit in layers:
            h = F.leaky_relu(_meta(h, unit) + h)
        return h.flatten(-2)


class _Meta(nn.Module):
    """Knowledge ``[G, K]`` as the matrices ``[G, H, H]`` and biases ``[G, H]`` of a layer."""

    def __init__(self, knowledge: int, width: int):
        super().__init__()
        self.weight, self.bias = nn.Linear(knowledge, width * width), nn.Linear(knowledge, width)
        nn.init.normal_(self.weight.weight, 0.0, (width * knowledge) ** -0.5)
        nn.init.normal_(self.weight.bias, 0.0, width**-0.5)
        nn.init.normal_(self.bias.weight, 0.0, (width * knowledge) ** -0.5)
        nn.init.zeros_(self.bias.bias)

    def forward(self, knowledge: Tensor) -> Unit:
        weight = self.weight(knowledge)
        width = self.bias.out_features
        return weight.unflatten(-1, (width, width)), self.bias(knowledge)


def _meta(x: Tensor, unit: Unit) -> Tensor:
    """``x [G, ..., H]`` through the layer of its scenario."""
    weight, bias = unit
    y = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, -2), weight.mT.to(x.dtype))
    return F.leaky_relu(y).view(x.shape)
