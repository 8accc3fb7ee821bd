"""Empirical Analysis of Predictive Algorithms for Collaborative Filtering (Breese et al., UAI 1998).

https://arxiv.org/abs/1301.7363
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, unknown
from recstack.kernels.cooccurrence import active, transpose
from recstack.kernels.topk import Sparse, offsets_of, recommend_from_rows, score_from_rows
from recstack.models.counting import FromHistory, answer, user_items
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

_WEIGHTS = {"one": lambda n: np.ones(len(n)), "log": lambda n: 1 / np.log1p(n)}


class UserCF(FromHistory):
    r"""What the users most like this one chose; agreeing on a rare item says more than agreeing on a popular one.

    .. math:: \mathrm{sim}(u, v) = \frac{\sum_{i \in I_u \cap I_v} d^{\,\mathrm{age}(i)} w_i}{\sqrt{|I_u|\, |I_v|}}, \qquad
        w_i = \frac{1}{\log(1 + |U_i|)}, \qquad s(u, j) = \sum_{v \in \mathrm{top}\, K:\; j \in I_v} \mathrm{sim}(u, v)

    The K users are searched when the question comes, among all who were counted, so that a user never met is answered from
    their history like any other.

    Departs from the paper: it predicts ratings, from all users; w is its inverse user frequency in the later form of
    Xiang's textbook, for choices without ratings.

    Args:
        schema: filled in by `fit`.
        neighbours: K, the users who are asked.
        item_weight: "log", the w above, or "one".
        min_items, max_items: users with fewer or more items are not asked; None: no limit.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history are compared; None: all.
        decay: d, weight of an item of the history for each step that it lies back.

    Breese et al., UAI 1998, https://arxiv.org/abs/1301.7363

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.UserCF(neighbours=50).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    arrays: ClassVar[tuple[str, ...]] = ("offsets", "columns")
    offsets: np.ndarray
    columns: np.ndarray
    _visitors: Sparse | None = None

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        neighbours: int = 100,
        item_weight: str = "log",
        min_items: int = 2,
        max_items: int | None = None,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
    ):
        super().__init__(schema, task, history, last, decay)
        if neighbours < 1:
            raise ConfigError(f"neighbours is at least 1; got {neighbours}.")
        if item_weight not in _WEIGHTS:
            raise unknown("item_weight", item_weight, _WEIGHTS)
        self.neighbours, self.item_weight = neighbours, item_weight
        self.min_items, self.max_items = min_items, max_items

    def count(self, train: Columns) -> None:
        self._profile()
        users = active(user_items(train, self.task), self.min_items, self.max_items)
        self.offsets, self.columns, self._visitors = users.offsets, users.columns, None

    @property
    def chosen(self) -> Sparse:
        """The items of each user id: [users, N], ones."""
        return Sparse(self.offsets, self.columns, self.catalog.size, np.ones(len(self.columns), np.float32))

    @property
    def visitors(self) -> Sparse:
        r"""The users of each item: [N, users], values :math:`w_i / \sqrt{|I_v|}`."""
        if self._visitors is None:
            chosen = self.chosen
            users = transpose(chosen._replace(values=None))
            weight = np.repeat(_WEIGHTS[self.item_weight](users.counts.clip(min=1).astype(float)), users.counts)
            self._visitors = users._replace(values=(weight / np.sqrt(chosen.counts[users.columns])).astype(np.float32))
        return self._visitors

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen(requests) if exclude_seen else None
        alike = self.alike(requests)
        return answer(*recommend_from_rows(alike, self.chosen, k, seen=seen, allowed=allowed.numpy()))

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The sum over the most similar users, 0 where none of them chose: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.from_numpy(score_from_rows(self.alike(requests), self.chosen, ids.numpy()))

    def alike(self, requests: Requests) -> Sparse:
        """The most similar users of each request, themselves left out: [R, users], values the similarities."""
        starts, visitors = self._starts(requests), self.visitors
        height = visitors.width
        known = (requests.users >= 2) & (requests.users < height)
        selves = Sparse(np.concatenate(([0], np.cumsum(known))), requests.users[known].astype(np.int32), height)
        users, scores, found = recommend_from_rows(starts, visitors, self.neighbours, seen=selves)
        live = np.arange(users.shape[1]) < found[:, None]
        scores /= np.sqrt(starts.counts.clip(min=1))[:, None]
        return Sparse(offsets_of(found), users[live], height, scores[live])
