"""DCMT: A Direct Entire-Space Causal Multi-Task Framework for Post-Click Conversion Estimation (Zhu et al., ICDE 2023).

https://arxiv.org/abs/2302.06141
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.features import tasks
from recstack.losses import inverse_propensity
from recstack.losses.rows import weighted_mean
from recstack.models.base import Model
from recstack.models.entire_space import asked, conversions, cross_entropy
from recstack.models.trunk import MultiTask
from recstack.nn.experts import TaskTowers
from recstack.nn.mlp import linear
from recstack.nn.names import ByName
from recstack.schema import Schema


class DCMT(MultiTask):
    r"""The conversion rate of all impressions, held against a twin that learns what was not clicked the other way round.

    .. math:: R = \frac{\sum_i o_i\, e(y_i, \hat y_i) / \hat p_i}{\sum_i o_i / \hat p_i}
        + \frac{\sum_i (1 - o_i)\, e(1, \hat y^*_i) / (1 - \hat p_i)}{\sum_i (1 - o_i) / (1 - \hat p_i)}
        + \lambda \frac1N \sum_i \big| 1 - (\hat y_i + \hat y^*_i) \big|

    e is the cross entropy, o the click, and the propensity :math:`\hat p` the click's own head, through which no gradient
    goes. ŷ* is the counterfactual twin: what was not clicked did not convert, so its label there is 1, and by the last term
    ŷ learns from these rows too, softly, since the twin is not sure. Only ŷ is predicted. Every binary task that is `given`
    another is learned so; its weight is that of R, and the click's and the product's losses are their own::

        Task("click"), Task("order", given="click"), Task("ordered", product=("click", "order"), weight=1)

    Departs from the paper: towers of one kind, in the place of wide and deep parts.

    Args:
        schema: a fitted schema with a binary task given another.
        dim: embedding width.
        hidden: widths of each task's tower, and of the twin's.
        bond: λ.
        floor: least propensity of a row on its side: bounds its weight.
        norm: "batch", "layer" or None.
        dropout: in the towers.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``.

    Raises:
        SchemaError: no binary task with a loss is given another, or one has a loss other than "bce".

    Zhu et al., ICDE 2023, https://arxiv.org/abs/2302.06141

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(
    ...     rs.simulator.small(tasks=[rs.Task("click"), rs.Task("order", given="click")])
    ... )
    >>> model = rs.multitask.DCMT(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['click', 'order']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        bond: float = 0.001,
        floor: float = 0.02,
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        after = conversions(schema, type(self).__name__, 'Task("order", given="click")')
        super().__init__(schema, dim, history, trunk)
        self.after, self.bond, self.floor = [t.name for t in after], bond, floor
        options = {"each": self.trunk.each, "norm": norm, "dropout": dropout}
        self.towers_on(self.trunk.width, hidden, **options)
        self.twin_towers = TaskTowers(self.after, self.trunk.width, hidden, **options)
        self.twins = ByName({name: linear(self.twin_towers.width, 1) for name in self.after})

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        return self.answer(x, batch, plus)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        logits = self.answer(x, batch, plus)
        out = tasks.losses(logits, batch, self.schema) | self.auxiliary_losses(batch)
        twins = self._twins(x, batch.get("@mask"))
        for name in self.after:
            task, mine, other = self.schema.task(name), logits[name], twins[name]
            label, seen, missed, weight, propensity = asked(logits, batch, self.schema, task)
            live = seen | missed
            options = {"where": live, "weight": weight, "floor": self.floor, "self_normalised": True}
            fact = inverse_propensity(cross_entropy(mine, label), seen, propensity, **options)
            counterfact = inverse_propensity(
                cross_entropy(other, torch.ones_like(other)), missed, 1 - propensity, **options
            )
            apart = (1 - mine.sigmoid() - other.sigmoid()).abs()
            bond = weighted_mean(apart, live.float() if weight is None else torch.where(live, weight, 0))
            out[name] = task.weight * (fact + counterfact + self.bond * bond)
        return out

    def _twins(self, x, mask: Tensor | None) -> dict[str, Tensor]:
        """{task: logit of its counterfactual twin ``[R, L]``}."""
        if self.trunk.each:
            x = x[..., [self.names.index(name) for name in self.after], :]
        h = self.twin_towers(x, mask)
        with torch.autocast(h.device.type, enabled=False):
            return {n: self.twins[n](v).squeeze(-1) for n, v in zip(self.after, h.float().unbind(-2), strict=True)}
