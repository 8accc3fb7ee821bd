"""How many relevant items survive each stage, in what order, and what each stage costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recstack.candidates import Candidates
from recstack.data import Columns, Requests
from recstack.data.truth import Truth, next_events
from recstack.errors import DataError
from recstack.metrics import stage_ndcg, stage_recall

if TYPE_CHECKING:
    from recstack.cascade.cascade import Cascade
    from recstack.data import Log


@dataclass
class Report:
    """What `Cascade.evaluate` measured.

    Attributes:
        stages: one row each, ``{"name", "kept", "recall", "ndcg@k", "recall@k", "p50_ms", "p99_ms"}``. `recall` is the share
            of the relevant items that are still there; ``@k`` is the page that this stage's order would give.
        requests, k: how many requests were asked, and the length of the page.
        protocol: how it was measured, in words.
        agreement: of pre-ranker and ranker over all merged candidates, ``{"overlap@k", "ndcg@k", "survive"}``: `stage_recall` and
            `stage_ndcg` of the first k, and the share of the ranker's first k that the pre-ranker lets through. Empty
            where one of them is missing.
    """

    stages: list[dict[str, Any]]
    requests: int
    k: int
    protocol: str
    latency: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str) -> dict[str, Any]:
        """The row of one stage."""
        return next(row for row in self.stages if row["name"] == name)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**vars(self)}

    def __str__(self) -> str:
        head = ["stage", "kept", "recall", f"recall@{self.k}", f"ndcg@{self.k}", "p50 ms", "p99 ms"]
        rows = [
            [
                row["name"],
                f"{row['kept']:.0f}",
                f"{row['recall']:.4f}",
                f"{row['recall@k']:.4f}",
                f"{row['ndcg@k']:.4f}",
                *("" if row[p] is None else f"{row[p]:.2f}" for p in ("p50_ms", "p99_ms")),
            ]
            for row in self.stages
        ]
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(r, widths, strict=True)))
            for r in [head, *rows]
        ]
        total = (
            f"whole request: p50 {self.latency['p50_ms']:.1f} ms, p99 {self.latency['p99_ms']:.1f} ms"
            if self.latency
            else ""
        )
        agree = (
            f"pre-ranker and ranker: overlap@{self.k} {self.agreement['overlap@k']:.3f}, ndcg@{self.k} "
            f"{self.agreement['ndcg@k']:.3f}; of the ranker's first {self.k}, {self.agreement['survive']:.3f} get through"
            if self.agreement
            else ""
        )
        return "\n".join(
            [*lines, *(line for line in (agree, total) if line), f"{self.requests:,} requests. {self.protocol}"]
        )

    def figure(self, path: str | Path) -> None:
        """The funnel as a picture (.png or .svg); needs matplotlib, extra ``recstack[plots]``."""
        from recstack.cascade.pictures import funnel

        funnel(self, path)


@torch.no_grad()
def evaluate(
    cascade: Cascade,
    test: Log | Columns,
    past: Log | Columns | None = None,
    *,
    k: int = 10,
    timed: int = 100,
    max_requests: int | None = None,
    seed: int = 0,
) -> Report:
    """Ask for every user's page just before their first event of `test`, and compare with all they did in it.

    Full ranking: every item of the catalogue can be proposed; items that the user met before (in `past`, by default
    what the cascade was fitted on) are left out. Items never seen in training count as missed.

    Args:
        test: held-out events; histories reach up to each request's own time.
        k: length of the page.
        timed: that many requests are also asked one by one, for latency.
        max_requests: a uniform sample of the users, by `seed`.

    Raises:
        DataError: `test` has no positive event.
    """
    columns = test if isinstance(test, Columns) else cascade.encoder.encode(test)
    before = past if past is None or isinstance(past, Columns) else cascade.encoder.encode(past)
    rows, truth = next_events(columns)
    if not len(rows):
        raise DataError("The test holds no positive event, so there is nothing to find.")
    if max_requests is not None and len(rows) > max_requests:
        chosen = np.sort(np.random.default_rng(seed).choice(len(rows), max_requests, replace=False))
        rows, truth = rows[chosen], truth.select(chosen)
    sums: dict[str, np.ndarray] = {}
    order: list[str] = []
    both = cascade.pre_ranker is not None and cascade.ranker is not None
    agree = np.zeros((3, 2))
    for start in range(0, len(rows), 512):
        part = rows[start : start + 512]
        trace: dict[str, Any] = {"stages": [], "seconds": {}}
        requests = _requests(cascade, columns, part, before)
        cascade.pages(requests, k, trace)
        if both:
            agree += _agreement(cascade, cascade.stage_scores(requests, dict(trace["stages"])["merged"]), k)
        for name, found in trace["stages"]:
            if name not in sums:
                sums[name] = np.zeros(4)
                order.append(name)
            sums[name] += _measure(found, truth, start, k)
    times: dict[str, list[float]] = {}
    for i in np.linspace(0, len(rows) - 1, min(timed, len(rows))).astype(int) if timed else []:
        request = _requests(cascade, columns, rows[i : i + 1], before)
        trace = {"stages": [], "seconds": {}}
        cascade.pages(request, k, trace)
        for name, seconds in trace["seconds"].items():
            times.setdefault(name, []).append(1000 * seconds)
        times.setdefault("", []).append(1000 * sum(trace["seconds"].values()))
    stages = []
    for name in order:
        spent = times.get("merge" if name == "merged" else name)
        p50, p99 = np.percentile(spent, [50, 99]).tolist() if spent else (None, None)
        kept, recall, page_recall, ndcg = (sums[name] / len(rows)).tolist()
        stages.append(
            {
                "name": name,
                "kept": kept,
                "recall": recall,
                "recall@k": page_recall,
                "ndcg@k": ndcg,
                "p50_ms": p50,
                "p99_ms": p99,
            }
        )
    whole = np.percentile(times[""], [50, 99]).tolist() if times else None
    latency = {} if whole is None else {"p50_ms": whole[0], "p99_ms": whole[1]}
    protocol = (
        "Full ranking over the catalogue, seen items left out; relevant: each user's positive events of the test."
    )
    overlap, gain, survive = (agree[:, 0] / agree[:, 1]).tolist() if both else (0.0, 0.0, 0.0)
    agreement = {"overlap@k": overlap, "ndcg@k": gain, "survive": survive} if both else {}
    return Report(stages, len(rows), k, protocol, latency, agreement)


def _agreement(cascade: Cascade, found: Candidates, k: int) -> np.ndarray:
    """Sums over requests, and how many count, of the three numbers of `Report.agreement`."""
    order = "ranker" if cascade.fusion is None else "fusion"
    asked = {"where": found.mask, "k": k, "reduction": "sums"}
    ours, theirs = found.source["pre_ranker"], found.source[order]
    return torch.stack(
        [
            stage_recall(ours, theirs, **asked),
            stage_ndcg(ours, theirs, **asked),
            stage_recall(ours, theirs, kept=max(k, cascade.keep_pre_ranked), **asked),
        ]
    ).numpy()


def _requests(cascade: Cascade, columns: Columns, rows: np.ndarray, past: Columns | None) -> Requests:
    if past is not None:
        return Requests.of(columns, rows, seen=past)
    found = Requests.of(columns, rows)
    seen = cascade.profiles.requests(found.users, encoded=True).seen
    return Requests(found.batch, found.users, seen)


def _measure(found: Candidates, truth: Truth, start: int, k: int) -> np.ndarray:
    """Sums over requests of kept, recall, recall@k and ndcg@k (ideal over min(k, relevant))."""
    hit = truth.hits(found.ids, start)
    relevant = truth.count[start : start + len(found)]
    page_recall, ndcg = truth.sums(found.ids, start, (k,))
    return np.array([float(found.mask.sum()), float((hit.sum(1).numpy() / relevant).sum()), page_recall, ndcg])
