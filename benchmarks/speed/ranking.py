"""A training step of every ranking model beside FuxiCTR's and DeepCTR-Torch's of the same model, in one run.

    python benchmarks/speed/ranking.py                    # all models, two rounds: more than an hour on one core
    python benchmarks/speed/ranking.py --models FFM AFM --run "after a change"
    python benchmarks/speed/ranking.py --table            # run nothing, draw docs/speed-ranking.md

In a round the toolkits that have a model run one after the other, each in a process of its own, on one thread, and then the
next model. A run that was stopped goes on where it was; --run names a new one, and the page shows each
model's newest run in which the most toolkits were measured. Peers live in `runs/peers` (see train.py). FuxiCTR's package holds its layers and its trainer, most models
lie in the model zoo of its repository: put a checkout of the version in peers.txt at `runs/FuxiCTR`, or say --zoo.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

import ranking_step as step
import train as runs

RESULTS = runs.RESULTS.parent / "speed_ranking.jsonl"
PAGE = runs.HERE.parents[1] / "docs" / "speed-ranking.md"
BEGIN, END = "<!-- speed: drawn by benchmarks/speed/ranking.py -->", "<!-- speed: end -->"
TOOLKITS = ("RecStack", "FuxiCTR", "DeepCTR-Torch")
RATE, PEAK = "samples_per_processor_second", "peak_gb"
BATCHES = {"history": 1024}
Lines = dict[str, dict[int, dict[str, Any]]]  # {toolkit: {round: line}}


def toolkits(row: step.Row, zoo: Path) -> list[str]:
    """Those that have the model."""
    has = (True, row.fuxictr is not None and (zoo / "model_zoo").is_dir(), row.deepctr is not None)
    return [toolkit for toolkit, there in zip(TOOLKITS, has, strict=True) if there]


def one(model: str, toolkit: str, at: Path, zoo: Path) -> dict[str, Any] | None:
    python = sys.executable if toolkit == runs.OURS else runs.peers()
    batch = BATCHES.get(step.ROWS[model].data, runs.BATCH)
    command = [python, runs.HERE / "ranking_step.py", "--model", model, "--toolkit", toolkit, "--batch", batch]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [str(c) for c in (*command, "--data", at, "--zoo", zoo)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        print(f"{model}, {toolkit} failed:\n{done.stderr[-1500:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def read(path: Path) -> dict[str, dict[str, Lines]]:
    """{model: {run: lines}}, runs in the order of their first line."""
    found: dict[str, dict[str, Lines]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for line in path.read_text("utf8").splitlines() if path.exists() else []:
        record = json.loads(line)
        found[record["model"]][record["run"]][record["toolkit"]][record["round"]] = record
    return found


def table(path: Path) -> str:
    """Markdown of each model's newest whole run: means over the rounds, ratios within them (their geometric mean)."""
    found, out = read(path), []
    for title, history in (("Models of single values", False), ("Models with a history", True)):
        rows = []
        for model in [m for m, row in step.ROWS.items() if (row.data == "history") == history and m in found]:
            lines = max(reversed(found[model].values()), key=len)  # the newest of those with the most toolkits
            if runs.OURS in lines:
                rows.append(f"| {model} | {' | '.join(_cells(lines))} |")
        if rows:
            out += [f"## {title}", "", f"| model | {' | '.join(HEAD)} |", f"|---|{'---|' * len(HEAD)}", *rows, ""]
    return "\n".join(out)


HEAD = ("RecStack", "FuxiCTR", "RecStack ÷ it", "DeepCTR-Torch", "RecStack ÷ it")
HEAD += ("peak GB: RecStack", "FuxiCTR", "DeepCTR-Torch")


def _cells(lines: Lines) -> list[str]:
    ours, cells = lines[runs.OURS], [f"{mean(r[RATE] for r in lines[runs.OURS].values()):,.0f}"]
    for toolkit in TOOLKITS[1:]:
        theirs = lines.get(toolkit, {})
        both = [ours[k][RATE] / r[RATE] for k, r in theirs.items() if k in ours]
        cells += [f"{mean(r[RATE] for r in theirs.values()):,.0f}" if theirs else ""]
        cells += [f"{geometric_mean(both):.2f} ×" if both else ""]
    peaks = [[r[PEAK] for r in lines.get(toolkit, {}).values()] for toolkit in TOOLKITS]
    return cells + [f"{max(p):.2f}" if p else "" for p in peaks]


def draw(path: Path, page: Path) -> None:
    """Put the tables between their marks on the page."""
    text = page.read_text("utf8")
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{table(path)}\n{END}{rest.split(END)[1]}", "utf8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(step.ROWS), choices=step.ROWS, metavar="MODEL")
    parser.add_argument("--toolkits", nargs="+", default=list(TOOLKITS), choices=TOOLKITS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=1_000_000, help="ids of all columns together")
    parser.add_argument("--zoo", type=Path, default=runs.RUNS / "FuxiCTR", help="a checkout of FuxiCTR's repository")
    parser.add_argument("--run", default="first", help="name that the lines carry")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the tables are drawn into")
    parser.add_argument("--table", action="store_true", help="run nothing, only draw")
    args = parser.parse_args()
    if not args.table:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        at, done = runs.data(args.vocabulary, 100 * runs.BATCH), read(args.out)
        for round_ in range(args.rounds):
            for model in args.models:
                for toolkit in toolkits(step.ROWS[model], args.zoo):
                    if toolkit not in args.toolkits or round_ in done[model][args.run][toolkit]:
                        continue
                    found = one(model, toolkit, at, args.zoo)
                    if found is not None:
                        runs.keep({"run": args.run, "round": round_, "vocabulary": args.vocabulary, **found}, args.out)
    draw(args.out, args.page)


if __name__ == "__main__":
    main()
