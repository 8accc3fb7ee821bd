"""What counted retrievers share: which rows are interactions, and recommending from the neighbours of a user's items."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import interactions, normalise_rows
from recstack.kernels.topk import Sparse, offsets_of, recommend_from_rows, score_from_rows
from recstack.models.base import CountedRetriever
from recstack.schema import Feature, Schema, is_multi

if TYPE_CHECKING:
    from recstack.data import Columns, Requests
    from recstack.data.store import ItemStore


def positives(train: Columns, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The interactions: request and item of each, int64.

    A row is one where the label of the binary `task` is 1; by default that is the schema's first binary task, and every
    row counts where there is none. Items outside the vocabulary are left out.
    """
    rows = np.flatnonzero(train.positives(task) & (train.item_ids >= 2))
    request = np.repeat(np.arange(train.n_requests), np.diff(train.lists))
    return request[rows], train.item_ids[rows].astype(np.int64)


def sessions(train: Columns, task: str | None, gap: float | None, who: str) -> tuple[Sparse, np.ndarray]:
    """The items of each session in the order of time, and the request of each entry; unknown users have none.

    Args:
        gap: two events of a user further apart begin a new session; None: all that a user met is one.
        who: asks, for the sentence about a time that is missing.
    """
    if gap is not None and (train.times is None or gap <= 0):
        raise ConfigError(f"{who}(gap=...) is positive and needs a time: Schema(..., time='...').")
    request, item = positives(train, task)
    known = train.user_ids[request] >= 2
    request, item = request[known], item[known]
    time = np.zeros(len(request)) if train.times is None else train.times[request]
    order = np.lexsort((time, train.user_ids[request]))  # stable: events of one time stay in the order of the log
    request, time, item = request[order], time[order], item[order]
    new = np.diff(train.user_ids[request], prepend=-1) != 0
    if gap is not None:
        new |= np.diff(time, prepend=time[:1]) > gap
    rows = np.cumsum(new) - 1
    return Sparse(offsets_of(np.bincount(rows)), item.astype(np.int32), train.catalog.size), request  # type: ignore[union-attr]


def user_items(train: Columns, task: str | None = None) -> Sparse:
    """The items that each known user id interacted with, ascending and once: [user ids, item ids]."""
    request, item = positives(train, task)
    user = train.user_ids[request]
    known = user >= 2  # unknown users are not one busy user
    height = train.schema.feature(train.schema.user).size  # type: ignore[arg-type, union-attr]
    return interactions(user[known], item[known], height, train.catalog.size)  # type: ignore[union-attr]


def item_values(catalog: ItemStore, feature: Feature) -> Sparse:
    """How often each value of an embedded item feature stands in each item: [N, ids of the feature], ascending.

    Padding, unknown values, and ids that are no items have none.
    """
    if is_multi(feature):
        ids, offsets = catalog.block.lists[feature.name]
    else:
        ids, offsets = catalog.block.column(feature.name), np.arange(catalog.size + 1)
    item = np.repeat(np.arange(catalog.size), np.diff(offsets))
    width = feature.size  # type: ignore[attr-defined]  # its table's
    alive = np.zeros(catalog.size, bool)
    alive[catalog.ids] = True
    live = (ids >= 2) & alive[item]
    key, count = np.unique(item[live] * width + ids[live], return_counts=True)
    item, value = np.divmod(key, width)
    offsets = offsets_of(np.bincount(item, minlength=catalog.size))
    return Sparse(offsets, value.astype(np.int32), width, count.astype(np.float32))


def value_table(catalog: ItemStore, feature: Feature) -> np.ndarray:
    """The values of an embedded item feature, each once, side by side: int64 [N, V], 0 behind the last; see `item_values`."""
    values = item_values(catalog, feature)
    table = np.zeros((values.height, int(values.counts.max(initial=0))), np.int64)
    table[values.rows, np.arange(len(values.columns)) - np.repeat(values.offsets[:-1], values.counts)] = values.columns
    return table


def answer(ids: np.ndarray, scores: np.ndarray, found: np.ndarray) -> tuple[Tensor, Tensor]:
    """What a kernel found, as `search` gives it back: -inf where there is nothing."""
    scores[np.arange(ids.shape[1]) >= found[:, None]] = -np.inf
    return torch.from_numpy(ids).long(), torch.from_numpy(scores)


class FromHistory(CountedRetriever):
    """A counted retriever whose answer starts from the items of a user's history, so that new users get one too.

    Args:
        schema: filled in by `fit`.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history; None: all.
        decay: weight of an item for each step that it lies back.
    """

    def __init__(self, schema: Schema | None, task: str | None, history: str | None, last: int | None, decay: float):
        if (last is not None and last < 1) or not 0 < decay <= 1:
            raise ConfigError(f"last is at least 1 and decay lies in (0, 1]; got {last} and {decay:g}.")
        if schema is not None:
            self.schema = schema
        self.task, self.history, self.last, self.decay = task, history, last, decay

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


class ItemToItem(FromHistory):
    r"""Items by their neighbours: a user gets what is similar to the items of their history.

    .. math:: s(u, j) = \sum_{i \in I_u} d^{\,\mathrm{age}(i)}\, S_{ij}

    Args:
        schema, task, history, last, decay: as in `FromHistory`; the decay is :math:`d`.
        neighbours: kept for each item.
        normalise: "sum" or "max": the rows of S are divided by it; None leaves them.
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
        super().__init__(schema, task, history, last, decay)
        if neighbours < 1:
            raise ConfigError(f"neighbours is at least 1; got {neighbours}.")
        self.neighbours, self.normalise = neighbours, normalise

    def similarities(self, users: Sparse) -> Sparse:
        """S [N, N], at most `neighbours` a row, from the items of each user [users, N]."""
        raise NotImplementedError

    def counted(self, train: Columns) -> Sparse:
        """S before its rows are normalised."""
        return self.similarities(user_items(train, self.task))

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now, not at the first request
        found = normalise_rows(self.counted(train), self.normalise)
        assert found.values is not None
        self.offsets, self.columns, self.values = found.offsets, found.columns, found.values

    @property
    def similar(self) -> Sparse:
        """S, the neighbours of each item id, best first."""
        return Sparse(self.offsets, self.columns, len(self.offsets) - 1, self.values)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen(requests) if exclude_seen else None
        return answer(*recommend_from_rows(self._starts(requests), self.similar, k, seen=seen, allowed=allowed.numpy()))

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The sum over the history for given items, 0 where nothing leads to them: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.from_numpy(score_from_rows(self._starts(requests), self.similar, ids.numpy()))
