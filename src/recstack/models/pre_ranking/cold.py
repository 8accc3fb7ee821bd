"""COLD: Towards the Next Generation of Pre-Ranking System (Wang et al., DLP-KDD 2020).

https://arxiv.org/abs/2007.16122
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, unknown
from recstack.features import Heads
from recstack.models.feature_groups import ReadsGroups, linear_log  # noqa: F401 (a part of the paper)
from recstack.nn.mlp import MLP, flat, linear, split_linear
from recstack.nn.modes import evaluating
from recstack.schema import Schema


class COLD(ReadsGroups):
    r"""A small network over all features that learns which groups of them are worth their price.

    .. math:: s = \sigma(W [e_1; \dots; e_m] + b), \qquad z = \mathrm{MLP}([s_1 e_1; \dots; s_m e_m])

    One gate per feature group (``group=`` of a feature, else its name). Train with gates, look at `importance`, and train
    the network to be served on the groups that `select` names::

        scout = COLD(schema).fit(train)
        model = COLD(schema, keep=scout.select(valid, 8), gates=False).fit(train)
        model = COLD(schema, keep=scout.select(valid, cost=milliseconds, budget=2.5), gates=False).fit(train)

    Without gates the request's share of the first layer is computed once per request. Given numbers pass through
    `linear_log`, which bounds them for 16-bit serving. Batches stay as they are; columns left out are not read.

    Departs from the paper: three layers instead of seven, whose widths are not published; the choice by latency and
    quality is left to whoever calls `select`.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the MLP.
        keep: the feature groups to read; None for all.
        gates: the squeeze-and-excitation block.
        norm: "batch", "layer" or None, in the MLP.
        dropout: in the MLP.
        history: the pooling of histories, by name: "mean", or "sum", which also tells how long they are.

    Wang et al., DLP-KDD 2020, https://arxiv.org/abs/2007.16122

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> encoder = rs.Encoder(train.schema).fit(train)
    >>> scout = rs.pre_ranking.COLD(encoder.schema, hidden=(32,)).fit(train, epochs=1, progress=False)
    >>> best = scout.select(valid, 3)
    >>> model = rs.pre_ranking.COLD(encoder.schema, keep=best, gates=False).fit(train, epochs=1, progress=False)
    >>> len(best), model.score(test)["click"].shape == (len(test),)
    (3, True)
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64, 32),
        keep: Sequence[str] | None = None,
        gates: bool = True,
        norm: str | None = "batch",
        dropout: float = 0.0,
        history: str = "mean",
    ):
        super().__init__(schema, dim, keep, history)
        width = sum(self.widths.values())
        self.gate = linear(width, len(self.groups)) if gates else None
        self.mlp = MLP(width, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self._columns(batch)
        if self.gate is not None:
            x = flat(x) * self._gates(x).index_select(-1, self.place)  # type: ignore[arg-type]
        return self.heads(self.mlp(x, batch.get("@mask")))

    def _gates(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        return split_linear(self.gate, x).sigmoid()  # type: ignore[arg-type]

    @torch.no_grad()
    def weights(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gate of each group for each row of a batch, s ``[R, L]`` in (0, 1)."""
        if self.gate is None:
            raise ConfigError("This COLD was built with gates=False, so it weighs no group; ask the one with gates.")
        return dict(zip(self.groups, self._gates(self._columns(batch)).unbind(-1), strict=True))

    @torch.no_grad()
    def importance(self, rows: Any, batch_size: int = 4096) -> dict[str, float]:
        """The mean gate of each group over all live rows (a Log or Columns), the most important first."""
        if self.gate is None:
            raise ConfigError("This COLD was built with gates=False, so it weighs no group; ask the one with gates.")
        columns = self._encoded(rows)
        total, count = torch.zeros(len(self.groups), dtype=torch.float64), 0
        with evaluating(self):
            for start in range(0, columns.n_requests, batch_size):
                batch = columns.batch(np.arange(start, min(start + batch_size, columns.n_requests)))
                gates = self._gates(self._columns(batch))
                live = gates[batch["@mask"]] if "@mask" in batch else gates.flatten(0, -2)
                total += live.double().sum(0)
                count += live.shape[0]
        mean = dict(zip(self.groups, (total / max(count, 1)).tolist(), strict=True))
        return dict(sorted(mean.items(), key=lambda pair: -pair[1]))

    def select(
        self,
        rows: Any,
        groups: int | None = None,
        *,
        cost: Mapping[str, float] | None = None,
        budget: float | None = None,
        value: Mapping[str, float] | None = None,
    ) -> tuple[str, ...]:
        """The names of the groups to keep, for ``keep=``; at least one of them the items'.

        Either the `groups` most important, or, exactly, those worth most together that cost at most `budget` together.

        Args:
            rows: a Log or Columns, over whose live rows gates are averaged.
            groups: how many.
            cost: {group: its price in any unit, from 0}, of every group.
            budget: in the same unit.
            value: {group: what it is worth}, in place of the mean gates, such as the drops of `rs.permutation_importance`; what is
                worth 0 or less is left out. Gates are all above 0, so many cheap groups of no use can outweigh a good one.

        Raises:
            ConfigError: not one of both, a group without a price, or a budget that pays for no group of the items.
        """
        if (groups is None) == (budget is None) or (cost is None) != (budget is None):
            raise ConfigError("Select a number of groups (groups=), or what a budget pays for (cost= and budget=).")
        worth = self.importance(rows) if value is None else value
        for name in worth:
            if name not in self.groups:
                raise unknown("feature group", name, self.groups)
        if budget is not None and cost is not None:
            return self._affordable(worth, cost, budget)
        return self._best(worth, groups)  # type: ignore[arg-type]
