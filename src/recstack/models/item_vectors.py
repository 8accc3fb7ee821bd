"""What retrievers share that learn one vector for each item from sequences: who asks is answered from their history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import normalise_rows
from recstack.kernels.skip_gram import Parts, alone, noise, skip_gram, thinned
from recstack.kernels.topk import Sparse, offsets_of
from recstack.models.counting import FromHistory, item_values, sessions
from recstack.models.scored import best_of_all
from recstack.schema import Schema, Vector, is_derived, is_embedded

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

CONTENT = {"dim": 64, "window": 20, "negatives": 5, "lr": 0.025}  # of the skip-gram of `content_vectors`
PASSES = 10


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


def together(n: int, side: list[Sparse]) -> Parts:
    """Each of n items of its own row, field 0, and of the rows of its values in each of `side` [n, values]."""
    own = alone(n)
    starts = np.cumsum([n, *(s.width for s in side)])
    item = np.concatenate([own.rows.astype(np.int64), *(s.rows for s in side)])
    row = np.concatenate([own.rows, *(s.columns + b for s, b in zip(side, starts, strict=False))])
    field = np.concatenate([own.fields, *(np.full(len(s.columns), f + 1, np.int32) for f, s in enumerate(side))])
    share = np.concatenate([own.shares, *(normalise_rows(s, "sum").values for s in side)])  # type: ignore[list-item]
    order = np.argsort(item, kind="stable")
    offsets = offsets_of(np.bincount(item, minlength=n))
    return Parts(offsets, row[order].astype(np.int32), field[order], share[order].astype(np.float32))


def weights(parts: Parts, attention: np.ndarray) -> np.ndarray:
    """The weight of each entry: its share times its field's part of the softmax over the fields that the item has."""
    item = np.repeat(np.arange(len(parts.offsets) - 1), np.diff(parts.offsets))
    raw = parts.shares * np.exp(attention[item, parts.fields].astype(np.float64))
    return raw / np.bincount(item, raw, minlength=len(parts.offsets) - 1)[item]


def composed(parts: Parts, attention: np.ndarray, table: np.ndarray, met: np.ndarray) -> np.ndarray:
    """Items as their parts, weighted, float32 [N, D]; what nobody has met (bool [N]) was never moved, and is left out."""
    item = np.repeat(np.arange(len(met)), np.diff(parts.offsets))
    known = np.zeros(len(table), bool)
    known[parts.rows[met[item]]] = True
    rest = known[parts.rows] & ((parts.fields > 0) | met[item])
    vectors = np.zeros((len(met), table.shape[1]), np.float32)
    np.add.at(vectors, item[rest], (weights(parts, attention)[:, None] * table[parts.rows])[rest])
    return vectors


def content_vectors(schema: Schema, catalog: Any, train: Columns, seed: int, who: str) -> np.ndarray:
    """What items are, and whom they are met with: float32 ``[N, W]``, zeros for items of which nothing is known.

    A skip-gram over what users met together, in which an item is the mean of its own vector and those of its categories,
    lists and words; beside it the item's Vectors, each of unit length.
    """
    sets, _ = sessions(train, None, None, who)
    counts = np.bincount(sets.columns, minlength=sets.width)
    beside = [f for f in schema.by_role("item") if f.name != schema.item]
    parts = together(sets.width, [item_values(catalog, f) for f in beside if is_embedded(f) and not is_derived(f)])
    skip = ItemVectors(schema, **CONTENT, seed=seed, task=None, history=None, last=None, decay=1.0)

    def passed(epoch: int) -> Any:
        return thinned(sets, np.ones(sets.width), (seed << 20) + epoch, True)

    table, attention = skip.learn([passed] * PASSES, counts, parts)
    skip.keep(composed(parts, attention, table, counts > 0), np.ones(sets.width))
    found = [skip.vectors]
    for f in (f for f in beside if isinstance(f, Vector)):
        given = catalog.block.column(f.name).astype(np.float32)
        found.append(given / np.linalg.norm(given, axis=1, keepdims=True).clip(1e-30))
    whole = np.concatenate(found, 1)
    whole[np.setdiff1d(np.arange(len(whole)), catalog.ids)] = 0
    return whole
