"""Matrix Factorization Techniques for Recommender Systems (Koren, Bell and Volinsky, IEEE Computer 2009), and SVD++.

https://doi.org/10.1109/MC.2009.263; SVD++: Koren, KDD 2008, https://doi.org/10.1145/1401890.1401944
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError, DataError, SchemaError, unknown
from recstack.features.columns import column
from recstack.features.tables import check_ids
from recstack.features.tasks import target
from recstack.kernels.als import solve
from recstack.kernels.factorisation import rating_epoch
from recstack.kernels.topk import Sparse, offsets_of
from recstack.models.base import Retriever
from recstack.schema import Schema
from recstack.training.batches import encoded

Batch = Mapping[str, Tensor]
ROWS = 1 << 16  # rows read at a time


class MF(Retriever):
    r"""Ratings as a mean, a bias of the user and of the item, and the inner product of their factors.

    .. math:: \hat r_{ui} = \mu + b_u + b_i + q_i^\top \Big(p_u + |N_u|^{-1/2} \sum_{j \in N_u} y_j\Big)

    The sum over the rated items :math:`N_u` is SVD++'s, there with ``implicit=True``. "sgd" visits one rating after the other,
    users in an order drawn anew for each epoch, with the defaults of Surprise; "als" solves all users, then all items, factors
    and bias together, with :math:`\lambda n` for a row of n ratings (Zhou et al., AAIM 2008). Ratings are read from a log that
    has them: for one of positives alone take iALS or BPR.

    It has no gradients: `fit` does it all, takes nothing of a Trainer. A user whom training has not met is given
    :math:`\mu + b_i`, and by SVD++ the :math:`y_j` of what they have met too.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: D; None: 100, or 20 for SVD++.
        solver: "sgd" or "als".
        implicit: SVD++; trained by "sgd".
        epochs: passes over the ratings.
        lr: of "sgd"; None: 0.005, or 0.007 for SVD++.
        l2: λ; None: 0.02 for "sgd", 0.1 for "als".
        task: whose label is the rating; None: the schema's first regression, or its first task.
        seed: of the initial factors (deviation 0.1) and of the order.

    Koren et al., Computer 2009, https://doi.org/10.1109/MC.2009.263; Koren, KDD 2008,
    https://doi.org/10.1145/1401890.1401944

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.MF(rs.Encoder(train.schema).fit(train).schema, dim=8, epochs=5).fit(train)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    >>> model.recommend([10**9], k=5).ids.shape
    torch.Size([1, 5])
    """

    gradients: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    mean: Tensor
    users: Tensor
    user_bias: Tensor
    items: Tensor
    item_bias: Tensor
    feedback: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int | None = None,
        solver: str = "sgd",
        implicit: bool = False,
        epochs: int = 20,
        lr: float | None = None,
        l2: float | None = None,
        task: str | None = None,
        seed: int = 0,
    ):
        super().__init__(schema)
        if solver not in ("sgd", "als"):
            raise unknown("solver of MF", solver, ("sgd", "als"))
        if implicit and solver == "als":
            raise ConfigError('SVD++ (implicit=True) is trained by solver="sgd"; "als" has no step for it.')
        if schema.user is None or schema.item is None:
            raise SchemaError("MF needs a user key and an item key: a Categorical of each role, or user=, item=.")
        if not schema.tasks:
            raise SchemaError("MF learns ratings: the schema needs tasks=[rs.Task(..., 'regression')].")
        self.user, self.item = schema.user, schema.item
        ratings = [t for t in schema.tasks if t.kind == "regression"]
        self.task = (ratings or schema.tasks)[0] if task is None else schema.task(task)
        self.dim = dim or (20 if implicit else 100)
        self.solver, self.implicit, self.epochs, self.seed = solver, implicit, epochs, seed
        self.lr = lr or (0.007 if implicit else 0.005)
        self.l2 = l2 if l2 is not None else (0.02 if solver == "sgd" else 0.1)
        users, items = (schema.feature(name).size for name in (self.user, self.item))  # type: ignore[attr-defined]
        shapes = {"mean": (), "users": (users, self.dim), "user_bias": (users,), "items": (items, self.dim)}
        shapes |= {"item_bias": (items,), "feedback": (items if implicit else 0, self.dim)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    # -- scores -------------------------------------------------------------------------------------------------------
    def user_vectors(self, batch: Batch) -> Tensor:
        ids = self._ids(batch, self.user, len(self.users))
        p, b = F.embedding(ids, self.users), self.user_bias[ids.long()].unsqueeze(-1)
        return torch.cat([p, torch.ones_like(b), b + self.mean], -1).unsqueeze(-2)

    def item_vectors(self, batch: Batch) -> Tensor:
        ids = self._ids(batch, self.item, len(self.items))
        q, b = F.embedding(ids, self.items), self.item_bias[ids.long()].unsqueeze(-1)
        return torch.cat([q, b, torch.ones_like(b)], -1)

    def _ids(self, batch: Batch, key: str, size: int) -> Tensor:
        ids = column(batch, key)
        check_ids(ids, key, size)
        return ids

    def _users(self, requests: Any) -> Tensor:
        vectors = super()._users(requests)
        new = torch.from_numpy(requests.users < 2)
        if self.implicit and bool(new.any()):
            offsets, seen = (torch.as_tensor(x).long() for x in requests.seen)
            z = F.embedding_bag(seen, self.feedback, offsets, mode="sum", include_last_offset=True)
            z = z * offsets.diff().clamp(min=1).rsqrt().unsqueeze(-1)
            vectors = vectors.clone()
            vectors[new, 0, : self.dim] = z[new]
        return vectors

    # -- training -----------------------------------------------------------------------------------------------------
    def fit(self, train: Any, valid: Any = None, *, progress: bool = True) -> Self:  # type: ignore[override]
        """Learn from a Log, Columns or batches; `progress` is a Trainer's, and there is none.

        Raises:
            DataError: no label, or the same one on all rows.
        """
        for _ in self.passes(train):
            pass
        return self

    def passes(self, train: Any) -> Iterator[int]:
        """Train, and come back after each epoch, so that a curve can be drawn: 1, 2, … `epochs`."""
        from recstack.data import Columns, Loader

        train = encoded(train, self)
        if isinstance(train, Columns):
            self._remember(train)
            train = Loader(train, ROWS, prefetch=0)
        user, item, rating = self._ratings(train)
        self.mean.fill_(float(rating.mean()))
        rng = np.random.default_rng(self.seed)
        tables = [x.numpy() for x in (self.users, self.items, self.feedback)]
        for table, ids in zip(tables, (user, item, item), strict=True):
            table[:] = 0.1 * rng.standard_normal(table.shape, np.float32)
            table[np.bincount(ids, minlength=len(table))[: len(table)] == 0] = 0
        biases = self.user_bias.zero_().numpy(), self.item_bias.zero_().numpy()
        by_user = _rows(user, item, rating, len(self.users), len(self.items))
        by_item = _rows(item, user, rating, len(self.items), len(self.users))
        own = self.users.clone()  # p; of SVD++ the users' vectors are p and the sum
        feedback = tables[2] if self.implicit else None
        for epoch in range(1, self.epochs + 1):
            if self.solver == "sgd":
                order = rng.permutation(len(own))
                factors = own.numpy(), tables[1]
                rating_epoch(by_user, order, float(self.mean), biases, factors, feedback, self.lr, self.l2)
                self.users.copy_(own)
                if self.implicit:
                    at, columns = torch.from_numpy(by_user.offsets), torch.from_numpy(by_user.columns).long()
                    z = F.embedding_bag(columns, self.feedback, at, mode="sum", include_last_offset=True)
                    self.users += z * at.diff().clamp(min=1).rsqrt().unsqueeze(-1)
            else:
                self._solve(by_user, tables[0], biases[0], tables[1], biases[1])
                self._solve(by_item, tables[1], biases[1], tables[0], biases[0])
            self._cached, self.fitted = None, True
            self.eval()
            yield epoch

    def _solve(self, rows: Sparse, x: np.ndarray, bias: np.ndarray, y: np.ndarray, other: np.ndarray) -> None:
        """One side's factors and biases, as a regression on the other's factors and a one."""
        assert rows.values is not None
        both, ones = np.column_stack([x, bias]), np.column_stack([y, np.ones(len(y), np.float32)])
        rest = (rows.values - float(self.mean) - other[rows.columns]).astype(np.float32)
        ridge = (self.l2 * rows.counts.clip(min=1)).astype(np.float32)
        solve(rows, rest, ones, np.zeros((ones.shape[1],) * 2, np.float32), ridge, both, both.shape[1])
        x[:], bias[:] = both[:, :-1], both[:, -1]

    def _ratings(self, batches: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User, item and rating of each row that has all three."""
        parts: list[list[Tensor]] = []
        for batch in batches:
            label, where, _ = target(batch, self.schema, self.task)
            item = column(batch, self.item)
            user = column(batch, self.user).unsqueeze(-1).expand(item.shape)
            live = where & (user > 1) & (item > 1)
            parts.append([user[live].long(), item[live].long(), label[live]])
        user, item, rating = (torch.cat(x).numpy() for x in zip(*parts, strict=True)) if parts else [np.zeros(0)] * 3
        if not len(rating) or rating.min() == rating.max():
            raise DataError(
                f"MF learns from ratings that differ, and label {self.task.column!r} is "
                f"{'missing' if not len(rating) else f'{rating[0]:g}'} on all rows; take iALS or BPR for a log of positives."
            )
        return user, item, rating


def _rows(row: np.ndarray, column: np.ndarray, value: np.ndarray, height: int, width: int) -> Sparse:
    order = np.argsort(row, kind="stable")
    offsets = offsets_of(np.bincount(row, minlength=height))
    return Sparse(offsets, column[order].astype(np.int32), width, value[order].astype(np.float32))
