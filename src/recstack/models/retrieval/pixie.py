"""Pixie: A System for Recommending 3+ Billion Items to 200+ Million Users in Real-Time (Eksombatchai et al., WWW 2018).

https://arxiv.org/abs/1711.07601
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import active, transpose
from recstack.kernels.topk import Sparse
from recstack.kernels.walks import most_visited, visits
from recstack.models.counting import FromHistory, answer, user_items
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


class Pixie(FromHistory):
    r"""Random walks with restart over users and items, from each item of the history; what many of them visit is proposed.

    .. math:: s(u, j) = \Big( \sum_{i \in I_u} \sqrt{V_i(j)} \Big)^2, \qquad
        N_i = d^{\,\mathrm{age}(i)} N \frac{g_i}{\sum_{r \in I_u} g_r}, \quad g_i = |U_i| \big( \max_r |U_r| - \log |U_i| \big)

    with :math:`V_i(j)` the visits to j of the walk from i, which takes :math:`N_i` steps (item → user → item) or stops once
    `enough_items` items were visited `enough_visits` times each.

    A walk depends on `seed` and on its query item only, so a user gets the same answer alone and in a batch.

    Departs from the paper: no edges are pruned and none preferred by the user's language or topic; users stand for boards.

    Args:
        schema: filled in by `fit`.
        steps: N, of all walks of a request together.
        restart: probability, after each step, that a walk begins again at its query item.
        enough_items, enough_visits: when a query's walk stops early.
        min_items, max_items: users with fewer or more items are not in the graph; None: no limit.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history are queries; None: all.
        decay: d, weight of a query for each step that it lies back.
        seed: of the walks.

    Eksombatchai et al., WWW 2018, https://arxiv.org/abs/1711.07601

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.Pixie(steps=2000).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    arrays: ClassVar[tuple[str, ...]] = ("offsets", "columns")
    offsets: np.ndarray
    columns: np.ndarray
    _forth: Sparse | None = None

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        steps: int = 100_000,
        restart: float = 0.5,
        enough_items: int = 2000,
        enough_visits: int = 4,
        min_items: int = 2,
        max_items: int | None = None,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(schema, task, history, last, decay)
        if min(steps, enough_items, enough_visits) < 1 or not 0 <= restart <= 1:
            raise ConfigError(
                "steps, enough_items and enough_visits are at least 1, restart lies in [0, 1]; "
                f"got {steps}, {enough_items}, {enough_visits} and {restart:g}."
            )
        self.steps, self.restart, self.seed = steps, restart, seed
        self.enough_items, self.enough_visits = enough_items, enough_visits
        self.min_items, self.max_items = min_items, max_items

    def count(self, train: Columns) -> None:
        self._profile()
        users = active(user_items(train, self.task), self.min_items, self.max_items)
        self.offsets, self.columns, self._forth = users.offsets, users.columns, None

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen(requests) if exclude_seen else None
        found = most_visited(self._queries(requests), *self.graph, k, **self._walk, seen=seen, allowed=allowed.numpy())
        return answer(*found)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """How often the walks visit given items, 0 for never: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.from_numpy(visits(self._queries(requests), *self.graph, ids.numpy(), **self._walk))

    @property
    def graph(self) -> tuple[Sparse, Sparse]:
        """The users of each item [N, users] and the items of each user [users, N]."""
        users = Sparse(self.offsets, self.columns, self.catalog.size)
        if self._forth is None:
            self._forth = transpose(users)
        return self._forth, users

    @property
    def _walk(self) -> dict[str, Any]:
        return {"seed": self.seed, "restart": self.restart, "enough": (self.enough_items, self.enough_visits)}

    def _queries(self, requests: Requests) -> Sparse:
        """The items to walk from, and how many steps each: [R, N]."""
        starts, degree = self._starts(requests), self.graph[0].counts
        met = degree.clip(min=1)
        share = np.where(degree > 0, met * (met.max(initial=1) - np.log(met)), 0.0)[starts.columns]
        total = np.bincount(starts.rows, share, minlength=starts.height)
        steps = self.steps * share / np.maximum(total, 1e-30)[starts.rows]
        return starts._replace(values=steps if starts.values is None else steps * starts.values)
