"""How long retrieval takes on Gowalla (LightGCN's split), beside the packages that people use for it.

    python benchmarks/speed/retrieval.py --part counting ranking
    python benchmarks/speed/retrieval.py --part lightgcn --peer PYTHON --reference FOLDER
    python benchmarks/speed/retrieval.py --part bpr --peer PYTHON

counting: Swing and ItemCF, `fit` alone, kernels compiled beforehand.
ranking: every item for every user, by vectors of 64 numbers, training items left out, recall@20 and ndcg@20 of all.
lightgcn: one whole epoch in fp32 and in bf16, d = 64, 3 layers, batches of 2,048; ours alone without FOLDER, a checkout of
    gusye1234/LightGCN-PyTorch. Of its epoch are taken the sampling, whole, and `--steps` steps, as many times as an epoch has.
bpr: PYTHON has `implicit`. Both take one triple at a time, 64 factors, learning rate .05, λ .01, one thread; the loss is the mean
    softplus over 200,000 triples of an interaction and a uniform item. implicit runs 30 epochs; ours goes on until its loss is
    below that.

A line is appended to results/speed.jsonl for each part.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import recstack as rs
from recstack.data import Requests
from recstack.data.datasets.files import resolve_data_dir
from recstack.models.counting import user_items

RESULTS = Path(__file__).parents[1] / "results" / "speed.jsonl"
EPOCHS, TRIPLES = 30, 200_000

REFERENCE = """
import sys, time, json
steps = int(sys.argv[1])
sys.argv = ["main.py", "--dataset=gowalla", "--layer=3", "--recdim=64", "--bpr_batch=2048", "--tensorboard=0"]
import torch, world, dataloader, model, utils
data = dataloader.Loader(path="../data/gowalla")
net = model.LightGCN(world.config, data)
bpr = utils.BPRLoss(net, world.config)
begun = time.perf_counter()
triples = torch.from_numpy(utils.UniformSample_original_python(data)).long()
triples = triples[torch.randperm(len(triples))]
sampling = time.perf_counter() - begun
net.train()
def step(i):
    part = triples[2048 * i : 2048 * (i + 1)]
    bpr.stageOne(part[:, 0], part[:, 1], part[:, 2])
step(0)
begun = time.perf_counter()
for i in range(1, steps + 1):
    step(i)
one = (time.perf_counter() - begun) / steps
print(json.dumps({"sampling_s": sampling, "step_s": one, "steps": len(triples) // 2048 + 1}))
"""

IMPLICIT = """
import sys, time
import numpy as np, scipy.sparse as sp
import implicit
d = np.load(sys.argv[1])
m = sp.csr_matrix((np.ones(len(d["items"]), np.float32), d["items"], d["offsets"]), shape=tuple(d["shape"]))
def fit(n):
    model = implicit.bpr.BayesianPersonalizedRanking(
        64, learning_rate=0.05, regularization=0.01, iterations=n, num_threads=1, random_state=0
    )
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(m, show_progress=False)
    return model, time.perf_counter() - wall, time.process_time() - cpu
fit(1)
model, wall, cpu = fit(int(sys.argv[2]))
np.savez(sys.argv[3], x=model.user_factors, y=model.item_factors, seconds=[wall, cpu], version=implicit.__version__)
"""


class Gowalla:
    """The split, encoded."""

    def __init__(self, data_dir: str | None):
        self.train, self.test = rs.datasets.lightgcn("gowalla", data_dir=data_dir)
        self.encoder = rs.Encoder(self.train.schema).fit(self.train)
        self.columns = self.encoder.encode(self.train)
        self.folder = resolve_data_dir(data_dir) / "lightgcn-gowalla"


def clock(do: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    do()
    return round(time.perf_counter() - begun, 2)


def counting(data: Gowalla, args: argparse.Namespace) -> dict[str, Any]:
    few = data.columns.select(np.arange(2000))
    makers = {
        "swing": lambda: rs.retrieval.Swing(user_alpha=0.0, user_beta=0.5),
        "item_cf": lambda: rs.retrieval.ItemCF(user_weight="inverse", exponent=0.2),
    }
    for make in makers.values():
        make().fit(few)  # compiled
    return {f"{name}_s": clock(lambda make=make: make().fit(data.columns)) for name, make in makers.items()}


def ranking(data: Gowalla, args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = rs.retrieval.BPR(data.encoder.schema, dim=64)
    model._remember(data.columns)
    model.fitted = True
    held = data.encoder.encode(data.test)
    rs.evaluate_retrieval(model, held, data.columns, k=20, max_requests=100)  # compiled
    found: list[Any] = []
    seconds = clock(lambda: found.append(rs.evaluate_retrieval(model, held, data.columns, k=20)))
    users = np.unique(held.user_ids, return_index=True)[1]

    def search() -> None:
        for rows in np.array_split(users, 30):
            model.recommend(Requests.of(held, rows, seen=data.columns), 20)

    return {
        "evaluate_s": seconds,
        "search_s": clock(search),
        "users": found[0].requests,
        "items": data.encoder.catalog.size - 2,
    }


def lightgcn(data: Gowalla, args: argparse.Namespace) -> dict[str, Any]:
    own = {}
    for precision in ("fp32", "bf16"):
        model = rs.retrieval.LightGCN(data.encoder.schema, dim=64, layers=3)
        model.fit(data.columns, epochs=1, seed=0, progress=False, precision=precision)
        own[f"epoch_s, {precision}"] = round(model.trained.epochs[0]["seconds"], 1)  # type: ignore[union-attr]
    if args.reference is None:
        return {"recstack": own}
    folder = args.reference / "data" / "gowalla"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        if not (folder / f"{name}.txt").exists():
            (folder / f"{name}.txt").write_bytes(gzip.decompress((data.folder / f"{name}.txt.gz").read_bytes()))
    command = [args.peer, "-c", REFERENCE, str(args.steps)]
    printed = subprocess.run(command, cwd=args.reference / "code", check=True, capture_output=True, text=True).stdout
    peer = json.loads(printed.strip().splitlines()[-1])
    peer["epoch_s"] = round(peer["sampling_s"] + peer["step_s"] * peer["steps"], 1)
    rounded = {key: round(value, 3) for key, value in peer.items()}
    ratio = round(peer["epoch_s"] / own["epoch_s, fp32"], 2)
    return {"reference": rounded, "recstack": own, "ratio": ratio}


def bpr(data: Gowalla, args: argparse.Namespace) -> dict[str, Any]:
    rows = user_items(data.columns)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(rows.columns), size=TRIPLES)
    user, item, other = rows.rows[drawn], rows.columns[drawn], rng.integers(2, rows.width, size=TRIPLES)

    def loss(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.logaddexp(0, (x[user] * (y[other] - y[item])).sum(1)).mean())

    with tempfile.TemporaryDirectory() as folder:
        given, out = f"{folder}/data.npz", f"{folder}/out.npz"
        np.savez(given, items=rows.columns, offsets=rows.offsets, shape=[rows.height, rows.width])
        subprocess.run([args.peer, "-c", IMPLICIT, given, str(EPOCHS), out], check=True)
        peer = np.load(out)
        goal, (wall, cpu), version = loss(peer["x"], peer["y"]), peer["seconds"], str(peer["version"])
    few = rs.retrieval.BPR(data.encoder.schema, dim=64, epochs=1)
    few.fit(data.columns.select(np.arange(2000)))  # compiled
    torch.manual_seed(0)
    model = rs.retrieval.BPR(data.encoder.schema, dim=64, epochs=4 * EPOCHS)
    passes, losses, spent = model.passes(data.columns), [], 0.0
    while len(losses) < 4 * EPOCHS and (not losses or losses[-1] > goal):
        begun = time.process_time()
        next(passes)
        spent += time.process_time() - begun
        losses.append(round(loss(model.users.weight.detach().numpy(), model.items.weight.detach().numpy()), 5))
    return {
        "implicit": {
            "version": version,
            "epochs": EPOCHS,
            "loss": round(goal, 5),
            "cpu_s": round(float(cpu), 2),
            "wall_s": round(float(wall), 2),
        },
        "recstack": {"epochs": len(losses), "losses": losses, "cpu_s": round(spent, 2)},
        "reached": losses[-1] <= goal,
        "cpu_ratio": round(float(cpu) / spent, 2),
        "cpu_ratio_per_epoch": round(float(cpu) / EPOCHS / (spent / len(losses)), 2),
    }


PARTS = {"counting": counting, "ranking": ranking, "lightgcn": lightgcn, "bpr": bpr}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["counting", "ranking"])
    parser.add_argument("--peer", help="an interpreter with the peer's packages")
    parser.add_argument("--reference", type=Path, help="checkout of LightGCN-PyTorch")
    parser.add_argument("--steps", type=int, default=10, help="of the reference")
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    data = Gowalla(args.data_dir)
    for part in args.part:
        line = {"kind": part, "run": time.strftime("%Y-%m-%d %H:%M"), "data": "gowalla"} | PARTS[part](data, args)
        line |= {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(line), flush=True)
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
