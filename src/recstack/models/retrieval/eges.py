"""Billion-scale Commodity Embedding for E-commerce Recommendation in Alibaba (Wang et al., KDD 2018).

https://arxiv.org/abs/1803.02349
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from recstack.errors import ConfigError, SchemaError, unknown
from recstack.kernels.cooccurrence import transitions
from recstack.kernels.topk import Sparse, offsets_of
from recstack.kernels.walks import walks
from recstack.models.counting import item_values, sessions
from recstack.models.item_vectors import ItemVectors, composed, together
from recstack.schema import Feature, Schema, is_derived, is_embedded

if TYPE_CHECKING:
    from recstack.data import Columns


class BGE(ItemVectors):
    r"""Skip-gram over random walks on the graph of what was met directly after what (base graph embedding).

    .. math:: P(j \mid i) \propto \#(i \to j), \qquad \max \sum_{\mathrm{walks}} \sum_{0 < |a - b| \le W}
        \Big[ \log \sigma(v_{i_a}^\top z_{i_b}) + \sum_n \log \sigma(-v_{i_a}^\top z_n) \Big]

    With p = q = 1 the walks are DeepWalk's (https://arxiv.org/abs/1403.6652), else node2vec's
    (https://arxiv.org/abs/1607.00653). Each item begins a walk an epoch, so that items are learned that are rarely met. A
    user is answered from the items of their history, by the sum of cosines; an item that nobody has met is never proposed.

    Args:
        schema: filled in by `fit`.
        dim: width of the vectors.
        gap: two events of a user further apart begin a new session, in the unit of the schema's time column, the paper's is
            an hour; None: all that a user met is one.
        walks: from each item, new ones in each epoch: the number of epochs.
        length: items of a walk.
        p: above 1, fewer steps lead straight back.
        q: above 1, walks stay near; below 1, they go far.
        window: W.
        negatives: drawn for each pair.
        lr: learning rate at the beginning; it falls linearly.
        task: the binary task whose label 1 makes a row an interaction; None: the schema's first, or every row.
        history: the History that a user's items are read from; None: the schema's first, or, where it declares none,
            everything the user has met.
        last: only the newest items of the history; None: all.
        decay: weight of an item of the history for each step that it lies back.
        seed: of everything that is drawn.

    Wang et al., KDD 2018, https://arxiv.org/abs/1803.02349

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.BGE(dim=16, gap=3600, walks=3).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        dim: int = 64,
        gap: float | None = None,
        walks: int = 20,
        length: int = 10,
        p: float = 1.0,
        q: float = 1.0,
        window: int = 5,
        negatives: int = 20,
        lr: float = 0.025,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(schema, dim, window, negatives, lr, seed, task, history, last, decay)
        if walks < 1 or length < 2 or p <= 0 or q <= 0:
            raise ConfigError(
                f"walks is at least 1, length at least 2, p and q are positive; got {walks}, {length}, {p:g} and {q:g}."
            )
        self.gap, self.walks, self.length, self.p, self.q = gap, walks, length, p, q

    def count(self, train: Columns) -> None:
        self._profile()  # an unknown history is told now
        walked, counts = self.walked(train)
        table, _ = self.learn([walked] * self.walks, counts)
        self.keep(table[: len(counts)], counts > 0)

    def walked(self, train: Columns) -> tuple[Callable[[int], Sparse], np.ndarray]:
        """The walks of an epoch, by its number, and how often each item is met."""
        visits, _ = sessions(train, self.task, self.gap, type(self).__name__)
        graph, counts = transitions(visits), np.bincount(visits.columns, minlength=visits.width)
        starts = np.flatnonzero(graph.counts)

        def walked(epoch: int) -> Sparse:
            seed = (self.seed << 20) + epoch
            order = np.random.default_rng(seed).permutation(starts)
            found = walks(graph, order, self.length, seed, p=self.p, q=self.q)
            live = found >= 0
            return Sparse(offsets_of(live.sum(1)), found[live], visits.width)

        return walked, counts


class GES(BGE):
    r"""BGE whose items are the mean of their own vector and those of their side information.

    .. math:: H_i = \frac{1}{n + 1} \sum_{f=0}^{n} W_i^f, \qquad \max \sum_{\mathrm{walks}} \sum_{0 < |a - b| \le W}
        \Big[ \log \sigma(H_{i_a}^\top z_{i_b}) + \sum_n \log \sigma(-H_{i_a}^\top z_n) \Big]

    An item that nobody has met is the mean of its side information, as far as that was met. A feature of several values is
    their mean.

    Args:
        schema: filled in by `fit`.
        features: item features that are read; None: every category, list, text and bucketised number beside the key.
        dim, gap, walks, length, p, q, window, negatives, lr, task, history, last, decay, seed: as in `BGE`.

    Wang et al., KDD 2018, https://arxiv.org/abs/1803.02349

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.GES(features=("category", "brand"), dim=16, walks=3).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    attend: ClassVar[bool] = False

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        features: Sequence[str] | None = None,
        dim: int = 64,
        gap: float | None = None,
        walks: int = 20,
        length: int = 10,
        p: float = 1.0,
        q: float = 1.0,
        window: int = 5,
        negatives: int = 20,
        lr: float = 0.025,
        task: str | None = None,
        history: str | None = None,
        last: int | None = None,
        decay: float = 1.0,
        seed: int = 0,
    ):
        given = {"dim": dim, "gap": gap, "walks": walks, "length": length, "p": p, "q": q, "window": window}
        given |= {"negatives": negatives, "lr": lr, "task": task, "history": history, "last": last, "decay": decay}
        super().__init__(schema, seed=seed, **given)  # type: ignore[arg-type]
        self.features = None if features is None else tuple(features)

    def count(self, train: Columns) -> None:
        self._profile()
        side = [item_values(self.catalog, f) for f in self._read()]
        walked, counts = self.walked(train)
        met = counts > 0
        parts = together(len(counts), side)
        table, attention = self.learn([walked] * self.walks, counts, parts, self.attend)
        vectors = composed(parts, attention, table, met)
        self.keep(vectors, np.ones(len(vectors), bool))

    def _read(self) -> list[Feature]:
        beside = {f.name: f for f in self.schema.by_role("item") if f.name != self.schema.item}
        able = {name: f for name, f in beside.items() if is_embedded(f) and not is_derived(f)}
        if not able:
            raise SchemaError(
                f"{type(self).__name__} needs side information: a Categorical or Text with role='item' beside the key; "
                "BGE does without."
            )
        for name in self.features or ():
            if name not in able:
                raise unknown("item feature", name, able, SchemaError)
        return list(able.values()) if self.features is None else [able[name] for name in self.features]


class EGES(GES):
    r"""GES in which each item weighs its side information for itself.

    .. math:: H_i = \frac{\sum_f e^{a_i^f} W_i^f}{\sum_f e^{a_i^f}}, \qquad \max \sum_{\mathrm{walks}} \sum_{0 < |a - b| \le W}
        \Big[ \log \sigma(H_{i_a}^\top z_{i_b}) + \sum_n \log \sigma(-H_{i_a}^\top z_n) \Big]

    The a are learned. An item that nobody has met has equal ones, and is the mean of its side information, as in GES.

    Args:
        schema: filled in by `fit`.
        features, dim, gap, walks, length, p, q, window, negatives, lr, task, history, last, decay, seed: as in `GES`.

    Wang et al., KDD 2018, https://arxiv.org/abs/1803.02349

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.EGES(features=("category", "brand"), dim=16, walks=3).fit(train)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape
    torch.Size([3, 5])
    """

    attend: ClassVar[bool] = True
