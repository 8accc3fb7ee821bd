"""Embarrassingly Shallow Autoencoders for Sparse Data (Steck, WWW 2019).

https://arxiv.org/abs/1905.03375
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.gram import gram, invert
from recstack.models.counting import FromHistory, user_items
from recstack.models.scored import best_of_all, of_pairs
from recstack.schema import Schema
from recstack.training.memory import free

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


class EASE(FromHistory):
    r"""Items explain each other by one ridge regression with a zero diagonal, solved in closed form.

    .. math:: P = (X^\top X + \lambda I)^{-1}, \qquad B_{ij} = -P_{ij} / P_{jj}, \quad B_{jj} = 0, \qquad
        s(u, j) = \sum_{i \in I_u} B_{ij}

    X ``[users, N]`` of zeros and ones. The matrix is inverted where it stands, by Cholesky in float32: 4 N² bytes, which the
    bundle has too (20,000 items: 1.6 GB), and N³ multiplications.

    Args:
        schema: filled in by `fit`.
        l2: λ, the one parameter. Tune it; 100 to 1000 on dense data, less on sparse.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.

    Raises ConfigError, by `fit`, where the memory that is free does not hold the matrix.

    Steck, WWW 2019, https://arxiv.org/abs/1905.03375

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.EASE(l2=50).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    arrays: ClassVar[tuple[str, ...]] = ("weights",)
    weights: np.ndarray

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        l2: float = 250.0,
        task: str | None = None,
        history: str | None = None,
    ):
        super().__init__(schema, task, history, None, 1.0)
        if l2 <= 0:
            raise ConfigError(f"l2 must be above 0, or the matrix has no inverse; got {l2:g}.")
        self.l2 = l2

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now
        n, left = self.catalog.size, free(torch.device("cpu"))
        if left is not None and 4 * n * n > left:
            raise ConfigError(
                f"EASE needs {4e-9 * n * n:.1f} GB for its matrix of {n:,} items, and {1e-9 * left:.1f} GB are free; leave out "
                "rare items, or take SLIM, whose matrix is sparse."
            )
        b = gram(user_items(train, self.task))
        b[np.diag_indices(n)] += np.float32(self.l2)
        invert(b)
        b /= -b.diagonal()[None].copy()
        b[np.diag_indices(n)] = 0
        self.weights = b

    def scores(self, requests: Requests) -> Tensor:
        """float32 ``[R, N]``; zeros for who has no history."""
        starts = self._starts(requests)
        offsets, items = torch.from_numpy(starts.offsets).long(), torch.from_numpy(starts.columns).long()
        return F.embedding_bag(items, torch.from_numpy(self.weights), offsets, mode="sum", include_last_offset=True)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        def scores(part: Requests) -> Tensor:
            return self.scores(part).masked_fill(torch.from_numpy(self._starts(part).counts == 0)[:, None], -torch.inf)

        return best_of_all(scores, requests, k, exclude_seen, allowed)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The sum over the history for given items: ids ``[R, K]`` → float32 ``[R, K]``."""
        return of_pairs(self.scores, requests, ids)
