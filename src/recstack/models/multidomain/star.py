"""One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction (Sheng et al., CIKM 2021).

https://arxiv.org/abs/2101.11427
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import SchemaError
from recstack.features import Inputs, tasks
from recstack.models.base import Model
from recstack.nn.mlp import MLP, linear
from recstack.schema import Categorical, Schema

FIRST = 2  # ids 0 and 1 of the domain column, padding and out-of-vocabulary, are no domain: shared parameters only
Domain = int | Tensor  # of all rows [n, W], or [R] of each request [R, L, W]; 0 is none, then 1 to P


class STAR(Model):
    r"""Every domain has its own parameters, multiplied into the shared ones.

    .. math:: W_p^\star = W_p \odot W, \quad b_p^\star = b_p + b, \qquad
        z' = (\gamma \gamma_p) \frac{z - \mu_p}{\sqrt{\sigma_p^2 + \epsilon}} + (\beta + \beta_p), \qquad
        \mathrm{logit} = s_{\mathrm{star}} + s_{\mathrm{aux}}

    Rows are sorted by domain once and each domain's rows meet one matrix; nothing of size [rows, in, out] is built.
    Normalisation has the batch statistics of the row's own domain in training and that domain's running statistics
    afterwards, so a prediction never depends on who else is in the batch. A domain that training has not met is served by
    the shared parameters and the statistics of all domains together. The auxiliary network sees all features, the domain
    among them; the star does not see the domain. Departs from the paper: several tasks may share the star's layers.

    Args:
        schema: a fitted schema; its first feature of role "domain" is a Categorical that names the domain.
        dim: embedding width.
        hidden: widths of the star network.
        auxiliary: widths of the auxiliary network.
        dropout: in both.

    Sheng et al., CIKM 2021, https://arxiv.org/abs/2101.11427

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.STAR(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
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
        hidden: Sequence[int] = (256, 128, 64),
        auxiliary: Sequence[int] = (32,),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        domain = schema.by_role("domain")[0]
        if not isinstance(domain, Categorical) or domain.multi:
            raise SchemaError(f"STAR takes its domain from {domain.name!r}, which must be a single-valued Categorical.")
        if not schema.tasks:
            raise SchemaError("The model has nothing to predict: the schema needs tasks=[rs.Task(...)].")
        self.domain, domains = domain.name, max(domain.size - FIRST, 0)  # type: ignore[operator]
        self.outputs = {t.name: tasks.outputs(t) for t in schema.tasks if not t.derived}
        self.inputs = Inputs(schema, dim)
        self.roles = tuple(dict.fromkeys(f.role for f in schema.fields if f.role != "domain"))
        if not self.roles:
            raise SchemaError("STAR needs features beside the domain, and none is declared.")
        widths = (self.inputs.width(*self.roles), *hidden, sum(self.outputs.values()))
        self.norm = _PartitionedNorm(widths[0], domains)
        self.star = nn.ModuleList(_StarLinear(a, b, domains) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.auxiliary = MLP(self.inputs.width(), auxiliary, dropout=dropout)
        self.out = linear(self.auxiliary.width, widths[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots, mask = self.inputs(batch), batch.get("@mask")
        hidden = self.auxiliary(slots.sides())
        x = slots.flat(*self.roles)
        domain = (batch[self.domain] - FIRST + 1).clamp(min=0)
        if (
            torch.compiler.is_exporting()
        ):  # a graph cannot branch on the data; few requests, so a matrix for each is cheap
            (star,) = self._network([x], [domain])
        else:
            star = by_domain(self._network, x, domain, mask if self.training else None)
        with torch.autocast(x.device.type, enabled=False):
            score = star.float() + self.out(hidden.float())  # [R, L, outputs]
        parts = zip(self.outputs, score.split(list(self.outputs.values()), -1), strict=True)
        return tasks.derive({n: s.squeeze(-1) if self.outputs[n] == 1 else s for n, s in parts}, self.schema)

    def _network(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        parts = self.norm(parts, domains)
        for layer in self.star[:-1]:
            parts = [self.dropout(x.relu()) for x in layer(parts, domains)]
        with torch.autocast(parts[0].device.type, enabled=False):  # the logit, as in every head
            return self.star[-1]([x.float() for x in parts], domains)


def by_domain(
    network: Callable[[list[Tensor], list[int]], list[Tensor]], x: Tensor, domain: Tensor, mask: Tensor | None
) -> Tensor:
    """`network` on the rows of ``x [R, L, W]``, cut into one part ``[n, W]`` per domain: ``[R, L, H]``.

    `domain` ``[R]``. Rows that are not live in `mask` are left out, and are zeros.
    """
    rows = x.flatten(0, -2)
    of_row = domain.unsqueeze(-1).expand(x.shape[:-1]).reshape(-1)
    live = torch.arange(rows.shape[0], device=x.device) if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    order = live[of_row[live].argsort(stable=True)]
    found, counts = of_row[order].unique_consecutive(return_counts=True)
    parts = list(rows[order].split(counts.tolist()))
    y = torch.cat(network(parts or [rows[:0]], found.tolist() or [0]))
    return y.new_zeros(rows.shape[0], y.shape[-1]).index_copy(0, order, y).view(*x.shape[:-1], -1)


def own(parameter: Tensor, domains: Sequence[Domain], neutral: float) -> list[Tensor]:
    """Each domain's row of ``parameter [P, ...]``; `neutral` where there is none."""
    nothing = parameter.new_full(parameter.shape[1:], neutral)
    if isinstance(domains[0], Tensor):
        row = parameter[(domains[0] - 1).clamp(min=0)]
        return [torch.where((domains[0] > 0).view(-1, *[1] * nothing.dim()), row, nothing)]
    rows = parameter.unbind()  # once, so that backward makes one gradient and not one per domain
    return [rows[p - 1] if p else nothing for p in domains]


class _StarLinear(nn.Module):
    r"""A linear layer with the parameters :math:`W_p \odot W` and :math:`b_p + b`.

    The domains' own parameters start neutral (ones and zeros), so that all begin as the shared layer.
    """

    def __init__(self, width: int, outputs: int, domains: int):
        super().__init__()
        self.shared = linear(width, outputs)
        self.weight = nn.Parameter(torch.ones(domains, outputs, width))
        self.bias = nn.Parameter(torch.zeros(domains, outputs))

    def forward(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        out = []
        for x, w, b in zip(parts, own(self.weight, domains, 1.0), own(self.bias, domains, 0.0), strict=True):
            weight, bias = self.shared.weight * w, self.shared.bias + b
            out.append(F.linear(x, weight, bias) if x.dim() == 2 else x @ weight.mT + bias.unsqueeze(-2))
        return out


class _PartitionedNorm(nn.Module):
    r"""Batch normalisation with statistics, and a share of scale and shift, for each domain. In float32.

    .. math:: (\gamma \gamma_p) \frac{z - \mu_p}{\sqrt{\sigma_p^2 + \epsilon}} + (\beta + \beta_p)

    A domain's running statistics move only on batches that hold at least two of its rows; fewer are normalised by them.
    The first such batch sets them, so that a rare domain does not start from made-up numbers. A domain that training has
    not met takes the mean and variance of all rows, worked out from the domains'.
    """

    def __init__(self, width: int, domains: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.shared_scale = nn.Parameter(torch.ones(width))
        self.shared_shift = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(domains, width))
        self.shift = nn.Parameter(torch.zeros(domains, width))
        self.mean: Tensor
        self.var: Tensor
        self.rows: Tensor
        self.register_buffer("mean", torch.zeros(domains + 1, width))
        self.register_buffer("var", torch.ones(domains + 1, width))
        self.register_buffer("rows", torch.zeros(domains + 1, dtype=torch.long))

    def forward(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        scales, shifts = own(self.scale, domains, 1.0), own(self.shift, domains, 0.0)
        return [
            self._one(x.float(), p, self.shared_scale * a, self.shared_shift + b).to(x.dtype)
            for x, p, a, b in zip(parts, domains, scales, shifts, strict=True)
        ]

    def _one(self, x: Tensor, domain: Domain, scale: Tensor, shift: Tensor) -> Tensor:
        if self.training and x.shape[0] > 1 and isinstance(domain, int):
            with torch.no_grad():
                var, mean = torch.var_mean(x, 0)
                rate = self.momentum if self.rows[domain] > 0 else 1.0
                self.mean[domain].lerp_(mean, rate)
                self.var[domain].lerp_(var, rate)
                self.rows[domain] += x.shape[0]
            return F.batch_norm(x, None, None, scale, shift, True, 0.0, self.eps)
        mean, var = self.statistics(domain)
        if isinstance(domain, Tensor):
            mean, var, scale, shift = (t.unsqueeze(-2) for t in (mean, var, scale, shift))
        return (x - mean) * ((var + self.eps).rsqrt() * scale) + shift

    def statistics(self, domain: Domain) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[W]`` of a domain, or ``[R, W]``; those of all rows together for one not met yet."""
        share = (self.rows / self.rows.sum().clamp(min=1)).float().unsqueeze(-1)  # [P + 1, 1]
        mean = (share * self.mean).sum(0)
        var = (share * (self.var + (self.mean - mean).square())).sum(0) + (self.rows.sum() == 0)
        met = (self.rows[domain] > 0).unsqueeze(-1)
        return torch.where(met, self.mean[domain], mean), torch.where(met, self.var[domain], var)
