"""Popularity, which every recommender has to beat (Cremonesi et al., RecSys 2010, "TopPop").

https://doi.org/10.1145/1864708.1864721
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, SchemaError
from recstack.kernels.jagged import gather
from recstack.kernels.topk import offsets_of
from recstack.models.base import CountedRetriever
from recstack.models.counting import positives
from recstack.schema import Schema, is_embedded, is_multi

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


class Popularity(CountedRetriever):
    r"""The same items for everybody, or for everybody alike: what was chosen most, most of late, or more than before.

    .. math:: s_j = \sum_{e \in \mathrm{events}(j)} 2^{-(T - t_e) / h}, \qquad
        s_{gj} = \frac{n_{gj} + \kappa\, s_j / \sum_k s_k}{\sum_k n_{gk} + \kappa}, \qquad
        z_j = \frac{a_j - e_j}{\sqrt{1 + e_j}},\quad e_j = s_j \frac{\sum_k a_k}{\sum_k s_k}

    with T the newest event's time and h the half-life; without a half-life :math:`s_j` is the number of events. With a
    `segment` the score is the item's share of the events of the user's segment g (counted as above in :math:`n_{gj}`), where
    :math:`\kappa` events of everybody stand behind: a small segment falls back on all users, an unknown one is them. With
    `trending` it is how far the sum a of the shorter half-life exceeds what the longer one makes one expect, in deviations of
    a Poisson count. Equal scores stand in the order of ids.

    Args:
        schema: filled in by `fit`.
        half_life: after how long an event counts half, in the unit of the schema's time column; None: never.
        segment: a single-valued categorical feature of the user or the request (country, age group); None: all are one.
        prior: :math:`\kappa`, how many events of everybody stand behind those of a segment.
        trending: the shorter half-life, in the same unit; None: rank by popularity. Not together with a segment.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.

    Cremonesi et al., RecSys 2010, https://doi.org/10.1145/1864708.1864721

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> users = test.events[train.schema.user].unique(maintain_order=True).head(20).to_list()
    >>> always = rs.retrieval.Popularity().fit(train).recommend(users, k=3, exclude_seen=False)
    >>> bool((always.ids == always.ids[0]).all())
    True
    >>> by_age = rs.retrieval.Popularity(segment="age").fit(train).recommend(users, k=3, exclude_seen=False)
    >>> bool((by_age.ids == by_age.ids[0]).all())
    False
    """

    arrays: ClassVar[tuple[str, ...]] = ("counts", "segment_offsets", "segment_items", "segment_counts")
    counts: np.ndarray
    segment_offsets = np.zeros(1, np.int64)
    segment_items = np.zeros(0, np.int32)
    segment_counts = np.zeros(0, np.float32)

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        half_life: float | None = None,
        segment: str | None = None,
        prior: float = 100.0,
        trending: float | None = None,
        task: str | None = None,
    ):
        if half_life is not None and half_life <= 0:
            raise ConfigError(f"half_life must be positive; got {half_life:g}.")
        if trending is not None and not 0 < trending < (np.inf if half_life is None else half_life):
            raise ConfigError(f"trending is a half-life, positive and below half_life ({half_life}); got {trending:g}.")
        if trending is not None and segment is not None:
            raise ConfigError("Popularity cannot rank by segment= and trending= at once; use two of them.")
        if prior <= 0:
            raise ConfigError(f"prior must be positive; got {prior:g}.")
        if schema is not None:
            self.schema = schema
        self.half_life, self.segment, self.prior = half_life, segment, prior
        self.trending, self.task = trending, task

    def count(self, train: Columns) -> None:
        request, item = positives(train, self.task)
        weight = self._weights(train, request, self.half_life)
        size = self.catalog.size
        counts = np.bincount(item, weight, minlength=size)
        if self.trending is not None:
            short = np.bincount(item, self._weights(train, request, self.trending), minlength=size)
            expected = counts * (short.sum() / max(counts.sum(), 1e-30))
            counts = (short - expected) / np.sqrt(1 + expected)
        self.counts = counts.astype(np.float32)
        if self.segment is not None:
            group, height = self._segments(train)
            key, place = np.unique(group[request].astype(np.int64) * size + item, return_inverse=True)
            self.segment_offsets = offsets_of(np.bincount(key // size, minlength=height))
            self.segment_items = (key % size).astype(np.int32)
            self.segment_counts = np.bincount(place, weight, minlength=len(key)).astype(np.float32)

    def _weights(self, train: Columns, request: np.ndarray, half_life: float | None) -> np.ndarray | None:
        if half_life is None:
            return None
        if train.times is None:
            raise ConfigError("Popularity(half_life=...) or trending= needs a time: Schema(..., time='...').")
        return np.exp2((train.times[request] - train.times.max(initial=0)) / half_life)

    def _segments(self, train: Columns) -> tuple[np.ndarray, int]:
        """The segment of each request, and how many ids there are."""
        feature = self.schema.feature(self.segment)  # type: ignore[arg-type]
        if feature.role not in ("user", "context", "domain") or not is_embedded(feature) or is_multi(feature):
            raise SchemaError(
                f"segment={self.segment!r} is no single-valued categorical feature of the user or the request."
            )
        own, users, rows = train.user_sources()
        if feature.name in own.names:
            return own.column(feature.name), feature.size  # type: ignore[return-value]
        assert users is not None
        return users.column(feature.name)[rows], feature.size  # type: ignore[return-value]

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        ids = np.zeros((len(requests), k), np.int64)
        scores = np.full((len(requests), k), -np.inf, np.float32)
        offsets, seen = requests.seen
        if not exclude_seen:
            offsets, seen = np.zeros(len(requests) + 1, np.int64), np.zeros(0, np.int32)
        for rows, score in self._groups(requests):
            items = self.catalog.ids[allowed.numpy()[self.catalog.ids]]
            items = items[np.lexsort((items, -score[items]))]  # best first
            place = np.full(self.catalog.size, len(items))
            place[items] = np.arange(len(items))
            for part in np.split(rows, range(1024, len(rows), 1024)):
                gone, bounds = gather(np.asarray(seen), offsets[:-1][part], offsets[1:][part])
                met = np.diff(bounds)
                width = min(len(items), k + int(met.max(initial=0)))  # no list reaches further down
                free = np.ones((len(part), width + 1), bool)
                free[np.repeat(np.arange(len(part)), met), np.minimum(place[gone], width)] = False
                free = free[:, :width]
                rank = np.cumsum(free, 1)
                row, best = np.nonzero(free & (rank <= k))
                ids[part[row], rank[row, best] - 1] = items[best]
                scores[part[row], rank[row, best] - 1] = score[items[best]]
        return torch.from_numpy(ids), torch.from_numpy(scores)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The items' own scores in the user's segment: ids ``[R, K]`` → float32 ``[R, K]``."""
        scores = torch.zeros(ids.shape)
        for rows, score in self._groups(requests):
            scores[rows] = torch.from_numpy(score)[ids[rows]]
        return scores

    def _groups(self, requests: Requests) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Requests of one segment and the scores [N] there, segment by segment."""
        if self.segment is None:
            yield np.arange(len(requests)), self.counts
            return
        group = requests.batch[self.segment].numpy()
        everybody = self.counts / max(float(self.counts.sum(dtype=np.float64)), 1e-30)
        for g in np.unique(group):
            own = slice(*self.segment_offsets[g : g + 2]) if g >= 2 else slice(0)  # unknown users are no segment
            count = self.segment_counts[own]
            score = everybody * self.prior
            score[self.segment_items[own]] += count
            yield np.flatnonzero(group == g), (score / (count.sum(dtype=np.float64) + self.prior)).astype(np.float32)
