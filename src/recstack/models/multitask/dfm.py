"""Modeling Delayed Feedback in Display Advertising (Chapelle, KDD 2014).

https://doi.org/10.1145/2623330.2623634
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from recstack.errors import SchemaError
from recstack.features import Heads, tasks
from recstack.losses import delayed_feedback
from recstack.models.base import Model
from recstack.models.trunk import MultiTask, Plus
from recstack.schema import Schema

BOUND = 8.0  # of the logarithm of the expected delay


class DFM(MultiTask):
    r"""Conversions that have not come yet are no negatives: how likely one is, and how long it takes, are learned together.

    .. math:: y = 1: \; -\log p - \log \lambda + \lambda d, \qquad
        y = 0: \; -\log\big(1 - p + p\, e^{-\lambda e}\big), \qquad \lambda = \exp(-w_d^\top h_d)

    The schema has a conversion, and a regression given it, without a loss of its own, for the delay::

        Task("click"), Task("order", given="click"), Task("delay", kind="regression", given="order", weight=0)

    The label of the conversion is what is known now: 1 where it has come. The delay's column holds, for every click, how
    long it took until the conversion d, or where it has not come, how long ago the click is, e: `data.delays.as_of` makes
    both columns of two times. What is predicted as conversion is p, of all that will ever come; as delay its mean,
    1 / λ, in the column's unit, which is one of which delays are a few, such as days. A product with the conversion takes ``weight=0``: its label would be the immature one.

    Departs from the paper: towers in the place of two linear models; and in the place of its regularisation, without which
    conversions after no time at all have no finite λ, the logarithm of the delay is held between -8 and 8 by a tanh.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of each task's tower.
        delay: the name of the regression.
        norm: "batch", "layer" or None, in the towers.
        dropout: in the towers.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``.

    Raises:
        SchemaError: `delay` is no regression given a binary task.

    Chapelle, KDD 2014, https://doi.org/10.1145/2623330.2623634

    >>> import recstack as rs
    >>> tasks = [rs.Task("click"), rs.Task("order", given="click")]
    >>> tasks.append(rs.Task("delay", kind="regression", given="order", weight=0))
    >>> market = rs.simulator.simulate(users=200, items=100, impressions=10_000, days=2)
    >>> now = market.events["time"].max()
    >>> events = rs.data.delays.as_of(market.events, now, happened="order_time", label="order", delay="delay")
    >>> log = rs.data.Log(events, market.schema(tasks), users=market.users, items=market.items)
    >>> model = rs.multitask.DFM(rs.Encoder(log.schema).fit(log).schema, hidden=(16,))
    >>> sorted(model.fit(log, epochs=1, progress=False).score(log))
    ['click', 'delay', 'order']
    """

    market = "delayed"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        delay: str = "delay",
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        task = next((t for t in schema.tasks if t.name == delay), None)
        if task is None or task.kind != "regression" or task.given is None:
            raise SchemaError(
                f"DFM needs a regression {delay!r} given the conversion that it delays. Declare "
                f'Task("order"), Task("{delay}", kind="regression", given="order", weight=0), or name it by delay=.'
            )
        super().__init__(schema, dim, history, trunk)
        self.delay, self.conversion = task, schema.task(task.given)
        self.towers_on(self.trunk.width, hidden, each=self.trunk.each, norm=norm, dropout=dropout)
        self.heads: _DelayHeads = _DelayHeads(schema, self.towers.width, delay)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(*self._hidden(batch))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raw = self.heads.raw(*self._hidden(batch))
        logits = self.heads.finished(raw)
        out = tasks.losses(logits, batch, self.schema) | self.auxiliary_losses(batch)
        label, where, weight = tasks.target(batch, self.schema, self.conversion)
        waited = replace(self.delay, given=self.conversion.given, transform=None)  # of all clicks, not of orders alone
        elapsed, known, _ = tasks.target(batch, self.schema, waited)
        loss = delayed_feedback(
            raw[self.conversion.name], raw[self.delay.name], label, elapsed, where=where & known, weight=weight
        )
        return out | {self.conversion.name: self.conversion.weight * loss}

    def _hidden(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Plus]:
        x, plus = self.trunk(batch)
        return self.by_task(self.towers(x, batch.get("@mask"))), plus


class _DelayHeads(Heads):
    """Heads of which one gives the logarithm of the expected delay; what comes out is that delay, as its task reads it."""

    def __init__(self, schema: Schema, width: int, delay: str):
        super().__init__(schema, width)
        self.delay = schema.task(delay)

    def forward(self, hidden: Mapping[str, Tensor], plus: Plus = None) -> dict[str, Tensor]:
        return self.finished(self.raw(hidden, plus))

    def raw(self, hidden: Mapping[str, Tensor], plus: Plus = None) -> dict[str, Tensor]:
        """With the logarithm of the expected delay."""
        logits = super().forward(hidden, plus)
        return {**logits, self.delay.name: BOUND * (logits[self.delay.name] / BOUND).tanh()}

    def finished(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        log_delay = raw[self.delay.name]
        value = F.softplus(log_delay) if self.delay.transform == "log1p" else log_delay.exp()  # log1p of e^m
        return {**raw, self.delay.name: value}
