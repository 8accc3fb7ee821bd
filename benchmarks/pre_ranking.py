"""Pre-rankers beside the ranker: COLD on half the cost, and a student whose teacher saw more (PFD).

    python benchmarks/pre_ranking.py             # what --out does not hold yet, then the table; --table only draws

kuairand: KuaiRand-Pure's exposures, task click; train 25 to 29 April, validation 30 April, test 1 to 8 May; the user's id is not read
    (see benchmarks/behaviour.py). simulator: a market of 500 users and 300 items, 120,000 impressions, cut 8:1:1 by time, the
    position not read.

The price of a feature is the number of values fetched for it: 1 for a single value, 3 for a list, 10 for a history. COLD's groups are the
features. Value is the validation AUC that the scout loses when a column is shuffled (mean of two), and the knapsack over
value and price may spend half the price of all. "without" is the schema without its histories: the privileged features, which the
student's teacher reads, "COLD" on all features, λ = MIX, T = 1. The ranker is a DCNv2 with layers of 128 and 64. All models: embeddings of 8, Adam 2e-3, batch 2048,
L2 of 1e-3 (simulator: 1e-4) on whole tables, untuned; the epoch of the best validation AUC among EPOCHS. The test part is measured once.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch

import recstack as rs

RESULTS = Path(__file__).parent / "results" / "pre_ranking.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- pre-ranking: drawn by benchmarks/pre_ranking.py -->", "<!-- pre-ranking: end -->"
EPOCHS, MIX = 4, 0.5
ROWS = ("ranker", "COLD", "COLD, half the cost", "without", "without, PFD")


def kuairand(data_dir: str | None) -> tuple[rs.Log, ...]:
    log = rs.datasets.kuairand_pure(["click"], pool_tabs=700, data_dir=data_dir)
    day = log.events["date"]
    train = log.select((day >= 20220425) & (day < 20220430))
    return train, log.select(day == 20220430), log.select(day > 20220430)


def simulator(data_dir: str | None) -> tuple[rs.Log, ...]:
    return rs.split.by_time(rs.simulator.simulate(users=500, items=300, impressions=120_000, seed=1).log())


DATA = {"kuairand": (kuairand, "user_id", 1e-3), "simulator": (simulator, "position", 1e-4)}


def price(feature: Any) -> float:
    return 10.0 if feature.kind == "history" else 3.0 if getattr(feature, "multi", False) else 1.0


def measure(name: str, seed: int, data_dir: str | None) -> dict[str, Any]:
    """The test AUC of each way, what COLD kept, and the seconds of each."""
    load, unread, penalty = DATA[name]
    logs = load(data_dir)
    encoder = rs.Encoder(logs[0].schema).fit(logs[0])
    train, valid, test = (encoder.encode(log) for log in logs)
    schema = encoder.schema.without(unread)
    truth = torch.from_numpy(logs[2].events["click"].to_numpy().astype(np.float32))
    aucs: dict[str, float] = {}
    seconds: dict[str, float] = {}

    def trained(way: str, model: Any, teacher: Any = None) -> Any:
        began, torch_model = time.perf_counter(), model if teacher is None else rs.Distillation(model, teacher, mix=MIX)
        options: dict[str, Any] = {"optimizer": "adam", "lr": 2e-3, "batch_size": 2048, "monitor": "auc", "patience": 1}
        options |= {"epochs": EPOCHS, "regularization": {"embedding": penalty}, "seed": seed, "progress": False}
        rs.Trainer(torch_model, **options).fit(train, valid)
        seconds[way] = round(time.perf_counter() - began, 1)
        aucs[way] = float(rs.metrics.auc(torch.from_numpy(model.score(test)["click"]), truth))
        print(name, seed, way, round(aucs[way], 5), seconds[way], flush=True)
        return model

    def cold(of: Any, **options: Any) -> Any:
        torch.manual_seed(seed)
        return rs.pre_ranking.COLD(of, dim=8, **options)

    torch.manual_seed(seed)
    trained("ranker", rs.ranking.DCNv2(schema, dim=8, hidden=(128, 64)))
    scout = trained("scout", cold(schema))
    full = trained("COLD", cold(schema, gates=False))
    cost = {f.name: price(f) for f in schema.fields}
    worth = {n: drop.mean for n, drop in rs.permutation_importance(scout, valid, "auc", repeats=2, seed=seed).items()}
    chosen = scout.select(valid, cost=cost, budget=sum(cost.values()) / 2, value=worth)
    trained("COLD, half the cost", cold(schema, keep=chosen, gates=False))
    poor = schema.without(*(h.name for h in schema.histories))
    trained("without", cold(poor, gates=False))
    trained("without, PFD", cold(poor, gates=False), full)
    return {
        "data": name,
        "seed": seed,
        "auc": {way: round(value, 5) for way, value in aucs.items()},
        "seconds": seconds,
        "kept": list(chosen),
        "cost": [sum(cost[n] for n in chosen), sum(cost.values())],
        "rows": [len(log) for log in logs],
    }


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a line for each data set and way."""
    lines = ["| data | model | test AUC | of the ranker's |", "|---|---|---|---|"]
    for name in DATA:
        own = [r for r in records if r["data"] == name]
        for way in ROWS if own else ():
            auc = [r["auc"][way] for r in own]
            share = 100 * np.mean([r["auc"][way] / r["auc"]["ranker"] for r in own])
            lines.append(f"| {name} | {way} | {pages.spread(auc)} | {share:.2f} % |")
    for r in records:
        kept, whole = r["cost"]
        lines += [
            "",
            f"- {r['data']}, seed {r['seed']}: {len(r['kept'])} groups for {kept:g} of {whole:g}: {', '.join(r['kept'])}.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the table is drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, draw what is there")
    args = parser.parse_args()
    records = [json.loads(x) for x in args.out.read_text("utf8").splitlines()] if args.out.exists() else []
    for name in () if args.table else args.data:
        for seed in args.seeds:
            if any(r["data"] == name and r["seed"] == seed for r in records):
                continue
            records.append(measure(name, seed, args.data_dir))
            with args.out.open("a", encoding="utf8") as file:
                file.write(json.dumps(records[-1]) + "\n")
    pages.put(table(records), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
