"""What training will take of the memory, before it takes it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recstack.training.optimizers import Group, RowOptimizer, route


@dataclass(frozen=True)
class Part:
    """A table (or arena of tables), or everything else under the name "dense"; sizes in bytes."""

    name: str
    rows: int  # of a table; of "dense" the number of weights
    width: int
    weights: int
    gradients: int  # at most: a sparse gradient has the rows of a batch
    state: int


@dataclass(frozen=True)
class Memory:
    """An estimate in bytes. What a forward pass keeps for the backward one is not in it: that is the model's own affair.

    copies: averages, best weights and a checkpoint that is being written. free: None where the system does not say.
    """

    parts: tuple[Part, ...]
    batch: int = 0
    copies: int = 0
    free: int | None = None

    @property
    def weights(self) -> int:
        return sum(p.weights for p in self.parts)

    @property
    def gradients(self) -> int:
        return sum(p.gradients for p in self.parts)

    @property
    def state(self) -> int:
        return sum(p.state for p in self.parts)

    @property
    def wanted(self) -> int:
        """What training takes beside the weights, which are there already."""
        return self.gradients + self.state + self.batch + self.copies

    @property
    def short(self) -> bool:
        return self.free is not None and self.wanted > self.free

    def __str__(self) -> str:
        tables = [p for p in self.parts if p.name != "dense"]
        what = " + ".join(
            f"{p.name} {p.rows:,} × {p.width} ({size(p.weights)})" for p in sorted(tables, key=_heavy)[:3]
        )
        more = f" + {len(tables) - 3} more tables" if len(tables) > 3 else ""
        dense = sum(p.rows for p in self.parts if p.name == "dense")
        what = " + ".join(x for x in (what + more, f"{dense:,} other weights" if dense else "") if x)
        costs = {"weights": self.weights, "gradients": self.gradients, "optimiser": self.state}
        costs |= {"copies": self.copies, "a batch": self.batch}
        free = "" if self.free is None else f"; {size(self.free)} free"
        return f"memory: {what}\n  " + ", ".join(f"{k} {size(v)}" for k, v in costs.items() if v) + free


def _heavy(part: Part) -> int:
    return -part.weights


def size(n: float) -> str:
    """
    >>> size(3 * 2**20), size(70 * 2**30)
    ('3.0 MiB', '70.0 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


def estimate(
    model: nn.Module,
    optimizer: Any = None,
    *,
    batch: Mapping[str, Any] | None = None,
    times: int = 1,
    average: bool = False,
    best: bool = False,
    checkpoint: bool = False,
    device: torch.device | str | None = None,
) -> Memory:
    """What `Trainer(model, optimizer=...)` would take, without taking it: no state is made.

    Args:
        optimizer: as in `Trainer`, or a list of the groups that `optimizers.route` made.
        batch: one batch, for its own size and for how many rows a sparse gradient can have; `times` over.
        average, best, checkpoint: whether a copy of the weights for averages, one for the best epoch, and one of weights
            and optimiser state for the checkpoint that is being written, come on top.
        device: whose free memory is meant; the model's by default.

    >>> model = nn.Sequential(nn.Embedding(1000, 16), nn.Linear(16, 1))
    >>> memory = estimate(model, {"embedding": "rowwise_adagrad", "default": "adam"})
    >>> [(p.name, p.weights, p.state) for p in memory.parts]
    [('0', 64000, 4000), ('dense', 68, 136)]
    """
    if optimizer is None:
        optimizer = {"embedding": "rowwise_adagrad", "default": "adam"}
    groups: list[Group] = optimizer if isinstance(optimizer, list) else route(model, optimizer)
    tensors = [v for v in (batch or {}).values() if isinstance(v, Tensor)]
    ids = times * sum(v.numel() for v in tensors if not v.is_floating_point() and v.dtype != torch.bool)
    tables = {id(m.weight): n for n, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    parts = {}
    dense = [0, 0, 0, 0]
    for name, p in model.named_parameters():
        mine = [g for g in groups if any(p is q for q in g.params.values())]
        state = sum(state_bytes(g.optimizer, p) for g in mine)
        gradient = _bytes(p) if mine else 0
        if id(p) in tables:
            if mine and all(g.ours for g in mine) and batch is not None:
                gradient = min(gradient, ids * p.shape[1] * max(4, p.element_size()))
            parts[name] = Part(tables[id(p)] or name, p.shape[0], p.shape[1], _bytes(p), gradient, state)
        else:
            dense = [a + b for a, b in zip(dense, (p.numel(), _bytes(p), gradient, state), strict=True)]
    found = (*parts.values(), *([Part("dense", dense[0], 1, *dense[1:])] if dense[0] else []))
    weights, state = sum(p.weights for p in found), sum(p.state for p in found)
    where = torch.device(device) if device is not None else next(iter(model.parameters()), torch.empty(0)).device
    copies = weights * (average + best)
    if where.type == "cpu":  # of a model elsewhere, the copy to be written lies in the memory of the host
        copies += (weights + state) * checkpoint
    return Memory(found, times * sum(_bytes(v) for v in tensors), copies, free(where))


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def state_bytes(optimizer: torch.optim.Optimizer, p: Tensor) -> int:
    """What `optimizer` keeps of `p`. Ours are asked on the meta device, others are tried on two rows."""
    if isinstance(optimizer, RowOptimizer):
        table = torch.empty(
            p.shape[0] if p.dim() else 1, max(1, p[0].numel() if p.dim() else 1), dtype=p.dtype, device="meta"
        )
        return sum(_bytes(v) for v in optimizer.begin(table, optimizer.defaults).values() if isinstance(v, Tensor))
    known = inspect.signature(type(optimizer).__init__).parameters
    small = nn.Parameter(torch.zeros(2, 3, dtype=p.dtype))
    small.grad = torch.zeros_like(small)
    try:
        trial = type(optimizer)([small], **{k: v for k, v in optimizer.defaults.items() if k in known})  # type: ignore[arg-type]
        trial.step()
    except (RuntimeError, TypeError, ValueError):  # one that cannot be made this way: two moments, as most have
        return 2 * _bytes(p)
    return sum(
        _bytes(v) * p.numel() // 6 for v in trial.state[small].values() if isinstance(v, Tensor) and v.numel() == 6
    )


def free(device: torch.device) -> int | None:
    """Bytes that can still be had on `device`: of the machine or of the container around us, whichever is less."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    if device.type != "cpu":
        return None
    found = [*_machine(), *_container()]
    return min(found) if found else None


def _machine() -> Iterable[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container() -> Iterable[int]:
    """What a control group of Linux leaves; files that it caches can be dropped."""
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            lines = dict(line.split() for line in (root / stat).read_text().splitlines())
            yield max(0, most - now + int(lines.get("inactive_file", 0)))
        except (OSError, ValueError):  # none, or "max"
            continue
