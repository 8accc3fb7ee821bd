"""Behaviour models on real data: GAUC and AUC of each beside an MLP that sees no history.

    python benchmarks/behaviour.py     # the whole table: four data sets, every model, three seeds; skips what --out holds

One seed of every model and data set comes before the next seed of any, each run appends a line of JSON as it ends, and the
table in docs/benchmarks.md is drawn anew after each: stop it where you like, and start it again. `--data`, `--model` and
`--seeds` choose; `--table` trains nothing and draws.

kuairand: KuaiRand-Pure's exposures, is it clicked; train 25 to 29 April, validation 30 April, test 1 to 8 May. Histories are
    the last 50 long views before the exposure, those of the test days among them. Models do not read the user's id: it has
    four rows of training, a fifth of the other parts' users has none, and without it validation AUC was higher (DINBase .741
    for .730, DIN .741 for .739; MLP's .721 for .723) and DIN's validation GAUC too (.658 for .657; MLP's and DINBase's were lower,
    .657 for .659 and .653 for .656). The test had been seen before, with ids.
kuairand-ids: the same with the user's id as a feature, the first five models, one seed; run before the other was thought of.
movielens-1m: films rated, is the rating 4 or 5; of each user the last 10 ratings are the test, the 10 before them validation,
    at most 30 before these training. Histories are the last 50 films with a rating of 4 or 5.
beauty, toys: S3-Rec's sequences, which hold positives only: of each user the last item is the test, the one before it
    validation. Each positive of training meets 4 items drawn anew in each epoch, by the run's seed, from those that the user
    has not in training; each of validation and test meets 20 that the user never met, drawn once (seed 0), the same for all
    models and seeds. Histories are the last 20 items.

All models alike: embeddings of 16, an MLP of 200-80 with dropout 0.3, Adam 1e-3, batch 1024 (256 positives with their
negatives), L2 on whole tables of 1e-3 for exposures and 1e-5 for sequences (chosen on validation: of kuairand by MLP, DINBase
and DIN, of beauty by MLP; the other two sets take theirs); at most 10 epochs on kuairand and 5 elsewhere, and after the first
without a better validation GAUC a run ends. The weights of the best epoch are measured on the test part, once. GAUC is
weighted by impressions; users are told apart by their raw id. What else a model has is at its defaults, but for BST: the MLP
reads what the target became (with all 51 outputs, as published, an epoch of movielens-1m took minutes and ended at a loss
of .693).

GBDT, on exposures, is at its defaults too: at most 500 trees, of which those with the best validation log loss stay; it reads a
history's length and whether the candidate was met in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.data import Columns, Loader

RESULTS = Path(__file__).parent / "results" / "behaviour.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- behaviour: drawn by benchmarks/behaviour.py -->", "<!-- behaviour: end -->"
SAMPLED = 20  # negatives beside each positive of validation and test
DRAWN = 4  # beside each of training


class Part(NamedTuple):
    """What a model is measured on: batches, and the user of every row, numbered by raw id."""

    batches: list[dict[str, torch.Tensor]]
    users: torch.Tensor


class Data(NamedTuple):
    """One data set, encoded. `train` makes the batches of a seed."""

    encoder: rs.Encoder
    train: Callable[[int], Iterable[dict[str, torch.Tensor]]]
    valid: Part
    test: Part
    rows: tuple[int, ...]
    penalty: float  # λ of the embeddings' L2, chosen on validation
    epochs: int  # at most
    unread: tuple[str, ...] = ()  # columns that no model reads
    ordered: Callable[[], Iterable[dict[str, torch.Tensor]]] | None = None  # training in order of the log, for trees


class InSeconds:
    """Batches whose times came in milliseconds."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader:
            yield {k: v // 1000 if k.startswith("@time") else v for k, v in batch.items()}


def kuairand(data_dir: str | None, limit: int | None, unread: tuple[str, ...] = ("user_id",)) -> Data:
    log = rs.datasets.kuairand_pure(["click"], data_dir=data_dir)
    day = log.events["date"]
    parts = [log.select(day < 20220430), log.select(day == 20220430), log.select(day > 20220430)]
    return exposures(parts, limit, penalty=1e-3, epochs=10, timed=True, unread=unread)


def movielens(data_dir: str | None, limit: int | None) -> Data:
    log = rs.datasets.movielens_1m("liked", data_dir=data_dir)
    log.schema = with_history(log.schema, where="liked")
    train, valid, test = rs.split.last_per_user(log.with_histories(), test=10, valid=10)
    newest = pl.col(log.schema.time).rank("ordinal", descending=True).over("user_id") <= 30
    return exposures(
        [train.select(train.events.select(newest).to_series()), valid, test], limit, penalty=1e-3, epochs=5
    )


def exposures(parts: list[rs.Log], limit: int | None, *, timed: bool = False, **more: Any) -> Data:
    """Rows that were shown, with what the user did; `timed` by a clock in milliseconds."""
    parts = [part.select(np.arange(min(limit or len(part), len(part)))) for part in parts]
    encoder = rs.Encoder(parts[0].schema).fit(parts[0])
    columns = [encoder.encode(part) for part in parts]

    def batches(of: Columns, size: int, **options: Any) -> InSeconds | Loader:
        return InSeconds(Loader(of, size, times=True, **options)) if timed else Loader(of, size, **options)

    valid, test = (Part(list(batches(c, 4096)), users(part)) for c, part in zip(columns[1:], parts[1:], strict=True))
    train = lambda seed: batches(columns[0], 1024, shuffle=True, seed=seed)  # noqa: E731
    ordered = lambda: batches(columns[0], 4096)  # noqa: E731
    return Data(encoder, train, valid, test, tuple(len(p) for p in parts), ordered=ordered, **more)


def s3rec(name: str) -> Callable[[str | None, int | None], Data]:
    def read(data_dir: str | None, limit: int | None) -> Data:
        log = rs.datasets.s3rec(name, max_len=20, data_dir=data_dir)
        if limit:
            log = log.select(np.arange(min(limit, len(log))))
        parts = rs.split.leave_last_out(log.with_histories())
        encoder = rs.Encoder(log.schema).fit(parts[0])
        every, columns = encoder.encode(log.with_histories()), [encoder.encode(part) for part in parts]
        valid, test = (
            Part(list(sampled(c, every)), users(part)) for c, part in zip(columns[1:], parts[1:], strict=True)
        )
        train = lambda seed: Loader(columns[0], 256, shuffle=True, seed=seed, negatives=DRAWN)  # noqa: E731
        return Data(encoder, train, valid, test, tuple(len(p) for p in parts), penalty=1e-5, epochs=5)

    return read


def sampled(part: Columns, every: Columns) -> Loader:
    """Each positive and its negatives, which the user never met in any part."""
    part.seen_by_user = every.seen_by_user  # type: ignore[misc]
    return Loader(part, 256, negatives=SAMPLED)


def users(part: rs.Log) -> torch.Tensor:
    return torch.from_numpy(part.events["user_id"].to_numpy().copy())


def with_history(schema: rs.Schema, **changes: Any) -> rs.Schema:
    return schema.replace(features=[replace(f, **changes) if isinstance(f, rs.History) else f for f in schema.features])


DATA = {
    "kuairand": kuairand,
    "movielens-1m": movielens,
    "beauty": s3rec("Beauty"),
    "toys": s3rec("Toys_and_Games"),
    "kuairand-ids": partial(kuairand, unread=()),
}
# MLP: the base model of DIN without its history
MODELS: dict[str, dict[str, Any]] = {
    "MLP": {"norm": None},
    "DINBase": {},
    "DIN": {},
    "DIEN": {},
    "DSIN": {},
    "BST": {"reduction": "target"},
    "TIN": {},
    "SIM": {},
    "CAN": {},
    "HSTU": {},
    "TransAct": {},
    "GBDT": {},
}
TRAINING: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "monitor": "gauc", "patience": 1}


def build(name: str, data: Data) -> torch.nn.Module:
    schema, kind = data.encoder.schema.without(*data.unread), "TextMLP" if name == "MLP" else name
    if name == "MLP":
        schema = schema.without(*(h.name for h in schema.histories))
    return getattr(rs.ranking, kind)(schema, dim=16, hidden=(200, 80), dropout=0.3, **MODELS[name])


def run(name: str, data: Data, seed: int, epochs: int | None) -> dict[str, Any]:
    """One training; what the table and a reader of it need."""
    if name == "GBDT":
        return boosted(data, seed)
    torch.manual_seed(seed)  # of the initial weights
    model = build(name, data)
    model.validate = lambda part: measure(model, part)  # type: ignore[assignment]  # users by raw id, the unknown ones too
    trainer = rs.Trainer(
        model,
        epochs=min(epochs or data.epochs, data.epochs),
        seed=seed,
        regularization={"embedding": data.penalty},
        **TRAINING,
    )
    result = trainer.fit(data.train(seed), data.valid)
    assert result.best is not None
    valued = {part: trainer.evaluate(given) for part, given in (("valid", data.valid), ("test", data.test))}
    return {
        **{f"{part}_{metric}": round(v, 6) for part, values in valued.items() for metric, v in values.items()},
        "epochs": len(result.epochs),
        "best_epoch": result.best["epoch"],
        "seconds": round(result.seconds, 1),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": data.rows,
    }


def boosted(data: Data, seed: int) -> dict[str, Any]:
    """Trees at their defaults, as many as validation log loss wants."""
    assert data.ordered is not None
    begun = time.perf_counter()
    model = rs.ranking.GBDT(data.encoder.schema.without(*data.unread), seed=seed)
    model.fit(data.ordered(), data.valid.batches)
    seconds = time.perf_counter() - begun
    (grown,) = model.trained.values()
    valued = {part: measure(model, given) for part, given in (("valid", data.valid), ("test", data.test))}
    return {
        **{f"{part}_{metric}": round(v, 6) for part, values in valued.items() for metric, v in values.items()},
        "epochs": 1,
        "best_epoch": 1,
        "trees": grown["trees"],
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "parameters": 0,
        "rows": data.rows,
    }


def measure(model: Any, part: Part) -> dict[str, float]:
    (task,) = model.schema.tasks
    score = torch.cat([model(batch)[task.name] for batch in part.batches])
    label = torch.cat([batch[f"{task.column}@label"] for batch in part.batches])
    return {
        "gauc": rs.metrics.gauc(score, label, group=part.users).item(),
        "auc": rs.metrics.auc(score, label).item(),
    }


def read(path: Path) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """{(data, model): {seed: its newest line}}."""
    runs: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf8").splitlines():
            record = json.loads(line)
            runs.setdefault((record["data"], record["model"]), {})[record["seed"]] = record
    return runs


def table(path: Path) -> str:
    """Markdown, a table for each data set; what was not run is not in it."""
    lines, found = [], read(path)
    for data in DATA:
        records = {name: found[data, name] for name in MODELS if (data, name) in found}
        if not records:
            continue
        train, valid, test = next(iter(next(iter(records.values())).values()))["rows"]
        lines += [
            f"**{data}**: {train:,} rows of training, {valid:,} of validation, {test:,} of test.",
            "",
            "| model | seeds | valid GAUC | test GAUC | beside MLP | test AUC | beside MLP | parameters | best epoch (trees) | s |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, by_seed in records.items():
            runs = [by_seed[seed] for seed in sorted(by_seed)]
            cells = [name, " ".join(map(str, sorted(by_seed))), pages.spread([r["valid_gauc"] for r in runs])]
            for metric in ("test_gauc", "test_auc"):
                base = records.get("MLP", {})
                gains = [r[metric] - base[s][metric] for s, r in by_seed.items() if s in base and name != "MLP"]
                cells += [pages.spread([r[metric] for r in runs]), f"{mean(gains):+.4f}" if gains else ""]
            own = "trees" if name == "GBDT" else "best_epoch"
            cells += [f"{runs[0]['parameters']:,}", " ".join(str(r[own]) for r in runs)]
            lines.append("| " + " | ".join([*cells, f"{mean(r['seconds'] for r in runs):.0f}"]) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA)[:-1])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="lines of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="at most, where fewer than above; for a try")
    parser.add_argument("--limit", type=int, help="rows of each part (of all, of the sequences), for a try")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed, name in [(s, n) for s in args.seeds for n in args.data] if not args.table else ():
        done = read(args.out)
        todo = [m for m in args.model if seed not in done.get((name, m), {}) and (m == "MLP" or hasattr(rs.ranking, m))]
        data = DATA[name](args.data_dir, args.limit) if todo else None
        for model in todo:
            assert data is not None
            if model == "GBDT" and data.ordered is None:  # negatives drawn anew each epoch are no rows of trees
                continue
            line = json.dumps({"data": name, "model": model, "seed": seed, **run(model, data, seed, args.epochs)})
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")
            pages.put(table(args.out), args.page, BEGIN, END)
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
