"""Frappe_x1 (BARS): which app is used in a context; 202,027 / 57,722 / 28,860 rows, ten categorical fields.

    python benchmarks/frappe.py --model DeepFM DCNv2 --seeds 0 1 2     # appends a line of JSON per run, as it ends
    python benchmarks/frappe.py --table                                # mean ± deviation beside the published figures

The published settings: embeddings of 10 from N(0, 1e-4²), MLP 400-400-400 with batch normalisation, Adam 1e-3, batch 4096,
L2 of .05 on whole tables (the first-order table of DeepFM too) at every step, gradients clipped at norm 10; validation AUC
after each epoch: one that is not better divides the rate by 10, the second in a row ends the run. The weights of the best
validation epoch are measured on the test part, once.

Where AFN's own train file is not at hand the items of the training negatives are drawn again (see `rs.datasets.frappe`;
valid and test are AFN's): the lines say so, and whoever quotes them should.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import recstack as rs
from recstack.data.datasets.files import has_file
from recstack.data.datasets.frappe import ABOUT

RESULTS = Path(__file__).parent / "results" / "frappe.jsonl"
MODELS: dict[str, dict[str, Any]] = {
    "DeepFM": {"dim": 10, "hidden": (400, 400, 400), "dropout": 0.2},
    "DCNv2": {"dim": 10, "hidden": (400, 400, 400), "dropout": 0.4, "layers": 4},
}
TRAINING: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 1e-3,
    "batch_size": 4096,
    "regularization": {"embedding": 0.05},
    "clip": 10.0,
    "schedule": "plateau",
    "monitor": "auc",
    "patience": 2,
    "min_delta": 1e-6,
}
# Mean and deviation of test AUC and logloss over five runs, and parameters, as BARS prints them.
PUBLISHED = {
    "DeepFM": {"auc": (0.983947, 0.000161), "logloss": (0.149462, 0.001753), "parameters": 423280},
    "DCNv2": {"auc": (0.983824, 0.000435), "logloss": (0.152036, 0.002065), "parameters": 458391},
}


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, those that BARS counts): there a field has one row besides its ids; here the tables of a width share another,
    for padding."""
    count = sum(p.numel() for p in model.parameters())
    return count, count - sum(m.embedding_dim for m in model.modules() if isinstance(m, torch.nn.Embedding))


def run(name: str, seed: int, epochs: int, parts: list[Any], encoder: rs.Encoder) -> dict[str, Any]:
    """One training; what the table and a reader of it need."""
    train, valid, test = parts
    torch.manual_seed(seed)  # of the initial weights
    model = getattr(rs.ranking, name)(encoder.schema, **MODELS[name])
    trainer = rs.Trainer(model, epochs=epochs, seed=seed, **TRAINING)
    result = trainer.fit(train, valid)
    assert result.best is not None
    valued = {part: trainer.evaluate(data) for part, data in (("valid", valid), ("test", test))}
    everything, counted = parameters(model)
    return {
        "data": "frappe_x1",
        "model": name,
        "seed": seed,
        **{f"{part}_{m}": round(v[f"click/{m}"], 6) for part, v in valued.items() for m in ("auc", "logloss")},
        "epochs": len(result.epochs),
        "best_epoch": result.best["epoch"],
        "seconds": round(result.seconds, 1),
        "samples_per_second": [round(record["rate"]) for record in result.epochs],
        "threads": torch.get_num_threads(),
        "parameters": everything,
        "parameters_without_padding": counted,
    }


def table(path: Path) -> str:
    """Markdown: the newest run of each seed."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf8").splitlines():
        record = json.loads(line)
        runs.setdefault(record["model"], {})[record["seed"]] = record
    rows = [
        "| model | seeds | valid AUC | test AUC | published | test logloss | published | parameters¹ | published | epochs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_seed in runs.items():
        all_runs, known = [by_seed[seed] for seed in sorted(by_seed)], PUBLISHED[name]
        cells = [name, " ".join(str(r["seed"]) for r in all_runs), spread([r["valid_auc"] for r in all_runs])]
        for metric in ("auc", "logloss"):
            value, deviation = known[metric]
            cells += [spread([r[f"test_{metric}"] for r in all_runs]), f"{value:.5f} ± {deviation:.5f}"]
        cells += [f"{all_runs[0]['parameters_without_padding']:,}", f"{known['parameters']:,}"]
        cells.append(" ".join(str(r["epochs"]) for r in all_runs))
        rows.append("| " + " | ".join(cells) + " |")
    drawn = {r["train"] for by_seed in runs.values() for r in by_seed.values()}
    notes = [
        "",
        f"Train: {'; '.join(sorted(drawn))}. Valid and test are AFN's. Published: BARS Frappe_x1, five runs.",
        "¹ without the padding rows, which the published count does not have.",
    ]
    return "\n".join(rows + notes)


def spread(values: list[float]) -> str:
    return f"{mean(values):.5f}" + (f" ± {stdev(values):.5f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100, help="at most; validation ends a run long before")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--table", action="store_true", help="train nothing, print what --out holds")
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    logs = rs.datasets.frappe(data_dir=args.data_dir)
    encoder = rs.Encoder(logs[0].schema).fit(logs[0])
    parts = [encoder.encode(log) for log in logs]
    own = has_file(ABOUT[0].folder(args.data_dir), "train.libsvm")
    train = "AFN's own" if own else "items of the negatives drawn again"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.model:
        for seed in args.seeds:
            line = json.dumps(run(name, seed, args.epochs, parts, encoder) | {"train": train})
            print(line, flush=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
