"""iALS beside the package `implicit`: seconds until both have the same loss, on one objective, in one run.

    python benchmarks/speed/ials.py --peer PYTHON         # PYTHON: an interpreter that has `implicit` (and not RecStack)

Gowalla, one thread each, processor seconds of the fit alone (the steadier clock where others use the machine) and wall seconds.
The objective is implicit's: observed pairs have confidence c and target 1, all others confidence 1 and target 0, and λ for
every row alike. Ours writes it as an elliptic one over all pairs: target c / (c - 1), unobserved weight 1 / (c - 1), λ / (c - 1).
implicit takes its default solver, three steps of conjugate gradients. It runs first and says what loss it reached; ours goes on
until it is below. A line is appended to results/speed.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PEER = """
import sys, time
import numpy as np, scipy.sparse as sp
import implicit
d = np.load(sys.argv[1])
m = sp.csr_matrix((np.ones(len(d["items"]), np.float32), d["items"], d["offsets"]), shape=tuple(d["shape"]))
dim, c, l2, iterations = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
def fit(n):
    model = implicit.als.AlternatingLeastSquares(dim, regularization=l2, alpha=c, iterations=n, num_threads=1, random_state=0)
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(m, show_progress=False)
    return model, time.perf_counter() - wall, time.process_time() - cpu
fit(1)
model, wall, cpu = fit(iterations)
np.savez(sys.argv[6], x=model.user_factors, y=model.item_factors, seconds=[wall, cpu], version=implicit.__version__)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument(
        "--block", type=int, help="iALS++ with as many coordinates at once; conjugate gradients by default"
    )
    parser.add_argument("--confidence", type=float, default=40.0)
    parser.add_argument("--l2", type=float, default=10.0)
    parser.add_argument("--iterations", type=int, default=10, help="of implicit")
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "speed.jsonl")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy as np
    import torch

    import recstack as rs
    from recstack.kernels.als import solve
    from recstack.kernels.cooccurrence import transpose
    from recstack.models.counting import user_items

    torch.set_num_threads(1)
    train, _ = rs.datasets.lightgcn("gowalla", data_dir=args.data_dir)
    by_user = user_items(rs.Encoder(train.schema).fit(train).encode(train))
    by_item, c = transpose(by_user), args.confidence

    def loss(x: Any, y: Any) -> float:
        """Of implicit's objective, in float64."""
        s = np.concatenate(
            [
                (x[u] * y[i]).sum(1)
                for u, i in zip(np.array_split(by_user.rows, 20), np.array_split(by_user.columns, 20), strict=True)
            ]
        )
        x, y = x.astype(np.float64), y.astype(np.float64)
        seen = (c * (1 - s.astype(np.float64)) ** 2 - s.astype(np.float64) ** 2).sum()
        return float(seen + ((x.T @ x) * (y.T @ y)).sum() + args.l2 * ((x**2).sum() + (y**2).sum()))

    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            f"{folder}/data.npz", items=by_user.columns, offsets=by_user.offsets, shape=[by_user.height, by_user.width]
        )
        command = [
            args.peer,
            "-c",
            PEER,
            f"{folder}/data.npz",
            args.dim,
            c,
            args.l2,
            args.iterations,
            f"{folder}/out.npz",
        ]
        subprocess.run([str(x) for x in command], check=True)
        peer = np.load(f"{folder}/out.npz")
        goal, (peer_wall, peer_cpu), version = loss(peer["x"], peer["y"]), peer["seconds"], str(peer["version"])

    targets = np.full(len(by_user.columns), c / (c - 1), np.float32)

    def half(rows: Any, y: Any, x: Any) -> None:
        gram = (y.T @ y / (c - 1)).astype(np.float32)
        solve(rows, targets, y, gram, np.full(rows.height, args.l2 / (c - 1), np.float32), x, args.block)

    def start() -> tuple[Any, Any]:
        rng = np.random.default_rng(0)  # as implicit begins: uniform, a hundredth
        return tuple((0.01 * rng.random((m.height, args.dim))).astype(np.float32) for m in (by_user, by_item))  # type: ignore[return-value]

    half(by_user.take(np.arange(100)), start()[1], start()[0][:100])  # compiled
    (x, y), wall, cpu, losses = start(), 0.0, 0.0, []
    while len(losses) < 3 * args.iterations and (not losses or losses[-1] > goal):
        begun = time.perf_counter(), time.process_time()
        half(by_user, y, x)
        half(by_item, x, y)
        wall, cpu = wall + time.perf_counter() - begun[0], cpu + time.process_time() - begun[1]
        losses.append(loss(x, y))
    line = {
        "kind": "ials",
        "run": time.strftime("%Y-%m-%d %H:%M"),
        "data": "gowalla",
        "dim": args.dim,
        "block": args.block,
        "confidence": c,
        "l2": args.l2,
        "implicit": {
            "version": version,
            "iterations": args.iterations,
            "loss": round(goal),
            "cpu_s": round(float(peer_cpu), 2),
            "wall_s": round(float(peer_wall), 2),
        },
        "recstack": {
            "iterations": len(losses),
            "losses": [round(v) for v in losses],
            "cpu_s": round(cpu, 2),
            "wall_s": round(wall, 2),
        },
        "reached": losses[-1] <= goal,
        "cpu_ratio": round(float(peer_cpu) / cpu, 2),
        "cpu_ratio_per_iteration": round(float(peer_cpu) / args.iterations / (cpu / len(losses)), 2),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
