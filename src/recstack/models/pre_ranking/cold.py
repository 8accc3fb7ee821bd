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
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.mlp import MLP, flat, linear, split_linear
from recstack.schema import CANDIDATE_ROLES, Feature, Schema, is_embedded


class COLD(Model):
    r"""A small network over all features that learns which groups of them are worth their price.

    .. math:: s = \sigma(W [e_1; \dots; e_m] + b), \qquad z = \mathrm{MLP}([s_1 e_1; \dots; s_m e_m])

    One gate per feature group (``group=`` of a feature, else its name). Train with gates, look at `importance`, and train
    the network to be served on the groups that `select` names::

        scout = COLD(schema).fit(train)
        model = COLD(schema, keep=scout.select(valid, 8), gates=False).fit(train)

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
    ):
        super().__init__(schema)
        groups = list(dict.fromkeys(_group(f) for f in schema.fields))
        for name in keep or ():
            if name not in groups:
                raise unknown("feature group", name, groups)
        self.groups = tuple(g for g in groups if keep is None or g in keep)
        self.of_candidates = {_group(f) for f in schema.fields if f.role in CANDIDATE_ROLES}
        if self.of_candidates.isdisjoint(self.groups) and (self.of_candidates or not self.groups):
            raise ConfigError("COLD needs a feature group of the items to tell them apart; name one in keep=.")
        kept = [f.name for f in schema.fields if _group(f) in self.groups]
        read = {*kept, *(name for f in schema.derived if f.name in kept for name in f.reads)}
        read |= {name for h in schema.histories if h.name in read for name in h.of}
        self.inputs = Inputs(schema.without(*(f.name for f in schema.fields if f.name not in read)), dim)
        self.widths = {n: w for n, w in self.inputs.widths.items() if n in kept}  # request side first
        self.plain = {n for n in kept if n in self.inputs.widths and _plain(schema.feature(n))}
        width = sum(self.widths.values())
        self.gate = linear(width, len(self.groups)) if gates else None
        place = [self.groups.index(_group(schema.feature(n))) for n, w in self.widths.items() for _ in range(w)]
        self.register_buffer("place", torch.tensor(place), persistent=False)  # [W]: the group of each column
        self.mlp = MLP(width, hidden, norm=norm, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self._columns(batch)
        if self.gate is not None:
            x = flat(x) * self._gates(x).index_select(-1, self.place)  # type: ignore[arg-type]
        return self.heads(self.mlp(x, batch.get("@mask")))

    def _columns(self, batch: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        slots = self.inputs(batch)
        request, candidate = (
            [linear_log(v) if n in self.plain else v for n, v in side.items() if n in self.widths]
            for side in (slots.request, slots.candidate)
        )
        x = torch.cat(candidate, -1)
        return (torch.cat(request, -1), x) if request else x

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
        was, _ = self.training, self.eval()
        total, count = torch.zeros(len(self.groups), dtype=torch.float64), 0
        for start in range(0, columns.n_requests, batch_size):
            batch = columns.batch(np.arange(start, min(start + batch_size, columns.n_requests)))
            gates = self._gates(self._columns(batch))
            live = gates[batch["@mask"]] if "@mask" in batch else gates.flatten(0, -2)
            total += live.double().sum(0)
            count += live.shape[0]
        self.train(was)
        mean = dict(zip(self.groups, (total / max(count, 1)).tolist(), strict=True))
        return dict(sorted(mean.items(), key=lambda pair: -pair[1]))

    def select(self, rows: Any, groups: int) -> tuple[str, ...]:
        """The names of the most important groups, for ``keep=``; at least one of them the items'."""
        names = list(self.importance(rows))
        best = names[:groups]
        if self.of_candidates and self.of_candidates.isdisjoint(best):
            best = [*best[:-1], next(n for n in names if n in self.of_candidates)]
        return tuple(best)


def linear_log(x: Tensor) -> Tensor:
    """x where ``|x| < 1``, else ``sign(x) · (log|x| + 1)``: continuous, with a continuous slope."""
    size = x.abs()
    return torch.where(size < 1, x, x.sign() * (size.clamp(min=1).log() + 1))


def _group(feature: Feature) -> str:
    return getattr(feature, "group", None) or feature.name


def _plain(feature: Feature) -> bool:
    given = feature.kind in ("numeric", "vector") and not is_embedded(feature)
    return given and getattr(feature, "embedding", None) is None
