"""Popularity, which every recommender has to beat (Cremonesi et al., RecSys 2010, "TopPop").

https://doi.org/10.1145/1864708.1864721
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.models.base import CountedRetriever
from recstack.models.counting import positives
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


class Popularity(CountedRetriever):
    r"""The same items for everybody: what was chosen most, or most of late.

    .. math:: s_j = \sum_{e \in \mathrm{events}(j)} 2^{-(T - t_e) / h}

    with T the newest event's time and h the half-life; without a half-life it is the number of events. Equal scores
    stand in the order of ids.

    Args:
        schema: filled in by `fit`.
        half_life: after how long an event counts half, in the unit of the schema's time column; None: never.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.

    Cremonesi et al., RecSys 2010, https://doi.org/10.1145/1864708.1864721

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> users = test.events[train.schema.user].unique().head(2).to_list()
    >>> always = rs.retrieval.Popularity().fit(train).recommend(users, k=3, exclude_seen=False)
    >>> bool((always.ids[0] == always.ids[1]).all())
    True
    """

    arrays: ClassVar[tuple[str, ...]] = ("counts",)
    counts: np.ndarray

    def __init__(self, schema: Schema | None = None, *, half_life: float | None = None, task: str | None = None):
        if half_life is not None and half_life <= 0:
            raise ConfigError(f"half_life must be positive; got {half_life:g}.")
        if schema is not None:
            self.schema = schema
        self.half_life, self.task = half_life, task

    def count(self, train: Columns) -> None:
        request, item = positives(train, self.task)
        weight = None
        if self.half_life is not None:
            if train.times is None:
                raise ConfigError("Popularity(half_life=...) needs a time: Schema(..., time='...').")
            age = train.times.max(initial=0) - train.times[request]
            weight = np.exp2(-age / self.half_life)
        self.counts = np.bincount(item, weight, minlength=self.catalog.size).astype(np.float32)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        items = self.catalog.ids[allowed.numpy()[self.catalog.ids]]
        items = items[np.lexsort((items, -self.counts[items]))]  # best first
        place = np.full(self.catalog.size, len(items))
        place[items] = np.arange(len(items))
        ids = np.zeros((len(requests), k), np.int64)
        scores = np.full((len(requests), k), -np.inf, np.float32)
        for start in range(0, len(requests), 1024):
            part = requests.slice(start, min(start + 1024, len(requests)))
            offsets, seen = part.seen if exclude_seen else (np.zeros(len(part) + 1, np.int64), np.zeros(0, np.int32))
            met = np.diff(offsets)
            width = min(len(items), k + int(met.max(initial=0)))  # no list reaches further down
            free = np.ones((len(part), width + 1), bool)
            free[np.repeat(np.arange(len(part)), met), np.minimum(place[seen], width)] = False
            free = free[:, :width]
            rank = np.cumsum(free, 1)
            row, best = np.nonzero(free & (rank <= k))
            ids[start + row, rank[row, best] - 1] = items[best]
            scores[start + row, rank[row, best] - 1] = self.counts[items[best]]
        return torch.from_numpy(ids), torch.from_numpy(scores)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The items' own scores, whoever asks: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.from_numpy(self.counts)[ids]
