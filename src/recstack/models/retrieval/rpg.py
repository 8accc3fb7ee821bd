"""Relevance Proximity Graphs for Fast Relevance Retrieval (Morozov and Babenko, 2019).

https://arxiv.org/abs/1908.06887
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from recstack import bundle
from recstack.errors import ConfigError, DataError
from recstack.features import tasks
from recstack.kernels.proximity import proximity_graph
from recstack.kernels.topk import Sparse
from recstack.models.base import CountedRetriever, Model, Recommends
from recstack.models.scored import pair_tensors
from recstack.models.structure import CELLS, Structured
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


class RPG(Structured, CountedRetriever):
    r"""Any scorer, a ranker of pairs too, looks for the best items by walking a graph of items that it judges alike.

    .. math:: r_v = \big(f(q_1, v), \dots, f(q_d, v)\big), \qquad
        \mathrm{links}(v) \subset \mathrm{near}_{\lVert r_v - r_w \rVert_2}(v)

    with f the scorer's score and q requests drawn from training. A walk begins at the items that some of these find best, and
    goes on to the neighbours of the best item that it has not left yet, until none of the best `effort` found is left: f is
    asked about those items only, for all requests at once. Items that are not allowed are walked over; features of a pair, such as
    a shown position, are unknown.

    The scorer is fitted by `fit`, or given, fitted: ``RPG().fit(train, over=ranker)``. It is part of the bundle. One whose
    attention to histories is linear (``history="linear_attention"``) costs little for each item.

    Departs from the paper: one layer, exact neighbours, several entries, links to what would be out of reach.

    Args:
        schema: filled in by `fit`.
        scorer: class of a retriever or ranker, or `functools.partial` of one, that `fit` builds and trains.
        probes: d.
        links: of an item; twice as many with those that lead back.
        effort: best items kept on a walk; more find more, and cost more.
        entries: items that a walk begins at.
        step: items left at a time.
        task: of a ranker with several; None: the first.
        seed: of the requests that are drawn.

    Morozov and Babenko, 2019, https://arxiv.org/abs/1908.06887

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> swing = rs.retrieval.Swing().fit(train)
    >>> model = rs.retrieval.RPG(effort=32).fit(train, over=swing)
    >>> users = test.events[train.schema.user].unique().head(3).to_list()
    >>> model.recommend(users, k=5).ids.shape, sorted(model.measure(users))
    (torch.Size([3, 5]), ['recall', 'share'])
    """

    arrays: ClassVar[tuple[str, ...]] = ("offsets", "neighbours", "entry")
    offsets: np.ndarray
    neighbours: np.ndarray
    entry: np.ndarray  # places in the catalogue's ids, like neighbours

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        scorer: Any = None,
        probes: int = 100,
        links: int = 8,
        effort: int = 64,
        entries: int = 8,
        step: int = 4,
        task: str | None = None,
        seed: int = 0,
    ):
        if schema is not None:
            self.schema = schema
        if min(probes, links, effort, entries, step) < 1:
            raise ConfigError(
                f"probes, links, effort, entries and step are at least 1; got {probes}, {links}, {effort}, {entries} and {step}."
            )
        self.scorer, self.probes, self.links, self.effort = scorer, probes, links, effort
        self.entries, self.step, self.task, self.seed = entries, step, task, seed
        self.over: Any = None
        self._padded: Tensor | None = None

    def fit(self, train: Any, valid: Any = None, *, over: Any = None) -> Self:
        """Train the scorer, or take `over`, which is fitted; then draw the graph."""
        if over is None and self.scorer is None:
            raise ConfigError("RPG needs a scorer: RPG(scorer=rs.ranking.DIN), or fit(train, over=a fitted model).")
        if over is not None:
            self.schema = over.schema
        self.over = over
        return super().fit(train, valid)

    def count(self, train: Columns) -> None:
        if self.over is None:
            model = self.scorer(train.schema)
            self.over = model.fit(train, progress=False) if isinstance(model, Model) else model.fit(train)
        ids = torch.from_numpy(self.catalog.ids).long()
        if len(ids) < 2:
            raise DataError("A graph needs at least two items.")
        newest = np.flatnonzero(train.newer() == 0)
        rng = np.random.default_rng(self.seed)
        some = np.sort(rng.choice(newest, min(self.probes, len(newest)), replace=False))
        from recstack.data import Requests

        relevance = self.every_score(Requests.of(train, some))[:, ids]  # [d, n]
        low = relevance[relevance.isfinite()]
        relevance = relevance.nan_to_num(neginf=float(low.min()) if len(low) else 0.0)
        best = relevance.argmax(1)
        first = np.unique(best.numpy(), return_index=True)[1]
        entry = best[torch.from_numpy(np.sort(first))][: self.entries]
        graph = proximity_graph(relevance.T.contiguous(), self.links, entry)
        self.offsets, self.neighbours, self.entry, self._padded = graph.offsets, graph.columns, entry.numpy(), None

    # -- scores --------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The scorer's: ids ``[R, K]`` → float32 ``[R, K]``."""
        if isinstance(self.over, Recommends):
            return self.over.pair_scores(requests, ids)
        was, model = self.over.training, self.over.eval()
        task = model.schema.task(self.task) if self.task is not None else model.schema.tasks[0]
        pairs = pair_tensors(model.schema, {}, tuple(ids.shape))
        found = tasks.score(model({**requests.batch, **self.catalog.batch(ids), **pairs})[task.name], task)
        model.train(was)
        return found.float()

    def every_score(self, requests: Requests) -> Tensor:
        size = max(1, CELLS // 64 // max(len(requests), 1))
        ids = torch.arange(self.catalog.size)
        return torch.cat([self.pair_scores(requests, part.expand(len(requests), -1)) for part in ids.split(size)], 1)

    # -- the walk ------------------------------------------------------------------------------------------------------
    def walk(self, requests: Requests, k: int, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        links, ids = self._links(), torch.from_numpy(self.catalog.ids).long()
        n, rows, keep = len(ids), len(requests), max(self.effort, k)
        wanted = alive[:, ids]
        met = torch.zeros(rows, n + 1, dtype=torch.bool)
        met[:, n] = True  # place n is nobody
        score = torch.full((rows, n + 1), -torch.inf)
        ahead = score.clone()  # scores of what was met and not walked on from
        best = torch.full((rows, keep), -torch.inf)  # of those wanted: the walk crosses others, but does not count them
        frontier = torch.from_numpy(self.entry).long().expand(rows, -1)
        while True:
            frontier = frontier.sort(1).values
            fresh = ~met.gather(1, frontier)
            fresh[:, 1:] &= frontier[:, 1:] != frontier[:, :-1]
            wide = int(fresh.sum(1).max())
            if wide:
                met.scatter_(1, frontier, True)
                order = fresh.int().argsort(dim=1, descending=True, stable=True)[:, :wide]
                frontier, fresh = frontier.gather(1, order), fresh.gather(1, order)
                place = frontier.clamp(max=n - 1)
                value = self.pair_scores(requests, ids[place])
                frontier = torch.where(fresh, frontier, n)
                score.scatter_(1, frontier, value)
                ahead.scatter_(1, frontier, value)
                counts = fresh & wanted.gather(1, place)
                best = torch.cat([best, value.masked_fill(~counts, -torch.inf)], 1).topk(keep).values
            value, place = ahead[:, :n].topk(min(self.step, n))
            live = (value > -torch.inf) & (value >= best[:, -1:])
            if not bool(live.any()):
                break
            place = torch.where(live, place, n)
            ahead.scatter_(1, place, -torch.inf)
            frontier = links[place].flatten(1)
        found, at = score[:, :n].masked_fill(~wanted, -torch.inf).topk(min(k, n))
        return ids[at], found, met[:, :n].sum(1)

    def _links(self) -> Tensor:
        """Neighbours of each place, int64 ``[n + 1, most]``; n where there are no more, and of n itself."""
        if self._padded is None:
            graph = Sparse(self.offsets, self.neighbours, len(self.offsets) - 1)
            n = graph.height
            padded = torch.full((n + 1, int(graph.counts.max())), n)
            column = np.arange(len(graph.columns)) - np.repeat(graph.offsets[:-1], graph.counts)
            padded[torch.from_numpy(graph.rows), torch.from_numpy(column)] = torch.from_numpy(graph.columns).long()
            self._padded = padded
        return self._padded

    # -- saving: the scorer lies inside --------------------------------------------------------------------------------
    def pieces(self, prefix: str = "") -> dict[str, bundle.Piece]:
        found = super().pieces(prefix)
        own, inner = found[f"{prefix}model"], self.over.pieces()["model"]
        config = {**own.config, "$scorer": {"class": inner.class_path, "config": inner.config}}
        tensors = {**own.tensors, **{f"scorer.{name}": value for name, value in inner.tensors.items()}}
        return {**found, f"{prefix}model": bundle.Piece(own.class_path, config, tensors)}

    @classmethod
    def from_piece(cls, piece: bundle.Piece, encoder: Any = None, trust: Sequence[str] = ()) -> Self:
        config, tensors = dict(piece.config), dict(piece.tensors)
        inner = config.pop("$scorer")
        its = {name.removeprefix("scorer."): tensors.pop(name) for name in list(tensors) if name.startswith("scorer.")}
        new = super().from_piece(bundle.Piece(piece.class_path, config, tensors), encoder, trust)
        scorer = bundle.Piece(inner["class"], inner["config"], its)
        new.over = bundle.resolve(inner["class"], trust).from_piece(scorer, encoder, trust)
        new.over.fitted = True
        return new
