"""Steps of random walks per second, on Gowalla's graph of users and places and on a generated one.

    python benchmarks/speed/walks.py

One line of JSON per graph and kind of walk: seconds on the clock, seconds of all threads together (the machine may have other
work), and million steps of each.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

import recstack as rs
from recstack.kernels.topk import Sparse, offsets_of
from recstack.kernels.walks import walks


def graph(row: np.ndarray, column: np.ndarray, nodes: int) -> Sparse:
    """Both directions of each edge."""
    key = np.unique(np.concatenate([row * nodes + column, column * nodes + row]))
    row, column = np.divmod(key, nodes)
    return Sparse(offsets_of(np.bincount(row, minlength=nodes)), column.astype(np.int32), nodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--walks", type=int, default=200_000)
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    args = parser.parse_args()
    train, _ = rs.datasets.lightgcn("gowalla", data_dir=args.data_dir)
    columns = rs.Encoder(train.schema).fit(train).encode(train)
    users, items = columns.user_ids.astype(np.int64), columns.item_ids.astype(np.int64)
    rng = np.random.default_rng(0)
    one, other = rng.integers(100_000, size=(2, 1_500_000))
    graphs = {
        "gowalla": graph(users, items + users.max() + 1, int(users.max() + items.max()) + 2),
        "uniform, 100,000 nodes": graph(one, other, 100_000),
    }
    for name, plain in graphs.items():
        weighted = plain._replace(values=rng.random(len(plain.columns), np.float32))
        starts = rng.choice(np.flatnonzero(plain.counts), args.walks)
        for kind, edges, p, q in (
            ("first order", plain, 1.0, 1.0),
            ("first order, weighted", weighted, 1.0, 1.0),
            ("node2vec, p=0.5, q=2", plain, 0.5, 2.0),
        ):
            walks(edges, starts[:64], 3, p=p, q=q)  # compiled
            clock, busy = time.perf_counter(), time.process_time()
            steps = int((walks(edges, starts, args.length, p=p, q=q) >= 0).sum())
            clock, busy = time.perf_counter() - clock, time.process_time() - busy
            line = {"graph": name, "edges": len(edges.columns), "walk": kind, "threads": torch.get_num_threads()}
            line |= {
                "seconds": round(clock, 2),
                "thread_seconds": round(busy, 2),
                "million_steps": round(steps / 1e6, 2),
            }
            print(json.dumps(line | {"million_steps_a_second": round(steps / clock / 1e6, 2)}), flush=True)


if __name__ == "__main__":
    main()
