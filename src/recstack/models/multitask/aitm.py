"""Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning in Targeted Display
Advertising (Xi et al., KDD 2021).

https://arxiv.org/abs/2105.08489
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import tasks
from recstack.losses.rows import weighted_mean
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.schema import Schema


class AITM(MultiTask):
    r"""Each step of a conversion hands what it knows to the next, which attends to it beside its own view.

    .. math:: z_1 = q_1, \qquad p_{t-1} = \mathrm{ReLU}(W_{t-1} z_{t-1}), \qquad
        z_t = \sum_{u \in \{p_{t-1},\, q_t\}} \mathrm{softmax}_u\Big(\tfrac{\langle h_2(u),\, h_3(u) \rangle}{\sqrt k}\Big)\, h_1(u)

    .. math:: L = \sum_t \mathrm{CE}_t + \alpha \sum_{t > 1} \mathrm{mean}\big(\max(\hat y_t - \hat y_{t-1},\, 0)\big)

    q_t ``[R, L, k]`` is the tower of task t; all read the same embeddings. A step's output is the probability of having come
    that far, on the entire space, so its label is 0 wherever an earlier one is::

        Task("click"), Task("order")  # not given="click": the label of an order is 0 where nothing was clicked

    The last term, the calibrator, punishes a step that is likelier than the one before it. Tasks that are no chain
    (income and marital status) take ``alpha=0``. The steps each have their own :math:`h_1, h_2, h_3`; the authors' code
    shares them. Departs from the paper: nothing else.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of each task's tower, k the last.
        chain: the tasks in the order in which they happen; by default all, in the schema's order. Others stand alone.
        alpha: weight of the calibrator.
        norm: "batch", "layer" or None, in the towers.
        dropout: in the towers, and on what is transferred.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``.

    Raises:
        ConfigError: a task in `chain` that is not known; a calibrator of a task that is `given` another.

    Xi et al., KDD 2021, https://arxiv.org/abs/2105.08489

    >>> import recstack as rs
    >>> tasks = [rs.Task("click"), rs.Task("cart"), rs.Task("order")]
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=tasks))
    >>> model = rs.multitask.AITM(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'click', 'order']
    """

    market = "steps"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 5,
        hidden: Sequence[int] = (128, 64, 32),
        chain: Sequence[str] = (),
        alpha: float = 0.6,
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk)
        self.chain, self.alpha = list(chain) or self.names, alpha
        for name in self.chain:
            if name not in self.names:
                raise unknown("task in chain=", name, self.names)
        binary = [(a, b) for a, b in pairwise(self.chain) if {schema.task(n).kind for n in (a, b)} == {"binary"}]
        self.steps = binary if alpha else []  # pairs that the calibrator looks at
        for name in (n for step in self.steps for n in step if schema.task(n).given is not None):
            raise ConfigError(
                f"AITM's calibrator compares how far a row comes, and task {name!r} is only asked where "
                f'{schema.task(name).given!r} is 1. Declare Task("{name}") with a label that is 0 elsewhere, or set alpha=0.'
            )
        self.towers_on(self.trunk.width, hidden, each=self.trunk.each, norm=norm, dropout=dropout)
        self.transfers = nn.ModuleList(_Transfer(self.towers.width, dropout) for _ in self.chain[1:])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        z = self.by_task(self.towers(x, batch.get("@mask")))
        for (before, task), transfer in zip(pairwise(self.chain), self.transfers, strict=True):
            z[task] = transfer(z[before], z[task])
        return self.heads(z, plus)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self(batch)
        out = tasks.losses(logits, batch, self.schema) | self.auxiliary_losses(batch)
        if self.steps:
            chance = {name: tasks.link(logits[name], self.schema.task(name)) for name in self.chain}
            excess = torch.stack([(chance[task] - chance[before]).clamp(min=0) for before, task in self.steps]).sum(0)
            out["calibrator"] = self.alpha * weighted_mean(excess, _live(batch, excess))
        return out


class _Transfer(nn.Module):
    """Adaptive information transfer: (z of the step before, own q), both ``[..., k]`` → z ``[..., k]``."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.carry = linear(width, width)
        self.dropout = Dropout(dropout)
        self.value, self.query, self.key = (linear(width, width, bias=False) for _ in range(3))

    def forward(self, before: Tensor, own: Tensor) -> Tensor:
        u = torch.stack([self.dropout(self.carry(before).relu()), own], -2)  # [..., 2, k]
        score = (self.query(u).float() * self.key(u).float()).sum(-1, keepdim=True) / u.shape[-1] ** 0.5
        value = self.value(u)
        return (score.softmax(-2).to(value.dtype) * value).sum(-2)


def _live(batch: Mapping[str, Tensor], like: Tensor) -> Tensor:
    mask = batch.get("@mask")
    return torch.ones_like(like) if mask is None else mask.to(like.dtype)
