"""What one list costs every re-ranker of the catalogue: milliseconds of `predict` for one request of 50 candidates.

    OMP_NUM_THREADS=1 python benchmarks/speed/reranking.py
    OMP_NUM_THREADS=1 python benchmarks/speed/reranking.py --model PRM MIR --calls 2000

Models at their defaults, on the simulator's features with a history of 50, in evaluation and as they were built: the weights do not
matter to the time. Those that learn in one go are fitted first, for the same reason on little. One thread; calls of all
models take turns. Printed are the median and the 99th percentile on the clock, and the 99th percentile of the processor's
time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import recstack as rs
from recstack import catalog
from recstack.models.base import Model


def built(name: str, schema: rs.Schema) -> Model:
    """At its defaults; DEAR, which decides where an ad goes, reads what was clicked last as the list that it goes into."""
    if name != "DEAR":
        return getattr(rs.reranking, name)(schema)
    (history,) = schema.histories
    decided = [rs.Task("earned", kind="regression"), rs.Task("at", kind="multiclass", classes=history.max_len + 2)]
    return rs.reranking.DEAR(schema.replace(tasks=decided), page=(history.name,))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [e.name for e in catalog.models("reranking") if issubclass(getattr(rs.reranking, e.name), Model)]
    parser.add_argument("--model", nargs="+", choices=names, default=names)
    parser.add_argument("--list", type=int, default=50)
    parser.add_argument("--calls", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = rs.simulator.simulate(users=200, items=1000, impressions=400 * given.list, list_size=given.list)
    log = made.log(lists=True)
    encoder = rs.Encoder(log.schema).fit(log)
    columns = encoder.encode(log)
    batches = [columns.batch(np.array([i])) for i in range(len(columns) // 2, len(columns))]  # with full histories
    models = {}
    for name in given.model:
        models[name] = built(name, encoder.schema)
        if not models[name].gradients:
            models[name].fit(columns)
        models[name].eval()
    clock: dict[str, list[float]] = {name: [] for name in models}
    spent: dict[str, list[float]] = {name: [] for name in models}
    for call in range(given.calls + 20):
        batch = batches[call % len(batches)]
        for name, model in models.items():
            begun, work = time.perf_counter(), time.process_time()
            model.predict(batch)
            if call >= 20:  # the first warm up
                spent[name].append(1e3 * (time.process_time() - work))
                clock[name].append(1e3 * (time.perf_counter() - begun))
    print("| model | p50, ms | p99, ms | p99 of the processor's time, ms |\n|---|---|---|---|")
    for name in models:
        values = (np.median(clock[name]), np.percentile(clock[name], 99), np.percentile(spent[name], 99))
        print(f"| {name} | " + " | ".join(f"{v:.2f}" for v in values) + " |")


if __name__ == "__main__":
    main()
