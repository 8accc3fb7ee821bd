"""Ads Recommendation in a Collapsed and Entangled World: heterogeneous experts over several embeddings (Pan et al., KDD 2024).

https://arxiv.org/abs/2403.00793
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.gates import Gate, mixture
from recstack.nn.interaction.cin import CIN
from recstack.nn.interaction.cross import Cross
from recstack.nn.interaction.fm import pairwise_sum
from recstack.nn.interaction.products import inner_products
from recstack.nn.mlp import MLP
from recstack.schema import Schema

FUSIONS = ("gate", "sum", "weighted")
Expert = str | type[nn.Module]


class HMoE(Model):
    r"""Experts that combine features in different ways, each over embeddings of its own, so that no table collapses.

    .. math:: h_k = \mathrm{MLP}_k(I_k(E_k)), \qquad z = \mathrm{MLP}\Big(\sum_k g_k h_k\Big), \qquad
        g = \mathrm{softmax}(W [E_1; \dots; E_G])

    An expert is an interaction I and an MLP over it: "dnn" (the embeddings as they are), "fm" (a factorisation
    machine's pairwise products, summed), "inner" (the inner product of each pair, beside the embeddings), "cross"
    (three layers of DCN V2), "cin" (two layers of sixteen maps, xDeepFM). Fields ``[R, L, F, dim]``, once for each
    group of experts. Departs from the paper: GwPFM, which is one of its experts, is none of these. Embeddings start a
    hundred times larger than elsewhere, because the products of tiny ones would vanish.

    Args:
        schema: a fitted schema.
        dim: embedding width, of each group.
        experts: names of those above; a tuple of names inside is a group whose experts share their tables. A class in
            place of a name is given (fields, dim), maps ``[..., F, D]`` to ``[..., width]`` and has that `width`.
        expert_hidden: widths of each expert's MLP, at least one.
        fusion: "gate" (weights from all embeddings), "sum", or "weighted" (one learned weight each, a softmax of them).
        hidden: widths of the MLP on top.
        dropout: in all MLPs.

    Pan et al., KDD 2024, https://arxiv.org/abs/2403.00793; Guo et al., ICML 2024, https://arxiv.org/abs/2310.04400

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.HMoE(rs.Encoder(train.schema).fit(train).schema, dim=8, expert_hidden=(16,), hidden=(16,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 10,
        experts: Sequence[Expert | Sequence[Expert]] = ("cross", "inner", "dnn"),
        expert_hidden: Sequence[int] = (400, 400),
        fusion: str = "gate",
        hidden: Sequence[int] = (400,),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if fusion not in FUSIONS:
            raise unknown("fusion", fusion, FUSIONS)
        groups: list[Sequence[Expert]] = [tuple(g) if isinstance(g, list | tuple) else (g,) for g in experts]  # type: ignore
        if not groups or not all(groups) or not expert_hidden:
            raise ConfigError(f"HMoE needs an expert in each group, and expert_hidden; known: {', '.join(EXPERTS)}.")
        self.inputs = nn.ModuleList(Inputs(schema, dim, stacked=True, std=0.01) for _ in groups)
        fields: int = self.inputs[0].fields  # type: ignore[assignment]
        self.group = [i for i, group in enumerate(groups) for _ in group]  # of each expert
        self.interactions = nn.ModuleList(_expert(choice, fields, dim) for group in groups for choice in group)
        self.experts = nn.ModuleList(MLP(i.width, expert_hidden, dropout=dropout) for i in self.interactions)  # type: ignore
        self.gate = Gate(len(groups) * fields * dim, len(self.experts)) if fusion == "gate" else None
        self.weight = nn.Parameter(torch.zeros(len(self.experts))) if fusion == "weighted" else None
        self.mlp = MLP(expert_hidden[-1], hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fields = [inputs(batch).stack() for inputs in self.inputs]  # [R, L, F, D] each
        pairs = zip(self.group, self.interactions, self.experts, strict=True)
        hidden = torch.stack([expert(interact(fields[g]).to(fields[g].dtype)) for g, interact, expert in pairs], -2)
        if self.gate is not None:
            together = mixture(self.gate(torch.cat([x.flatten(-2) for x in fields], -1)), hidden)
        elif self.weight is not None:
            together = mixture(self.weight.softmax(0).expand(hidden.shape[:-1]), hidden)
        else:
            together = hidden.sum(-2)
        return self.heads(self.mlp(together))

    @torch.no_grad()
    def abundance(self, table: str) -> list[float]:
        r"""The information abundance of a table's embedding in each group, :math:`\sum_i \sigma_i / \max_i \sigma_i`.

        Between 1, all rows on one line, and the embedding's width, all directions used alike.
        """
        values = [torch.linalg.svdvals(inputs.tables.weight(table).float()) for inputs in self.inputs]  # type: ignore
        return [float(v.sum() / v.max()) for v in values]


class _Flat(nn.Module):
    """``[..., F, D] → [..., F D]``."""

    def __init__(self, fields: int, dim: int):
        super().__init__()
        self.width = fields * dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-2)


class _Pairwise(nn.Module):
    """``[..., F, D] → [..., D]``."""

    def __init__(self, fields: int, dim: int):
        super().__init__()
        self.width = dim

    def forward(self, x: Tensor) -> Tensor:
        return pairwise_sum(x)


class _Inner(nn.Module):
    """``[..., F, D] → [..., F D + F (F - 1) / 2]``."""

    def __init__(self, fields: int, dim: int):
        super().__init__()
        self.width = fields * dim + fields * (fields - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.flatten(-2), inner_products(x).to(x.dtype)], -1)


class _Crossed(Cross):
    """``[..., F, D] → [..., F D]``."""

    def __init__(self, fields: int, dim: int):
        super().__init__(fields * dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(-2))


EXPERTS: dict[str, Callable[[int, int], nn.Module]] = {
    "dnn": _Flat,
    "fm": _Pairwise,
    "inner": _Inner,
    "cross": _Crossed,
    "cin": lambda fields, dim: CIN(fields, (16, 16)),
}


def _expert(choice: Expert, fields: int, dim: int) -> nn.Module:
    if isinstance(choice, str):
        if choice not in EXPERTS:
            raise unknown("expert", choice, EXPERTS)
        return EXPERTS[choice](fields, dim)
    return choice(fields, dim)
