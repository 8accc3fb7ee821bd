"""Ads Recommendation in a Collapsed and Entangled World (Pan et al., KDD 2024).

https://arxiv.org/abs/2403.00793
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import FirstOrder, Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP
from recstack.nn.names import ByName
from recstack.schema import Schema


class GwPFM(Model):
    r"""A field-aware factorisation machine at the cost of a few groups of fields, each pair of groups with a weight.

    .. math:: z = b + \sum_i w_i x_i + \sum_{i<j} r_{g(i)g(j)} \langle v_i^{g(j)}, v_j^{g(i)} \rangle x_i x_j

    A feature has a vector for each group, ``[R, L, F, G, dim]``, and the weights begin at 1. With
    :math:`S_a^b = \sum_{i \in a} v_i^b` the pairs of two groups a and b are :math:`\langle S_a^b, S_b^a \rangle`, so
    that no pair of fields is formed; in float32. Each task has its own linear part; vectors and weights are shared. One group makes it
    an FM, as many groups as fields an FFM. With `hidden` an MLP reads the products of each pair of groups,
    :math:`r_{ab} \sum_{i \in a, j \in b} v_i^b \odot v_j^a`, behind each other, in place of their sum; it may have
    classes to choose from, to which the linear part adds nothing. Departs from the paper: a field of many values is
    pooled first.

    Args:
        schema: a fitted schema, its tasks binary or regressions unless there is an MLP.
        dim: length of each vector; a table has G·dim columns.
        groups: "role" (a group for each role: user, item, ...), "field" (for each feature), or tuples of features' names;
            features in none of them are one group more.
        hidden: widths of the MLP; none sums the products.
        dropout: in the MLP.

    Pan et al., KDD 2024, https://arxiv.org/abs/2403.00793

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.GwPFM(rs.Encoder(train.schema).fit(train).schema, dim=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    own: Tensor
    member: Tensor
    place: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        groups: str | Sequence[Sequence[str]] = "role",
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        self.dim, named = dim, _groups(schema, groups)
        self.groups = list(dict.fromkeys(named.values()))
        pairs = len(self.groups) * (len(self.groups) + 1) // 2
        self.mlp = MLP(pairs * dim, hidden, dropout=dropout) if hidden else None
        self.heads = Heads(schema, self.mlp.width if self.mlp is not None else 0)
        linear = [t.name for t in schema.tasks if not t.derived and t.kind != "multiclass"]
        self.first_order = ByName({name: FirstOrder(schema) for name in linear})
        self.inputs = Inputs(schema, len(self.groups) * dim, stacked=True)
        group = torch.tensor([self.groups.index(named[name]) for name in self.inputs.widths])
        size = len(self.groups)
        self.register_buffer("own", torch.arange(len(group)) * size + group, persistent=False)
        self.register_buffer("member", (group == torch.arange(size).unsqueeze(-1)).float(), persistent=False)  # [G, F]
        first, second = torch.triu_indices(size, size)
        self.register_buffer("place", first * size + second, persistent=False)
        self.weight = nn.Parameter(torch.ones(len(first)))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields, size = self.inputs(batch).stack(), len(self.groups)  # [R, L, F, G·D]
        if self.mlp is not None:
            hidden = self.mlp((self.products(fields.float()) * self.weight.unsqueeze(-1)).flatten(-2))
            zero = hidden.new_zeros(hidden.shape[:-1])  # what the linear part adds to classes
            plus = {t.name: zero for t in self.schema.tasks if not t.derived}
            return self.heads(hidden, plus=plus | {name: linear(batch) for name, linear in self.first_order.items()})
        with torch.autocast(fields.device.type, enabled=False):
            fields = fields.float()
            sums = (self.member @ fields).unflatten(-1, (size, self.dim))  # [R, L, G, G, D]
            inner = (sums * sums.transpose(-3, -2)).sum(-1)  # [R, L, G, G]; within a group, each pair twice, and itself
            weight = self.weight.new_zeros(size * size).index_copy(0, self.place, self.weight).view(size, size)
            within = 0.5 * weight.diagonal()
            own = fields.unflatten(-1, (size, self.dim)).flatten(-3, -2).index_select(-2, self.own)  # [R, L, F, D]
            between = (inner * (weight - within.diag())).sum((-2, -1))
            pairs = between - (own.square().sum(-1) * (within @ self.member)).sum(-1)
        return self.heads(None, plus={name: linear(batch) + pairs for name, linear in self.first_order.items()})

    def products(self, fields: Tensor) -> Tensor:
        """The elementwise products of the pairs of fields in each pair of groups, summed: ``[R, L, P, D]``, unweighed."""
        size = len(self.groups)
        first, second = torch.triu_indices(size, size, device=fields.device)
        same = (first == second).unsqueeze(-1)
        with torch.autocast(fields.device.type, enabled=False):
            sums = (self.member @ fields).unflatten(-1, (size, self.dim))
            both = (sums * sums.transpose(-3, -2)).flatten(-3, -2).index_select(-2, self.place)
            own = fields.unflatten(-1, (size, self.dim)).flatten(-3, -2).index_select(-2, self.own)
            itself = (self.member @ own.square()).index_select(-2, first)  # within a group, what meets itself
            return torch.where(same, 0.5 * (both - itself), both)

    def strengths(self) -> dict[tuple[str, str], float]:
        """The learned r of each pair of groups, a group with itself included: ``{(group, group): r}``."""
        pairs = combinations_with_replacement(self.groups, 2)
        return dict(zip(pairs, self.weight.detach().tolist(), strict=True))


def _groups(schema: Schema, groups: str | Sequence[Sequence[str]]) -> dict[str, str]:
    """The group of each feature."""
    if groups == "role":
        return {f.name: f.role for f in schema.fields}
    if groups == "field":
        return {f.name: f.name for f in schema.fields}
    if isinstance(groups, str):
        raise unknown("grouping", groups, ("role", "field"))
    found: dict[str, str] = {}
    for members in groups:
        for name in members:
            if schema.feature(name).name in found:
                raise ConfigError(f"Feature {name!r} is in two groups, {found[name]!r} and {' + '.join(members)!r}.")
            found[name] = " + ".join(members)
    return {f.name: found.get(f.name, "others") for f in schema.fields}
