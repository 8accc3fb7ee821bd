"""STEM: Unleashing the Power of Embeddings for Multi-task Recommendation (Su et al., AAAI 2024).

https://arxiv.org/abs/2308.13537
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Inputs, Slots
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.nn.gates import Gates, mixtures
from recstack.schema import History, Schema


class STEM(MultiTask):
    r"""Embeddings of each task beside shared ones: all experts are read forward, only the own and the shared learn from a task.

    .. math:: z_k = \sum_{e \in S} g^k_e f_e(E_S) + \sum_{e \in k} g^k_e f_e(E_k)
        + \sum_{j \ne k} \sum_{e \in j} g^k_e\, \mathrm{sg}[f_e(E_j)], \qquad g^k = \mathrm{softmax}(\mathrm{MLP}_k(E_k + E_S))

    sg stops the gradient: the loss of task a moves no embedding of task b, exactly. Experts of all streams
    ``[R, L, T m + s, H]`` are computed together. There are T + 1 tables for T tasks: `task_specific_fields` keeps them
    for some fields, and the others have the shared table alone. No task can be detached: its tables would learn from
    nobody. Departs from the paper: one level.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width, of each table.
        shared: s, experts on the shared embeddings.
        specific: m, experts on each task's.
        hidden: widths of each expert.
        gate_hidden: widths of each gate's network.
        towers: widths of each task's tower.
        task_specific_fields: features with tables of each task; None: all.
        gate_dropout: chance that an expert is out for a row and a task while training, against gates that collapse.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.
        history: how histories become vectors: "mean", "attention", ...

    Raises:
        ConfigError: no shared expert, none of a task, or a field that is not declared.

    Su et al., AAAI 2024, https://arxiv.org/abs/2308.13537

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> sizes = {"hidden": (16,), "gate_hidden": (8,), "towers": (8,)}
    >>> model = rs.multitask.STEM(
    ...     rs.Encoder(train.schema).fit(train).schema, task_specific_fields=("item_id",), **sizes
    ... )
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'carted', 'click', 'order', 'ordered']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        shared: int = 8,
        specific: int = 1,
        hidden: Sequence[int] = (512, 512, 512),
        gate_hidden: Sequence[int] = (128, 64),
        towers: Sequence[int] = (128, 64),
        task_specific_fields: Sequence[str] | None = None,
        gate_dropout: float = 0.0,
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
    ):
        if min(shared, specific) < 1 or not hidden:
            raise ConfigError(
                f"STEM needs a shared expert, an expert of each task and widths of experts; got shared={shared}, "
                f"specific={specific}, hidden={tuple(hidden)}."
            )
        super().__init__(schema, dim, history)
        tasks, width = len(self.names), self.trunk.width
        self.shared, self.specific = shared, specific
        chosen = None if task_specific_fields is None else tuple(task_specific_fields)
        self.fields, some = chosen, _only(schema, chosen)
        self.own = nn.ModuleList(Inputs(some, dim, history=history) for _ in self.names if some.fields)
        self.experts = Experts(width, hidden, tasks * specific + shared, dropout, each=True)
        self.gate_networks = Experts(width, gate_hidden, tasks, each=True)
        self.gates = Gates(self.gate_networks.width, self.experts.experts, tasks, gate_dropout, each=True)
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own, shared = self._streams(batch)  # [R, L, T, W], [R, L, 1, W]
        tasks, m = len(self.names), self.specific
        gate = self.gates(self.gate_networks(own + shared))  # [R, L, T, T m + s]
        each = own.unsqueeze(-2).expand(*own.shape[:-1], m, -1).flatten(-3, -2)
        every = self.experts(torch.cat([each, shared.expand(*shared.shape[:-2], self.shared, -1)], -2))
        specific, common = every.split([tasks * m, self.shared], -2)
        of_specific, of_common = gate.split([tasks * m, self.shared], -1)
        mine = torch.eye(tasks, device=gate.device).repeat_interleave(m, -1)  # [T, T m]
        # Each task's own experts a second time, with their gradient: once in the sum, and once only.
        theirs = mixtures(of_specific * (1 - mine), specific.detach())
        diagonal = (of_specific * mine).unflatten(-1, (tasks, m)).sum(-2)  # [R, L, T, m]
        ours = mixtures(diagonal.unsqueeze(-2), specific.unflatten(-2, (tasks, m))).squeeze(-2)
        return self.answer(theirs + ours + mixtures(of_common, common), batch)

    def _streams(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What each task's tables say of all fields, and what the shared ones do."""
        shared: Slots = self.trunk.inputs(batch)  # type: ignore[misc]
        x = shared.flat()
        if not len(self.own):
            return x.unsqueeze(-2).expand(*x.shape[:-1], len(self.names), -1), x.unsqueeze(-2)
        found: list[Slots] = [inputs(batch) for inputs in self.own]
        if self.fields is None:
            return torch.stack([own.flat() for own in found], -2), x.unsqueeze(-2)
        every = [name for side in (shared.request, shared.candidate) for name in side]  # the order of flat()
        views = [torch.cat([_wide((own if n in self.fields else shared)[n], x) for n in every], -1) for own in found]
        return torch.stack(views, -2), x.unsqueeze(-2)


def _only(schema: Schema, names: Sequence[str] | None) -> Schema:
    """Some of its features, and what the histories among them read; all of it for None."""
    if names is None:
        return schema
    for name in names:
        if name not in schema.names:
            raise unknown("task-specific field", name, schema.names)
    read = {n for f in schema.features if isinstance(f, History) and f.name in names for n in f.of}
    kept = [f for f in schema.features if f.name in names or f.name in read]
    return Schema(kept, item=schema.item if any(f.name == schema.item for f in kept) else None, time=schema.time)


def _wide(vector: Tensor, like: Tensor) -> Tensor:
    """``[R, w]`` or ``[R, L, w]`` as ``[R, L, w]``."""
    vector = vector if vector.dim() == like.dim() else vector.unsqueeze(-2)
    return vector.expand(*like.shape[:-1], -1)
