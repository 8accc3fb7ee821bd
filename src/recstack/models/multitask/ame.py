"""Ads Recommendation in a Collapsed and Entangled World: asymmetric multi-embeddings for many tasks (Pan et al., KDD 2024).

https://arxiv.org/abs/2403.00793
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.models.base import Model
from recstack.models.trunk import MultiTask, Trunk
from recstack.nn.experts import Experts
from recstack.nn.gates import Gates, mixtures
from recstack.nn.mlp import flat
from recstack.schema import Schema

Made = Callable[..., Model]


class AME(MultiTask):
    r"""Several embeddings of different widths, experts on each, and a gate for each task over all experts.

    .. math:: z_k = \sum_m \sum_{e \in m} g^k_e f_e(E_m), \qquad
        g^k = \mathrm{softmax}(W_k [E_1; \dots; E_M]), \qquad \mathrm{logit}_k = \mathrm{MLP}_k(z_k)

    A task with few positives finds narrow embeddings that it can learn, one with many finds wide ones, and no task needs
    tables of its own: there are M, however many the tasks. Experts ``[R, L, M e, H]``. With one `trunk` for each table
    the experts stand on different interactions of features, and the model is a heterogeneous mixture of experts (`HMoE`)
    with a gate for each task. Departs from the paper: it does not say how many experts and which sizes; tables are told
    apart by width only, as gates learn.

    Args:
        schema: a fitted schema; one task is allowed.
        dims: embedding width, of each table.
        experts: e, on each table.
        hidden: widths of each expert.
        towers: widths of each task's tower.
        gate_dropout: chance that an expert is out for a row and a task while training, against gates that collapse.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what experts read in the place of a table's embeddings: a model class, such as ``rs.ranking.DCNv2``, that is
            built anew for each table; or one (or None) for each.

    Raises:
        ConfigError: no table, more or fewer trunks than tables, or one that has a vector for each task.

    Pan et al., KDD 2024, https://arxiv.org/abs/2403.00793

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.multitask.AME(schema, dims=(16, 4), hidden=(16,), towers=(8,), trunk=(rs.ranking.DCNv2, None))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'carted', 'click', 'order', 'ordered']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dims: Sequence[int] = (64, 16, 4),
        experts: int = 2,
        hidden: Sequence[int] = (256,),
        towers: Sequence[int] = (128, 64),
        gate_dropout: float = 0.0,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Made | Sequence[Made | None] | None = None,
    ):
        made = list(trunk) if isinstance(trunk, list | tuple) else [trunk] * len(dims)
        if not dims or not hidden or len(made) != len(dims):
            raise ConfigError(
                f"AME needs a width for each table, widths of experts and, if several, a trunk for each table; got "
                f"dims={tuple(dims)}, hidden={tuple(hidden)} and {len(made)} trunks."
            )
        super().__init__(schema, dims[0], history, made[0], together=True)  # type: ignore[arg-type]
        self.others = nn.ModuleList(Trunk(schema, d, history, t) for d, t in zip(dims[1:], made[1:], strict=True))  # type: ignore[arg-type]
        if any(t.each for t in self.others):
            raise ConfigError("AME reads one vector for all tasks; take trunks with one, such as rs.ranking.DCNv2.")
        widths = [self.trunk.width, *(t.width for t in self.others)]
        self.experts = nn.ModuleList(Experts(w, hidden, experts, dropout) for w in widths)  # type: ignore[arg-type]
        self.gates = Gates(sum(widths), experts * len(dims), len(self.names), gate_dropout)  # type: ignore[arg-type]
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = [trunk(batch) for trunk in (self.trunk, *self.others)]
        every = torch.cat([experts(x) for experts, (x, _) in zip(self.experts, found, strict=True)], -2)
        gate = self.gates(torch.cat([flat(x) for x, _ in found], -1))
        plus = [p for _, p in found if p is not None]
        added = {n: sum(p[n] if isinstance(p, Mapping) else p for p in plus) for n in self.names} if plus else None
        return self.answer(mixtures(gate, every), batch, added)  # type: ignore[arg-type]

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = super().auxiliary_losses(batch)
        for i, trunk in enumerate(self.others, 2):
            out |= {f"table{i}/{name}": loss for name, loss in trunk.auxiliary_losses(batch).items()}  # type: ignore[operator]
        return out
