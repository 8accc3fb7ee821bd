"""Path-based Deep Network for Candidate Item Matching in Recommenders (Li et al., SIGIR 2021).

https://arxiv.org/abs/2105.08246
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, SchemaError
from recstack.kernels.topk import Sparse, offsets_of, product, recommend_from_rows, score_from_rows
from recstack.models.counting import FromHistory, answer, item_values, positives
from recstack.schema import Categorical, Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


class TriggerExpansion(FromHistory):
    r"""From a user's items to their shop, category or tags, and from there to what was chosen most in it.

    .. math:: s(u, j) = \sum_{i \in I_u} d^{\,\mathrm{age}(i)} \sum_{c \in C_i \cap C_j} \frac{n_j}{\sum_{k \in \mathrm{top}(c)} n_k}

    with :math:`C_i` the values of the feature `via` of item i, :math:`n_j` how often j was chosen, and top(c) the items of c
    chosen most, of which j has to be one. The way from items to *similar* items is every ItemToItem model's own.

    Departs from the paper: it learns how much each path of two hops is worth; here the first counts by age, the second by
    popularity.

    Args:
        schema: filled in by `fit`.
        via: a Categorical of the item, with one value or several; None: the first beside the key.
        neighbours: items kept for each value.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history are triggers; None: all.
        decay: d, weight of an item of the history for each step that it lies back.

    Li et al., SIGIR 2021, https://arxiv.org/abs/2105.08246

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.TriggerExpansion(via="category", last=10).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    arrays: ClassVar[tuple[str, ...]] = ("value_offsets", "values", "item_offsets", "items", "shares")
    value_offsets: np.ndarray
    values: np.ndarray
    item_offsets: np.ndarray
    items: np.ndarray
    shares: np.ndarray

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        via: str | None = None,
        neighbours: int = 100,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
    ):
        super().__init__(schema, task, history, last, decay)
        if neighbours < 1:
            raise ConfigError(f"neighbours is at least 1; got {neighbours}.")
        self.via, self.neighbours = via, neighbours

    def count(self, train: Columns) -> None:
        self._profile()
        belongs = item_values(self.catalog, self._feature())
        self.value_offsets, self.values = belongs.offsets, belongs.columns
        n = np.bincount(positives(train, self.task)[1], minlength=self.catalog.size)
        value, item = belongs.columns, belongs.rows
        value, item = value[n[item] > 0], item[n[item] > 0]
        order = np.lexsort((item, -n[item], value))  # best first within each value
        value, item = value[order], item[order]
        offsets = offsets_of(np.bincount(value, minlength=belongs.width))
        kept = np.arange(len(item)) - offsets[value] < self.neighbours
        value, item = value[kept], item[kept]
        total = np.bincount(value, n[item], minlength=belongs.width)
        self.item_offsets = offsets_of(np.bincount(value, minlength=belongs.width))
        self.items, self.shares = item.astype(np.int32), (n[item] / total[value]).astype(np.float32)

    def _feature(self) -> Categorical:
        """What leads from item to item."""
        beside = [f for f in self.schema.by_role("item") if isinstance(f, Categorical) and f.name != self.schema.item]
        for f in beside:
            if self.via in (None, f.name):
                return f
        asked = "" if self.via is None else f", and {self.via!r} is none"
        raise SchemaError(
            f"TriggerExpansion needs a Categorical with role='item' beside the key{asked}; "
            f"there are: {', '.join(f.name for f in beside) or 'none'}."
        )

    @property
    def best(self) -> Sparse:
        """The most chosen items of each value, with their shares: [values, N]."""
        return Sparse(self.item_offsets, self.items, self.catalog.size, self.shares)

    def _wanted(self, requests: Requests) -> Sparse:
        """The values of each user's items, weighted: [R, values]."""
        belongs = Sparse(self.value_offsets, self.values, len(self.item_offsets) - 1)
        return product(self._starts(requests), belongs)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen(requests) if exclude_seen else None
        wanted = self._wanted(requests)
        return answer(*recommend_from_rows(wanted, self.best, k, seen=seen, allowed=allowed.numpy()))

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The sum over the user's items for given items, 0 where no value leads there: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.from_numpy(score_from_rows(self._wanted(requests), self.best, ids.numpy()))
