"""Gowalla on LightGCN's split (29,858 users, 40,981 places) and Amazon-CDs on UltraGCN's (43,169 users, 35,648 discs): full
ranking of all items, a user's training items left out.

    python benchmarks/gowalla.py --model swing
    python benchmarks/gowalla.py --model item_cf
    python benchmarks/gowalla.py --model popularity
    python benchmarks/gowalla.py --model gf_cf
    python benchmarks/gowalla.py --model lightgcn --epochs 1000     # the published run; --every 20 measures on the way
    python benchmarks/gowalla.py --model ultra_gcn --hold-out 0.1   # a validation part of train: which epoch is best?
    python benchmarks/gowalla.py --model ultra_gcn --epochs 100     # all of train, that many epochs
    python benchmarks/gowalla.py --data amazoncds --model swing     # UltraGCN has its authors' settings of that set there

Each run prints one line of JSON and appends it to --out. Published, recall@20 / ndcg@20: LightGCN, 3 layers, 1000 epochs,
0.1830 / 0.1554 (paper) and 0.1824 / 0.1547 (the authors' PyTorch code); GF-CF 0.1849 / 0.1518; UltraGCN 0.1862 / 0.1580,
whose epoch was chosen on the test; on Amazon-CDs UltraGCN 0.1622 / 0.1043. The usual protocol of these sets has no validation part: numbers are of the last epoch,
never of the epoch that is best on the test. With --hold-out a part of the training interactions takes the place of the
test, which is then not read.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import recstack as rs
from recstack.kernels.cooccurrence import interactions
from recstack.kernels.topk import Sparse, evaluate_topk
from recstack.training.callbacks import Callback

K = 20
COUNTED = {
    "swing": rs.retrieval.Swing,
    "item_cf": rs.retrieval.ItemCF,
    "item_cf_held_out": lambda: rs.retrieval.ItemCF(
        user_weight="sqrt", exponent=0.3
    ),  # the best on Gowalla's --hold-out 0.1
    "user_cf": rs.retrieval.UserCF,
    "etrec": rs.retrieval.ETREC,
    "pixie": lambda: rs.retrieval.Pixie(steps=10_000),  # a tenth of the default: 30,000 users are asked at once
    "popularity": rs.retrieval.Popularity,
    "gf_cf": rs.retrieval.GFCF,
    "item2vec": rs.retrieval.Item2Vec,
}
# of UltraGCN on Amazon-CDs, in the authors' repository; the learning rate and the batches are `fit`'s
ULTRA_GCN: dict[str, dict[str, Any]] = {
    "gowalla": {},
    "amazoncds": {
        "negatives": 1000,
        "negative_weight": 1000.0,
        "constraints": (1e-7, 1.0, 1e-7, 1.0),
        "item_weight": 1.0,
    },
}
LEARNED = {"lightgcn": rs.retrieval.LightGCN, "sim_gcl": rs.retrieval.SimGCL, "ultra_gcn": rs.retrieval.UltraGCN}


def measure(model: Any, users: list[int], truth: Sparse) -> dict[str, float]:
    """recall@20 and ndcg@20, means over the users; seconds of recommending and measuring."""
    begun = time.perf_counter()
    found = model.recommend(users, K)
    recall, ndcg = evaluate_topk(found.ids.numpy(), truth, found.mask.sum(1).numpy())
    seconds = time.perf_counter() - begun
    return {
        f"recall@{K}": round(float(np.nanmean(recall)), 5),
        f"ndcg@{K}": round(float(np.nanmean(ndcg)), 5),
        "evaluate_seconds": round(seconds, 2),
    }


class Watch(Callback):
    """Measures every so many epochs."""

    def __init__(self, model: Any, users: list[int], truth: Sparse, every: int, write: Any):
        self.model, self.users, self.truth, self.every, self.write = model, users, truth, every, write

    def on_epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] % self.every == 0:
            now = measure(self.model, self.users, self.truth)
            self.model.train()
            self.write({"epoch": record["epoch"], "loss": record["loss"], "epoch_seconds": record["seconds"]} | now)


def cooling(epochs: int, cool: int) -> Any:
    """Constant until the last `cool` epochs, then in a line to nothing."""
    return lambda step, total: min(1.0, (1 - step / total) * epochs / cool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=ULTRA_GCN, default="gowalla")
    parser.add_argument("--model", choices=(*COUNTED, *LEARNED), default="swing")
    parser.add_argument("--hold-out", type=float, default=0.0, help="measure on this share of train, not on the test")
    parser.add_argument("--epochs", type=int, default=1000, help="of a model that learns")
    parser.add_argument("--every", type=int, default=20, help="epochs between measurements")
    parser.add_argument("--batch-size", type=int, help="of a model that learns; its own by default")
    parser.add_argument("--lr", type=float, help="learning rate of a model that learns; its own by default")
    parser.add_argument("--schedule", help="of the learning rate, as Trainer(schedule=) has it")
    parser.add_argument(
        "--cool", type=int, default=0, help="the last epochs, in which the learning rate falls to nothing"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of a model that learns")
    parser.add_argument("--layers", type=int, default=3, help="of lightgcn and sim_gcl")
    parser.add_argument("--seed", type=int, default=0, help="of a model that learns, and of --hold-out")
    parser.add_argument("--checkpoint", help="folder; a run that was stopped goes on from there")
    parser.add_argument("--data-dir", help="folder of the public data sets; RECSTACK_DATA by default")
    parser.add_argument("--out", type=Path, help="file that the lines are appended to")
    args = parser.parse_args()
    places = ("data_dir", "checkpoint", "out")  # of one machine: not in what is published
    asked = {k: v for k, v in vars(args).items() if v != parser.get_default(k) and k not in places}
    command = " ".join(["benchmarks/gowalla.py", *(f"--{k.replace('_', '-')} {v}" for k, v in asked.items())])
    begun = time.perf_counter()

    def write(line: dict[str, Any]) -> None:
        text = json.dumps({"data": args.data, "model": args.model} | line)
        print(text, flush=True)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a", encoding="utf8") as file:
                file.write(text + "\n")

    train, test = rs.datasets.lightgcn(args.data, data_dir=args.data_dir)
    encoder = rs.Encoder(train.schema).fit(train)
    if args.hold_out:
        aside = np.random.default_rng(args.seed).random(len(train)) < args.hold_out
        train, test = train.select(~aside), train.select(aside)
    columns, held_out = encoder.encode(train), encoder.encode(test)
    users = np.unique(held_out.user_ids)
    assert users.min() >= 2  # everybody in the test was met in training
    assert held_out.item_ids.min() >= 2
    rows = np.searchsorted(users, held_out.user_ids)
    truth = interactions(rows, held_out.item_ids, len(users), encoder.catalog.size)
    raw = encoder.decode(train.schema.user, users).tolist()
    read = time.perf_counter() - begun

    if args.model in LEARNED:
        torch.manual_seed(args.seed)  # of the initial weights
        model = LEARNED[args.model](
            encoder.schema, **(ULTRA_GCN[args.data] if args.model == "ultra_gcn" else {"layers": args.layers})
        )
        model._remember(columns)  # measured before fit returns
        options = {"epochs": args.epochs, "seed": args.seed, "progress": False}
        for name in ("batch_size", "lr", "schedule", "precision"):
            if getattr(args, name) is not None:
                options[name] = getattr(args, name)
        if args.cool:
            options["schedule"] = cooling(args.epochs, args.cool)
        model.fit(
            columns,
            callbacks=[Watch(model, raw, truth, args.every, write)],
            checkpoint=args.checkpoint,
            resume=args.checkpoint is not None,
            **options,
        )
        if model.trained.interrupted:
            raise SystemExit(f"Interrupted after epoch {len(model.trained.epochs)}.")
    else:
        model = COUNTED[args.model]()
        options = {}
        model.fit(columns)
    fitted = time.perf_counter() - begun - read
    result = measure(model, raw, truth)
    seconds = {"read_seconds": read, "fit_seconds": fitted, "total_seconds": time.perf_counter() - begun}
    if args.cool:
        options["schedule"] = f"constant, then in a line to nothing over {args.cool} epochs"
    config = {k: v for k, v in model.config.items() if k != "schema"} | options
    if args.hold_out:
        config["hold_out"] = args.hold_out
    write(
        result
        | {name: round(value, 2) for name, value in seconds.items()}
        | {"threads": torch.get_num_threads(), "config": config, "command": command}
    )


if __name__ == "__main__":
    main()
