"""Measuring a model on data it did not learn from, and which number decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from recstack import metrics
from recstack.errors import ConfigError, unknown
from recstack.features import tasks
from recstack.training.batches import Batch, moved, requests

Autocast = Callable[[], AbstractContextManager]


def direction(monitor: str) -> bool:
    """Whether higher is better: "auc" yes, "click/logloss" and "loss" no.

    Raises:
        ConfigError: a metric that RecStack does not know, or one whose best value is in the middle.
    """
    name = monitor.rsplit("/", 1)[-1]
    if name == "loss":
        return False
    higher = metrics.get(name).higher_is_better
    if higher is None:
        raise ConfigError(f"monitor={monitor!r} has its best value in the middle; choose one with a direction.")
    return higher


def resolve(monitor: str, names: Iterable[str]) -> str:
    """The full name of the monitored metric: "auc" finds "click/auc" if only one task has it."""
    names = list(names)
    if monitor in names:
        return monitor
    ending = [name for name in names if name.rsplit("/", 1)[-1] == monitor]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ConfigError(f"monitor={monitor!r} fits {', '.join(ending)}. Choose one, as in monitor={ending[0]!r}.")
    raise unknown("monitor", monitor, names)


def meters(model: Any, monitor: str | None = None) -> dict[str, Any]:
    """The tasks' meters, and one for `monitor` if it is none of them; empty for a model without tasks."""
    schema = getattr(model, "schema", None)
    if schema is None or not schema.tasks:
        return {}
    out = tasks.meters(schema)
    if monitor is not None and monitor != "loss" and monitor not in out:
        task, _, name = monitor.rpartition("/")
        if task or not any(full.rsplit("/", 1)[-1] == name for full in out):
            out[f"{schema.task(task or schema.tasks[0].name).name}/{name}"] = tasks.metric(name).meter()
    return out


def mergeable(model: Any, monitor: str | None) -> bool:
    """Whether `evaluate` asks meters only, which several processes can fill; a mean of batches' losses is not so."""
    return monitor != "loss" and bool(meters(model, monitor))


@torch.no_grad()
def evaluate(
    model: Any,
    loader: Iterable[Batch],
    device: torch.device,
    autocast: Autocast,
    monitor: str | None = None,
    merge: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """{"click/auc": …}; with "loss", the mean over requests, if it is monitored or there is nothing else.

    What is summed stays on the device until the end, so that no batch waits for it. `merge` is given the meters before
    they are asked, where `loader` gives a process's part of the rows.
    """
    found = meters(model, monitor)
    with_loss = not found or monitor == "loss"
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in loader:
        batch = moved(batch, device)
        with autocast():
            if found:
                logits = model(batch)
                if requests(batch):
                    tasks.update_meters(found, logits, batch, model.schema)
            if with_loss:
                n = requests(batch)
                total += n * sum(value.double() for value in model.losses(batch).values())
                count += n
    if merge is not None:
        merge(found)
    out = {name: float(meter.compute()) for name, meter in found.items()}
    return out | {"loss": float(total / count) if count else float("nan")} if with_loss else out


@torch.no_grad()
def predict(model: Any, loader: Iterable[Batch], device: torch.device, autocast: Autocast) -> dict[str, Tensor]:
    """{task: [R, L]} of all batches, on the CPU; lists shorter than the longest end in NaN."""
    parts: dict[str, list[Tensor]] = {}
    for batch in loader:
        with autocast():
            for name, value in model.predict(moved(batch, device)).items():
                parts.setdefault(name, []).append(value.float().cpu())
    return {name: _joined(values) for name, values in parts.items()}


def _joined(values: list[Tensor]) -> Tensor:
    longest = max(v.shape[1] for v in values) if values[0].dim() > 1 else 0
    wide = []
    for v in values:
        if v.dim() > 1 and v.shape[1] < longest:
            v = torch.cat([v, v.new_full((v.shape[0], longest - v.shape[1], *v.shape[2:]), float("nan"))], 1)
        wide.append(v)
    return torch.cat(wide)


class Best:
    """The best value of the monitored metric so far, its weights, and when to stop."""

    def __init__(self, monitor: str, patience: int | None, min_delta: float) -> None:
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.higher = direction(monitor)
        self.value: float | None = None
        self.epoch: int | None = None
        self.waited = 0
        self.weights: dict[str, Tensor] = {}

    def observe(self, record: dict[str, Any], model: nn.Module) -> bool:
        """Whether this epoch is the best so far; then its weights are copied."""
        name = resolve(self.monitor, record["valid"])
        value = record["valid"][name]
        gain = 0.0 if self.value is None else (value - self.value) * (1 if self.higher else -1)
        if value == value and (self.value is None or gain > self.min_delta):  # NaN is never the best
            self.value, self.epoch, self.waited = value, record["epoch"], 0
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def summary(self) -> dict[str, Any] | None:
        return None if self.epoch is None else {"epoch": self.epoch, "monitor": self.monitor, "value": self.value}
