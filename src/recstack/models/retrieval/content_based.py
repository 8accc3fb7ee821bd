"""Content-based Recommender Systems: State of the Art and Trends (Lops et al., Recommender Systems Handbook 2011).

https://doi.org/10.1007/978-0-387-85820-3_3
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, SchemaError, unknown
from recstack.kernels.cooccurrence import transpose
from recstack.kernels.topk import Sparse, offsets_of, product, recommend_from_rows, score_from_rows
from recstack.models.counting import FromHistory, answer, item_values
from recstack.schema import Schema, Vector, is_derived, is_embedded

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

BLOCK = 256  # requests whose scores of all items are held at once


class ContentBased(FromHistory):
    r"""Items whose features resemble those of the user's items; nobody need have met them.

    .. math:: s(u, j) = \cos(p_u, v_j), \qquad p_u = \sum_{i \in I_u} d^{\,\mathrm{age}(i)} v_i, \qquad
        v_{jt} \propto \mathrm{tf}_{jt} \Big( \log \frac{1 + N}{1 + \mathrm{df}_t} + 1 \Big)

    Categories, lists and words are weighted by TF-IDF as above, or by BM25; a given Vector is taken as it is. The part of each
    feature is scaled to length 1, so that a text of sixty words does not drown a category, and so is the whole.

    An item is proposed if it shares a value with the user's items, or, where there are Vectors, always. Numbers are not read
    (unless bucketised), and users without a history are proposed nothing.

    Args:
        schema: filled in by `fit`.
        features: item features to compare; None: every category, list, text and Vector beside the key.
        weighting: "tfidf" or "bm25", :math:`\log\big(1 + \frac{N - \mathrm{df} + .5}{\mathrm{df} + .5}\big)
            \frac{\mathrm{tf}\,(k_1 + 1)}{\mathrm{tf} + k_1 (1 - b + b\, |j| / \mathrm{mean})}`.
        k1, b: of BM25: how soon repetitions stop to count, and how much long lists are held back.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history; None: all.
        decay: d, weight of an item of the history for each step that it lies back.

    Lops et al., Recommender Systems Handbook 2011, https://doi.org/10.1007/978-0-387-85820-3_3

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.ContentBased(features=("category", "brand"), last=10, decay=0.9).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    arrays: ClassVar[tuple[str, ...]] = ("offsets", "columns", "values", "vectors")
    offsets: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    _postings: Sparse | None = None

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        features: Sequence[str] | None = None,
        weighting: str = "tfidf",
        k1: float = 1.2,
        b: float = 0.75,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
    ):
        super().__init__(schema, None, history, last, decay)
        if weighting not in ("tfidf", "bm25"):
            raise unknown("weighting", weighting, ("tfidf", "bm25"))
        if k1 < 0 or not 0 <= b <= 1:
            raise ConfigError(f"k1 is at least 0 and b lies in [0, 1]; got {k1:g} and {b:g}.")
        self.features = None if features is None else tuple(features)
        self.weighting, self.k1, self.b = weighting, k1, b

    def count(self, train: Columns) -> None:
        self._profile()
        terms, vectors = [], [np.zeros((self.catalog.size, 0))]
        for f in self._read():
            if isinstance(f, Vector):
                given = self.catalog.block.column(f.name).astype(np.float64)
                vectors.append(given / np.linalg.norm(given, axis=1, keepdims=True).clip(1e-30))
            else:
                terms.append(self._weighted(item_values(self.catalog, f)))
        starts = np.cumsum([0, *(t.width for t in terms)])
        item = np.concatenate([np.zeros(0, np.int64), *(t.rows for t in terms)])
        term = np.concatenate([np.zeros(0, np.int64), *(t.columns + s for t, s in zip(terms, starts, strict=False))])
        value = np.concatenate([np.zeros(0), *(t.values for t in terms)])
        order = np.argsort(item, kind="stable")
        dense = np.concatenate(vectors, 1)
        dense[np.setdiff1d(np.arange(len(dense)), self.catalog.ids)] = 0
        length = np.sqrt(np.bincount(item, value**2, minlength=len(dense)) + (dense**2).sum(1)).clip(1e-30)
        self.offsets = offsets_of(np.bincount(item, minlength=len(dense)))
        self.columns, self.values = term[order].astype(np.int32), (value / length[item])[order].astype(np.float32)
        self.vectors, self._postings = (dense / length[:, None]).astype(np.float32), None

    def _read(self) -> list:
        """The features to compare."""
        beside = [f for f in self.schema.by_role("item") if f.name != self.schema.item]
        able = {f.name: f for f in beside if isinstance(f, Vector) or (is_embedded(f) and not is_derived(f))}
        if not able:
            raise SchemaError(
                "ContentBased needs an item feature beside the key: a Categorical, Text or Vector with role='item'."
            )
        for name in self.features or ():
            if name not in able:
                raise unknown("item feature", name, able, SchemaError)
        return list(able.values()) if self.features is None else [able[name] for name in self.features]

    def _weighted(self, found: Sparse) -> Sparse:
        """Counts of values [N, width] as weights, rows of length 1."""
        assert found.values is not None
        n, df = len(self.catalog), np.bincount(found.columns, minlength=found.width)
        tf = found.values.astype(np.float64)
        if self.weighting == "tfidf":
            weight = tf * (np.log((1 + n) / (1 + df)) + 1)[found.columns]
        else:
            size = np.bincount(found.rows, tf, minlength=found.height)
            fullness = 1 - self.b + self.b * size / max(size.sum() / max(n, 1), 1e-30)
            weight = np.log1p((n - df + 0.5) / (df + 0.5))[found.columns]
            weight *= tf * (self.k1 + 1) / (tf + self.k1 * fullness[found.rows])
        length = np.sqrt(np.bincount(found.rows, weight**2, minlength=found.height)).clip(1e-30)
        return found._replace(values=weight / length[found.rows])

    # -- answers --------------------------------------------------------------------------------------------------------
    @property
    def terms(self) -> Sparse:
        """The weights of each item's values: [N, values of all features]."""
        width = int(self.columns.max(initial=-1)) + 1
        return Sparse(self.offsets, self.columns, width, self.values)

    @property
    def postings(self) -> Sparse:
        """The items of each value: `terms`, transposed."""
        if self._postings is None:
            self._postings = transpose(self.terms)
        return self._postings

    def profiles_of(self, requests: Requests) -> tuple[Sparse, np.ndarray]:
        """What each user likes, of length 1: [R, values] sparse, and [R, D] of the vectors."""
        starts = self._starts(requests)
        sparse = product(starts, self.terms)
        assert sparse.values is not None
        weight = np.ones(len(starts.columns), np.float32) if starts.values is None else starts.values
        dense = torch.zeros(starts.height, self.vectors.shape[1])
        given = torch.from_numpy(self.vectors[starts.columns] * weight[:, None])
        dense = dense.index_add_(0, torch.from_numpy(starts.rows), given).numpy()
        square = np.bincount(sparse.rows, sparse.values.astype(np.float64) ** 2, minlength=starts.height)
        length = np.sqrt(square + (dense.astype(np.float64) ** 2).sum(1)).clip(1e-30)
        sparse = sparse._replace(values=(sparse.values / length[sparse.rows]).astype(np.float32))
        return sparse, (dense / length[:, None]).astype(np.float32)

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for start in range(0, max(len(requests), 1), BLOCK):
            part = requests.slice(start, start + BLOCK)
            seen = self._seen(part) if exclude_seen else None
            profile, dense = self.profiles_of(part)
            if not dense.shape[1]:
                best = recommend_from_rows(profile, self.postings, k, seen=seen, allowed=allowed.numpy())
                found.append(answer(*best))
                continue
            every = np.broadcast_to(np.arange(len(self.vectors)), (len(part), len(self.vectors)))
            score = torch.from_numpy(score_from_rows(profile, self.postings, every) + dense @ self.vectors.T)
            score.masked_fill_(~allowed, -torch.inf)
            score[torch.from_numpy((profile.counts == 0) & ~dense.any(1))] = -torch.inf  # nothing is known of them
            if seen is not None:
                score[torch.from_numpy(seen.rows), torch.from_numpy(seen.columns).long()] = -torch.inf
            best = score.topk(min(k, score.shape[1]))
            found.append((best.indices, best.values))
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The cosine of each user and given items: ids ``[R, K]`` → float32 ``[R, K]``."""
        profile, dense = self.profiles_of(requests)
        near = np.einsum("rd,rkd->rk", dense, self.vectors[ids.numpy()])
        return torch.from_numpy(score_from_rows(profile, self.postings, ids.numpy()) + near)
