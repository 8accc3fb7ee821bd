"""How well retrievers find what was chosen next, each alone and all of them together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recstack import metrics
from recstack.candidates import Candidates
from recstack.data import Columns, Requests
from recstack.data.truth import Truth, each_request, next_events
from recstack.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from recstack.data import Log
    from recstack.models.base import Recommends

LISTS = {
    "recall": metrics.recall,
    "precision": metrics.precision,
    "hit": metrics.hit_rate,
    "ndcg": metrics.ndcg,
    "map": metrics.mean_average_precision,
    "mrr": metrics.mrr,
}
TRUTHS = {"user": next_events, "request": each_request}
BLOCK = 1024


@dataclass
class RetrievalReport:
    """What `evaluate_retrieval` measured.

    Attributes:
        rows: for each source, and for all merged where there are several, ``{"name": ..., "recall@k": ...}``: means over the
            requests of recall, precision, f1, hit, ndcg, map and mrr at each k (and of the worth found); at the largest k
            `coverage`, the share of the catalogue that stands in any list, `gini` of how often each item does (0: all
            alike), `novelty`, the mean of :math:`-\\log_2` of an item's share of the training events, and `popularity`, the
            mean of its place among all items by those events (1: the most popular). Of several sources: `share` of the
            places of the merged lists, `alone`, the share of what all find together that only this one finds, and
            `marginal`, by how much the recall of the merged lists falls without it, at equal k.
        overlap: of each two sources, the mean share of the items of both lists together that stand in both.
        values: ``{name: {metric: float64 [requests]}}``, request by request, for intervals and tests.
        requests, k: how many requests were asked, and the cuts.
        protocol: how it was measured, in words.
    """

    rows: list[dict[str, Any]]
    overlap: dict[tuple[str, str], float]
    values: dict[str, dict[str, np.ndarray]]
    requests: int
    k: tuple[int, ...]
    protocol: str

    def row(self, name: str) -> dict[str, Any]:
        """The row of one source, or of "merged"."""
        return next(row for row in self.rows if row["name"] == name)

    def __str__(self) -> str:
        wide = max(self.k)
        columns = [f"{metric}@{k}" for k in self.k for metric in ("recall", "ndcg")] + [
            f"mrr@{wide}",
            "coverage",
            "gini",
        ]
        columns += ["novelty"] + [c for c in (f"worth@{wide}", "share", "alone", "marginal") if c in self.rows[0]]
        lines = [["", *columns]]
        lines += [[row["name"], *(f"{row[c]:.4f}" if c in row else "" for c in columns)] for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "  ".join([a[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(a[1:], widths[1:], strict=True))])
            for a in lines
        ]
        pairs = [f"{a} and {b} {share:.2f}" for (a, b), share in self.overlap.items()]
        text += [f"Overlap of lists: {', '.join(pairs)}."] if pairs else []
        return "\n".join([*text, f"{self.requests:,} requests. {self.protocol}"])


@torch.no_grad()
def evaluate_retrieval(
    retrievers: Recommends | Sequence[Recommends],
    test: Log | Columns,
    past: Log | Columns | None = None,
    *,
    k: int | Sequence[int] = (10, 50),
    per: str = "user",
    worth: str | np.ndarray | None = None,
    exclude_seen: bool = True,
    where: Tensor | None = None,
    max_requests: int | None = None,
    seed: int = 0,
    merge: Mapping[str, Any] | None = None,
) -> RetrievalReport:
    """Rank the whole catalogue for each user, and compare the best k with all the user chose in `test`.

    Several retrievers are also merged, by reciprocal rank or as `merge` says, into lists of the same k. Items that training
    never saw count as missed.

    Args:
        retrievers: fitted on the same data, with different names.
        test: held-out events; histories reach up to each request's own time.
        past: whose items count as seen; None: what each retriever remembers of its training.
        k: where lists are cut.
        per: "user" asks once, just before a user's first event of `test`, for all that the user chose in it; "request" asks
            each request (session) for what was chosen there.
        worth: what each row of `test` is worth, such as a bid: float ``[rows]``, or the name of a column of its events.
            Then ``worth@k`` is the share of the worth that the first k hold.
        exclude_seen: leave out what the user met before.
        where: bool ``[N]`` by item id: the items allowed.
        max_requests: a uniform sample of the requests, by `seed`.
        merge: options of `Candidates.merge`: its rule, quotas or weights.

    Raises:
        ConfigError: two retrievers of one name, another `per`.
        DataError: `test` has no positive event, or `worth` is not one number for each row.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> swing, popular = rs.retrieval.Swing().fit(train), rs.retrieval.Popularity().fit(train)
    >>> report = rs.evaluate_retrieval([swing, popular], test, k=20)
    >>> [row["name"] for row in report.rows], 0 < report.row("merged")["recall@20"] < 1
    (['swing', 'popularity', 'merged'], True)
    """
    sources: list[Any] = list(retrievers) if isinstance(retrievers, list | tuple) else [retrievers]
    names, cuts = [source.name for source in sources], (k,) if isinstance(k, int) else tuple(k)
    if len(set(names)) < len(names) or "merged" in names:
        raise ConfigError(f"Retrievers are told apart by name, and these are {names}; set retriever.name.")
    if per not in TRUTHS:
        raise unknown("per", per, TRUTHS)
    encoder = sources[0].schema.encoder
    columns = test if isinstance(test, Columns) else encoder.encode(test)
    before = past if past is None or isinstance(past, Columns) else encoder.encode(past)
    rows, truth = TRUTHS[per](columns, _worth(worth, test, columns))
    if not len(rows):
        raise DataError("The test holds no positive event, so there is nothing to find.")
    rows, truth = some_of(rows, truth, max_requests, seed)
    every = _Sums(truth, cuts, names, training_events(sources[0], before), merge)
    for start, found in proposals(sources, columns, rows, before, max(cuts), exclude_seen, where):
        every.add(found, start)
    left_out = "items met before left out" if exclude_seen else "items met before included"
    wanted = "each user's positive events of the test" if per == "user" else "each request's positive events"
    protocol = f"Full ranking over {len(encoder.catalog):,} items, {left_out}; relevant: {wanted}."
    table, overlap, values = every.rows()
    return RetrievalReport(table, overlap, values, len(rows), cuts, protocol)


def some_of(rows: np.ndarray, truth: Truth, most: int | None, seed: int) -> tuple[np.ndarray, Truth]:
    """A uniform sample of at most so many requests."""
    if most is None or len(rows) <= most:
        return rows, truth
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))
    return rows[chosen], truth.select(chosen)


def proposals(
    sources: Sequence[Any],
    columns: Columns,
    rows: np.ndarray,
    past: Columns | None,
    width: int,
    exclude_seen: bool,
    where: Tensor | None,
) -> Iterator[tuple[int, list[Candidates]]]:
    """Block by block of the requests at `rows`: where it begins, and the `width` best of each source."""
    for start in range(0, len(rows), BLOCK):
        asked, found = Requests.of(columns, rows[start : start + BLOCK], seen=past), []
        for source in sources:
            requests = asked
            if past is None and source.profiles is not None:
                remembered = source.profiles.requests(requests.users, encoded=True).seen
                requests = Requests(requests.batch, requests.users, remembered)
            found.append(source.recommend(requests, width, exclude_seen, where))
        yield start, found


class _Sums:
    """Collects what the lists of all sources, block by block, are worth."""

    def __init__(
        self,
        truth: Truth,
        cuts: tuple[int, ...],
        names: list[str],
        popularity: np.ndarray,
        merge: Mapping[str, Any] | None,
    ):
        self.truth, self.cuts, self.names, self.popularity = truth, cuts, names, popularity
        self.merge = dict(merge or {})
        every = [*names, "merged"] if len(names) > 1 else names
        self.parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in every}
        self.shown = {name: np.zeros(len(popularity)) for name in self.parts}
        self.without: list[list[Tensor]] = [[] for _ in names]  # recall of the others merged
        self.shares, self.alone, self.all = np.zeros(len(names)), np.zeros(len(names)), 0.0
        self.pairs = {pair: [] for pair in itertools.combinations(range(len(names)), 2)}

    def add(self, found: list[Candidates], start: int) -> None:
        wide = max(self.cuts)
        lists = dict(zip(self.names, found, strict=True))
        if len(found) > 1:
            union = Candidates.merge(found, **self.merge)
            lists["merged"] = union.head(wide)
            self._together(found, union, start)
        for name, part in lists.items():
            self.parts[name].append(self._values(part, start))
            self.shown[name] += np.bincount(part.ids[part.mask].numpy(), minlength=len(self.popularity))

    def _values(self, part: Candidates, start: int) -> dict[str, Tensor]:
        """``{metric@k: float64 [n]}``."""
        hit = self.truth.hits(part.ids, start).float()
        relevant = torch.from_numpy(self.truth.count[start : start + len(part)])
        order = -torch.arange(part.width).float().expand_as(hit)
        out: dict[str, Tensor] = {}
        for k in self.cuts:
            for name, metric in LISTS.items():
                out[f"{name}@{k}"] = metric(order, hit, k=k, n_positive=relevant, reduction="none")
            both = out[f"recall@{k}"] + out[f"precision@{k}"]
            out[f"f1@{k}"] = 2 * out[f"recall@{k}"] * out[f"precision@{k}"] / both.clamp(min=1e-12)
            if self.truth.total is not None:
                total = torch.from_numpy(self.truth.total[start : start + len(part)])
                out[f"worth@{k}"] = self.truth.worths(part.ids[:, :k], start).sum(1) / total
        return out

    def _together(self, found: list[Candidates], union: Candidates, start: int) -> None:
        wide, merged = max(self.cuts), union.head(max(self.cuts))
        relevant = torch.from_numpy(self.truth.count[start : start + len(union)])
        proposed = torch.stack([~union.source[name].isnan() for name in self.names])  # [sources, n, L]
        hit = self.truth.hits(union.ids, start)
        self.all += float(hit.sum())
        self.alone += (proposed & hit & (proposed.sum(0) == 1)).sum((1, 2)).numpy()
        places = proposed[:, :, :wide] & merged.mask  # a place that several propose is shared among them
        self.shares += (places / places.sum(0).clamp(min=1)).sum((1, 2)).numpy()
        for (i, j), values in self.pairs.items():
            both, any_ = (proposed[i] & proposed[j]).sum(1), (proposed[i] | proposed[j]).sum(1)
            values.append(both / any_.clamp(min=1))
        for i in range(len(found)):
            others: dict[str, Any] = {
                key: {n: v for n, v in value.items() if n != self.names[i]} if isinstance(value, Mapping) else value
                for key, value in self.merge.items()
            }
            rest = Candidates.merge(found[:i] + found[i + 1 :], wide, **others)
            self.without[i].append(self.truth.hits(rest.ids, start).sum(1).double() / relevant)

    def rows(self) -> tuple[list[dict[str, Any]], dict[tuple[str, str], float], dict[str, dict[str, np.ndarray]]]:
        """The table, the overlaps, and the values of each request."""
        wide = max(self.cuts)
        values = {
            name: {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
            for name, parts in self.parts.items()
        }
        table = []
        for name, found in values.items():
            means = {key: float(np.nanmean(value)) for key, value in found.items()}
            table.append({"name": name, **means, **spread(self.shown[name], self.popularity)})
        if len(self.names) > 1:
            best = table[-1][f"recall@{wide}"]
            for i, row in enumerate(table[:-1]):
                row["share"] = float(self.shares[i] / max(self.shares.sum(), 1))
                row["alone"] = float(self.alone[i] / max(self.all, 1))
                row["marginal"] = best - float(torch.cat(self.without[i]).mean())
        overlap = {(self.names[i], self.names[j]): float(torch.cat(v).mean()) for (i, j), v in self.pairs.items()}
        return table, overlap, values


def spread(shown: np.ndarray, popularity: np.ndarray) -> dict[str, float]:
    """Coverage, Gini, novelty and popularity of lists.

    Args:
        shown: float ``[N]``, how often each item id stands in a list; ids 0 and 1 are no items.
        popularity: float ``[N]``, training events of each item id.
    """
    shown, popularity = shown[2:], popularity[2:]
    n, total = len(shown), max(shown.sum(), 1)
    ranked = np.sort(shown)
    gini = (2 * np.arange(1, n + 1) - n - 1) @ ranked / (n * total)
    share = np.maximum(popularity, 0.5) / max(popularity.sum(), 1)  # an item that training never saw: half an event
    order = popularity.argsort(kind="stable")
    place = np.empty(n)
    place[order] = np.arange(1, n + 1) / n
    _, group = np.unique(popularity, return_inverse=True)
    place = (np.bincount(group, place) / np.bincount(group))[group]  # of equal counts the mean place
    return {
        "coverage": float((shown > 0).mean()),
        "gini": float(gini),
        "novelty": float(-(shown @ np.log2(share)) / total),
        "popularity": float(shown @ place / total),
    }


def _worth(worth: Any, test: Any, columns: Columns) -> np.ndarray | None:
    if worth is None:
        return None
    if isinstance(worth, str):
        if isinstance(test, Columns) or worth not in test.events.columns:
            raise DataError(f"There is no event column {worth!r} in the test; give a Log that has it, or the numbers.")
        worth = test.events[worth].to_numpy()
    found = np.asarray(worth, np.float64)
    if found.shape != (columns.n_rows,) or not np.isfinite(found).all() or (found < 0).any():
        raise DataError(
            f"worth= holds one finite number of at least 0 for each of the {columns.n_rows} rows of the test."
        )
    return found


def training_events(source: Any, past: Columns | None = None) -> np.ndarray:
    """Training events of each item id."""
    size = source.catalog.size
    if past is not None:
        return np.bincount(past.item_ids[past.positives()], minlength=size).astype(np.float64)
    if source.profiles is None:
        return np.zeros(size)
    out, users = np.zeros(size), source.profiles.users
    for start in range(0, len(users), 8192):
        out += np.bincount(source.profiles.requests(users[start : start + 8192], padded=False).seen[1], minlength=size)
    return out
