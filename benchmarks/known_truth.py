"""Clicks without their position, and ratings that nobody chose to give: what only a known truth, or a random test, can tell.

    python benchmarks/known_truth.py            # what --out does not hold yet, then the tables
    python benchmarks/known_truth.py --table    # trains nothing, draws the tables into docs/benchmarks.md

position: a simulated market (1,000 users, 400 items, 150,000 impressions in lists of 10, 10 % clicked) whose policy puts first what it
    thinks best, and whose clicks fall as 1 / position. "ignored" reads no position, "feature" reads it as any other and is asked for
    position 1, "shallow tower" is WatchNext's. Held against the chance of a click where the item is looked at, on the last 30 % of the
    rows: AUC counts a row as that share of a positive, so even the truth, the first line, has less than 1; "ratio" is the mean
    prediction over the mean truth, "rmse" their distance.
coat: Coat's ratings of 3 and more: trained on coats that people chose, measured on coats drawn at random. "IPS" weighs ratings by
    the authors' inverse propensities, ESCM2 learns its own on all 87,000 pairs; a tenth of the chosen is validation.

The last tenth of the training rows is validation in "position"; the epoch of the best AUC there, of labels as they are observed, is
kept. All models: Adam 1e-3, batch 1024, L2 on whole tables of 1e-3, at most 8 epochs (coat: 30), a run ending after two (five) without
a better one. Conversions and delays are in conversion.py.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.training.report import grid

RESULTS = Path(__file__).parent / "results" / "known_truth.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- known truth: drawn by benchmarks/known_truth.py -->", "<!-- known truth: end -->"
SIZE: dict[str, Any] = {"users": 1000, "items": 400, "impressions": 150_000, "eta": 1.0, "ctr": 0.1}
CLICK = rs.Task("click")
TRUTH = "the truth itself"
TOWER: dict[str, Any] = {"dim": 16, "hidden": (64, 32)}


def shared(schema: rs.Schema) -> torch.nn.Module:
    """Towers on shared embeddings, as ESMM has them."""
    return rs.multitask.SharedBottom(schema, dim=16, hidden=(), towers=(64, 32))


def fit(
    model: Any,
    train: rs.Log,
    valid: rs.Log,
    task: str,
    seed: int,
    monitor: str = "auc",
    epochs: int = 8,
    patience: int = 2,
) -> Any:
    encoder = model.schema.encoder
    model.validate = lambda rows: {m: v for m, v in grid(model, rows)[task, "all"].items() if m in ("auc", "logloss")}
    trainer = rs.Trainer(
        model,
        optimizer="adam",
        lr=1e-3,
        batch_size=1024,
        regularization={"embedding": 1e-3},
        epochs=epochs,
        patience=patience,
        monitor=monitor,
        seed=seed,
        progress=False,
    )
    trainer.fit(encoder.encode(train), encoder.encode(valid))
    return model.eval()


def built(make: Any, log: rs.Log, tasks: list[rs.Task], seed: int, *unread: str) -> Any:
    torch.manual_seed(seed)
    schema = log.schema.replace(tasks=tasks)
    log = rs.Log(log.events, schema, users=log.users, items=log.items)
    return make(rs.Encoder(schema).fit(log).schema.without(*unread))


def against(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    p, t = torch.from_numpy(predicted.astype(np.float64)), torch.from_numpy(truth.astype(np.float64))
    values = {
        "auc": rs.metrics.auc(p, t).item(),
        "ratio": (p.mean() / t.mean()).item(),
        "rmse": (p - t).square().mean().sqrt().item(),
    }
    return {k: round(v, 5) for k, v in values.items()}


def parts(log: rs.Log, begin: int) -> tuple[rs.Log, rs.Log]:
    """Training and its last tenth, of rows before row `begin`."""
    rows = np.arange(len(log))
    cut = int(begin * 0.9)
    return log.select(rows[:cut]), log.select(rows[cut:begin])


def position(seed: int, names: list[str]) -> dict[str, dict[str, float]]:
    market = rs.simulator.simulate(**SIZE, seed=seed)
    log = market.log().with_histories()
    begin = int(len(log) * 0.7)
    train, valid = parts(log, begin)
    test, truth = log.select(np.arange(begin, len(log))), market.truth.shown["click"][begin:]
    first = test.with_columns([pl.Series("position", np.ones(len(test), np.int64))])
    tower = {"dim": 16, "shared": (64,), "experts": 2, "hidden": (32,), "towers": (32,)}
    watch = lambda *place: lambda s: rs.multitask.WatchNext(s, position=place, **tower)  # noqa: E731
    made: dict[str, tuple[Any, tuple[str, ...]]] = {
        "ignored": (watch(), ("position",)),
        "feature": (watch(), ()),
        "shallow tower": (watch("position"), ()),
    }
    out = {TRUTH: against(truth, truth)}
    for name in names:
        make, unread = made[name]
        model = fit(built(make, train, [CLICK], seed, *unread), train, valid, "click", seed)
        out[name] = against(model.score(first)["click"], truth)
    return out


def coat(seed: int, names: list[str]) -> dict[str, dict[str, float]]:
    rated, test = rs.datasets.coat(data_dir=DIR[0])
    every = rs.datasets.coat(every=True, data_dir=DIR[0])[0]
    kept = np.random.default_rng(seed).random(len(rated)) < 0.9
    held = rated.events.filter(~pl.Series(kept)).select("user_id", "item_id", held=True)
    free = every.events.join(held, on=["user_id", "item_id"], how="left", maintain_order="left")["held"].is_null()
    train, valid, whole = rated.select(kept), rated.select(~kept), every.select(free)
    weighed = rs.Log(train.events, train.schema, users=train.users, items=train.items, weight="inverse_propensity")
    alone, entire = [rs.Task("liked")], [rs.Task("rated"), rs.Task("liked", given="rated", weight=0.1)]
    escm = lambda method: lambda s: rs.multitask.ESCM2(s, method=method, **TOWER)  # noqa: E731
    made: dict[str, tuple[Any, rs.Log, list[rs.Task]]] = {
        "naive": (shared, train, alone),
        "IPS": (shared, weighed, alone),
        "ESCM2, IPS": (escm("ips"), whole, entire),
        "ESCM2, DR": (escm("dr"), whole, entire),
    }
    out = {}
    for name in names:
        make, log, tasks = made[name]
        model = built(make, log, tasks, seed)
        model = fit(model, log, valid, "liked", seed, epochs=30, patience=5)
        cell = grid(model, test)["liked", "all"]
        out[name] = {k: round(cell[k], 5) for k in ("auc", "gauc", "logloss")}
    return out


DIR: list[str | None] = [None]
QUESTIONS: dict[str, tuple[Any, list[str]]] = {
    "position": (position, ["ignored", "feature", "shallow tower"]),
    "coat": (coat, ["naive", "IPS", "ESCM2, IPS", "ESCM2, DR"]),
}


def read(path: Path) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """{(question, model): {seed: its newest line}}."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    if path.exists():
        for line in path.read_text("utf8").splitlines():
            r = json.loads(line)
            found.setdefault((r["question"], r["model"]), {})[r["seed"]] = r
    return found


def table(path: Path) -> str:
    """Markdown, a table for each question; what was not run is not in it."""
    every, out = read(path), []
    for question, (_, names) in QUESTIONS.items():
        found = {n: every[question, n] for n in [TRUTH, *names] if (question, n) in every}
        if not found:
            continue
        metrics = [k for k in next(iter(next(iter(found.values())).values())) if k not in ("question", "model", "seed")]
        out += [f"**{question}**", "", f"| model | seeds | {' | '.join(metrics)} |", "|---" * (2 + len(metrics)) + "|"]
        for name, seeds in found.items():
            cells = [pages.spread([r[m] for r in seeds.values()]) for m in metrics]
            out.append(f"| {name} | {' '.join(map(str, sorted(seeds)))} | {' | '.join(cells)} |")
        out.append("")
    return "\n".join(out).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    DIR[0] = args.data_dir
    for seed, question in [(s, q) for s in args.seeds for q in args.question] if not args.table else ():
        ask, names = QUESTIONS[question]
        todo = [n for n in names if seed not in read(args.out).get((question, n), {})]
        began = time.perf_counter()
        for name, values in ask(seed, todo).items() if todo else ():
            line = json.dumps({"question": question, "model": name, "seed": seed, **values})
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")
        print(question, seed, f"{time.perf_counter() - began:.0f} s", flush=True)
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
