"""Which fields a model lives on: gates, weights of pairs and shuffled columns side by side, on Frappe_x1.

    python benchmarks/importance.py     # a few minutes on one core; appends to --out, and draws the table in docs/benchmarks.md

Four models learn the same rows: COLD with its squeeze-and-excitation gates, AutoFIS in its search, FwFM, and the DeepFM whose
columns are shuffled. All have embeddings of 10, Adam 1e-3 (AutoFIS's gates GRDA), batches of 4096, L2 of 0.05 on whole tables
(FwFM 5e-6, as published), and stop after the second epoch (FwFM: the tenth) without a better validation AUC. Everything is read from the
validation part; the test part is not touched. Rankings are compared by Kendall's tau.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pages
import torch

import recstack as rs

RESULTS = Path(__file__).parent / "results" / "importance.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- importance: drawn by benchmarks/importance.py -->", "<!-- importance: end -->"
WAYS = {
    "SE gates": "COLD's mean gate",
    "AutoFIS": "sum of the sizes of AutoFIS's gates",
    "FwFM": "sum of the sizes of FwFM's weights, times mean lengths of the vectors",
    "permutation": "AUC that DeepFM loses, mean of five shuffles",
}


def measure(seed: int, epochs: int, data_dir: str | None) -> dict[str, Any]:
    """{way: {field: importance}} and the validation AUC of each model."""
    logs = rs.datasets.frappe(data_dir=data_dir)
    encoder = rs.Encoder(logs[0].schema).fit(logs[0])
    train, valid = (encoder.encode(log) for log in logs[:2])
    gated = {"optimizer": {"gates": ("grda", {"c": 0.002}), "default": "adam"}, "lr": {"gates": 1.0, "default": 1e-3}}

    def trained(kind: Any, penalty: float, options: dict[str, Any], **more: Any) -> Any:
        torch.manual_seed(seed)
        settings = {"optimizer": "adam", "lr": 1e-3, "batch_size": 4096, "monitor": "auc", "patience": 2}
        settings = {**settings, "epochs": epochs, **more}
        model = kind(encoder.schema, dim=10, **options)
        model.fit(train, valid, seed=seed, regularization={"embedding": penalty}, **settings)
        aucs[kind.__name__] = round(model.trained.best["value"], 5)
        return model

    aucs: dict[str, float] = {}
    wide = {"hidden": (400, 400, 400), "dropout": 0.2}
    scout = trained(rs.pre_ranking.COLD, 0.05, wide)
    search = trained(rs.ranking.AutoFIS, 0.05, wide, **gated)
    weighted = trained(
        rs.ranking.FwFM, 5e-6, {}, epochs=100, patience=10
    )  # slow to leave the linear part, at a second each
    deep = trained(rs.ranking.DeepFM, 0.05, wide)
    drops = rs.permutation_importance(deep, valid, "auc", seed=seed)
    found = {
        "SE gates": scout.importance(valid),
        "AutoFIS": rs.interaction_strengths(search).fields(),
        "FwFM": rs.interaction_strengths(weighted, valid).fields(),
        "permutation": {name: drop.mean for name, drop in drops.items()},
    }
    gates = search.strengths()
    return {
        "seed": seed,
        "auc": aucs,
        "closed": [sum(gate == 0 for gate in gates.values()), len(gates)],
        "importance": {way: {k: round(v, 5) for k, v in values.items()} for way, values in found.items()},
    }


def table(record: dict[str, Any]) -> str:
    """Markdown: each field with its places, then the agreement of every two rankings."""
    found = record["importance"]
    place = {way: {name: i for i, name in enumerate(values, 1)} for way, values in found.items()}
    names = list(found["permutation"])
    lines = [f"| field | {' | '.join(WAYS)} |", "|---|" + "---|" * len(WAYS)]
    lines += [
        f"| {name} | " + " | ".join(f"{place[way][name]} ({found[way][name]:.4g})" for way in WAYS) + " |"
        for name in names
    ]
    lines += ["", f"| Kendall's τ | {' | '.join(WAYS)} |", "|---|" + "---|" * len(WAYS)]
    for a in WAYS:
        cells = ["" if a == b else f"{rs.kendall_tau(found[a], found[b]):.2f}" for b in WAYS]
        lines.append(f"| {a} | " + " | ".join(cells) + " |")
    aucs = ", ".join(f"{name} {value:.4f}" for name, value in record["auc"].items())
    closed, every = record["closed"]
    lines += [
        "",
        f"Seed {record['seed']}; place (value). Validation AUC: {aucs}. AutoFIS closed {closed} of {every} pairs.",
    ]
    return "\n".join([*lines, "", *(f"- *{way}*: {what}." for way, what in WAYS.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20, help="at most")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the line is appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the table is drawn into")
    parser.add_argument("--table", action="store_true", help="train nothing, draw the newest line")
    args = parser.parse_args()
    if not args.table:
        record = measure(args.seed, args.epochs, args.data_dir)
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(record) + "\n")
    newest = json.loads(args.out.read_text(encoding="utf8").splitlines()[-1])
    pages.put(table(newest), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
