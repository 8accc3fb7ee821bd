"""RecStack against the machine and against itself: what does not need a peer.

    python benchmarks/speed/own.py dense        # an MLP's forward + backward as a share of the measured GEMM rate
    python benchmarks/speed/own.py vocabulary   # a step at 100 million rows over a step at one million; 10 GB of memory
    python benchmarks/speed/own.py import       # seconds of `import recstack`
    python benchmarks/speed/own.py parts        # where a DeepFM step goes, part by part

Lines are appended to results/speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import train as runs


def timed(work: Callable[[], Any], times: int = 7) -> float:
    """Seconds, the best of several."""
    work()
    work()
    return min(runs.seconds_of(work) for _ in range(times))


def dense(threads: int) -> dict[str, Any]:
    """An MLP of three layers of 1024 over 1024 inputs, batch 4096, forward and backward, weights and input."""
    import torch

    from recstack.nn.mlp import MLP

    limits, found = runs.roofline(threads), {}
    flops = 3 * 3 * 2 * runs.BATCH * 1024 * 1024
    for name, precision in (("fp32", None), ("bf16", torch.bfloat16)):
        mlp, x = MLP(1024, (1024, 1024, 1024)), torch.randn(runs.BATCH, 1024, requires_grad=True)

        def step(mlp: Any = mlp, x: Any = x, precision: Any = precision) -> None:
            with torch.autocast("cpu", precision, enabled=precision is not None):
                y = mlp(x)
            y.backward(torch.ones_like(y))
            mlp.zero_grad()
            x.grad = None

        rate = flops / timed(step) / 1e9
        found |= {
            f"mlp_{name}_gflops": round(rate, 1),
            f"mlp_{name}_share": round(rate / limits[f"gemm_{name}_gflops"], 3),
        }
    return limits | found


STEPS = """
import json, sys
import numpy as np
from toolkits import recstack_columns
import recstack as rs

def held(at):
    data = {n: np.load(at + f"/{n}.npy") for n in ("ids", "numbers", "click", "sizes")}
    columns = recstack_columns(data)
    return rs.ranking.DeepFM(columns.schema, dim=16, norm=None), columns

sides = [held(at) for at in sys.argv[2:]]
for turn in range(int(sys.argv[1])):
    line = []
    for net, columns in sides:
        result = rs.Trainer(net, epochs=2, batch_size=4096, progress=False).fit(columns)
        line.append([epoch["seconds"] * 2 / result.steps for epoch in result.epochs])
    print(json.dumps(line), flush=True)
"""


def vocabulary(threads: int, rounds: int = 6) -> dict[str, Any]:
    """Seconds a step of DeepFM, both sizes in one process, in turns of two short epochs.

    The first turn pays for pages that nobody has touched; each later one begins with new optimiser state.
    """
    at = [str(runs.data(rows, 40 * runs.BATCH)) for rows in (1_000_000, 100_000_000)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(runs.HERE)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(rounds), *at], stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    out: dict[str, Any] = {"rounds": rounds, "threads": threads}
    for name, chosen, k in (("first touch", turns[:1], 0), ("steady", turns[1:], 1)):
        out[name] = {
            "step_ms_at_1m": round(1e3 * median(small[k] for small, _ in chosen), 1),
            "step_ms_at_100m": round(1e3 * median(large[k] for _, large in chosen), 1),
            "ratios": sorted(round(large[k] / small[k], 2) for small, large in chosen),
            "ratio": round(median(large[k] / small[k] for small, large in chosen), 2),
        }
    return out


def imported(threads: int) -> dict[str, Any]:
    """The best of five, less a Python that imports nothing."""

    def start(code: str) -> float:
        return min(runs.seconds_of(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(5))

    return {"import_seconds": round(start("import recstack") - start("pass"), 3)}


def parts(threads: int) -> dict[str, Any]:
    """Milliseconds of a DeepFM step of 4096 rows at a million rows of vocabulary, by part, best of seven."""
    import numpy as np
    import torch
    from toolkits import recstack, recstack_columns

    import recstack as rs
    from recstack.data import Loader

    torch.set_num_threads(threads)
    at = runs.data(1_000_000, 20 * runs.BATCH)
    held = {n: np.load(at / f"{n}.npy") for n in ("ids", "numbers", "click", "sizes")}
    _, _, net = recstack("DeepFM", held)
    trainer = rs.Trainer(net, epochs=1, batch_size=runs.BATCH, progress=False)
    columns = recstack_columns(held)
    batch = next(iter(Loader(columns, runs.BATCH, shuffle=True, prefetch=0)))
    fields = net.inputs(batch).stack().detach().flatten(-2).requires_grad_()  # type: ignore[operator]

    def tower() -> None:
        net.mlp(fields).sum().backward()  # type: ignore[operator]
        fields.grad = None
        net.zero_grad()

    one = [batch] * 20
    return {
        "feeding_ms": round(1e3 * timed(lambda: list(Loader(columns, runs.BATCH, shuffle=True, prefetch=0))) / 21, 2),
        "mlp_forward_backward_ms": round(1e3 * timed(tower), 1),
        "step_ms": round(1e3 * timed(lambda: trainer.fit(one), 3) / 20, 1),
        "threads": threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = {"dense": dense, "vocabulary": vocabulary, "import": imported, "parts": parts}
    parser.add_argument("what", choices=what, nargs="+")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=runs.RESULTS)
    args = parser.parse_args()
    for name in args.what:
        stamp = {"kind": name, "run": time.strftime("%Y-%m-%d %H:%M")}
        runs.keep(stamp | what[name](args.threads), args.out)


if __name__ == "__main__":
    main()
