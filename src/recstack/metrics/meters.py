"""Metrics of a stream: `update` with each batch, `compute` what one call on all rows together would answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor

from recstack.errors import ConfigError


class Meter(Protocol):
    """What every meter can do.

    A stream stays on the device it came from, so that `update` waits for none; `compute` and `state_dict` bring it to the
    CPU. States are dicts of CPU tensors; `merge` adds another process's or shard's stream.
    """

    def update(
        self,
        score: Tensor,
        label: Tensor,
        *,
        where: Tensor | None = None,
        weight: Tensor | None = None,
        group: Tensor | None = None,
    ) -> None: ...
    def compute(self) -> Tensor: ...
    def reset(self) -> None: ...
    def merge(self, other: Self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class SumMeter:
    """Remembers sums; `add` makes them of a batch, `finish` makes the answer of them.

    >>> from recstack import metrics
    >>> meter = metrics.get("rmse").meter()
    >>> meter.update(torch.tensor([1.0]), torch.tensor([1.0]))
    >>> meter.update(torch.tensor([2.0]), torch.tensor([6.0]))
    >>> meter.compute().square()  # of both rows, not the mean of two roots
    tensor(8.0000, dtype=torch.float64)
    """

    def __init__(self, add: Callable[..., Tensor], finish: Callable[..., Tensor]):
        self.add, self.finish = add, finish
        self.reset()

    def update(
        self,
        score: Tensor,
        label: Tensor,
        *,
        where: Tensor | None = None,
        weight: Tensor | None = None,
        group: Tensor | None = None,
    ) -> None:
        part = self.add(score, label, where=where, weight=weight)
        self.sums = self.sums.to(part.device, non_blocking=True) + part

    def compute(self) -> Tensor:
        return self.finish(*self.sums.cpu())

    def reset(self) -> None:
        self.sums = self.add(torch.zeros(0, 1), torch.zeros(0, 1))

    def merge(self, other: SumMeter) -> None:
        self.sums = self.sums.cpu() + other.sums.cpu()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums.to("cpu", copy=True)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums = state["sums"].clone()


class PoolMeter:
    """Remembers the live cells themselves, because a rank is not a sum: 12 bytes a row, 20 with int64 groups.

    On a CPU dead cells are dropped in `update`, elsewhere in the end: counting them would make the device wait.

    `function` is asked once, in `compute`. Raises ConfigError in `update` if `grouped` and no group comes: the lists
    of two batches could not be told apart.

    >>> from recstack import metrics
    >>> meter = metrics.get("auc").meter()
    >>> meter.update(torch.tensor([0.2]), torch.tensor([0.0]))
    >>> meter.update(torch.tensor([0.9]), torch.tensor([1.0]))
    >>> meter.compute()
    tensor(1., dtype=torch.float64)
    """

    def __init__(self, function: Callable[..., Tensor], *, grouped: bool):
        self.function, self.grouped = function, grouped
        self.reset()

    def update(
        self,
        score: Tensor,
        label: Tensor,
        *,
        where: Tensor | None = None,
        weight: Tensor | None = None,
        group: Tensor | None = None,
    ) -> None:
        weight = torch.ones_like(score) if weight is None else weight.expand(label.shape)
        cells = {"score": score.detach(), "label": label, "weight": weight}
        if self.grouped:
            if group is None:
                raise ConfigError("A meter of groups needs group=, the user of each row, in every update.")
            group = group.unsqueeze(-1) if group.shape == label.shape[:-1] else group
            cells["group"] = group.expand(label.shape)
        cells["live"] = torch.ones_like(label, dtype=torch.bool) if where is None else where.expand(label.shape)
        self.chunks.append(_live(cells) if label.device.type == "cpu" else cells)

    def compute(self) -> Tensor:
        return self.function(**self.state_dict())

    def reset(self) -> None:
        self.chunks: list[dict[str, Tensor]] = []

    def merge(self, other: PoolMeter) -> None:
        self.chunks.extend(other.chunks)

    def state_dict(self) -> dict[str, Tensor]:
        empty = {"score": torch.zeros(0), "label": torch.zeros(0), "weight": torch.zeros(0)}
        if self.grouped:
            empty["group"] = torch.zeros(0, dtype=torch.int32)
        chunks = [_live(chunk) if "live" in chunk else chunk for chunk in self.chunks]
        return {name: torch.cat([blank, *(chunk[name].cpu() for chunk in chunks)]) for name, blank in empty.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.chunks = [{name: tensor.clone() for name, tensor in state.items()}]


def _live(cells: dict[str, Tensor]) -> dict[str, Tensor]:
    """The cells that "live" marks, flat."""
    live = cells["live"]
    return {name: cell[live] for name, cell in cells.items() if name != "live"}
