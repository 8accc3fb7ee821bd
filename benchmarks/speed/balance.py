"""What balancing costs: processor seconds of a step of MMoE under each way, against the same step with static weights.

    OMP_NUM_THREADS=1 python benchmarks/speed/balance.py    # two and four tasks; some minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/speed/balance.py --tasks 2 --rounds 3

Each round trains every way once for a number of steps on the same batches, one after the other; the ratio to static
weights is taken within a round, and the median over rounds is printed.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch

import recstack as rs

ROWS, BATCH, WARM = 100_000, 1024, 3
WAYS = {
    "static weights": {"a": 1.0},
    "uncertainty": "uncertainty",
    "dwa": "dwa",
    "mgda, at the experts": ("mgda", {"at": "experts"}),
    "mgda, at=shared": "mgda",
    "mgda, at=tables": ("mgda", {"at": "tables"}),
    "pcgrad, at=shared": "pcgrad",
    "cagrad, at=shared": "cagrad",
    "nash, at=shared": "nash",
    "nash, at=shared, every=10": ("nash", {"every": 10}),
    "gradnorm, at=shared": "gradnorm",
}


def log(rows: int, tasks: int) -> rs.Log:
    chance = np.random.default_rng(0)
    features = [
        rs.Categorical("user", "user", buckets=ROWS),
        *(rs.Categorical(f"c{i}", "item", buckets=ROWS) for i in range(19)),
    ]
    events = {f.name: chance.integers(0, ROWS, rows) for f in features}
    names = "abcdefgh"[:tasks]
    labels = {name: (chance.random(rows) < 0.2).astype(float) for name in names}
    return rs.Log({**events, **labels}, rs.Schema(features, [rs.Task(name) for name in names]))


def seconds(schema: rs.Schema, batches: list, way: object) -> float:
    """A step, on average over those after the first few."""
    torch.manual_seed(0)
    model = rs.multitask.MMoE(schema, experts=8, hidden=(256, 128), towers=(64,))
    losses, times = model.losses, []

    def timed(batch):
        times.append(time.process_time())
        return losses(batch)

    model.losses = timed  # type: ignore[method-assign]
    rs.Trainer(model, balance=way, epochs=1, progress=False, distributed=False).fit(batches)
    return (times[-1] - times[WARM]) / (len(times) - 1 - WARM)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    for tasks in given.tasks:
        data = log(BATCH * (given.steps + WARM), tasks)
        encoder = rs.Encoder(data.schema).fit(data)
        batches = list(rs.Loader(encoder.encode(data), BATCH))
        found = {name: [] for name in WAYS}
        for _ in range(given.rounds):
            for name, way in WAYS.items():
                found[name].append(seconds(encoder.schema, batches, way))
        for name, every in found.items():
            ratio = median(a / b for a, b in zip(every, found["static weights"], strict=True))
            print(f"{tasks} tasks | {name} | {1e3 * median(every):.0f} ms | {ratio:.2f}", flush=True)
