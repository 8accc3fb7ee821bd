"""Labels that are seen of what was chosen only: conversions of clicks, orders that come late, ratings of coats that people took.

    python benchmarks/conversion.py                      # every part, three seeds; skips what --out holds
    python benchmarks/conversion.py --part delays --seeds 0
    python benchmarks/conversion.py --table               # trains nothing, draws the tables into docs/benchmarks.md

clicks: the simulator's conversion rate, learned from clicks, held against the true probability of every impression of the last
    tenth of the log, clicked or not. All models are the same two towers on the same embeddings. ESCM2 weighs the conversion 0.1 and the
    product 1.
delays: the same market with orders that come two days late on average, read at day fourteen of twenty; learned from what
    happened since day six, held against the true probability of the clicks of the last six days. The oracle knows which
    clicks will convert.
coat: Coat's ratings of 3 and more: trained on coats that people chose, measured on coats drawn at random. "IPS" weighs ratings by
    the authors' inverse propensities, ESCM2 learns its own on all 87,000 pairs; a tenth of the chosen is validation, whose AUC
    chooses the epoch (of 30, a run ending after five without a better one). L2 on whole tables of 1e-3.

AUC on the simulator counts each row as a positive of weight p and a negative of weight 1 - p, so that the truth has the
greatest; KL is the mean divergence from the truth, in thousandths of a nat; ratio is the mean prediction over the mean truth.
Epochs are chosen on validation rows, which know no truth: of clicks (and the penalty, 1e-4 or 1e-3 on whole tables) by the log
loss of click-and-order on all impressions, of
delays by each model's own loss (that of weighed fake negatives weighs by its own predictions and cannot choose: as many as
calibrated ones took).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.calibration import true_from_stream
from recstack.data import delays
from recstack.metrics import auc
from recstack.training.report import grid

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "conversion.jsonl"
PAGE = HERE.parent / "docs" / "benchmarks.md"
PARTS = ("clicks", "delays", "coat")
MARKET = {"users": 500, "items": 300, "impressions": 200_000, "cold": 0.0}
TOWERS, DROPOUT = (64, 32), 0.3
PENALTIES = (1e-4, 1e-3)  # on whole tables


# -- measured against the truth -----------------------------------------------------------------------------------------
def against(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    p, q = (torch.from_numpy(np.asarray(x, np.float64)).clamp(1e-7, 1 - 1e-7) for x in (truth, found))
    twice = torch.cat([q, q]), torch.cat([torch.ones_like(p), torch.zeros_like(p)])
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    return {
        "auc": float(auc(*twice, weight=torch.cat([p, 1 - p]))),
        "kl": float(kl.mean()) * 1000,
        "ratio": float(q.mean() / p.mean()),
    }


def schema(market: Any, tasks: list[rs.Task]) -> rs.Schema:
    """Without history and position: what converts depends on neither."""
    return market.schema(tasks).without("clicked", "position")


def trained(
    build: Callable[[rs.Schema], Any], train: Any, valid: Any, monitor: str | None, seed: int, **options: Any
) -> Any:
    torch.manual_seed(seed)
    encoder = rs.Encoder(train.schema).fit(train)
    options = {"epochs": 15, "patience": 2, "lr": 1e-3, "optimizer": "adam", "batch_size": 1024, **options}
    return build(encoder.schema).fit(train, valid, monitor=monitor, seed=seed, progress=False, **options)


def epochs(model: Any) -> int:
    """After which the weights are those that it has."""
    return int(model.trained.best["epoch"]) if model.trained.best else len(model.trained.epochs)


# -- clicks -------------------------------------------------------------------------------------------------------------
def esmm_tasks(order: float, ordered: float) -> list[rs.Task]:
    return [
        rs.Task("click"),
        rs.Task("order", given="click", weight=order),
        rs.Task("ordered", product=("click", "order"), weight=ordered),
    ]


def escm2(method: str, **options: Any) -> Callable[[rs.Schema], Any]:
    return lambda schema: rs.multitask.ESCM2(schema, hidden=TOWERS, method=method, dropout=DROPOUT, **options)


def esmm(schema: rs.Schema) -> Any:
    return rs.multitask.ESMM(schema, dim=16, hidden=TOWERS, dropout=DROPOUT)


CLICKS: dict[str, tuple[Callable[[rs.Schema], Any], float, float]] = {
    "naive: clicked rows only": (esmm, 1.0, 0.0),
    "ESMM": (esmm, 0.0, 1.0),
    "ESCM2-IPS": (escm2("ips"), 0.1, 1.0),
    "ESCM2-DR": (escm2("dr"), 0.1, 1.0),
}


def clicks(seed: int, args: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    market = rs.simulator.simulate(seed=seed, **MARKET)
    events = market.events.with_columns(convert=market.truth.shown["convert"])
    for name, (build, order, ordered) in CLICKS.items():
        if name in done:
            continue
        log = rs.data.Log(
            events, schema(market, esmm_tasks(order, ordered)), users=market.users, items=market.items, name="simulator"
        )
        train, valid, test = rs.split.by_time(log)
        begun = time.process_time()
        models = []
        for penalty in PENALTIES:
            options = {"lr": args.lr, "batch_size": 2048, "regularization": {"embedding": penalty}}
            models.append(trained(build, train, valid, "ordered/logloss", seed, **options))
        values = [one.trained.best["value"] for one in models]
        model, penalty = models[int(np.argmin(values))], PENALTIES[int(np.argmin(values))]
        line = against(test.events["convert"].to_numpy(), model.score(test)["order"])
        spent = (time.process_time() - begun) / len(PENALTIES)
        yield {"model": name, **line, "penalty": penalty, "epochs": epochs(model), "seconds": spent}
    if "the truth" not in done:
        truth = test_truth(events)
        yield {"model": "the truth", **against(truth, truth), "epochs": 0, "seconds": 0.0}


def test_truth(events: pl.DataFrame) -> np.ndarray:
    return events["convert"].to_numpy()[-len(events) // 10 :]


# -- delays -------------------------------------------------------------------------------------------------------------
DELAYED = {
    **MARKET,
    "impressions": 400_000,
    "days": 20.0,
    "order_delay": 2.0,
    "ctr": 0.2,
    "cart_rate": 0.5,
    "order_rate": 0.5,
}
DAY = 86_400


def delayed(seed: int, args: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    market = rs.simulator.simulate(seed=seed, **DELAYED)
    events = market.events.with_columns(convert=market.truth.shown["convert"]).filter(pl.col("click") == 1)
    since, now = 6 * DAY, 14 * DAY
    later = events.filter(pl.col("time") > now)
    known = delays.as_of(events.filter(pl.col("time") > since), now)
    ripe = known.with_columns(order=pl.col("order_time").is_not_null().cast(pl.Float32))
    stream = delays.stream(events, now, since=since)
    plain, weighed = rs.Task("order"), rs.Task("order", loss="fake_negative_weighted")
    wait = rs.Task("delay", kind="regression", given="order", weight=0)
    naive = lambda schema: rs.multitask.SharedBottom(schema, hidden=(), towers=TOWERS, dropout=DROPOUT)  # noqa: E731
    dfm = lambda schema: rs.multitask.DFM(schema, hidden=TOWERS, dropout=DROPOUT)  # noqa: E731
    rows = {
        "naive: not yet is never": (known, [plain], naive),
        "DFM": (known, [plain, wait], dfm),
        "fake negatives, calibrated": (stream, [plain], naive),
        "fake negatives, weighed": (stream, [weighed], naive),
        "oracle: ripe labels": (ripe, [plain], naive),
    }
    rng = np.random.default_rng(seed)
    for name, (frame, tasks, build) in rows.items():
        if name in done:
            continue
        held = rng.random(len(frame)) < 0.1
        train, valid = (
            rs.data.Log(frame.filter(part), schema(market, tasks), users=market.users, items=market.items)
            for part in (~held, held)
        )
        test = rs.data.Log(later, schema(market, [plain]), users=market.users, items=market.items)
        begun = time.process_time()
        if name.endswith("weighed"):
            chosen = pages.read(args.out, "part")["delays", "fake negatives, calibrated"][seed]["epochs"]
            model = trained(build, train, valid, None, seed, epochs=chosen, patience=None)
        else:
            model = trained(build, train, valid, "loss", seed)
        chance = model.score(model.schema.encoder.encode(test, labels=False))["order"]
        if name.endswith("calibrated"):
            chance = true_from_stream(torch.from_numpy(chance).double().logit()).sigmoid().numpy()
        line = against(later["convert"].to_numpy(), chance)
        yield {"model": name, **line, "epochs": epochs(model), "seconds": time.process_time() - begun}


# -- coat ---------------------------------------------------------------------------------------------------------------
def coat(seed: int, args: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    rated, test = rs.datasets.coat(data_dir=args.data_dir)
    every = rs.datasets.coat(every=True, data_dir=args.data_dir)[0]
    kept = np.random.default_rng(seed).random(len(rated)) < 0.9
    held = rated.events.filter(~pl.Series(kept)).select("user_id", "item_id", held=True)
    free = every.events.join(held, on=["user_id", "item_id"], how="left", maintain_order="left")["held"].is_null()
    chosen, valid = rated.select(kept), rated.select(~kept)
    weighed = rs.Log(chosen.events, chosen.schema, users=chosen.users, items=chosen.items, weight="inverse_propensity")
    alone, entire = [rs.Task("liked")], [rs.Task("rated"), rs.Task("liked", given="rated", weight=0.1)]
    towers = lambda schema: rs.multitask.SharedBottom(schema, dim=16, hidden=(), towers=TOWERS)  # noqa: E731
    debiased = lambda method: lambda schema: rs.multitask.ESCM2(schema, dim=16, hidden=TOWERS, method=method)  # noqa: E731
    rows = {
        "naive": (chosen, alone, towers),
        "IPS": (weighed, alone, towers),
        "ESCM2, IPS": (every.select(free), entire, debiased("ips")),
        "ESCM2, DR": (every.select(free), entire, debiased("dr")),
    }
    options = {"epochs": 30, "patience": 5, "regularization": {"embedding": 1e-3}}
    for name, (log, tasks, build) in rows.items():
        if name in done:
            continue
        train = rs.Log(log.events, log.schema.replace(tasks=tasks), users=log.users, items=log.items, weight=log.weight)
        begun = time.process_time()
        model = trained(build, train, valid, "liked/auc", seed, **options)
        cell = grid(model, test)["liked", "all"]
        line = {metric: cell[metric] for metric in ("auc", "gauc", "logloss")}
        yield {"model": name, **line, "epochs": epochs(model), "seconds": time.process_time() - begun}


RUN = {"clicks": clicks, "delays": delayed, "coat": coat}
TRUTHS = {"auc": ("AUC", 4), "kl": ("KL · 1000", 2), "ratio": ("ratio", 3), "seconds": ("s", 0)}
COLUMNS = {"clicks": TRUTHS, "delays": TRUTHS, "coat": {m: (m, 4) for m in ("auc", "gauc", "logloss")}}


# -- lines and tables ---------------------------------------------------------------------------------------------------
def table(path: Path, part: str) -> str:
    """Markdown; what was not run is not in it."""
    columns = COLUMNS[part]
    lines = ["| " + " | ".join(["model", *(head for head, _ in columns.values())]) + " |"]
    lines.append("|" + "---|" * (len(columns) + 1))
    for (of, name), seeds in pages.read(path, "part").items():
        if of == part:
            values = {key: [r[key] for r in seeds.values()] for key in columns}
            cells = [
                f"{np.mean(v):.0f}" if k == "seconds" else pages.spread(v, columns[k][1]) for k, v in values.items()
            ]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def draw(path: Path, page: Path) -> None:
    for part in PARTS:
        begin, end = (
            f"<!-- conversion, {part}: drawn by benchmarks/conversion.py -->",
            f"<!-- conversion, {part}: end -->",
        )
        pages.put(table(path, part), page, begin, end)


def main() -> None:
    parser = pages.options(__doc__, RESULTS, PAGE)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--lr", type=float, default=1e-3, help="of the clicks")
    args = parser.parse_args()
    for part in [] if args.table else args.part:
        for seed in args.seeds:
            done = {name for (of, name), seeds in pages.read(args.out, "part").items() if of == part and seed in seeds}
            for record in RUN[part](seed, args, done):
                rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()}
                pages.append(args.out, {"part": part, "seed": seed, **rounded})
    draw(args.out, args.page)


if __name__ == "__main__":
    main()
