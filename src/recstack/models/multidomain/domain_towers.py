"""Multitask Learning (Caruana, Machine Learning 28, 1997), with domains in the place of tasks: a shared bottom, a tower each.

https://doi.org/10.1023/A:1007379606734
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads
from recstack.models.base import Model
from recstack.models.domains import DomainColumn, added
from recstack.models.trunk import MultiTask
from recstack.nn.domains import DomainNetworks, by_domain, own
from recstack.nn.mlp import MLP, flat
from recstack.schema import Schema


class DomainTowers(MultiTask):
    r"""A shared bottom, and towers of their own for each domain and task: the baseline that shares nothing above the bottom.

    .. math:: z = f(x), \qquad \mathrm{logit}_k = w_{k}^\top (s_{pk} \odot \mathrm{MLP}_{pk}(z)) + b_k + b_{pk}

    A tower's last layer is written as a shared vector times the domain's factors, which says the same. Rows are grouped by
    domain, and each group meets its own matrices. With ``hidden=()`` only the embeddings (or the `trunk`) are shared. All
    domains begin with the same weights; one that training has not met is served by the mean of the domains' parameters.
    Departs from the paper: domains in the place of tasks, as the "Shared Bottom" that multi-domain papers compare with.

    Args:
        schema: a fitted schema; its first feature of role "domain" is a Categorical that names the domain.
        dim: embedding width.
        hidden: widths of the bottom.
        towers: widths of each tower, at least one.
        norm: "batch", "layer" or None, in the bottom.
        dropout: in bottom and towers.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what the bottom reads in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: towers without a layer.

    Caruana, 1997, https://doi.org/10.1023/A:1007379606734

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.DomainTowers(rs.Encoder(train.schema).fit(train).schema, hidden=(32,), towers=(16,))
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
        hidden: Sequence[int] = (256, 128),
        towers: Sequence[int] = (64,),
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if not towers:
            raise ConfigError("DomainTowers needs towers= with at least one layer.")
        super().__init__(schema, dim, history, trunk, together=True)
        self.domain = DomainColumn(schema, "DomainTowers")
        domains, tasks = self.domain.count, len(self.names)
        self.bottom = MLP(self.trunk.width, hidden, norm=norm, dropout=dropout)
        self.networks = DomainNetworks(self.bottom.width, towers, tasks, domains, dropout)
        self.scale = nn.Parameter(torch.ones(domains, tasks, towers[-1]))
        self.bias = nn.Parameter(torch.zeros(domains, tasks))
        self.heads = Heads(schema, towers[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (x, plus), mask, domain = self.trunk(batch), batch.get("@mask"), self.domain(batch)
        z = flat(self.bottom(x, mask))
        h = by_domain(self.networks, z, domain, mask if self.training else None).unflatten(-1, (len(self.names), -1))
        (scale,), (bias,) = own(self.scale, [domain], None), own(self.bias, [domain], None)
        h = h * scale.unsqueeze(-3).to(h.dtype)  # [R, L, T, H]
        bias = bias.unsqueeze(-2).expand(h.shape[:-1])
        return self.heads(self.by_task(h), added(self.names, bias, plus))
