"""Tiny models and data for the tests of training.

Run as a script it trains in child processes that it kills at random moments until one reaches the end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from recstack.kernels.rows import Rows, dense_gather, sparse_gather
from recstack.training import Trainer


class Table(nn.Embedding):
    """An arena as features.tables makes them, without names."""

    def forward(self, ids: Tensor) -> Tensor:
        lazily = self.sparse and torch.is_grad_enabled() and self.weight.requires_grad
        return (sparse_gather if lazily else dense_gather)(self.weight, Rows(ids))


class Net(nn.Module):
    """Embeddings, dropout, batch statistics, one binary loss: everything whose state a checkpoint must hold."""

    def __init__(self, rows: int = 40, dim: int = 4, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = Table(rows, dim, padding_idx=0)
        self.mlp = nn.Sequential(
            # A bias before batch statistics has no gradient but rounding, which Adam would blow up.
            nn.Linear(2 * dim, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(8, 1),
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.mlp(self.table(batch["ids"]).flatten(1)).squeeze(-1)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"click": F.binary_cross_entropy_with_logits(self(batch).float(), batch["click@label"])}

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"click": self(batch).sigmoid()}


def world(n: int = 8, size: int = 16, rows: int = 40, seed: int = 3) -> list[dict[str, Tensor]]:
    """Batches whose label is whether the two ids are alike in parity."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, rows, (n, size, 2), generator=g, dtype=torch.int32)
    return [{"ids": i, "click@label": (i.sum(1) % 2 == 0).float()} for i in ids]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def trainer(model: nn.Module, optimizer: str, **options) -> Trainer:
    settings = {"monitor": "loss", "schedule": "plateau", "clip": 1.0, "epochs": 6, "progress": False} | options
    return Trainer(model, optimizer={"embedding": optimizer, "default": "adam"}, **settings)


def train_to(result: Path, optimizer: str, folder: Path | None) -> None:
    torch.set_num_threads(1)
    model = Net()
    options = {} if folder is None else {"checkpoint": folder, "checkpoint_every": 3}
    trainer(model, optimizer, **options).fit(world(), world(2, seed=4), resume=folder is not None)
    save_file(weights(model), result)


def killed_at(moment: float, *args: Any) -> bool:
    """Whether a child process that runs `train_to` was killed before it was done."""
    child = os.fork()
    if child == 0:
        train_to(*args)
        os._exit(0)
    end = time.monotonic() + moment
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


if __name__ == "__main__":
    out, optimizer, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    chance, kills = random.Random(seed), 0
    assert not killed_at(60, out / "whole", optimizer, None)
    while killed_at(chance.uniform(0.05, 0.5) if kills < 20 else 60, out / "pieces", optimizer, out / "checkpoints"):
        kills += 1
    print(kills)
