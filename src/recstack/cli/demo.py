"""``recstack demo``: raw interactions in, a measured and served page out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recstack.errors import unknown

DATA = ("simulator", "movielens-1m", "kuairand-pure")
PAGE = 10


@dataclass
class Plan:
    """A data set as the demo uses it.

    Attributes:
        train, valid, test: logs.
        split: how they were cut, in words.
        retrieval, ranking: names of features that these stages do without.
        late: events per user that the ranking stages learn from.
        options: of the Trainer, stage by stage.
        market: the simulator's, whose truth is known.
    """

    train: Any
    valid: Any
    test: Any
    split: str
    retrieval: tuple[str, ...] = ()
    ranking: tuple[str, ...] = ()
    late: int = 5
    negatives: int = 20
    swing: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    market: Any = None
    candidates: int = 200


def run(
    data: str = "simulator",
    data_dir: str | Path | None = None,
    out: str | Path = "runs/demo",
    serve: bool = True,
    seed: int = 0,
    port: int = 8000,
) -> dict[str, Any]:
    """Run the whole road once and write ``bundle/``, ``metrics.json`` and ``report.html`` under `out`.

    Args:
        data: "simulator", "movielens-1m" or "kuairand-pure".
        data_dir: where the public sets are; see `recstack.datasets`.
        serve: end as a service on 127.0.0.1:`port`.
        seed: of the market, the models and all sampling.

    Returns:
        What metrics.json holds.
    """
    if data not in DATA:
        raise unknown("data", data, DATA)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    steps = _Steps()
    with steps("Reading the data"):
        plan = {"simulator": _simulator, "movielens-1m": _movielens, "kuairand-pure": _kuairand}[data](data_dir, seed)
    with steps("Encoding"):
        import torch

        import recstack as rs

        torch.manual_seed(seed)
        encoder = rs.Encoder(plan.train.schema).fit(plan.train)
    cascade = build(encoder, plan, seed)
    cascade.fit(
        plan.train,
        plan.valid,
        late=plan.late,
        negatives=plan.negatives,
        seed=seed,
        options=_options(plan, seed),
        status=steps,
    )
    past = plan.train.concat(plan.valid)
    with steps("Evaluation on the test"):
        report = cascade.evaluate(plan.test, past, k=PAGE, max_requests=8000, seed=seed)
    with steps("Calibration on the test"):
        calibration = _calibration(cascade, encoder, plan)
    truth = None
    if plan.market is not None:
        with steps("Comparison with the best possible page"):
            truth = _against_truth(cascade, plan, past)
    metrics = _metrics(data, seed, plan, report, calibration, truth, steps)
    with steps("Saving"):
        files = {
            "metrics.json": json.dumps({**metrics, "funnel": report.to_dict()}, indent=1),
            "items.json": _items(plan),
        }
        bundle = cascade.save(out / "bundle", files)
        from recstack.cli.report import write

        write(out, metrics, report, calibration, _examples(cascade, plan))
    metrics["seconds"]["total"] = round(steps.total(), 1)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", "utf8")
    steps.say(str(report))
    steps.say(f"{out / 'report.html'} · {out / 'metrics.json'} · {bundle} · {metrics['seconds']['total']} s")
    if serve:
        from recstack.serving import serve as start

        steps.say(f"http://127.0.0.1:{port} (Ctrl-C stops it)")
        start(bundle, port=port)
    return metrics


def build(encoder: Any, plan: Plan, seed: int = 0) -> Any:
    """The demo's cascade: three retrievers, COLD, DIN, isotonic calibration, PRM, MMR."""
    import torch

    import recstack as rs
    from recstack.cascade import scored_features

    torch.manual_seed(seed)
    full = encoder.schema
    broad = full.without(*plan.retrieval)
    retrievers = [
        rs.retrieval.Popularity(),
        rs.retrieval.Swing(**plan.swing),
        rs.retrieval.DSSM(broad, hidden=(128, 64), temperature=0.07, examples_per_user=20),
    ]
    names = [r.name for r in retrievers]
    ranked = full.without(*plan.ranking)
    first = scored_features(ranked.without(*[h.name for h in ranked.histories]), names)
    second = scored_features(ranked, [*names, "pre_ranker"])
    hidden = (128, 64)
    third = scored_features(
        ranked.without(*[h.name for h in ranked.histories]), [*names, "pre_ranker", "ranker"]
    ).with_features(rs.Vector("hidden_ranker", role="pair", size=hidden[-1]))
    third = third.replace(tasks=full.tasks[:1])  # whole lists are labelled for the task that pages are judged by
    return rs.Cascade(
        retrievers,
        pre_ranker=rs.pre_ranking.COLD(first, dim=8, hidden=(64, 32)),
        ranker=rs.ranking.DIN(second, hidden=hidden, activation="relu"),
        calibrator=rs.calibration.Isotonic(),
        reranker=rs.reranking.PRM(third, width=64, layers=1),
        rules=[rs.rules.MMR(0.95)],
        candidates=plan.candidates,
        merge={"weights": "learned"},
    )


def _options(plan: Plan, seed: int) -> dict[str, dict[str, Any]]:
    rate = {"embedding": 0.05, "default": 1e-3}
    usual: dict[str, dict[str, Any]] = {
        "dssm": {"epochs": 3, "batch_size": 1024, "negatives": 1},
        "pre_ranker": {"epochs": 1, "batch_size": 128},
        "ranker": {"epochs": 2, "batch_size": 64},
        "reranker": {"epochs": 2, "batch_size": 64},
    }
    return {
        name: {"lr": rate, "seed": seed, "progress": True, **one, **plan.options.get(name, {})}
        for name, one in usual.items()
    }


# -- the three data sets ----------------------------------------------------------------------------------------------
def _simulator(data_dir: Any, seed: int) -> Plan:
    import recstack as rs

    market = rs.simulator.simulate(users=3000, items=2000, impressions=400_000, seed=seed)
    train, valid, test = rs.split.by_time(market.log(), valid=0.1, test=0.1)
    return Plan(
        train,
        valid,
        test,
        "by time: the last tenth is the test, the tenth before it validation",
        retrieval=("position",),
        ranking=("position",),
        late=40,
        swing={"max_users": 300},
        market=market,
    )


def _movielens(data_dir: Any, seed: int) -> Plan:
    import recstack as rs

    log = rs.datasets.movielens_1m(data_dir=data_dir)
    schema = log.schema.without("title", "zip")  # the title is shown to people, and names no taste
    # Genres are read of the candidates; in histories the ids say more, at a sixth of the cost.
    histories = [rs.History("history", of=("item_id",), max_len=30), rs.History("recent", of=("item_id",), max_len=5)]
    log.schema = schema.with_features(*histories)
    train, valid, test = rs.split.last_per_user(log, test=5, valid=5)
    return Plan(
        train,
        valid,
        test,
        "by seq: each user's last 5 events are the test, the 5 before them validation",
        late=10,
        negatives=12,
        candidates=120,
        swing={"history": "history", "last": 10, "max_users": 100},
    )


def _kuairand(data_dir: Any, seed: int) -> Plan:
    import polars as pl

    import recstack as rs

    log = rs.datasets.kuairand_pure(["click", "long_view"], data_dir=data_dir).with_histories()
    days = log.events["date"].unique().sort()
    part = log.events["split"]
    cut = days.filter(days < log.events.filter(part == "test")["date"].min())
    train = log.select((part != "test") & (pl.Series(log.events["date"]) < cut[-1]))
    valid = log.select((part != "test") & (pl.Series(log.events["date"]) == cut[-1]))
    return Plan(
        train,
        valid,
        log.select(part == "test"),
        "by date: 1-8 May 2022 is the test, 30 April validation, 25-29 April training",
        late=6,
        candidates=120,
        swing={"max_users": 300, "history": "watched"},
    )


# -- what is measured -------------------------------------------------------------------------------------------------
def _calibration(cascade: Any, encoder: Any, plan: Plan) -> dict[str, Any]:
    """The calibrated probability against what happened, on the lists that reach the re-ranker for the test."""
    import torch

    from recstack.calibration import expected_calibration_error, reliability_table

    lists, logit, hit = cascade.page_lists(encoder.encode(plan.test), encoder.encode(plan.train.concat(plan.valid)))
    live = lists.candidates.mask
    label = hit[live].float()
    before, after = torch.sigmoid(logit[live]), cascade.calibrator.probability(logit[live])
    return {
        "ece_before": float(expected_calibration_error(before, label)),
        "ece_after": float(expected_calibration_error(after, label)),
        "ratio_before": float(before.sum() / label.sum()),
        "ratio_after": float(after.sum() / label.sum()),
        "table": reliability_table(after, label),
    }


def _against_truth(cascade: Any, plan: Plan, past: Any, users: int = 500) -> dict[str, float]:
    """Expected clicks of pages of ten under the simulator's truth, for users as they stand at the end of the log."""
    market, truth = plan.market, plan.market.truth
    known = np.asarray(past.events["user_id"].unique().sort().to_list())
    rng = np.random.default_rng(0)
    chosen = rng.choice(known, min(users, len(known)), replace=False)
    interest = truth.last_interest[chosen]
    pages = cascade.recommend(chosen.tolist(), PAGE)

    def padded(pages: list[list[int]]) -> np.ndarray:
        return np.array([[*page, *[-1] * (PAGE - len(page))] for page in pages])

    seen = dict(past.events.group_by("user_id").agg("item_id").iter_rows())
    exclude = np.zeros((len(chosen), market.items.height), bool)
    for row, user in enumerate(chosen.tolist()):
        exclude[row, seen[user]] = True
    popular = past.events.filter(past.events["click"] == 1)["item_id"].value_counts(sort=True)["item_id"].to_numpy()
    most = padded([popular[~exclude[row][popular]][:PAGE].tolist() for row in range(len(chosen))])
    ours = padded([[one["item"] for one in page] for page in pages])
    drawn = np.stack([rng.choice(np.flatnonzero(~row), PAGE, replace=False) for row in exclude])
    best = truth.best_page(chosen, PAGE, interest=interest, exclude=exclude)
    named = {"random": drawn, "popularity": most, "cascade": ours, "best possible": best}
    return {name: float(truth.value(chosen, page, interest=interest).mean()) for name, page in named.items()}


def _metrics(
    data: str, seed: int, plan: Plan, report: Any, calibration: dict, truth: dict | None, steps: _Steps
) -> dict[str, Any]:
    names = ("popularity", "swing", "dssm")
    row = lambda name: {f"recall@{PAGE}": report.stage(name)["recall@k"], f"ndcg@{PAGE}": report.stage(name)["ndcg@k"]}  # noqa: E731
    best = max(names, key=lambda name: report.stage(name)["ndcg@k"])
    final = row("page")
    ratio = lambda name: final[f"ndcg@{PAGE}"] / max(report.stage(name)["ndcg@k"], 1e-12)  # noqa: E731
    return {
        "data": data,
        "seed": seed,
        "split": plan.split,
        "protocol": report.protocol,
        "requests": report.requests,
        "final": final,
        "baseline": {name: row(name) for name in names},
        "best_retriever": best,
        "final_over_best_retriever": ratio(best),
        "final_over_popularity": ratio("popularity"),
        "stages": report.stages,
        "latency_ms": report.latency,
        "calibration": {k: v for k, v in calibration.items() if k != "table"},
        "expected_clicks_per_page": truth,
        "seconds": dict(steps.seconds),
    }


def _items(plan: Plan) -> str:
    """What people read of items: {item: {"title": ...}}."""
    items, key = plan.train.items, plan.train.schema.item
    if items is None:
        return "{}"
    shown = [c for c in items.columns if c != key][:4]
    rows = {}
    for row in items.select(key, *shown).iter_rows(named=True):
        title = row.get("title") or f"{key} {row[key]}"
        rest = {c: ", ".join(map(str, row[c])) if isinstance(row[c], list) else row[c] for c in shown if c != "title"}
        rows[str(row[key])] = {"title": title, **{c: v for c, v in rest.items() if v is not None}}
    return json.dumps(rows, ensure_ascii=False)


def _examples(cascade: Any, plan: Plan, users: int = 3) -> list[dict[str, Any]]:
    """A few users: what they met last, and their page."""
    titles = {k: v["title"] for k, v in json.loads(_items(plan)).items()}
    chosen = plan.test.events[plan.test.schema.user].unique(maintain_order=True).head(users).to_list()
    out = []
    for user, page in zip(chosen, cascade.recommend(chosen, PAGE), strict=True):
        last = [item for item in cascade.profiles.history(user)[-5:].tolist() if item is not None]
        name = lambda item: titles.get(str(item), str(item))  # noqa: E731
        out.append(
            {
                "user": user,
                "last": [name(i) for i in last],
                "page": [{**row, "title": name(row["item"])} for row in page],
            }
        )
    return out


class _Steps:
    """Says what is being done and keeps how long it took."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.seconds: dict[str, float] = {}
        self.start = time.perf_counter()

    @contextmanager
    def __call__(self, line: str) -> Iterator[None]:
        begin = time.perf_counter()
        self.console.print(f"[dim]{begin - self.start:6.1f} s[/dim]  {line} …", highlight=False)
        yield
        self.seconds[line] = round(time.perf_counter() - begin, 2)

    def total(self) -> float:
        return time.perf_counter() - self.start

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)
