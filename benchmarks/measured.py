"""What the benchmarks found of each model, in words, for the catalogue.

python benchmarks/measured.py && make stubs     # results/*.jsonl → src/recstack/models/measured.json → docs/catalog.md
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import frappe
import pages
import sequences

from recstack import catalog

HERE = Path(__file__).parent
OUT = HERE.parent / "src" / "recstack" / "models" / "measured.json"


def lines(name: str) -> list[dict[str, Any]]:
    path = HERE / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf8").splitlines()] if path.exists() else []


def accuracy(out: dict[str, list[str]]) -> None:
    """Frappe_x1, a sentence for each line of its table that is the class under its own options."""
    for label, seeds in frappe.read(frappe.RESULTS).items():
        if label not in frappe.ROWS:  # measured with settings of before
            continue
        row, records = frappe.ROWS[label], list(seeds.values())
        auc, logloss = (pages.spread([r[f"test_{m}"] for r in records], 5) for m in ("auc", "logloss"))
        where = "Frappe_x1" if label == row.model else f"Frappe_x1 as {label}"
        out[row.model].append(f"{where}: test AUC {auc}, logloss {logloss} ({_seeds(len(records))})")


def behaviour(out: dict[str, list[str]]) -> None:
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for r in lines("behaviour"):
        found[r["model"], r["data"]][r["seed"]] = r
    for (model, data), seeds in found.items():
        gauc = pages.spread([r["test_gauc"] for r in seeds.values()], 5)
        out["TextMLP" if model == "MLP" else model].append(f"{data}: test GAUC {gauc} ({_seeds(len(seeds))})")


def speed(out: dict[str, list[str]]) -> None:
    """Of the newest run of each."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for r in lines("speed_ranking"):
        if r["toolkit"] == "RecStack":
            found[r["model"]][r["run"]].append(r)
    for label, runs in found.items():
        model, _, variant = label.partition(", ")
        newest = runs[list(runs)[-1]]
        rate = mean(r["samples_per_processor_second"] for r in newest)
        memory = max(r["peak_gb"] for r in newest)
        what = f" ({variant})" if variant else ""
        out[model.rstrip("+")].append(
            f"trains on {rate:,.0f} Criteo-shaped samples per processor second in {memory:.2f} GB{what}"
        )


def sequences_(out: dict[str, list[str]]) -> None:
    """Full rankings of sequences; a line that is the class under other options says its name."""
    for (data, label), seeds in sequences.read(sequences.RESULTS).items():
        model, metric = sequences.MODELS[label][0], "mrr@20" if data == "diginetica" else "ndcg@10"
        value = pages.spread([r[f"test_{metric}"] for r in seeds.values()], 5)
        where = data if label == model else f"{data} as {label}"
        out[model].append(f"{where}: test {metric} {value} ({_seeds(len(seeds))})")


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n > 1)}"


if __name__ == "__main__":
    keys = {(e.stage, e.name): e.key for e in catalog.models()}
    said: dict[str, list[str]] = defaultdict(list)
    for stage, part in (("ranking", accuracy), ("ranking", behaviour), ("ranking", speed), ("retrieval", sequences_)):
        found: dict[str, list[str]] = defaultdict(list)
        part(found)
        for model, words in found.items():
            said[keys.get((stage, model), model)] += words
    OUT.write_text(json.dumps(dict(sorted(said.items())), indent=1) + "\n", "utf8")
    print(f"{OUT}: {len(said)} models")
