"""Feeding and encoding: rows per second from Parquet to a store, from the store to batches, and memory on the way.

    python benchmarks/speed/data.py --rows 4000000 --folder runs/speed/data      # appends lines of JSON as they come

The set is that of criteo_shaped.py, its ids turned into scattered 64-bit numbers. Every line has wall and processor time;
where others use the machine the second is the steadier one. `memory` runs one epoch that trains a small network on mapped
columns whose files were dropped from the page cache, a window being a fifth of them or less, beside the same epoch on the
same columns in memory, and says what anonymous and file-backed memory grew by.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import criteo_shaped
import numpy as np
import polars as pl
import torch

import recstack as rs

RESULTS = Path(__file__).parents[1] / "results" / "speed_data.jsonl"
SHARD = 500_000
SCHEMA = rs.Schema(
    [rs.Categorical(f"c{f}") for f in range(26)] + [rs.Numeric(f"x{f}", transform="standard") for f in range(13)],
    [rs.Task("click")],
)


def shards(folder: Path, rows: int, vocabulary: int) -> list[Path]:
    """Parquet files of SHARD rows, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{vocabulary}-{k:03}.parquet" for k in range(rows // SHARD)]
    for k, path in enumerate(paths):
        if not path.exists():
            data = criteo_shaped.generate(SHARD, vocabulary, seed=k)
            columns: dict[str, np.ndarray] = {
                f"c{f}": data["ids"][:, f].astype(np.int64) * 2_654_435_761 + f for f in range(26)
            }
            columns |= {f"x{f}": data["numbers"][:, f] for f in range(13)} | {"click": data["click"]}
            pl.DataFrame(columns).write_parquet(path, compression="lz4")
    return paths


def report(**line: Any) -> None:
    line |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(line), flush=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps(line) + "\n")


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds, processor seconds of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - processor


def rates(rows: int, wall: float, processor: float) -> dict[str, float]:
    return {"rows_per_s": round(rows / wall), "rows_per_processor_s": round(rows / processor)}


def encoding(paths: list[Path], cache: Path) -> rs.Columns:
    """Both passes, the second alone, and a call that finds its store."""
    shutil.rmtree(cache, ignore_errors=True)
    rs.prepare(paths[0], SCHEMA, cache=cache)  # compiled kernels
    both, *seconds = timed(lambda: rs.prepare(paths, SCHEMA, cache=cache))
    report(what="learn and encode", rows=len(both), **rates(len(both), *seconds))
    again, *seconds = timed(lambda: rs.prepare(paths, SCHEMA, cache=cache))
    report(what="a store that is there", rows=len(again), seconds=round(seconds[0], 4))
    encoder = both.schema.encoder
    only, *seconds = timed(lambda: rs.prepare(paths, SCHEMA, cache=cache / "only", encoder=encoder))
    report(what="encode", rows=len(only), **rates(len(only), *seconds))
    return both


def feeding(columns: rs.Columns, batch_size: int) -> None:
    """One core: the loader in this thread, nothing done with the batches."""
    for name, shuffle in (("in order", False), ("blocks", "blocks"), ("shuffled", True)):
        loader = rs.Loader(columns, batch_size, shuffle=shuffle, prefetch=0)
        runs = [timed(lambda loader=loader: sum(len(b["c0"]) for b in loader))[1:] for _ in range(4)]
        wall, processor = min(runs[1:])  # the first has read the files
        report(what=f"feed {name}", batch_size=batch_size, columns=40, **rates(len(columns), wall, processor))


def memory_now() -> dict[str, int]:
    """MiB of this process: anonymous, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {k: int(x.split()[1]) // 1024 for x in lines for k in ("RssAnon", "RssFile") if x.startswith(k)}


def epoch(batches: Iterable[dict[str, torch.Tensor]]) -> tuple[int, dict[str, int]]:
    """A small network trained on the numbers; rows, and the most memory above that of the start (MiB)."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(13, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before, most, rows = memory_now(), {"RssAnon": 0, "RssFile": 0}, 0
    for i, batch in enumerate(batches):
        x = torch.stack([batch[f"x{f}"] for f in range(13)], 1)
        torch.nn.functional.binary_cross_entropy_with_logits(model(x), batch["click@label"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        rows += len(x)
        if i == 8:
            before = memory_now()
        if i % 16 == 15:
            most = {k: max(most[k], v - before[k]) for k, v in memory_now().items()}
    return rows, most


def drop(folder: Path) -> None:
    """The store's files leave the page cache."""
    for f in folder.glob("arrays-*/*.npy"):
        with open(f, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(folder: Path) -> None:
    """The same epoch from memory, and from files that are not in it."""
    mapped = rs.Columns.load(folder)
    size = sum(f.stat().st_size for f in folder.glob("arrays-*/*")) // 2**20
    window = max(1, mapped.n_requests // 5 // 8192 // 2)  # two windows are in use: this one and the next
    drop(folder)
    loader = rs.Loader(mapped, 4096, shuffle="blocks", window=window)
    (rows, most), *seconds = timed(lambda: epoch(loader))
    from_files = rates(rows, *seconds)
    report(
        what="epoch from files", store_mib=size, window_mib=size * window * 8192 // rows, grew_mib=most, **from_files
    )
    arrays = {n: np.array(a) for n, a in mapped.arrays().items()}
    whole = rs.Columns.restore(mapped.manifest(), arrays)
    (rows, most), *seconds = timed(lambda: epoch(rs.Loader(whole, 4096, shuffle=True)))
    in_memory = rates(rows, *seconds)
    ratio = {k: round(from_files[k] / in_memory[k], 2) for k in in_memory}
    report(what="epoch from memory", store_mib=size, grew_mib=most, **in_memory, files_over_memory=ratio)
    drop(folder)
    loaders = rs.Loader(mapped, 4096, shuffle="blocks", window=window), rs.Loader(whole, 4096, shuffle=True)
    training(mapped.schema, *loaders)


def training(schema: rs.Schema, files: rs.Loader, inside: rs.Loader) -> None:
    """DeepFM, embeddings of 16 and an MLP 400-400-400, ten batches from files and ten from memory in turns."""
    trainer = rs.Trainer(rs.ranking.DeepFM(schema, dim=16, hidden=(400, 400, 400)), epochs=1, progress=False)
    sources, spent = {"files": iter(files), "memory": iter(inside)}, {"files": [0.0, 0.0], "memory": [0.0, 0.0]}
    for turn in range(9):
        for name, batches in sources.items():
            _, *seconds = timed(lambda batches=batches: trainer.fit(Turn(batches, 10)))
            if turn:  # the first has warmed up
                spent[name] = [a + b for a, b in zip(spent[name], seconds, strict=True)]
    found = {name: rates(8 * 10 * 4096, *seconds) for name, seconds in spent.items()}
    ratio = {k: round(v / found["memory"][k], 3) for k, v in found["files"].items()}
    report(what="DeepFM in turns", **found, files_over_memory=ratio)


class Turn:
    """The next batches of an iterator, as an epoch."""

    def __init__(self, batches: Iterator[dict[str, torch.Tensor]], size: int) -> None:
        self.batches, self.size = batches, size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return islice(self.batches, self.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--vocabulary", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/speed/data"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = encoding(shards(args.folder, args.rows, args.vocabulary), args.folder / "cache")
    for batch_size in (4096, 16384):
        feeding(columns, batch_size)
    stores = (args.folder / "cache").glob("*/columns.json")
    memory(max((m.parent for m in stores), key=lambda p: sum(f.stat().st_size for f in p.glob("arrays-*/*"))))
    shutil.rmtree(args.folder / "cache" / "only", ignore_errors=True)


if __name__ == "__main__":
    main()
