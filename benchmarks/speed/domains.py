"""What domains cost: processor seconds of a training step with 2, 20 and 200 domains in each batch, and the ratio to 2.

    python benchmarks/speed/domains.py             # some minutes on one thread; draws the table of docs/performance.md
    python benchmarks/speed/domains.py --rounds 5

A step is forward, backward and update (Trainer's default optimisers) on one batch of 4096 rows of twelve fields of 10,000 ids
and a domain; how often a domain is met falls as 1 / rank, so that every batch is mixed and domains differ in size. Each round
times every model with every number of domains, one after the other; ratios are taken within a round, and medians over
rounds are printed. Parameters are those beside the tables of the twelve fields.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import recstack as rs

sys.path.insert(0, str(Path(__file__).parents[1]))
import pages

IDS, FIELDS, BATCH, WARM = 10_000, 12, 4096, 2
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- domains: drawn by benchmarks/speed/domains.py -->", "<!-- domains: end -->"
WIDE = {"hidden": (256, 128, 64)}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "an MLP of all features": (rs.multitask.SharedBottom, {"hidden": (256, 128), "towers": (64,)}),
    "STAR": (rs.multidomain.STAR, WIDE),
    "PEPNet": (rs.multidomain.PEPNet, WIDE),
    "DomainTowers": (rs.multidomain.DomainTowers, {"hidden": (256, 128), "towers": (64,)}),
    "M2M": (rs.multidomain.M2M, {"experts": 4, "hidden": (128, 32)}),
    "SARNet": (rs.multidomain.SARNet, {}),
}


def log(rows: int, domains: int) -> rs.Log:
    chance = np.random.default_rng(0)
    features = [rs.Categorical("user", "user", buckets=IDS), rs.Categorical("item", "item", buckets=IDS)]
    features += [rs.Categorical(f"c{i}", "item", buckets=IDS) for i in range(FIELDS - 2)]
    events = {f.name: chance.integers(0, IDS, rows) for f in features}
    share = 1 / np.arange(1, domains + 1)
    events["domain"] = chance.choice(domains, rows, p=share / share.sum())
    events["domain"][:domains] = np.arange(domains)  # all of them are met
    events["click"] = (chance.random(rows) < 0.2).astype(float)
    features.append(rs.Categorical("domain", "domain"))
    return rs.Log(events, rs.Schema(features, [rs.Task("click")]))


def seconds(schema: rs.Schema, batches: list, cls: Any, options: dict[str, Any]) -> tuple[float, int]:
    """Processor seconds of a step, on average over those after the first few; the parameters beside the fields' tables."""
    torch.manual_seed(0)
    model = cls(schema, **options)
    losses, times = model.losses, []

    def timed(batch: Any) -> Any:
        times.append(time.process_time())
        return losses(batch)

    model.losses = timed
    rs.Trainer(model, epochs=1, progress=False, distributed=False).fit(batches)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    count = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    return (times[-1] - times[WARM]) / (len(times) - 1 - WARM), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 20, 200])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--print", action="store_true", help="do not touch the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets = {}
    for domains in given.domains:
        data = log(BATCH * (given.steps + WARM + 1), domains)
        encoder = rs.Encoder(data.schema).fit(data)
        sets[domains] = encoder.schema, list(rs.Loader(encoder.encode(data), BATCH))
    found: dict[tuple[str, int], list[float]] = {(name, n): [] for name in given.models for n in sets}
    sizes: dict[tuple[str, int], int] = {}
    for _ in range(given.rounds):
        for name in given.models:
            for n, (schema, batches) in sets.items():
                took, sizes[name, n] = seconds(schema, batches, *MODELS[name])
                found[name, n].append(took)
    lines = ["| model | domains | parameters, thousands | step, ms | ratio |", "|---|---|---|---|---|"]
    for (name, n), every in found.items():
        ratio = median(a / b for a, b in zip(every, found[name, given.domains[0]], strict=True))
        lines.append(f"| {name} | {n} | {sizes[name, n] / 1e3:,.0f} | {1e3 * median(every):.0f} | {ratio:.2f} |")
    print("\n".join(lines))
    if not given.print:
        pages.put("\n".join(lines), PAGE, BEGIN, END)


if __name__ == "__main__":
    main()
