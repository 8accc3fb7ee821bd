"""Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion Rate (Ma et al., SIGIR 2018).

https://arxiv.org/abs/1804.07931
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.errors import SchemaError
from recstack.features import tasks
from recstack.losses import agreement
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.schema import Schema


class ESMM(MultiTask):
    r"""The conversion rate learned on all impressions, through the product with the click rate.

    .. math:: p_{ctcvr} = p_{ctr} \cdot p_{cvr}, \qquad
        L = \mathrm{BCE}(click,\, p_{ctr}) + \mathrm{BCE}(click \wedge order,\, p_{ctcvr})

    Clicks are the only rows on which the conversion is seen, and the ones on which it is not asked for. So the conversion
    has no loss of its own (``weight=0``), and the schema says so::

        Task("click"), Task("order", given="click", weight=0), Task("ordered", product=("click", "order"))

    Longer chains, and further tasks, are allowed; the product of logits is taken without leaving them. Embeddings are
    shared, each task has its tower. Departs from the paper: one logit per tower instead of a softmax over two.

    A further head may learn the same event at once, ``Task("bought", label="order")``, its label 0 where nothing was clicked.
    With ``direct="bought"`` the two bind each other: `bound` times the symmetric divergence of the product and that head.

    Args:
        schema: a fitted schema with a task that is a ``product``.
        dim: embedding width; 18 in the paper.
        hidden: widths of each task's tower.
        norm: "batch", "layer" or None.
        dropout: in the towers.
        history: how histories become vectors: "mean", "attention", ...
        direct: a task that predicts the first product without its parts; None for the paper's model.
        bound: weight of the divergence between both.
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``.

    Raises:
        SchemaError: where no task is a product, or `direct` is no binary task of the entire space.

    Ma et al., SIGIR 2018, https://arxiv.org/abs/1804.07931

    >>> import recstack as rs
    >>> tasks = [rs.Task("click"), rs.Task("order", given="click", weight=0)]
    >>> tasks.append(rs.Task("ordered", product=("click", "order")))
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=tasks))
    >>> model = rs.multitask.ESMM(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['click', 'order', 'ordered']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 18,
        hidden: Sequence[int] = (360, 200, 80),
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        direct: str | None = None,
        bound: float = 0.1,
        trunk: Callable[..., Model] | None = None,
    ):
        if not any(t.derived for t in schema.tasks):
            raise SchemaError(
                'ESMM learns a conversion through a product, and no task is one. Declare Task("click"), '
                'Task("order", given="click", weight=0) and Task("ordered", product=("click", "order")).'
            )
        if direct is not None:
            task = schema.task(direct)
            if task.kind != "binary" or task.given is not None or task.derived:
                raise SchemaError(
                    f"direct={direct!r} predicts what the product does, on the entire space: a binary task that is neither "
                    f'given another nor a product, such as Task("{direct}", label="order").'
                )
        super().__init__(schema, dim, history, trunk)
        self.product = next(t for t in schema.tasks if t.derived).name
        self.direct, self.bound = direct, bound
        self.towers_on(self.trunk.width, hidden, each=self.trunk.each, norm=norm, dropout=dropout)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        return self.answer(x, batch, plus)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self(batch)
        out = tasks.losses(logits, batch, self.schema) | self.auxiliary_losses(batch)
        if self.direct is not None:
            other = tasks.score(logits[self.direct], self.schema.task(self.direct))
            gap = agreement(logits[self.product], other, where=batch.get("@mask"))
            out[f"{self.product}/{self.direct}"] = self.bound * gap
        return out
