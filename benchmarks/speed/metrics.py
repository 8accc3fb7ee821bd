"""AUC, GAUC and log loss of ten million rows: seconds on the clock, and of CPU time (user and system), which a busy machine does not lengthen as much.

    OMP_NUM_THREADS=2 python benchmarks/speed/metrics.py

Rows of 500,000 users, float32 scores, labels of 0 and 1, a tenth of them 1. The best of three of each. Adds a line to results/speed_metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recstack import metrics

RESULTS = Path(__file__).parents[1] / "results" / "speed_metrics.jsonl"


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(measure: Callable[[], Any], repeats: int) -> dict[str, float]:
    best = {"wall": float("inf"), "cpu": float("inf")}
    for _ in range(repeats):
        begin, used = time.perf_counter(), cpu()
        measure()
        best = {
            "wall": min(best["wall"], time.perf_counter() - begin),
            "cpu": min(best["cpu"], cpu() - used),
        }
    return {name: round(value, 3) for name, value in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    chance = torch.Generator().manual_seed(0)
    score = torch.randn(given.rows, generator=chance)
    label = (torch.rand(given.rows, generator=chance) < 0.1).float()
    user = torch.randint(max(given.rows // 20, 1), (given.rows,), generator=chance)
    asked: dict[str, Callable[[], Any]] = {
        "auc": lambda: metrics.auc(score, label),
        "gauc": lambda: metrics.gauc(score, label, group=user),
        "logloss": lambda: metrics.logloss(score, label),
    }
    row: dict[str, Any] = {"rows": given.rows, "threads": torch.get_num_threads()}
    row |= {name: timed(measure, given.repeats) for name, measure in asked.items()}
    row["together"] = {kind: round(sum(row[name][kind] for name in asked), 3) for kind in ("wall", "cpu")}
    print(json.dumps(row))
    with RESULTS.open("a", encoding="utf8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
