"""Time and memory against the length of a history: searches beside attention over all of it.

    python benchmarks/long_history.py     # every model at 100, 1,000 and 10,000 events; each in a process of its own

Each run appends a line of JSON, and the table in docs/performance.md is drawn anew; `--table` measures nothing and draws.

A training step is `losses` and its gradients (no optimiser) for 8 requests of one candidate; scoring is one request of 100
candidates, without gradients. Histories are full: item (10,000 ids) and shelf (500), embeddings of 16 each, random. Time is
the processor's, one thread, the median of the repetitions after one that does not count; memory is the growth of the
process's peak from before its first batch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pages
import torch

import recstack as rs

RESULTS = Path(__file__).parent / "results" / "long_history.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- long history: drawn by benchmarks/long_history.py -->", "<!-- long history: end -->"
LENGTHS = (100, 1_000, 10_000)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "DIN": ("DIN", {}),
    "target transformer": ("BST", {"reduction": "target", "hidden": (200, 80)}),
    "SIM, soft": ("SIM", {}),
    "SIM, hard": ("SIM", {"search": "hard"}),
    "ETA": ("ETA", {}),
    "SDIM": ("SDIM", {}),
    "TWIN": ("TWIN", {}),
}
REQUESTS, CANDIDATES = 8, 100


def measured(name: str, length: int, repeat: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    schema = rs.Schema(
        [
            rs.Categorical("item", "item", size=10_000),
            rs.Categorical("shelf", "item", size=500),
            rs.History("seen", of=("item", "shelf"), max_len=length),
        ],
        [rs.Task("click")],
    )
    kind, options = MODELS[name]
    model = getattr(rs.ranking, kind)(schema, **options)
    run(model.train(), batch(REQUESTS, 1, 10, schema), 1)  # what the first call costs once
    before = peak()
    model.eval()
    with torch.no_grad():
        score = run(model, batch(1, CANDIDATES, length, schema), repeat)
    scored = peak()
    train = run(model.train(), batch(REQUESTS, 1, length, schema), repeat)
    return {
        "model": name,
        "length": length,
        "train_ms": round(1e3 * train / REQUESTS, 3),
        "score_ms": round(1e3 * score / CANDIDATES, 4),
        "train_mib": round(peak() - before, 1),
        "score_mib": round(scored - before, 1),
        "repeat": repeat,
        "torch": torch.__version__,
    }


def batch(requests: int, candidates: int, length: int, schema: rs.Schema) -> dict[str, torch.Tensor]:
    def ids(name: str, *shape: int) -> torch.Tensor:
        return torch.randint(2, schema.feature(name).size, shape, dtype=torch.int32)  # type: ignore[attr-defined]

    out = {name: ids(name, requests, candidates) for name in ("item", "shelf")}
    out |= {f"{name}@seen": ids(name, requests, length) for name in ("item", "shelf")}
    return out | {"click@label": torch.rand(requests, candidates).round()}


def run(model: Any, given: dict[str, torch.Tensor], repeat: int) -> float:
    """Seconds of the processor, the median."""
    seconds = []
    for _ in range(repeat + 1):
        start = time.process_time()
        if model.training:
            model.zero_grad()
            sum(model.losses(given).values()).backward()
        else:
            model(given)
        seconds.append(time.process_time() - start)
    return median(seconds[1:])


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(path: Path) -> str:
    """Markdown; the newest line of each model and length."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf8").splitlines() if path.exists() else ():
        record = json.loads(line)
        found.setdefault(record["model"], {})[record["length"]] = record
    heads = [f"{what}, {n:,}" for what in ("train ms", "score ms", "train MiB", "score MiB") for n in LENGTHS]
    lines = ["| model | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    shown: list[tuple[str, Callable[[float], str]]] = [
        ("train_ms", "{:.2f}".format),
        ("score_ms", "{:.3f}".format),
        ("train_mib", "{:.0f}".format),
        ("score_mib", "{:.0f}".format),
    ]
    for name in MODELS:
        by = found.get(name, {})
        cells = [form(by[n][key]) if n in by else "" for key, form in shown for n in LENGTHS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--length", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the table is drawn into")
    parser.add_argument("--table", action="store_true", help="measure nothing, only draw")
    parser.add_argument("--one", action="store_true", help="this process is the one that measures")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.model[0], args.length[0], args.repeat)))
        return
    for name, length in [] if args.table else [(m, n) for n in args.length for m in args.model]:
        given = ["--one", "--model", name, "--length", str(length), "--repeat", str(args.repeat)]
        line = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=True).stdout
        print(line, end="", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf8") as file:
            file.write(line)
        pages.put(table(args.out), args.page, BEGIN, END)
    pages.put(table(args.out), args.page, BEGIN, END)


if __name__ == "__main__":
    main()
