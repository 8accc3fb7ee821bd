"""Predicting Clicks: Estimating the Click-Through Rate for New Ads (Richardson et al., WWW 2007).

https://doi.org/10.1145/1242572.1242643
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recstack.features import FirstOrder, Heads
from recstack.models.base import Model
from recstack.nn.names import ByName
from recstack.schema import Schema


class LR(Model):
    r"""Logistic regression: one weight per id and per number, the simplest honest baseline.

    .. math:: z = b + \sum_f w_f[\mathrm{id}_f] + \sum_n w_n x_n

    Logits ``[R, L]``; each task has its own weights. Departs from the paper: ids are features of their own instead of
    statistics of them; lists and histories count with the mean of their weights; L2 is the optimiser's business.

    ``fit(train, optimizer=("ftrl", {"l1": 0.5}))`` is FTRL-proximal (McMahan et al., KDD 2013,
    https://doi.org/10.1145/2487575.2488200): weights whose gradients do not agree are exactly zero. The gradients are means over
    a batch, so the `l1` that fits depends on the number of steps, not of rows.

    Args:
        schema: a fitted schema, its tasks binary or regressions.

    Richardson et al., WWW 2007, https://doi.org/10.1145/1242572.1242643

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.LR(rs.Encoder(train.schema).fit(train).schema)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(self, schema: Schema):
        super().__init__(schema)
        self.heads = Heads(schema, 0)
        self.first_order = ByName({t.name: FirstOrder(schema) for t in schema.tasks if not t.derived})

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(None, plus={name: linear(batch) for name, linear in self.first_order.items()})
