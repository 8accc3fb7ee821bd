"""Revisiting the Performance of iALS on Item Recommendation Benchmarks (Rendle, Krichene, Zhang and Koren, RecSys 2022).

https://arxiv.org/abs/2110.14037
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.als import solve
from recstack.kernels.cooccurrence import transpose
from recstack.kernels.topk import Sparse
from recstack.models.counting import FromHistory, user_items
from recstack.models.scored import best_of_all
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


class iALS(FromHistory):
    r"""Factors of users and items by alternating least squares: what was chosen should score 1, all pairs a little near 0.

    .. math:: \sum_{(u, i) \in S} (x_u^\top y_i - 1)^2 + \alpha_0 \sum_{u, i} (x_u^\top y_i)^2
        + \lambda \sum_u (|I_u| + \alpha_0 |I|)^\nu \|x_u\|^2 + \lambda \sum_i (|U_i| + \alpha_0 |U|)^\nu \|y_i\|^2

    Hu, Koren and Volinsky's model (ICDM 2008) with the two settings that its later reputation hung on: the regularisation
    grows with frequency (:math:`\nu = 1`), and :math:`\alpha_0` is tuned. An iteration passes over the users, then over the
    items: by three steps of conjugate gradients from where a row stands, or, with `block`, so many coordinates at a time,
    exactly (iALS++, https://arxiv.org/abs/2110.14044), which pays at a `dim` of hundreds; with ``block >= dim`` each pass is
    the exact minimum.

    A user of the training data is answered with their own factors; whoever was not met in training, with those that one
    exact solve gives their history. No history, no answer.

    Departs from the paper: the initial deviation is not an option, it is the paper's :math:`0.1 / \sqrt d`.

    Args:
        schema: filled in by `fit`.
        dim: d, the number of factors. Quality still grows at 256 and above.
        iterations: passes over users and items; 16 are plenty.
        regularisation: :math:`\lambda`. Tune it, by factors of two.
        unobserved: :math:`\alpha_0`. Tune it, by factors of three.
        exponent: :math:`\nu`; 0 is the plain λ of most libraries.
        block: coordinates solved for at once; None: conjugate gradients.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a new user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        seed: of the initial factors.

    Rendle et al., RecSys 2022, https://arxiv.org/abs/2110.14037

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.iALS(dim=16, iterations=5, unobserved=0.3).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    arrays: ClassVar[tuple[str, ...]] = ("users", "items")
    users: np.ndarray
    items: np.ndarray

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        dim: int = 64,
        iterations: int = 16,
        regularisation: float = 0.003,
        unobserved: float = 0.1,
        exponent: float = 1.0,
        block: int | None = None,
        task: str | None = None,
        history: str | None = None,
        seed: int = 0,
    ):
        super().__init__(schema, task, history, None, 1.0)
        if min(dim, iterations, 1 if block is None else block) < 1:
            raise ConfigError(f"dim, iterations and block are at least 1; got {dim}, {iterations} and {block}.")
        if regularisation <= 0 or unobserved <= 0:
            raise ConfigError(f"regularisation and unobserved are above 0; got {regularisation:g} and {unobserved:g}.")
        self.dim, self.iterations, self.regularisation, self.unobserved = dim, iterations, regularisation, unobserved
        self.exponent, self.block, self.seed = exponent, block, seed

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now
        for _ in self.passes(train):
            pass

    def passes(self, train: Columns) -> Iterator[int]:
        """Train, and come back after each iteration, so that a curve can be drawn: 1, 2, … `iterations`."""
        by_user = user_items(train, self.task)
        by_item = transpose(by_user)
        rng, scale = np.random.default_rng(self.seed), 0.1 / np.sqrt(self.dim)
        self.users, self.items = (
            (scale * rng.standard_normal((m.height, self.dim), np.float32) * (m.counts > 0)[:, None]).astype(np.float32)
            for m in (by_user, by_item)
        )
        for done in range(1, self.iterations + 1):
            self._pass(by_user, self.items, self.users, self.block)
            self._pass(by_item, self.users, self.items, self.block)
            yield done

    def _pass(self, rows: Sparse, factors: np.ndarray, x: np.ndarray, block: int | None) -> None:
        """Rows without a column keep what they have, zeros."""
        others = np.count_nonzero(factors.any(1))
        ridge = self.regularisation * (rows.counts + self.unobserved * others) ** self.exponent
        gram = (self.unobserved * (factors.T @ factors)).astype(np.float32)
        solve(rows, np.ones(len(rows.columns), np.float32), factors, gram, ridge.astype(np.float32), x, block)

    def vectors(self, requests: Requests) -> Tensor:
        """``[R, dim]``: users of the training data as they were learned, others folded in; zeros of those without a past."""
        known = (requests.users >= 2) & (requests.users < len(self.users))
        x = np.where(known[:, None], self.users[np.where(known, requests.users, 0)], np.float32(0))
        new = np.flatnonzero(~x.any(1))
        if len(new):
            folded = np.zeros((len(new), self.dim), np.float32)
            self._pass(self._starts(requests).take(new)._replace(values=None), self.items, folded, self.dim)
            x[new] = folded
        return torch.from_numpy(x)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        items = torch.from_numpy(self.items)

        def scores(part: Requests) -> Tensor:
            x = self.vectors(part)
            return (x @ items.T).masked_fill(~x.any(1, keepdim=True), -torch.inf)

        return best_of_all(scores, requests, k, exclude_seen, allowed)

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """Inner products with given items, 0 for who has no past: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.einsum("rd,rkd->rk", self.vectors(requests), torch.from_numpy(self.items)[ids])
