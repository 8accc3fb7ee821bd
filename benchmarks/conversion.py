"""Conversions that are seen of clicks only, and that come late.

    python benchmarks/conversion.py                      # every part, three seeds; skips what --out holds
    python benchmarks/conversion.py --part delays --seed 0

clicks: the simulator's conversion rate, learned from clicks, held against the true probability of every impression of the last
    tenth of the log, clicked or not. All models are the same two towers on the same embeddings. ESCM2 weighs the conversion 0.1 and the
    product 1.
delays: the same market with orders that come two days late on average, read at day fourteen of twenty; learned from what
    happened since day six, held against the true probability of the clicks of the last six days. The oracle knows which
    clicks will convert.

AUC on the simulator counts each row as a positive of weight p and a negative of weight 1 - p, so that the truth has the
greatest; KL is the mean divergence from the truth, in thousandths of a nat; ratio is the mean prediction over the mean truth.
Epochs are chosen on validation rows, which know no truth: of clicks (and the penalty, 1e-4 or 1e-3 on whole tables) by the log
loss of click-and-order on all impressions, of
delays by each model's own loss (that of weighed fake negatives weighs by its own predictions and cannot choose: as many as
calibrated ones took). Coat is in known_truth.py.
"""

from __future__ import annotations

import argparse
import json
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

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "conversion.jsonl"
PAGE = HERE.parent / "docs" / "benchmarks.md"
PARTS = ("clicks", "delays")
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
            chosen = read(args.out)["delays"]["fake negatives, calibrated"][seed]["epochs"]
            model = trained(build, train, valid, None, seed, epochs=chosen, patience=None)
        else:
            model = trained(build, train, valid, "loss", seed)
        chance = model.score(model.schema.encoder.encode(test, labels=False))["order"]
        if name.endswith("calibrated"):
            chance = true_from_stream(torch.from_numpy(chance).double().logit()).sigmoid().numpy()
        line = against(later["convert"].to_numpy(), chance)
        yield {"model": name, **line, "epochs": epochs(model), "seconds": time.process_time() - begun}


RUN = {"clicks": clicks, "delays": delayed}
COLUMNS = {
    "clicks": {"auc": ("AUC", 4), "kl": ("KL · 1000", 2), "ratio": ("ratio", 3)},
    "delays": {"auc": ("AUC", 4), "kl": ("KL · 1000", 2), "ratio": ("ratio", 3)},
}


# -- lines and tables ---------------------------------------------------------------------------------------------------
def read(path: Path) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """{part: {model: {seed: its newest line}}}, in the order of the lines."""
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for line in path.read_text(encoding="utf8").splitlines() if path.exists() else []:
        record = json.loads(line)
        found.setdefault(record["part"], {}).setdefault(record["model"], {})[record["seed"]] = record
    return found


def table(path: Path, part: str) -> str:
    """Markdown; what was not run is not in it."""
    columns = COLUMNS[part]
    lines = ["| " + " | ".join(["model", *(head for head, _ in columns.values()), "s"]) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for name, seeds in read(path).get(part, {}).items():
        records = list(seeds.values())
        cells = [pages.spread([r[key] for r in records], digits) for key, (_, digits) in columns.items()]
        lines.append("| " + " | ".join([name, *cells, f"{np.mean([r['seconds'] for r in records]):.0f}"]) + " |")
    return "\n".join(lines)


def draw(path: Path, page: Path) -> None:
    for part in PARTS:
        begin, end = (
            f"<!-- conversion, {part}: drawn by benchmarks/conversion.py -->",
            f"<!-- conversion, {part}: end -->",
        )
        pages.put(table(path, part), page, begin, end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=1e-3, help="of the clicks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for part in [] if args.table else args.part:
        for seed in args.seed:
            done = {name for name, seeds in read(args.out).get(part, {}).items() if seed in seeds}
            for record in RUN[part](seed, args, done):
                rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()}
                line = json.dumps({"part": part, "seed": seed, **rounded})
                print(line, flush=True)
                with args.out.open("a", encoding="utf8") as file:
                    file.write(line + "\n")
    if args.page.exists():
        draw(args.out, args.page)


if __name__ == "__main__":
    main()
