"""Runs of several processes for the tests: what is trained, and how a group of processes is started and ended.

Run as a script, one process of a group trains the cases named, and writes what came out into a folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from recstack.data import Encoder, Log
from recstack.models.ranking.deepfm import DeepFM
from recstack.schema import Categorical, Numeric, Schema, Task
from recstack.training import FitResult, Trainer

SCHEMA = Schema(
    [
        Categorical("user", "user"),
        Categorical("item", "item"),
        Categorical("tags", "item", multi=True),
        Numeric("price", "item", transform="standard"),
    ],
    [Task("click"), Task("buy", given="click")],
)
# A bias before batch statistics has no gradient but rounding, which Adam would blow up: hence "sgd" and norm=None.
CASES: dict[str, dict[str, Any]] = {
    "rowwise": {"monitor": "click/auc"},
    "window": {"optimizer": "lazy_adam", "accumulate": 3, "clip": 0.05, "average": "ema"},
    "dense": {"optimizer": "adam", "norm": None, "regularization": {"embedding": 1e-3}},
    "touched": {
        "regularization": {"embedding": ("count", 0.1)},
        "clip": {"default": 1.0, "embedding": ("cowclip", {"r": 1.0, "zeta": 1e-4})},
    },
    "loss": {"monitor": "loss", "batches": True},
    "sharded": {"sharded": "embedding", "clip": 0.05, "monitor": "buy/logloss"},
    "sharded window": {"sharded": "embedding", "optimizer": "lazy_adam", "accumulate": 3, "average": "ema"},
    "sharded dense": {"sharded": "embedding", "optimizer": "adam", "norm": None},
}
BALANCED: dict[str, dict[str, Any]] = {
    "numbers": {"balance": ("uncertainty", {"lr": 0.1}), "accumulate": 3},
    "representation": {"balance": ("mgda", {"at": "mlp", "normalise": "loss+"})},
    "shared": {"balance": "cagrad", "clip": 0.05, "sharded": "embedding"},
    "tables": {"balance": ("nash", {"at": "tables", "every": 2}), "optimizer": "lazy_adam"},
}


def log(n: int, seed: int) -> Log:
    """Users of even number click items of even number; few buy, and only some clicks are known."""
    chance = np.random.default_rng(seed)
    user, item = chance.integers(0, 20, n), chance.integers(0, 31, n)
    click = ((user % 2) == (item % 2)).astype(float)
    click[chance.random(n) < 0.2] = np.nan
    events = {
        "user": user,
        "item": item,
        "tags": [[f"t{i % 3}", f"t{i % 5}"][: i % 3] for i in item],
        "price": (item % 7).astype(float),
        "click": click,
        "buy": (chance.random(n) < 0.15).astype(float),
    }
    return Log(events, SCHEMA)


def made(case: str, dropout: float = 0.0, **more: Any) -> tuple[Trainer, Any, Any]:
    """The Trainer of a case, and its data: 289 rows by 32, so that the last batch is one row."""
    options = {"batch_size": 32, "epochs": 2, "lr": 0.05, "progress": False} | (CASES | BALANCED)[case] | more
    train, valid = log(289, 0), log(65, 1)
    torch.manual_seed(0)
    schema = Encoder(SCHEMA).fit(train).schema
    model = DeepFM(schema, dim=4, hidden=(8,), dropout=dropout, norm=options.pop("norm", "batch"))
    table = options.pop("optimizer", "rowwise_adagrad")
    options["optimizer"] = {"embedding": table, "default": "adam" if table == "adam" else "sgd"}
    data: Any = train
    if options.pop("batches", False):
        from recstack.data import Loader

        data = list(Loader(schema.encoder.encode(train), 32, shuffle=True))
    return Trainer(model, **options), data, valid


def outcome(trainer: Trainer, result: FitResult) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights; losses and metrics."""
    weights = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    return weights, {"epochs": result.epochs, "best": result.best, "steps": result.steps}


def run(
    case: str, resume: bool = False, start_from: Path | None = None, **more: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    trainer, train, valid = made(case, **more)
    return outcome(trainer, trainer.fit(train, valid, resume=resume, start_from=start_from))


# -- a group of processes ---------------------------------------------------------------------------------------------
def start(n: int, *args: Any) -> list[subprocess.Popen]:
    """n processes of this script with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    command = [sys.executable, __file__, *map(str, args)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | {k: str(v) for k, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]


def ended(group: list[subprocess.Popen], seconds: float = 100) -> list[tuple[int, str]]:
    """Exit code and stderr of each; none is left behind."""
    try:
        return [(p.returncode, err) for p in group for err in [p.communicate(timeout=seconds)[1]]]
    finally:
        for p in group:
            p.kill()


def at_step(model: nn.Module, step: int, what: Any) -> None:
    """Call `what` at the beginning of the n-th training batch."""
    losses, left = model.losses, [step]

    def counted(batch: Any) -> dict[str, Tensor]:
        left[0] -= model.training
        if left[0] == 0 and model.training:
            left[0] = -1
            what()
        return losses(batch)

    model.losses = counted  # type: ignore[assignment]


def laws(folder: Path, rank: int) -> None:
    """Every case; what each process ends with, and what it held while it trained. Then it goes on from
    the checkpoints that `begun` and `killed` left, and `stopped`."""
    for case in CASES:
        trainer, train, valid = made(case)
        held: dict[str, int] = {}
        model = trainer.model
        at_step(model, 7, lambda: held.update({n: len(p) for n, p in model.named_parameters()}))  # noqa: B023
        weights, numbers = outcome(trainer, trainer.fit(train, valid))
        save_file(weights, folder / f"{case}.{rank}")
        (folder / f"{case}.{rank}.json").write_text(
            json.dumps(numbers | {"held": held, "spoke": len(trainer.callbacks)})
        )
    weights, _ = run("sharded", resume=True, checkpoint=folder / "begun")
    save_file(weights, folder / f"begun.{rank}")
    weights, _ = run("sharded dense", start_from=folder / "before")
    save_file(weights, folder / f"after.{rank}")
    weights, _ = run("sharded", resume=True, checkpoint=folder / "checkpoints", checkpoint_every=3)
    save_file(weights, folder / f"resumed.{rank}")
    stopped(folder, rank)


def balanced(folder: Path, rank: int) -> None:
    """What each process ends with where losses are balanced."""
    for case in BALANCED:
        weights, numbers = run(case)
        save_file(weights, folder / f"{case}.{rank}")
        (folder / f"{case}.{rank}.json").write_text(json.dumps(numbers))


def begun(folder: Path) -> None:
    """A checkpoint in the second epoch of a run of one process, and those of a whole run to start another from."""
    run("sharded dense", epochs=1, checkpoint=folder / "before")
    trainer, train, valid = made("sharded", checkpoint=folder / "begun")
    at_step(trainer.model, 15, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert trainer.fit(train, valid).steps == 15


def stopped(folder: Path, rank: int) -> None:
    """SIGTERM to process 1 stops both after the step; resumed by two, dropout included, it ends as it would have."""
    for case in ("window", "sharded window"):
        options: dict[str, Any] = {"dropout": 0.3, "monitor": "click/auc"}
        whole, _ = run(case, **options)
        options["checkpoint"] = folder / f"checkpoints {case}"
        trainer, train, valid = made(case, **options)
        if rank == 1:
            at_step(trainer.model, 12, lambda: os.kill(os.getpid(), signal.SIGTERM))
        first = trainer.fit(train, valid)
        assert first.interrupted, first
        assert first.steps == 6, first  # the signal came during step 5, and goes to the others with the next
        again, _ = run(case, resume=True, **options)
        assert all(torch.equal(again[k], whole[k]) for k in whole), case
    (folder / f"stopped.{rank}").touch()


def killed(folder: Path, rank: int) -> None:
    """Process 1 is killed in the second epoch."""
    trainer, train, valid = made("sharded", checkpoint=folder / "checkpoints", checkpoint_every=3)
    if rank == 1:
        at_step(trainer.model, 15, lambda: os.kill(os.getpid(), signal.SIGKILL))
    trainer.fit(train, valid)


def failing(folder: Path, rank: int) -> None:
    """Process 1 meets an error of its own."""
    trainer, train, valid = made("rowwise")
    if rank == 1:
        at_step(trainer.model, 3, lambda: 1 / 0)
    trainer.fit(train, valid)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]), int(os.environ["RANK"]))
