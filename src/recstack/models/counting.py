"""What counted retrievers share: which rows are interactions, and recommending from the neighbours of a user's items."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import interactions, normalise_rows
from recstack.kernels.topk import Sparse, recommend_from_rows, score_from_rows
from recstack.models.base import CountedRetriever
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


def positives(train: Columns, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The interactions: request and item of each, int64.

    A row is one where the label of the binary `task` is 1; by default that is the schema's first binary task, and every
    row counts where there is none. Items outside the vocabulary are left out.
    """
    rows = np.flatnonzero(train.positives(task) & (train.item_ids >= 2))
    request = np.repeat(np.arange(train.n_requests), np.diff(train.lists))
    return request[rows], train.item_ids[rows].astype(np.int64)


def user_items(train: Columns, task: str | None = None) -> Sparse:
    """The items that each known user id interacted with, ascending and once: [user ids, item ids]."""
    request, item = positives(train, task)
    user = train.user_ids[request]
    known = user >= 2  # unknown users are not one busy user
    height = train.schema.feature(train.schema.user).size  # type: ignore[arg-type, union-attr]
    return interactions(user[known], item[known], height, train.catalog.size)  # type: ignore[union-attr]


class ItemToItem(CountedRetriever):
    r"""Items by their neighbours: a user gets what is similar to the items of their history.

    .. math:: s(u, j) = \sum_{i \in I_u} d^{\,\mathrm{age}(i)}\, S_{ij}

    Args:
        schema: filled in by `fit`.
        neighbours: kept for each item.
        normalise: "sum" or "max": the rows of S are divided by it; None leaves them.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history; None: all.
        decay: weight of an item for each step that it lies back, :math:`d`.
    """

    arrays: ClassVar[tuple[str, ...]] = ("offsets", "columns", "values")
    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def __init__(
        self,
        schema: Schema | None,
        neighbours: int,
        normalise: str | None,
        task: str | None,
        history: str | None,
        last: int | None,
        decay: float,
    ):
        if neighbours < 1 or (last is not None and last < 1) or not 0 < decay <= 1:
            raise ConfigError(
                f"neighbours and last are at least 1, decay lies in (0, 1]; got {neighbours}, {last}, {decay:g}."
            )
        if schema is not None:
            self.schema = schema
        self.neighbours, self.normalise, self.task = neighbours, normalise, task
        self.history, self.last, self.decay = history, last, decay

    def similarities(self, users: Sparse) -> Sparse:
        """S [N, N], at most `neighbours` a row, from the items of each user [users, N]."""
        raise NotImplementedError

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now, not at the first request
        found = normalise_rows(self.similarities(user_items(train, self.task)), self.normalise)
        assert found.values is not None
        self.offsets, self.columns, self.values = found.offsets, found.columns, found.values

    @property
    def similar(self) -> Sparse:
        """S, the neighbours of each item id, best first."""
        return Sparse(self.offsets, self.columns, len(self.offsets) - 1, self.values)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen(requests) if exclude_seen else None
        ids, scores, found = recommend_from_rows(
            self._starts(requests), self.similar, k, seen=seen, allowed=allowed.numpy()
        )
        scores[np.arange(k) >= found[:, None]] = -np.inf  # no neighbour list leads there
        return torch.from_numpy(ids).long(), torch.from_numpy(scores)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The sum over the history for given items, 0 where nothing leads to them: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.from_numpy(score_from_rows(self._starts(requests), self.similar, ids.numpy()))

    # -- a request's history --------------------------------------------------------------------------------------------
    def _profile(self) -> str | None:
        """The History to read, or None for everything the user has met."""
        if self.history is not None:
            return self.schema.feature(self.history).name
        if self.schema.histories:
            return self.schema.histories[0].name
        if self.last is not None or self.decay < 1:
            raise ConfigError(
                f"{type(self).__name__}: last= and decay= need the order of a user's items; declare a History in the schema."
            )
        return None

    def _starts(self, requests: Requests) -> Sparse:
        """The items to start from [R, N], oldest first, with their weights."""
        name = self._profile()
        if name is None:
            return self._seen(requests)
        batch, key = requests.batch, f"{self.schema.item}@{name}"
        ids = batch[key].numpy()
        if f"{name}@offsets" in batch:
            starts = Sparse(batch[f"{name}@offsets"].numpy(), ids, self.catalog.size)
        else:  # padded [R, T], 0 = nothing
            live = ids > 0
            starts = Sparse(np.concatenate(([0], np.cumsum(live.sum(1)))), ids[live], self.catalog.size)
        if self.last is not None:
            starts = starts.last(self.last)
        if self.decay < 1:
            age = np.repeat(starts.offsets[1:], starts.counts) - 1 - np.arange(len(starts.columns))
            starts = starts._replace(values=(self.decay**age).astype(np.float32))
        return starts

    def _seen(self, requests: Requests) -> Sparse:
        offsets, items = requests.seen
        return Sparse(np.asarray(offsets), np.asarray(items), self.catalog.size)
