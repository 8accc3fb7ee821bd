"""Samples per second and memory of RecStack and its peers, in turns on one generated set, with the machine's own limits.

    python benchmarks/speed/train.py                                         # everything: about an hour on two cores
    python benchmarks/speed/train.py --models DeepFM --vocabularies 1000000 --rounds 1
    python benchmarks/speed/train.py --table                                 # what results/speed.jsonl holds, as Markdown

The peers are installed into `runs/peers` (two gigabytes) the first time. Within a round every toolkit runs once, one after
the other, in a process of its own; ratios are taken within a round, so that whatever else the machine does meets all alike.
Widths and batch are Criteo's usual ones: 26 ids and 13 numbers, embeddings of 16, MLP 400-400-400, 3 crosses, batch 4096.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import criteo_shaped
import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "speed.jsonl"
RUNS = HERE.parents[1] / "runs"
BATCH, TEST_ROWS = 4096, 100_000
OURS = "RecStack"
TOOLKITS = (
    "RecStack",
    "RecStack, dense Adam",
    "plain PyTorch, fused Adam",
    "plain PyTorch, SparseAdam",
    "DeepCTR-Torch",
    "DeepCTR-Torch, without L2",
    "FuxiCTR",
    "torch-rechub",
)
# A step of those that decay whole tables costs seconds at ten million rows: fewer steps say the same.
STEPS = {100_000: 50, 1_000_000: 100, 10_000_000: 20, 100_000_000: 50}
ONLY_OURS = 50_000_000  # rows of vocabulary from which dense optimisers need more memory than a small machine has


def peers() -> str:
    """The Python of the peers' environment, made the first time."""
    folder = RUNS / "peers"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        print(f"Installing the peers into {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        lines = [line for line in (HERE / "peers.txt").read_text("utf8").splitlines() if line and line[0] != "#"]
        for some in (lines[:1], lines[1:]):  # torch first: left to the resolver, gigabytes of CUDA may come along
            subprocess.run([python, "-m", "pip", "install", "--quiet", *some], check=True)
        ready.touch()
    return str(python)


def data(vocabulary: int, rows: int) -> Path:
    folder = RUNS / "speed" / f"{vocabulary}-{rows}"
    if not (folder / "sizes.npy").exists():
        criteo_shaped.save(folder, criteo_shaped.generate(rows + TEST_ROWS, vocabulary))
    return folder


def roofline(threads: int) -> dict[str, Any]:
    """What the machine itself reaches, in this minute: matrix products of the MLP's shape, and copies."""
    import torch

    torch.set_num_threads(threads)

    def rate(work: Any, amount: float) -> float:
        work()
        best = min(seconds_of(work) for _ in range(5))
        return round(amount / best / 1e9, 1)

    a, b = torch.randn(BATCH, 1024), torch.randn(1024, 1024)
    half = a.bfloat16(), b.bfloat16()
    big = torch.randn(1 << 26)
    to = torch.empty_like(big)
    return {
        "gemm_fp32_gflops": rate(lambda: a @ b, 2 * BATCH * 1024**2),
        "gemm_bf16_gflops": rate(lambda: half[0] @ half[1], 2 * BATCH * 1024**2),
        "copy_gb_per_second": rate(lambda: to.copy_(big), 2 * big.nbytes),
        "threads": threads,
    }


def seconds_of(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def flops_per_sample(model: str, toolkit: str) -> float:
    """Multiplications and additions of the dense layers, forward and backward (three times forward)."""
    inputs = (
        26 * 16 + 13 if toolkit.startswith(("DeepCTR", "torch-rechub")) else 39 * 16
    )  # numbers plain, or as vectors
    forward = sum(2 * a * b for a, b in pairwise([inputs, 400, 400, 400])) + 2 * 400
    return 3 * (forward + (3 * 2 * inputs**2 if model == "DCNv2" else 0))


def one(toolkit: str, model: str, vocabulary: int, steps: int, threads: int) -> dict[str, Any] | None:
    python = sys.executable if toolkit.startswith(OURS) else peers()
    at = data(vocabulary, steps * BATCH)
    command = [python, HERE / "toolkits.py", "--toolkit", toolkit, "--model", model, "--data", at]
    command += ["--rows", str(steps * BATCH), "--test-rows", str(TEST_ROWS)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{toolkit} failed:\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep(record: dict[str, Any], out: Path) -> None:
    line = json.dumps(record)
    print(line, flush=True)
    with out.open("a", encoding="utf8") as file:
        file.write(line + "\n")


def table(path: Path) -> str:
    """Markdown of every run in the file: medians over the rounds, ratios within them (their geometric mean)."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text("utf8").splitlines():
        record = json.loads(line)
        if record["kind"] in ("roofline", "epoch"):
            runs[record["run"]].append(record)
    return "\n\n".join(part for records in runs.values() for part in _parts(records))


def _parts(records: list[dict[str, Any]]) -> Iterator[str]:
    limits = next(r for r in records if r["kind"] == "roofline")
    groups: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        if r["kind"] == "epoch":
            groups[r["model"], r["asked"]][r["toolkit"]].append(r)
    for (model, vocabulary), by_toolkit in groups.items():
        ours = {r["round"]: r for r in by_toolkit.get(OURS, [])}
        steps = next(iter(by_toolkit.values()))[0]["rows"] // BATCH
        lines = [
            f"**{model}, {vocabulary:,} rows of vocabulary**: {steps} steps of {BATCH}, {len(ours)} round(s), {limits['threads']} "
            f"threads. The machine itself in that run: fp32 GEMM {limits['gemm_fp32_gflops']:,.0f} GFLOP/s, bf16 "
            f"{limits['gemm_bf16_gflops']:,.0f}, copying {limits['copy_gb_per_second']:.0f} GB/s, read and written.",
            "",
            "| toolkit | samples/s | RecStack ÷ it | peak memory, GB | RecStack ÷ it | logloss | of the GEMM rate |",
            "|---|---|---|---|---|---|---|",
        ]
        for toolkit in [t for t in TOOLKITS if t in by_toolkit]:
            runs = by_toolkit[toolkit]
            both = [(ours[r["round"]], r) for r in runs if r["round"] in ours]
            speed, memory = median(r["samples_per_second"] for r in runs), median(r["peak_gb"] for r in runs)
            faster = geometric_mean([a["samples_per_second"] / b["samples_per_second"] for a, b in both])
            smaller = geometric_mean([a["peak_gb"] / b["peak_gb"] for a, b in both])
            reached = speed * flops_per_sample(model, toolkit) / 1e9 / limits["gemm_fp32_gflops"]
            cells = [toolkit, f"{speed:,.0f}", f"{faster:.1f} ×", f"{memory:.2f}", f"{smaller:.2f}"]
            cells += [f"{median(r['logloss'] for r in runs):.4f}", f"{reached:.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
        yield "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["DeepFM", "DCNv2"], choices=["DeepFM", "DCNv2"])
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[1_000_000, 10_000_000, 100_000])
    parser.add_argument("--toolkits", nargs="+", default=list(TOOLKITS), choices=TOOLKITS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of each run; by default fewer where tables are large")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", default=time.strftime("%Y-%m-%d %H:%M"), help="name that the lines carry")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that the lines are appended to")
    parser.add_argument("--table", action="store_true", help="run nothing, print what --out holds")
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    keep({"kind": "roofline", "run": args.run} | roofline(args.threads), args.out)
    for model in args.models:
        for vocabulary in args.vocabularies:
            steps = args.steps or STEPS.get(vocabulary, 20)
            chosen = [t for t in args.toolkits if t == OURS or vocabulary < ONLY_OURS]
            for round_ in range(args.rounds):
                for toolkit in np.roll(chosen, -round_).tolist():  # nobody is always the first
                    found = one(toolkit, model, vocabulary, steps, args.threads)
                    if found is not None:
                        keep({"kind": "epoch", "run": args.run, "round": round_, "asked": vocabulary} | found, args.out)


if __name__ == "__main__":
    main()
