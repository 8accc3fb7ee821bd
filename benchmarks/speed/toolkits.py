"""One toolkit, one model, one epoch: run by train.py in the environment of that toolkit; prints one line of JSON.

Every toolkit gets the same arrays, its own documented way of feeding and its own defaults for the optimiser; widths, batch
and number of threads are equal. The clock runs over its `fit` (shuffling, batching and all that it does before the first
step included), from arrays that are in memory already; RecStack's come from its store of encoded columns, mapped from disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DIM, HIDDEN, CROSSES, BATCH = 16, (400, 400, 400), 3, 4096
Data = dict[str, np.ndarray]
Fit = Callable[[], None]
Predict = Callable[[Data], np.ndarray]


IDS, NUMBERS = tuple(f"C{i}" for i in range(1, 27)), tuple(f"I{i}" for i in range(1, 14))


def recstack_columns(data: Data) -> Any:
    """Identifiers and numbers as they are: there is nothing to learn or to look up. 0 is padding and 1 the unknown."""
    import recstack as rs
    from recstack.data import Columns
    from recstack.data.store import Block

    features = [
        *(rs.Categorical(n, size=int(s) + 2) for n, s in zip(IDS, data["sizes"], strict=True)),
        *map(rs.Numeric, NUMBERS),
    ]
    rows, nothing = len(data["click"]), np.empty((len(data["click"]), 0), np.float32)
    return Columns(
        schema=rs.Schema(features, [rs.Task("click")]),
        user=Block(rows, data["ids"] + 2, data["numbers"], IDS, tuple((n, 0) for n in NUMBERS)),
        item=Block(rows, nothing.astype(np.int32), nothing),
        label_block=Block(rows, nothing.astype(np.int32), data["click"][:, None], (), (("click", 0),)),
        **dict.fromkeys(("users", "items", "user_rows", "item_rows", "lists", "times", "weights", "catalog")),
        histories={},
        implicit=False,
    )


def recstack(model: str, train: Data, sparse: bool = True) -> tuple[Fit, Predict, nn.Module]:
    import recstack as rs
    from recstack.data import Columns

    folder, columns = Path(tempfile.mkdtemp()), recstack_columns(train)
    columns.save(folder)
    options: dict[str, Any] = {"dim": DIM, "hidden": HIDDEN, "norm": None}
    if model == "DeepFM":
        net: Any = rs.ranking.DeepFM(columns.schema, **options)
    else:
        net = rs.ranking.DCNv2(columns.schema, layers=CROSSES, **options)
    trainer = rs.Trainer(net, optimizer=None if sparse else "adam", epochs=1, batch_size=BATCH, progress=False)

    def fit() -> None:
        trainer.fit(Columns.load(folder))

    return fit, lambda data: trainer.predict(recstack_columns(data))["click"].numpy().reshape(-1), net


def deepctr_torch(model: str, train: Data, l2: bool = True) -> tuple[Fit, Predict, nn.Module]:
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import DCN, DeepFM

    features = [SparseFeat(f"C{j}", int(s), embedding_dim=DIM) for j, s in enumerate(train["sizes"])]
    features += [DenseFeat(f"I{j}", 1) for j in range(13)]
    options: dict[str, Any] = {"dnn_hidden_units": HIDDEN, "device": "cpu"}
    if not l2:
        options |= {"l2_reg_linear": 0, "l2_reg_embedding": 0}
    if model == "DeepFM":
        net = DeepFM(features, features, **options)
    else:
        options |= {} if l2 else {"l2_reg_cross": 0}
        net = DCN(features, features, cross_num=CROSSES, cross_parameterization="matrix", **options)
    net.compile("adam", "binary_crossentropy")

    def named(data: Data) -> dict[str, np.ndarray]:
        out = {f"C{j}": data["ids"][:, j] for j in range(26)}
        return out | {f"I{j}": data["numbers"][:, j] for j in range(13)}

    return (
        lambda: (net.fit(named(train), train["click"], batch_size=BATCH, epochs=1, verbose=0), None)[1],
        lambda data: net.predict(named(data), BATCH).reshape(-1),
        net,
    )


def torch_rechub(model: str, train: Data) -> tuple[Fit, Predict, nn.Module]:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.ranking import DCNv2, DeepFM
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    ids = [SparseFeature(f"C{j}", vocab_size=int(s), embed_dim=DIM) for j, s in enumerate(train["sizes"])]
    numbers = [DenseFeature(f"I{j}") for j in range(13)]
    mlp = {"dims": list(HIDDEN), "dropout": 0.0, "activation": "relu"}
    if model == "DeepFM":
        net = DeepFM(ids + numbers, ids, mlp)
    else:
        net = DCNv2(ids + numbers, CROSSES, mlp, use_low_rank_mixture=False)

    def named(data: Data) -> dict[str, np.ndarray]:
        out = {f"C{j}": data["ids"][:, j] for j in range(26)}
        return out | {f"I{j}": data["numbers"][:, j] for j in range(13)}

    trainer = CTRTrainer(net, n_epoch=1, model_path=tempfile.mkdtemp())

    def loader(data: Data) -> Any:
        few = {n: v[:10] for n, v in named(data).items()}
        made = DataGenerator(named(data), data["click"])
        return made.generate_dataloader(few, data["click"][:10], few, data["click"][:10], batch_size=BATCH)[0]

    def predict(data: Data) -> np.ndarray:
        from torch.utils.data import DataLoader
        from torch_rechub.utils.data import TorchDataset

        ordered = DataLoader(TorchDataset(named(data), data["click"]), batch_size=BATCH)
        return np.asarray(trainer.predict(net, ordered), np.float64)

    def fit() -> None:
        given = loader(train)
        trainer.fit(given)

    return fit, predict, net


def fuxictr(model: str, train: Data) -> tuple[Fit, Predict, nn.Module]:
    """Its layers, trainer and loader; the networks are put together here, for its package does not hold them."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
    from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    folder = tempfile.mkdtemp()
    about = FeatureMap("generated", folder)
    about.labels = ["click"]
    about.features.update({f"I{j}": {"type": "numeric"} for j in range(13)})
    about.features.update(
        {f"C{j}": {"type": "categorical", "vocab_size": int(s)} for j, s in enumerate(train["sizes"])}
    )
    about.num_fields = about.get_num_fields()
    about.set_column_index()

    class Base(BaseModel):
        def __init__(self) -> None:
            super().__init__(about, gpu=-1, model_root=folder, metrics=["logloss"], verbose=0)
            self.embedding_layer = FeatureEmbedding(about, DIM)
            self.build()
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()
            self.model_to_device()

    class DeepFM(Base):
        def build(self) -> None:
            self.fm = FactorizationMachine(about)
            self.mlp = MLP_Block(39 * DIM, list(HIDDEN), output_dim=1)

        def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
            x = self.get_inputs(inputs)
            fields = self.embedding_layer(x)
            return {"y_pred": self.output_activation(self.fm(x, fields) + self.mlp(fields.flatten(start_dim=1)))}

    class DCNv2(Base):
        def build(self) -> None:
            self.crossnet = CrossNetV2(39 * DIM, CROSSES)
            self.mlp = MLP_Block(39 * DIM, list(HIDDEN))
            self.fc = nn.Linear(39 * DIM + HIDDEN[-1], 1)

        def forward(self, inputs: Any) -> dict[str, torch.Tensor]:
            x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            both = torch.cat([self.crossnet(x), self.mlp(x)], -1)
            return {"y_pred": self.output_activation(self.fc(both))}

    torch.manual_seed(0)
    net = DeepFM() if model == "DeepFM" else DCNv2()

    def loader(data: Data, name: str, shuffle: bool) -> Any:
        columns = {f"C{j}": data["ids"][:, j] for j in range(26)} | {f"I{j}": data["numbers"][:, j] for j in range(13)}
        np.savez(f"{folder}/{name}.npz", **columns, click=data["click"])
        return NpzDataLoader(about, f"{folder}/{name}", batch_size=BATCH, shuffle=shuffle, num_workers=0)

    given = loader(train, "train", True)

    def fit() -> None:
        net._max_gradient_norm, net._eval_steps, net._total_steps, net._stop_training = 10.0, 10**9, 0, False
        net.train_epoch(given)

    return fit, lambda data: net.predict(loader(data, "test", False)), net


def plain(model: str, train: Data, sparse: bool = False) -> tuple[Fit, Predict, nn.Module]:
    """What a careful engineer writes: one table with offsets, tensors cut by a permutation, fused Adam, no waiting."""
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(train["sizes"])[:-1]]))
    rows = int(train["sizes"].sum())

    def mlp(width: int, out: int | None) -> nn.Sequential:
        layers: list[nn.Module] = []
        for w in HIDDEN:
            layers += [nn.Linear(width, w), nn.ReLU()]
            width = w
        return nn.Sequential(*layers, *([] if out is None else [nn.Linear(width, out)]))

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(rows, DIM, sparse=sparse)
            nn.init.normal_(self.table.weight, std=1e-4)
            self.numbers = nn.Parameter(torch.randn(13, DIM) * 0.01)

        def fields(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.table(ids), x[..., None] * self.numbers], 1)

    class DeepFM(Base):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.linear = nn.Embedding(rows, 1, sparse=sparse), nn.Linear(13, 1)
            nn.init.normal_(self.first.weight, std=1e-4)
            self.deep = mlp(39 * DIM, 1)

        def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            v = self.fields(ids, x)
            fm = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
            return fm + self.first(ids).sum((1, 2)) + (self.linear(x) + self.deep(v.flatten(1))).squeeze(1)

    class DCNv2(Base):
        def __init__(self) -> None:
            super().__init__()
            self.cross = nn.ModuleList(nn.Linear(39 * DIM, 39 * DIM) for _ in range(CROSSES))
            self.deep, self.head = mlp(39 * DIM, None), nn.Linear(39 * DIM + HIDDEN[-1], 1)

        def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            first = v = self.fields(ids, x).flatten(1)
            for layer in self.cross:
                v = first * layer(v) + v
            return self.head(torch.cat([v, self.deep(first)], 1)).squeeze(1)

    torch.manual_seed(0)
    net = DeepFM() if model == "DeepFM" else DCNv2()
    tables = [p for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    others = [p for p in net.parameters() if not any(p is t for t in tables)]
    if sparse:
        steps: list[torch.optim.Optimizer] = [
            torch.optim.SparseAdam(tables, lr=1e-3),
            torch.optim.Adam(others, lr=1e-3, fused=True),
        ]
    else:
        steps = [torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)]

    def tensors(data: Data) -> tuple[torch.Tensor, ...]:
        ids = torch.from_numpy(data["ids"]).long() + starts
        return ids, torch.from_numpy(data["numbers"]), torch.from_numpy(data["click"])

    def fit() -> None:
        ids, x, y = tensors(train)
        for index in torch.randperm(len(y)).split(BATCH):
            loss = nn.functional.binary_cross_entropy_with_logits(net(ids[index], x[index]), y[index])
            loss.backward()
            for step in steps:
                step.step()
                step.zero_grad()

    def predict(data: Data) -> np.ndarray:
        with torch.no_grad():
            return net(*tensors(data)[:2]).sigmoid().numpy()

    return fit, predict, net


TOOLKITS: dict[str, Callable[[str, Data], tuple[Fit, Predict, nn.Module]]] = {
    "RecStack": recstack,
    "RecStack, dense Adam": lambda model, train: recstack(model, train, sparse=False),
    "DeepCTR-Torch": deepctr_torch,
    "DeepCTR-Torch, without L2": lambda model, train: deepctr_torch(model, train, l2=False),
    "torch-rechub": torch_rechub,
    "FuxiCTR": fuxictr,
    "plain PyTorch, fused Adam": plain,
    "plain PyTorch, SparseAdam": lambda model, train: plain(model, train, sparse=True),
}


def logloss(label: np.ndarray, probability: np.ndarray) -> float:
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(label * np.log(p) + (1 - label) * np.log1p(-p)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--toolkit", choices=TOOLKITS, required=True)
    parser.add_argument("--model", choices=("DeepFM", "DCNv2"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--test-rows", type=int, default=100_000)
    args = parser.parse_args()
    torch.manual_seed(0)
    stored = {n: np.load(args.data / f"{n}.npy", mmap_mode="r") for n in ("ids", "numbers", "click", "sizes")}
    part = lambda a, b: {n: np.array(v[a:b]) if n != "sizes" else v for n, v in stored.items()}  # noqa: E731
    train, test = part(0, args.rows), part(len(stored["click"]) - args.test_rows, None)
    fit, predict, net = TOOLKITS[args.toolkit](args.model, train)
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun, quiet = time.perf_counter(), os.dup(1)
    os.dup2(2, 1)  # what a toolkit prints goes to the log
    fit()
    sys.stdout.flush()
    os.dup2(quiet, 1)
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "toolkit": args.toolkit,
        "model": args.model,
        "vocabulary": int(stored["sizes"].sum()),
        "rows": args.rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "samples_per_second": round(args.rows / seconds),
        "seconds_per_step": round(seconds / -(-args.rows // BATCH), 5),
        "peak_gb": round(after.ru_maxrss / 2**20, 3),
        "parameters": sum(p.numel() for p in net.parameters()),
        "threads": torch.get_num_threads(),
    }
    net.eval()
    os.dup2(2, 1)
    value = logloss(test["click"], predict(test)) if args.test_rows else None
    sys.stdout.flush()
    os.dup2(quiet, 1)
    print(json.dumps(result | {"logloss": None if value is None else round(value, 5)}), flush=True)


if __name__ == "__main__":
    main()
