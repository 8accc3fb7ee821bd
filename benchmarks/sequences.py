"""Sequence and multi-interest retrievers on public sequences: full ranking of the whole catalogue.

    python benchmarks/sequences.py     # the whole table: six data sets, every model, three seeds; skips what --out holds

One seed of every model and data set comes before the next seed of any, each run appends a line of JSON as it ends, and the
table in docs/benchmarks.md is drawn anew after each: stop it where you like, and start it again. `--data`, `--model` and
`--seeds` choose; `--checkpoints` lets a run that was stopped go on from its last epoch; `--table` trains nothing and draws.

movielens-1m: SASRec's ml-1m, the last 200 items before each; of each user the last item is the test, the one before it
    validation. What the user met before is not ranked.
beauty, sports, toys, yelp: S3-Rec's sequences, the last 50 items before each; split and ranked as movielens-1m.
diginetica: SR-GNN's sessions; of the newest tenth of the training sessions the last item is validation, every item but the
    first of the test sessions is a test. Items of the session are ranked too.

An item that training never met cannot be found, and counts as missed. All models alike: Adam 1e-3, matrix products in bf16, a
full softmax (sampled, with 1024 drawn items, on diginetica), except where a line says otherwise; batches of 32 histories of
movielens-1m, 128 of S3-Rec's, 512 sessions; none of it was tuned. DSSM reads the items' attributes and learns from single events,
1024 a batch, by its own in-batch softmax; EGES, ItemCF and popularity have their defaults. At most --epochs epochs, and after
`--patience` of them without a better validation ndcg@10 a run ends; BERT4Rec, cooled, has 60 epochs, a rate that warms up and
then falls as a cosine does, and no patience. The weights of the best epoch are measured on the test part, once.
"""

from __future__ import annotations

import argparse
import gzip
import inspect
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.data import Columns, Requests
from recstack.data.datasets.files import resolve_data_dir

RESULTS = Path(__file__).parent / "results" / "sequences.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- sequences: drawn by benchmarks/sequences.py -->", "<!-- sequences: end -->"


class Data(NamedTuple):
    """One data set, encoded: the rows of each part with their histories, and whose items are not ranked again."""

    encoder: rs.Encoder
    train: Columns
    valid: Columns
    test: Columns
    known: Columns | None  # train and valid together; None where items may come again
    batch_size: int
    options: dict[str, Any]  # of all models


def encoded(parts: tuple[rs.Log, rs.Log, rs.Log], again: bool = False, **more: Any) -> Data:
    encoder = rs.Encoder(parts[0].schema).fit(parts[0])
    train, valid, test = (encoder.encode(part) for part in parts)
    return Data(encoder, train, valid, test, None if again else encoder.encode(parts[0].concat(parts[1])), **more)


def movielens(data_dir: str | None, limit: int | None) -> Data:
    log = some(rs.datasets.sasrec("ml-1m", max_len=200, data_dir=data_dir), limit)
    return encoded(rs.split.leave_last_out(log.with_histories()), batch_size=32, options={"dim": 128, "dropout": 0.2})


def s3rec(name: str, attributes: bool = False) -> Callable[[str | None, int | None], Data]:
    def read(data_dir: str | None, limit: int | None) -> Data:
        log = some(rs.datasets.s3rec(name, max_len=50, data_dir=data_dir), limit)
        if not attributes:
            ids = log.schema.histories[0].of[:1]
            history = rs.History(log.schema.histories[0].name, of=ids, max_len=50)
            log.schema = log.schema.without("attributes", history.name).with_features(history)
        parts = rs.split.leave_last_out(log.with_histories())
        return encoded(parts, batch_size=128, options={"dim": 64, "dropout": 0.5})

    return read


def diginetica(data_dir: str | None, limit: int | None) -> Data:
    folder = resolve_data_dir(data_dir) / "sessions-diginetica"
    training, tests = (gzip.decompress((folder / f"{n}.txt.gz").read_bytes()) for n in ("train_sessions", "test"))
    sessions = [line.split() for line in training.decode().splitlines()][-limit if limit else 0 :]
    first_test, before = len(sessions), []
    for line in tests.decode().splitlines():
        whole = line.split()
        if whole != before:  # else it is the line before without its target
            sessions.append(whole)
        before = whole[:-1]
    events = pl.DataFrame(
        {
            "session": np.repeat(np.arange(len(sessions)), [len(s) for s in sessions]),
            "item_id": [int(item) for session in sessions for item in session],
        }
    ).with_columns(seq=pl.int_range(pl.len()).over("session"), left=pl.int_range(pl.len(), 0, -1).over("session") - 1)
    schema = rs.Schema(
        [
            rs.Categorical("session", "user"),
            rs.Categorical("item_id", "item"),
            rs.History("history", of=("item_id",), max_len=20),
        ],
        [rs.Task("clicked")],
        time="seq",
    )
    log = rs.Log(events, schema, implicit=True, name="diginetica").with_histories()
    session, left = events["session"], events["left"]
    held = (session >= first_test * 9 // 10) & (session < first_test) & (left == 0)
    parts = (
        log.select((session < first_test) & ~held),
        log.select(held),
        log.select((session >= first_test) & (events["seq"] > 0)),
    )
    sampled = {"loss": "sampled_softmax", "negatives": 1024}
    return encoded(parts, again=True, batch_size=512, options={"dim": 100, "dropout": 0.2} | sampled)


def some(log: rs.Log, users: int | None) -> rs.Log:
    """The log of so many users, for a try."""
    if users is None:
        return log
    first = log.events["user_id"].unique(maintain_order=True)[:users]
    return log.select(log.events["user_id"].is_in(first.to_list()))


S3REC = {"beauty": "Beauty", "sports": "Sports_and_Outdoors", "toys": "Toys_and_Games", "yelp": "Yelp"}
DATA = {
    "movielens-1m": movielens,
    **{name: s3rec(full) for name, full in S3REC.items()},
    "diginetica": diginetica,
}
ATTRIBUTES = {name: s3rec(full, attributes=True) for name, full in S3REC.items()}
# name of the line: (model, its options on all sets, its options on some)
Options = dict[str, Any]
MODELS: dict[str, tuple[str, Options, dict[str, Options]]] = {
    "SASRec": ("SASRec", {}, {}),
    "gSASRec": ("SASRec", {"loss": "gbce", "negatives": 256}, {}),
    "BERT4Rec": ("BERT4Rec", {}, {}),
    "BERT4Rec, cooled": ("BERT4Rec", {}, {}),
    "GRU4Rec": ("GRU4Rec", {}, {}),
    "HSTU": ("HSTU", {}, {}),
    "STAMP": ("STAMP", {}, {}),
    "SDM": ("SDM", {"session": 5}, {"diginetica": {"session": 3}}),
    "MIND": ("MIND", {}, {}),
    "ComiRecDR": ("ComiRecDR", {}, {}),
    "ComiRecSA": ("ComiRecSA", {}, {}),
    "YouTubeDNN": ("YouTubeDNN", {}, {}),
    "DSSM, attributes": ("DSSM", {"dim": 32, "hidden": (128, 64), "dropout": 0.2}, {}),
    "EGES, attributes": ("EGES", {"features": ("attributes",)}, {}),
    "ItemCF": ("ItemCF", {}, {}),
    "Popularity": ("Popularity", {}, {}),
}
# of fit, where a line has its own
TRAINING: dict[str, Options] = {"BERT4Rec, cooled": {"schedule": "warmup_cosine", "epochs": 60, "patience": None}}
BATCHES = {"DSSM": 1024}  # the others of the batch are its negatives
SETS: dict[str, list[str]] = {name: [m for m in MODELS if m not in TRAINING] for name in DATA} | {
    "movielens-1m": [
        "SASRec",
        "gSASRec",
        "BERT4Rec",
        "BERT4Rec, cooled",
        "GRU4Rec",
        "HSTU",
        "ItemCF",
        "Popularity",
    ],  # STAMP's memory grows with the square of 200
    "diginetica": ["SASRec", "GRU4Rec", "STAMP", "HSTU", "ItemCF", "Popularity"],
}
# recall@10 and ndcg@10 (diginetica: recall@20 and mrr@20) of full rankings, with where they stand
PUBLISHED: dict[tuple[str, str], tuple[float, float]] = {
    ("movielens-1m", "SASRec"): (0.3058, 0.1779),
    ("movielens-1m", "gSASRec"): (0.3003, 0.1726),
    ("movielens-1m", "BERT4Rec"): (0.2821, 0.1516),
    ("movielens-1m", "BERT4Rec, cooled"): (0.2821, 0.1516),
    ("beauty", "SASRec"): (0.0605, 0.0318),
    ("beauty", "BERT4Rec"): (0.0347, 0.0170),
    ("beauty", "GRU4Rec"): (0.0283, 0.0137),
    ("sports", "SASRec"): (0.0350, 0.0192),
    ("sports", "BERT4Rec"): (0.0191, 0.0099),
    ("sports", "GRU4Rec"): (0.0204, 0.0110),
    ("toys", "SASRec"): (0.0675, 0.0374),
    ("toys", "BERT4Rec"): (0.0203, 0.0099),
    ("toys", "GRU4Rec"): (0.0176, 0.0084),
    ("yelp", "SASRec"): (0.0274, 0.0136),
    ("yelp", "BERT4Rec"): (0.0090, 0.0045),
    ("yelp", "GRU4Rec"): (0.0263, 0.0134),
    ("diginetica", "GRU4Rec"): (0.3079, 0.0822),
    ("diginetica", "STAMP"): (0.4662, 0.1513),
    ("diginetica", "ItemCF"): (0.3575, 0.1157),
    ("diginetica", "Popularity"): (0.0089, 0.0028),
}


def build(name: str, on: str, data: Data, seed: int) -> Any:
    kind, options, others = MODELS[name]
    model = getattr(rs.retrieval, kind)
    given = {**data.options, **options, **others.get(on, {}), "seed": seed}
    if kind != "DSSM":  # whose own it keeps
        given.setdefault("loss", "softmax")
    if name == "YouTubeDNN":
        given["hidden"] = (256, 128, data.options["dim"])
    known = inspect.signature(model).parameters
    return model(data.encoder.schema, **{k: v for k, v in given.items() if k in known})


def run(name: str, on: str, data: Data, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training; what the table and a reader of it need."""
    torch.manual_seed(seed)  # of the initial weights
    model = build(name, on, data, seed)
    begun = time.perf_counter()
    if isinstance(model, torch.nn.Module):
        line = learned(model, name, on, data, seed, args)
    else:
        model.fit(data.train)
        line = {"seconds": round(time.perf_counter() - begun, 1)}
    valued = {"valid": measure(model, data.valid, None if data.known is None else data.train)}
    valued["test"] = measure(model, data.test, data.known)
    return {
        **{f"{part}_{metric}": round(v, 6) for part, values in valued.items() for metric, v in values.items()},
        **line,
        "threads": torch.get_num_threads(),
        "rows": [len(data.train), len(data.valid), len(data.test)],
        "items": data.encoder.catalog.size - 2,
    }


def learned(model: Any, name: str, on: str, data: Data, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train a model, which ends at its best epoch."""
    model.validate = lambda part: measure(model, part, None if data.known is None else data.train)
    folder = None if args.checkpoints is None else args.checkpoints / f"{on}-{name}-{seed}"
    options: Options = {
        "epochs": args.epochs,
        "batch_size": BATCHES.get(MODELS[name][0], data.batch_size),
        "optimizer": "adam",
        "lr": 1e-3,
        "precision": "bf16",
        "monitor": "ndcg@10",
        "patience": args.patience,
        "seed": seed,
        "device": args.device,
        "checkpoint": folder,
        "resume": folder is not None,
    }
    model.fit(data.train, data.valid, **(options | TRAINING.get(name, {})))
    result = model.trained
    assert result is not None
    if result.interrupted and not args.cut:
        raise SystemExit(f"Interrupted after epoch {len(result.epochs)} of {name} on {on}.")
    assert result.best is not None
    if folder is not None and not result.interrupted:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        **({"cut": True} if result.interrupted else {}),
        "epochs": len(result.epochs),
        "best_epoch": result.best["epoch"],
        "seconds": round(sum(epoch["seconds"] for epoch in result.epochs), 1),  # of all goes of a run that was stopped
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def measure(model: Any, part: Columns, known: Columns | None) -> dict[str, float]:
    """Where each row's own item stands in the ranking of all that the user has not in `known` (None: of all)."""
    wanted = torch.from_numpy(part.item_ids.astype(np.int64))
    rank = torch.full((len(part),), torch.inf)
    for start in range(0, len(part), 1024):
        rows = np.arange(start, min(start + 1024, len(part)))
        found = model.recommend(Requests.of(part, rows, seen=known), 20, exclude_seen=known is not None)
        own = (found.ids == wanted[rows].unsqueeze(-1)) & found.mask
        rank[rows] = torch.where(own.any(1), own.int().argmax(1) + 1.0, torch.inf)
    values = {f"recall@{k}": (rank <= k).float().mean() for k in (5, 10, 20)}
    values["ndcg@10"] = torch.where(rank <= 10, 1 / (rank + 1).log2(), 0).mean()
    values["mrr@20"] = torch.where(rank <= 20, 1 / rank, 0).mean()
    return {name: value.item() for name, value in values.items()}


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
        first = next(iter(next(iter(records.values())).values()))
        names = ("recall@20", "mrr@20") if data == "diginetica" else ("recall@10", "ndcg@10")
        lines += [
            f"**{data}**: {first['items']:,} items; {first['rows'][0]:,} events of training, {first['rows'][1]:,} of "
            f"validation, {first['rows'][2]:,} of test.",
            "",
            f"| model | seeds | valid {names[1]} | test {names[0]} | test {names[1]} | published | parameters | best epoch | s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, by_seed in records.items():
            runs = [by_seed[seed] for seed in sorted(by_seed)]
            cells = [name, " ".join(map(str, sorted(by_seed))), pages.spread([r[f"valid_{names[1]}"] for r in runs])]
            cells += [pages.spread([r[f"test_{metric}"] for r in runs]) for metric in names]
            cells.append(" / ".join(f"{v:.4f}" for v in PUBLISHED.get((data, name), ())))
            learned = [r for r in runs if "epochs" in r]
            cells += [
                f"{runs[0]['parameters']:,}" if learned else "",
                " ".join(f"{r['best_epoch']} of {r['epochs']}{', cut' * r.get('cut', False)}" for r in learned),
            ]
            lines.append("| " + " | ".join([*cells, f"{mean(r['seconds'] for r in runs):.0f}"]) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="lines of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=200, help="at most")
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better validation ndcg@10")
    parser.add_argument(
        "--cut",
        action="store_true",
        help="measure a run that Ctrl-C stops, too; its line says so, and it may go on later",
    )
    parser.add_argument("--limit", type=int, help="users (training sessions), for a try")
    parser.add_argument("--checkpoints", type=Path, help="folder; a run that was stopped goes on from there")
    parser.add_argument("--device", help="to train on; the CPU by default")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, only draw")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed, name in [(s, n) for s in args.seeds for n in args.data] if not args.table else ():
        done = read(args.out)
        todo = [
            m for m in args.model if m in SETS[name] and done.get((name, m), {}).get(seed, {"cut": True}).get("cut")
        ]
        read_by = {m: ATTRIBUTES[name] if m.endswith("attributes") else DATA[name] for m in todo}
        data, reader = None, None
        for model in todo:
            if data is None or read_by[model] is not reader:
                reader = read_by[model]
                data = reader(args.data_dir, args.limit)
            line = json.dumps({"data": name, "model": model, "seed": seed, **run(model, name, data, seed, args)})
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")
            pages.put(table(args.out), args.page, BEGIN, END)
            if '"cut": true' in line:
                raise SystemExit(f"Interrupted in {model} on {name}; what it had reached is measured.")
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
