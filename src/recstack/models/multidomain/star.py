"""One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction (Sheng et al., CIKM 2021).

https://arxiv.org/abs/2101.11427
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import SchemaError
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.models.domains import DomainColumn, added
from recstack.nn.domains import Domain, PartitionedNorm, StarLinear, by_domain, own
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import MLP
from recstack.schema import Schema


class STAR(Model):
    r"""Every domain has its own parameters, multiplied into the shared ones.

    .. math:: W_p^\star = W_p \odot W, \quad b_p^\star = b_p + b, \qquad
        z' = (\gamma \gamma_p) \frac{z - \mu_p}{\sqrt{\sigma_p^2 + \epsilon}} + (\beta + \beta_p), \qquad
        \mathrm{logit} = s_{\mathrm{star}} + s_{\mathrm{aux}}

    Rows are sorted by domain once and each domain's rows meet one matrix; nothing of size [rows, in, out] is built.
    Normalisation has the batch statistics of the row's own domain in training and that domain's running statistics
    afterwards, so a prediction never depends on who else is in the batch. A domain that training has not met is served by
    the shared parameters and the statistics of all domains together. The auxiliary network sees all features, the domain
    among them; the star does not see the domain. The star's last layer makes a logit, and there
    :math:`(w_p \odot w)^\top h = w^\top (w_p \odot h)`: so the model ends in a hidden vector
    :math:`[w_p \odot h;\ \mathrm{MLP}_{\mathrm{aux}}]` and can be a trunk. Departs from the paper: of several tasks each has its
    own w and :math:`b_p`, and they share the star and :math:`w_p`.

    Args:
        schema: a fitted schema; its first feature of role "domain" is a Categorical that names the domain.
        dim: embedding width.
        hidden: widths of the star network, at least one.
        auxiliary: widths of the auxiliary network.
        dropout: in both.
        history: how histories become vectors: "mean", "attention", ...

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
        history: str = "mean",
    ):
        super().__init__(schema)
        self.domain = DomainColumn(schema, "STAR")
        domains = self.domain.count
        self.names = [t.name for t in schema.tasks if not t.derived]
        self.inputs = Inputs(schema, dim, history=history)
        self.roles = tuple(dict.fromkeys(f.role for f in schema.fields if f.role != "domain"))
        if not self.roles:
            raise SchemaError("STAR needs features beside the domain, and none is declared.")
        widths = (self.inputs.width(*self.roles), *hidden)
        self.norm = PartitionedNorm(widths[0], domains)
        self.star = nn.ModuleList(StarLinear(a, b, domains) for a, b in pairwise(widths))
        self.dropout = Dropout(dropout)
        self.scale = nn.Parameter(torch.ones(domains, hidden[-1]))
        self.bias = nn.Parameter(torch.zeros(domains, len(self.names)))
        self.auxiliary = MLP(self.inputs.width(), auxiliary, dropout=dropout)
        self.heads = Heads(schema, hidden[-1] + self.auxiliary.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots, mask, domain = self.inputs(batch), batch.get("@mask"), self.domain(batch)
        h = by_domain(self._network, slots.flat(*self.roles), domain, mask if self.training else None)
        (scale,), (bias,) = own(self.scale, [domain], 1.0), own(self.bias, [domain], 0.0)
        hidden = torch.cat([h * scale.unsqueeze(-2).to(h.dtype), self.auxiliary(slots.sides())], -1)
        return self.heads(hidden, added(self.names, bias.unsqueeze(-2).expand(*h.shape[:-1], -1)))

    def _network(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        parts = self.norm(parts, domains)
        for layer in self.star:
            parts = [self.dropout(x.relu()) for x in layer(parts, domains)]
        return parts
