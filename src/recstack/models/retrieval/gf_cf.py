"""How Powerful is Graph Convolution for Recommendation? (Shen et al., CIKM 2021).

https://arxiv.org/abs/2108.07567
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.models.counting import FromHistory, user_items
from recstack.models.scored import best_of_all, of_pairs
from recstack.nn.graph.propagation import Propagation
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

MORE, PASSES = 64, 20  # of the subspace iteration: vectors beyond those wanted, and how often they are multiplied


class GFCF(FromHistory):
    r"""Two low-pass filters of a user's row, in closed form: nothing is trained.

    .. math:: s_u = r_u \Big( \tilde R^\top \tilde R + \alpha\, D_I^{-1/2} V V^\top D_I^{1/2} \Big), \qquad
        \tilde R = D_U^{-1/2} R\, D_I^{-1/2}

    r_u are the zeros and ones of a user's items, and V ``[N, rank]`` the first right singular vectors of
    :math:`\tilde R`, found by subspace iteration. The first term is LightGCN's one layer, the second an ideal filter. Kept are
    R, sparse, and V; N × N numbers never exist. Whoever has a history is answered, met in training or not.

    Args:
        schema: filled in by `fit`.
        rank: singular vectors kept; fewer where the matrix has fewer.
        alpha: :math:`\alpha`; the paper takes 0 on Amazon-Book.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        seed: of the vectors that the iteration begins with.

    Shen et al., CIKM 2021, https://arxiv.org/abs/2108.07567

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.GFCF(rank=16).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    arrays: ClassVar[tuple[str, ...]] = ("offsets", "columns", "vectors")
    offsets: np.ndarray
    columns: np.ndarray
    vectors: np.ndarray
    _graph: Propagation | None = None

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        rank: int = 256,
        alpha: float = 0.3,
        task: str | None = None,
        history: str | None = None,
        seed: int = 0,
    ):
        super().__init__(schema, task, history, None, 1.0)
        if rank < 1 or alpha < 0:
            raise ConfigError(f"rank is at least 1 and alpha at least 0; got {rank} and {alpha:g}.")
        self.rank, self.alpha, self.seed = rank, alpha, seed

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now
        users = user_items(train, self.task)
        self.offsets, self.columns, self._graph = users.offsets, users.columns, None
        self.vectors = self._singular_vectors().numpy()

    @property
    def graph(self) -> Propagation:
        """:math:`\\tilde R`, ready to be multiplied."""
        if self._graph is None:
            graph = Propagation(len(self.offsets) - 1, self.catalog.size)
            self._graph = graph.connect(torch.from_numpy(self.offsets), torch.from_numpy(self.columns))
        return self._graph

    def _singular_vectors(self) -> Tensor:
        """V, by subspace iteration: products with blocks of vectors, an orthonormal basis, a small problem at the end."""
        users, items = len(self.offsets) - 1, self.catalog.size
        width = min(self.rank + MORE, users, items)
        q = torch.randn(items, width, generator=torch.Generator().manual_seed(self.seed))
        for _ in range(PASSES):
            q = torch.linalg.qr(self.graph.to_items(self.graph.to_users(q)))[0]
        y = self.graph.to_users(q)
        square, turn = torch.linalg.eigh((y.T @ y).double())  # ascending
        live = square[-self.rank :] > 1e-6  # of the squares of singular values, which are at most 1
        return q @ turn[:, -self.rank :][:, live].flip(1).float()

    @torch.no_grad()
    def scores(self, requests: Requests) -> Tensor:
        """float32 ``[R, N]``; -inf for who has no history."""
        starts = self._starts(requests)
        row = torch.zeros(len(requests), self.catalog.size)
        row[torch.from_numpy(starts.rows), torch.from_numpy(starts.columns).long()] = 1
        near = self.graph.to_items(self.graph.to_users(row.T.contiguous())).T
        v, degree = torch.from_numpy(self.vectors), self.graph.back_offsets.diff().float()
        row *= degree > 0  # what nobody has met says nothing
        smooth = ((row * degree.clamp(min=1).rsqrt()) @ v) @ v.T * degree.sqrt()
        return (near + self.alpha * smooth).masked_fill(~row.any(1, keepdim=True), -torch.inf)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        return best_of_all(self.scores, requests, k, exclude_seen, allowed)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The filtered row at given items, 0 for who has no history: ids ``[R, K]`` → float32 ``[R, K]``."""
        return of_pairs(self.scores, requests, ids).nan_to_num(neginf=0.0)
