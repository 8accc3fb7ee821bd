"""What retrievers share that learn one vector for each item from sequences: who asks is answered from their history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.skip_gram import Parts, alone, noise, skip_gram
from recstack.kernels.topk import Sparse, offsets_of
from recstack.models.counting import FromHistory, positives
from recstack.models.scored import best_of_all
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


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


class ItemVectors(FromHistory):
    r"""Items of unit vectors: a user gets what lies near the items of their history.

    .. math:: s(u, j) = \sum_{i \in I_u} d^{\,\mathrm{age}(i)} \cos(v_i, v_j)

    A subclass's `count` sets `vectors`, by `learn`. An item without a vector (zeros) is never proposed.

    Args:
        schema, task, history, last, decay: as in `FromHistory`; the decay is d.
        dim: width of the vectors.
        window, negatives, lr, seed: of the skip-gram.
    """

    arrays: ClassVar[tuple[str, ...]] = ("vectors",)
    vectors: np.ndarray

    def __init__(
        self,
        schema: Schema | None,
        dim: int,
        window: int,
        negatives: int,
        lr: float,
        seed: int,
        task: str | None,
        history: str | None,
        last: int | None,
        decay: float,
    ):
        super().__init__(schema, task, history, last, decay)
        if min(dim, window, negatives) < 1 or lr <= 0:
            raise ConfigError(
                f"dim, window and negatives are at least 1 and lr is positive; got {dim}, {window}, {negatives} and {lr:g}."
            )
        self.dim, self.window, self.negatives, self.lr, self.seed = dim, window, negatives, lr, seed

    def learn(
        self, epochs: list[Any], counts: np.ndarray, parts: Parts | None = None, attend: bool = False, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The table of what items are made of ``[rows, dim]``, and the attention of each item to its fields.

        Args:
            epochs: for each, a function of its number that gives the sequences.
            counts: how often each item is met, for what is drawn by count ** 0.75.
            parts: what items are made of; None: each of its own row.
            attend: learn the attention.
            options: more of `skip_gram`.
        """
        n = len(counts)
        parts = alone(n) if parts is None else parts
        rng = np.random.default_rng(self.seed)
        rows = int(parts.rows.max(initial=n - 1)) + 1
        table = ((rng.random((rows, self.dim), np.float32) - 0.5) / self.dim).astype(np.float32)
        out = np.zeros((n, self.dim), np.float32)
        attention = np.zeros((n, int(parts.fields.max(initial=0)) + 1), np.float32)
        if not counts.any():
            return table, attention
        drawn = noise(counts, size=max(1 << 20, 16 * n))
        given = {"window": self.window, "negatives": self.negatives, "attend": attend} | options
        for epoch, sequences in enumerate(epochs):
            lr = tuple(self.lr * max(1 - e / len(epochs), 1e-4) for e in (epoch, epoch + 1))
            seed = (self.seed << 20) + epoch
            skip_gram(sequences(epoch), parts, table, out, attention, drawn, lr=lr, seed=seed, **given)  # type: ignore[arg-type]
        return table, attention

    def keep(self, vectors: np.ndarray, live: np.ndarray) -> None:
        """Set `vectors`, of unit length; of items that are not live, and of none, zeros."""
        length = np.sqrt((vectors.astype(np.float64) ** 2).sum(1, keepdims=True)).clip(1e-30)
        self.vectors = (vectors / length * live[:, None]).astype(np.float32)

    def tastes(self, requests: Requests) -> Tensor:
        """The sum of each user's items, weighted by age: float32 ``[R, dim]``."""
        starts = self._starts(requests)
        items, offsets = torch.from_numpy(starts.columns).long(), torch.from_numpy(starts.offsets).long()
        weight = None if starts.values is None else torch.from_numpy(starts.values).float()
        table = torch.from_numpy(self.vectors)
        return F.embedding_bag(items, table, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        items = torch.from_numpy(self.vectors)

        def scores(part: Requests) -> Tensor:
            taste = self.tastes(part)
            return (taste @ items.T).masked_fill(~taste.any(1, keepdim=True), -torch.inf)

        return best_of_all(scores, requests, k, exclude_seen, allowed & items.any(1))

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The sum of cosines with given items: ids ``[R, K]`` → float32 ``[R, K]``."""
        return torch.einsum("rd,rkd->rk", self.tastes(requests), torch.from_numpy(self.vectors)[ids])
