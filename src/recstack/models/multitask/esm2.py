"""Entire Space Multi-Task Modeling via Post-Click Behavior Decomposition for Conversion Rate Prediction (Wen et al., SIGIR 2020).

https://arxiv.org/abs/1910.07099
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import SchemaError
from recstack.features import Heads
from recstack.features.tasks import derive, outputs, score
from recstack.losses.links import mixture_logit
from recstack.models.base import Model
from recstack.models.trunk import MultiTask, Plus
from recstack.nn.experts import TaskTowers
from recstack.nn.mlp import linear
from recstack.schema import Schema


class ESM2(MultiTask):
    r"""A conversion by its two ways: through an action that announces it (cart, favourites), or without.

    .. math:: p_{cvr} = p_{action}\, p_{with} + (1 - p_{action})\, p_{without}, \qquad p_{ctcvr} = p_{ctr}\, p_{cvr}

    .. math:: L = \mathrm{BCE}(click,\, p_{ctr}) + \mathrm{BCE}(click \wedge action,\, p_{ctr}\, p_{action})
        + \mathrm{BCE}(click \wedge order,\, p_{ctcvr})

    All on all impressions. Action and order are both given the click and have no loss of their own::

        Task("click"), Task("cart", given="click", weight=0), Task("order", given="click", weight=0)
        Task("carted", product=("click", "cart")), Task("ordered", product=("click", "order"))

    Four towers ``[R, L, H]`` on shared embeddings; the mixture and the products are taken on logits. Departs from the
    paper: one logit per tower instead of a softmax over two. Its action is one label: several (cart or favourites) are one
    column that is 1 where any of them is.

    Args:
        schema: a fitted schema with two binary tasks given the same third, the action first.
        dim: embedding width.
        hidden: widths of each tower.
        norm: "batch", "layer" or None.
        dropout: in the towers; 0.5 in the paper.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``. One with a
            vector for each task gives both ways of the order the order's.

    Raises:
        SchemaError: where no two tasks are an action and an order.

    Wen et al., SIGIR 2020, https://arxiv.org/abs/1910.07099

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> model = rs.multitask.ESM2(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'carted', 'click', 'order', 'ordered']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 18,
        hidden: Sequence[int] = (512, 256, 128, 32),
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        action, order = _decomposed(schema)
        super().__init__(schema, dim, history, trunk)
        self.order = self.names.index(order)
        towers = [*self.names, f"{order} without {action}"]
        each = self.trunk.each
        self.towers = TaskTowers(towers, self.trunk.width, hidden, each=each, norm=norm, dropout=dropout)
        self.heads = _MixedHeads(schema, self.towers.width, action, order)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        if self.trunk.each:
            x = torch.cat([x, x[..., self.order : self.order + 1, :]], -2)
        hidden = self.towers(x, batch.get("@mask")).unbind(-2)
        return self.heads(dict(zip([*self.names, _WITHOUT], hidden, strict=True)), plus)


_WITHOUT = "@without"  # no task's name has an "@"


class _MixedHeads(Heads):
    """Heads in which the order is a mixture over the action: its own head's where there is one, and `without`'s."""

    def __init__(self, schema: Schema, width: int, action: str, order: str):
        super().__init__(schema, width)
        self.action, self.order = action, order
        self.without = linear(width, 1)

    def forward(self, hidden: Mapping[str, Tensor], plus: Plus = None) -> dict[str, Tensor]:
        logits = super().forward(hidden, plus)
        h, more = hidden[_WITHOUT], plus[self.order] if isinstance(plus, Mapping) else plus
        with torch.autocast(h.device.type, enabled=False):
            without = self.without(h.float()).squeeze(-1)
        without = without if more is None else without + more.float()
        action = score(logits[self.action], self.schema.task(self.action))
        logits[self.order] = mixture_logit(action, logits[self.order], without)
        return derive(logits, self.schema)


def _decomposed(schema: Schema) -> tuple[str, str]:
    """The names of the action and of the order."""
    under: dict[str, list[str]] = {}
    for task in schema.tasks:
        if task.given is not None and task.kind == "binary":
            under.setdefault(task.given, []).append(task.name)
    pairs = [names for names in under.values() if len(names) == 2]
    if len(pairs) != 1:
        raise SchemaError(
            "ESM2 needs two binary tasks given the same third, an action and the order that it announces. Declare "
            'Task("click"), Task("cart", given="click", weight=0) and Task("order", given="click", weight=0), with their '
            "products."
        )
    action, order = pairs[0]
    if outputs(schema.task(order)) != 1:
        raise SchemaError(f"Task {order!r} is a mixture and has one logit, and the loss 'jrc' needs two.")
    return action, order
