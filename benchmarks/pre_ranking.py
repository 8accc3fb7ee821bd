"""Pre-rankers beside the ranker, on half the cost, and students whose teacher sees what serving cannot (PFD).

    python benchmarks/pre_ranking.py            # what --out does not hold yet, then the tables; --table only draws

kuairand: KuaiRand-Pure's exposures; train 25 to 29 April, validation 30 April, test 1 to 8 May; the user's id is not read
    (see benchmarks/behaviour.py). simulator: a market of 500 users and 300 items, 120,000 impressions, cut 8:1:1 by time, the
    position not read. All models: the last 20 steps of histories, COLD's and FSCD's summed, and no batch norm among the pre-rankers; embeddings of 8, layers of 128 and 64 with dropout 0.3, Adam 2e-3,
    L2 of 1e-3 on whole tables. Batches of 2048, of 1024 on the simulator and for likes, of 512 for orders; at most 6 epochs of
    kuairand's clicks, ending with the first without a better validation AUC, 12 and two of the others; the best is kept. The test part is measured once. On the simulator AUC is also taken against the true chances: each row counts as a
    click with its chance and as none with the rest, which leaves out the luck of the labels.

Pre-rankers, task click. The ranker is a DIN. The cost of a feature is the number of values that are
    looked up to answer one request of CANDIDATES: what belongs to the request once, what belongs to a candidate for each;
    a list counts 3, a history its length times what is read of each step. That is how COLD is served here: the request's share
    of the first layer is computed once. Half the cost is half of all features'. COLD by its gates, and FSCD, keep down
    their order each feature that is still paid for; COLD by shuffling is the exact knapsack over the validation AUC that COLD loses when a
    column is shuffled once. AutoFIS keeps the half of the pairs with the strongest gates. The two towers are an IntTower of
    one layer and one part, without contrast. ms is the processor time of one request of CANDIDATES on one thread, the median of 30.

Teachers (COLD without gates, as the student is). Of each case the privileged features are read by the teacher only:
    histories: click, of what the user did before (and, on the simulator, the position); cart: the simulator's orders among the clicks
    of 400,000 impressions, and whether the item was carted; after: KuaiRand's likes, and whether the video was clicked, viewed long
    and for how long, as they are known after it was shown. "taught by its like" has a teacher that reads what the student
    reads, λ = 0.5. Of PFD all λ in MIXES are trained, T = 1; the one with the best validation AUC, mean of the seeds, is what the
    table shows. The teacher is trained before its student, so that there is nothing to warm up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pages
import torch

import recstack as rs

RESULTS = Path(__file__).parent / "results" / "pre_ranking.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- pre-ranking: drawn by benchmarks/pre_ranking.py -->", "<!-- pre-ranking: end -->"
HOW = {"epochs": 6, "patience": 1, "batch_size": 2048}  # kuairand's
SMALL = {"epochs": 12, "patience": 2, "batch_size": 1024}  # the simulator's, and of few positives
MODEL: dict[str, Any] = {"dim": 8, "hidden": (128, 64), "dropout": 0.3}
CANDIDATES = 1000
MIXES = (0.5, 0.9, 1.0)
ROWS = (
    "ranker",
    "COLD",
    "COLD, half by shuffling",
    "COLD, half by gates",
    "FSCD, half",
    "AutoFIS, half of the pairs",
    "IntTower",
    "two towers",
)


@dataclass
class Data:
    """Columns of train, validation and test with their labels, and the true chances where they are known."""

    schema: rs.Schema
    task: str
    columns: list[rs.data.Columns]
    labels: list[torch.Tensor]
    how: Mapping[str, int]
    truth: torch.Tensor | None = None  # of the test

    def measure(self, model: Any) -> dict[str, float]:
        valid, test = (torch.from_numpy(model.score(part)[self.task]) for part in self.columns[1:])
        found = {"valid": rs.metrics.auc(valid, self.labels[1]), "test": rs.metrics.auc(test, self.labels[2])}
        if self.truth is not None:
            ones = torch.ones_like(self.truth)
            rows = torch.cat([test, test]), torch.cat([ones, 0 * ones])
            found["true"] = rs.metrics.auc(*rows, weight=torch.cat([self.truth, 1 - self.truth]))
        return {name: round(float(value), 5) for name, value in found.items()}


def kuairand(task: str, data_dir: str | None, more: tuple[rs.Numeric, ...] = ()) -> Data:
    log = rs.datasets.kuairand_pure([task], pool_tabs=700, data_dir=data_dir)
    log.schema = log.schema.replace(features=[*map(shorter, log.schema.features), *more])
    day = log.events["date"]
    parts = [log.select((day >= 20220425) & (day < 20220430)), log.select(day == 20220430), log.select(day > 20220430)]
    return encoded(parts, task, "user_id")


def simulator(
    task: str, *, impressions: int = 120_000, more: tuple[rs.Numeric, ...] = (), clicked: bool = False
) -> Data:
    market = rs.simulator.simulate(users=500, items=300, impressions=impressions, seed=1)
    log = market.log([rs.Task(task)]).with_histories()
    log.schema = log.schema.replace(features=[*map(shorter, log.schema.features), *more])
    shown = market.truth.shown
    chance = shown["convert"] if clicked else shown["examine"] * shown["click"]
    rows = log.events["click"].to_numpy() > 0 if clicked else np.ones(len(log), bool)
    parts = list(rs.split.by_time(log.select(rows)))
    data = encoded(parts, task)
    data.how = {**SMALL, "batch_size": 512} if clicked else SMALL
    data.truth = torch.from_numpy(chance[rows][-len(parts[2]) :])
    return data


def shorter(feature: Any) -> Any:
    return replace(feature, max_len=20) if feature.kind == "history" else feature


def encoded(parts: list[rs.Log], task: str, *unread: str) -> Data:
    encoder = rs.Encoder(parts[0].schema).fit(parts[0])
    labels = [torch.from_numpy(part.events[task].to_numpy().astype(np.float32)) for part in parts]
    return Data(encoder.schema.without(*unread), task, [encoder.encode(part) for part in parts], labels, HOW)


class Runs:
    """Trainings of one data set and seed, alike in all but the model; each is a line of `out` as it ends."""

    def __init__(self, data: Data, case: str, seed: int, out: Path):
        self.data, self.case, self.seed, self.out = data, case, seed, out
        self.done = {r["way"] for r in read(out) if (r["case"], r["seed"]) == (case, seed)}

    def train(
        self, way: str, model: Any, taught_by: Any = None, mix: float = 0.5, *, again: bool = False, **more: Any
    ) -> Any:
        """The model, trained unless its line is there; `again` trains it nevertheless, for who needs it."""
        if way in self.done and not again:
            return model
        began = time.process_time()
        learner = model if taught_by is None else rs.Distillation(model, taught_by, mix=mix)
        options: dict[str, Any] = {"optimizer": "adam", "lr": 2e-3, **self.data.how}
        options |= {"monitor": "auc", "regularization": {"embedding": 1e-3}, "progress": False}
        extra = {name: value for name, value in more.items() if name in ("optimizer", "lr")}
        result = rs.Trainer(learner, seed=self.seed, **(options | extra)).fit(*self.data.columns[:2])
        assert result.best is not None
        line = {
            "case": self.case,
            "seed": self.seed,
            "way": way,
            **self.data.measure(model),
            "epoch": result.best["epoch"],
        }
        line["seconds"] = round(time.process_time() - began, 1)
        line |= {name: value for name, value in more.items() if name not in extra}
        if "kept" in more or way == "COLD":
            line["ms"] = milliseconds(model)
        line["rows"] = [len(labels) for labels in self.data.labels]
        print(json.dumps(line), flush=True)
        if way not in self.done:
            with self.out.open("a", encoding="utf8") as file:
                file.write(json.dumps(line) + "\n")
        return model

    def make(self, kind: Any, schema: rs.Schema, **options: Any) -> Any:
        torch.manual_seed(self.seed)
        return kind(schema, **{**MODEL, **options})


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()] if path.exists() else []


# -- pre-rankers ------------------------------------------------------------------------------------------------------------
def price(schema: rs.Schema, feature: Any) -> float:
    """Values that are looked up for one request."""
    if feature.kind == "history":
        return feature.max_len * sum(price(schema, schema.feature(name)) / CANDIDATES for name in feature.of)
    return (CANDIDATES if feature.role in ("item", "pair") else 1) * (3 if getattr(feature, "multi", False) else 1)


def affordable(order: Mapping[str, float], cost: Mapping[str, float]) -> tuple[str, ...]:
    """Down the order, each group that half the cost still pays for."""
    kept, left = [], sum(cost.values()) / 2
    for name in sorted(order, key=lambda name: -order[name]):
        if cost[name] <= left:
            kept.append(name)
            left -= cost[name]
    return tuple(kept)


def milliseconds(model: Any) -> float:
    batch, taken = rs.testing.batch(model.schema, 1, CANDIDATES), []
    model.eval()
    with torch.no_grad():
        for _ in range(30):
            began = time.process_time()
            model(batch)
            taken.append(1000 * (time.process_time() - began))
    return round(median(taken), 3)


def pre_rankers(name: str, seed: int, data_dir: str | None, out: Path) -> None:
    data = kuairand("click", data_dir) if name == "kuairand" else simulator("click")
    if name == "simulator":
        data.schema = data.schema.without("position")
    schema, valid, runs = data.schema, data.columns[1], Runs(data, name, seed, out)
    cold, fscd = (partial(kind, history="sum", norm=None) for kind in (rs.pre_ranking.COLD, rs.pre_ranking.FSCD))
    fis, towers = rs.ranking.AutoFIS, rs.pre_ranking.IntTower
    cost = {f.name: price(schema, f) for f in schema.fields}
    every = sum(cost.values())

    def served(way: str, kind: Any, kept: tuple[str, ...]) -> None:
        spent = sum(cost[name] for name in kept) / every
        runs.train(way, runs.make(kind, schema, keep=kept, gates=False), kept=kept, cost=round(spent, 4))

    runs.train("ranker", runs.make(rs.ranking.DIN, schema))
    full = runs.train("COLD", runs.make(cold, schema, gates=False), again=ROWS[2] not in runs.done)
    if ROWS[2] not in runs.done:
        drops = rs.permutation_importance(full, valid, "auc", repeats=1, seed=seed)
        worth = {n: drop.mean for n, drop in drops.items()}
        served(ROWS[2], cold, full.select(valid, cost=cost, budget=every / 2, value=worth))
    if ROWS[3] not in runs.done:
        scout = runs.train("COLD with gates", runs.make(cold, schema), again=True)
        served(ROWS[3], cold, affordable(scout.importance(valid), cost))
    runs.train("two towers", runs.make(towers, schema, hidden=(128,), parts=1, width=64, contrast=0.0))
    runs.train("IntTower", runs.make(towers, schema, width=16))
    if ROWS[4] not in runs.done:
        scout = runs.make(fscd, schema, cost={n: c / max(cost.values()) for n, c in cost.items()})
        served(ROWS[4], fscd, affordable(runs.train("FSCD with gates", scout, again=True).chances(), cost))
    if ROWS[5] not in runs.done:
        search = runs.make(fis, schema)
        grda = {"gates": ("grda", {"c": 0.02}), "default": "adam"}
        strength = runs.train("AutoFIS, all pairs", search, again=True, optimizer=grda, lr=None).strengths()
        pairs = sorted(strength, key=lambda pair: -abs(strength[pair]))[: len(strength) // 2]
        runs.train(ROWS[5], runs.make(fis, schema, pairs=pairs))


# -- teachers ---------------------------------------------------------------------------------------------------------------
def case(name: str, data_dir: str | None) -> tuple[Data, tuple[str, ...]]:
    """The data and the privileged features."""
    if name == "kuairand, click":
        return kuairand("click", data_dir), ("watched",)
    if name == "kuairand, like":
        after = (
            rs.Numeric("click", "pair"),
            rs.Numeric("long_view", "pair"),
            rs.Numeric("watch_time", "pair", transform="log"),
        )
        data = kuairand("like", data_dir, after)
        data.how = SMALL
        data.schema = data.schema.without("watched")  # it takes most of the time, and nothing is asked about it here
        return data, ("click", "long_view", "watch_time")
    if name == "simulator, click":
        return simulator("click"), ("clicked", "position")
    data = simulator("order", impressions=400_000, more=(rs.Numeric("cart", "pair"),), clicked=True)
    data.schema = data.schema.without("clicked", "position")
    return data, ("cart",)


CASES = ("simulator, order", "simulator, click", "kuairand, like", "kuairand, click")


def teachers(name: str, seed: int, data_dir: str | None, out: Path) -> None:
    data, privileged = case(name, data_dir)
    runs, poor = Runs(data, name, seed, out), data.schema.without(*privileged)
    if runs.done.issuperset(("taught by its like", *(f"PFD {mix:g}" for mix in MIXES))):
        return
    make = lambda schema: runs.make(rs.pre_ranking.COLD, schema, gates=False, history="sum")  # noqa: E731
    teacher = runs.train("teacher", make(data.schema), again=True)
    alone = runs.train("alone", make(poor), again=True)
    for mix in MIXES:
        runs.train(f"PFD {mix:g}", make(poor), teacher, mix)
    runs.train("taught by its like", make(poor), alone)


# -- tables -----------------------------------------------------------------------------------------------------------------
def table(records: list[dict[str, Any]]) -> str:
    """Markdown: pre-rankers, then students."""
    lines: list[str] = []
    for name in ("kuairand", "simulator"):
        own = {way: runs_of(records, name, way) for way in ROWS}
        if not own["ranker"]:
            continue
        train, valid, test = own["ranker"][0]["rows"]
        lines += [f"**{name}**, clicks; {train:,} rows of training, {valid:,} of validation, {test:,} of test.", ""]
        lines += [
            "| model | seeds | of the cost | ms | valid AUC | test AUC | of the ranker's | true AUC | of the ranker's |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for way, runs in own.items():
            if runs:
                spent = f"{100 * mean(r['cost'] for r in runs):.0f} %" if "cost" in runs[0] else ""
                ms = f"{mean(r['ms'] for r in runs):.2f}" if "ms" in runs[0] else ""
                share = lambda r, b: f"{100 * r / b:.2f} %"  # noqa: E731
                lines.append(row([way, numbers(runs), spent, ms], runs, own["ranker"], share))
        lines += ["", *(f"- {way}, seed 0: {', '.join(own[way][0]['kept'])}." for way in ROWS[2:5] if own[way]), ""]
    lines += ["| case | seeds | way | valid AUC | test AUC | beside alone | true AUC | beside alone |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name in CASES:
        taught = {mix: runs_of(records, name, f"PFD {mix:g}") for mix in MIXES}
        alone = runs_of(records, name, "alone")
        if not all(taught.values()):
            continue
        best = max(MIXES, key=lambda mix: mean(r["valid"] for r in taught[mix]))
        for way in ("teacher", "alone", "taught by its like", f"PFD {best:g}"):
            runs = runs_of(records, name, way)
            if runs:
                lines.append(
                    row(
                        [name, numbers(runs), way.replace("PFD ", "PFD, λ = ")],
                        runs,
                        alone,
                        lambda r, b: f"{r - b:+.4f}",
                    )
                )
    return "\n".join(lines)


def row(cells: list[str], runs: list[dict[str, Any]], beside: list[dict[str, Any]], compare: Callable[..., str]) -> str:
    base = {r["seed"]: r for r in beside}
    for key in ("valid", "test", "true"):
        found = [r[key] for r in runs if key in r]
        cells.append(pages.spread(found) if found else "")
        if key != "valid":
            pairs = [(r[key], base[r["seed"]][key]) for r in runs if key in r and r["seed"] in base]
            cells.append(compare(*(mean(values) for values in zip(*pairs, strict=True))) if pairs else "")
    return f"| {' | '.join(cells)} |"


def runs_of(records: list[dict[str, Any]], name: str, way: str) -> list[dict[str, Any]]:
    return sorted((r for r in records if (r["case"], r["way"]) == (name, way)), key=lambda r: r["seed"])


def numbers(runs: list[dict[str, Any]]) -> str:
    return " ".join(str(r["seed"]) for r in runs)


def main() -> None:
    every = {"simulator": pre_rankers, "kuairand": pre_rankers, **dict.fromkeys(CASES, teachers)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", default=list(every), choices=list(every))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, draw what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed, name in [(s, n) for s in args.seeds for n in args.case] if not args.table else ():
        every[name](name, seed, args.data_dir, args.out)
    pages.put(table(read(args.out)), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
