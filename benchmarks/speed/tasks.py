"""What tasks cost: processor seconds of a training step of MMoE and PLE with 2, 5 and 20 tasks, and the ratio to 2.

    python benchmarks/speed/tasks.py                # a minute or two on one thread; prints the table of docs/multi-task.md
    python benchmarks/speed/tasks.py --rounds 5

A step is forward, backward and update (Trainer's default optimisers) on one batch of 4096 rows of twenty fields of 100,000
ids. Each round times every model with every number of tasks, one after the other; ratios are taken within a round, and
medians over rounds are printed.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
import torch

import recstack as rs

IDS, FIELDS, BATCH, WARM = 100_000, 20, 4096, 2
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MMoE, 8 experts of 256 and 128": ("MMoE", {"experts": 8, "hidden": (256, 128), "towers": (64,)}),
    "PLE, 2 levels, 2 + 2 experts of 256": ("PLE", {"towers": (64,)}),
}


def log(rows: int, tasks: int) -> rs.Log:
    chance = np.random.default_rng(0)
    features = [rs.Categorical(f"c{i}", "item", buckets=IDS) for i in range(FIELDS)]
    events = {f.name: chance.integers(0, IDS, rows) for f in features}
    names = [f"task{k}" for k in range(tasks)]
    labels = {name: (chance.random(rows) < 0.2).astype(float) for name in names}
    return rs.Log({**events, **labels}, rs.Schema(features, [rs.Task(name) for name in names]))


def seconds(schema: rs.Schema, batches: list, name: str, options: dict[str, Any]) -> float:
    """Processor seconds of a step, on average over those after the first few."""
    torch.manual_seed(0)
    model = getattr(rs.multitask, name)(schema, **options)
    losses, times = model.losses, []

    def timed(batch: Any) -> Any:
        times.append(time.process_time())
        return losses(batch)

    model.losses = timed
    rs.Trainer(model, epochs=1, progress=False, distributed=False).fit(batches)
    return (times[-1] - times[WARM]) / (len(times) - 1 - WARM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 5, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets = {}
    for tasks in given.tasks:
        data = log(BATCH * (given.steps + WARM + 1), tasks)
        encoder = rs.Encoder(data.schema).fit(data)
        sets[tasks] = encoder.schema, list(rs.Loader(encoder.encode(data), BATCH))
    found: dict[tuple[str, int], list[float]] = {(label, tasks): [] for label in MODELS for tasks in sets}
    for _ in range(given.rounds):
        for label, (name, options) in MODELS.items():
            for tasks, (schema, batches) in sets.items():
                found[label, tasks].append(seconds(schema, batches, name, options))
    print("| model | tasks | step, ms | ratio |\n|---|---|---|---|")
    for (label, tasks), every in found.items():
        ratio = median(a / b for a, b in zip(every, found[label, given.tasks[0]], strict=True))
        print(f"| {label} | {tasks} | {1e3 * median(every):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
