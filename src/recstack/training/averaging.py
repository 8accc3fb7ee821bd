"""Averages of the weights over training: what is measured and kept at the end, while the raw weights go on learning.

Which tensors: every trainable parameter, tables included, and running statistics of normalisation (buffers named
``running_mean`` and ``running_var``). An average takes as much memory as the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown

STATISTICS = ("running_mean", "running_var")


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """By the names of `named_parameters` and `named_buffers`."""
    out: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return out | {n: b for n, b in model.named_buffers() if n.rpartition(".")[2] in STATISTICS}


class Average:
    """The base of both: sums beside the weights, and the exchange of the two while the model is measured."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = averaged_tensors(model)
        self.lazy = {
            n: p
            for n, p in self.tensors.items()
            if any(p is getattr(m, "weight", None) and getattr(m, "sparse", False) for m in model.modules())
        }
        self.steps = 0
        self.sums = {
            n: torch.zeros_like(t, dtype=_wide(t), memory_format=torch.contiguous_format) for n, t in self._all()
        }

    def _all(self) -> Iterator[tuple[str, Tensor]]:
        return ((n, t.detach()) for n, t in self.tensors.items())

    def before_step(self) -> None:
        """When gradients are there and the weights have not moved yet."""

    def after_step(self) -> None:
        """When the weights have moved."""

    def after_epoch(self, epoch: int) -> None:
        """When `epoch` epochs are finished."""

    def renew(self, p: Tensor, rows: Tensor | None = None) -> None:
        """These rows of `p` (all of them) have been initialised anew: what they were is no part of the average."""

    def weights(self) -> dict[str, Tensor]:
        """The averages; empty before there is one."""
        raise NotImplementedError

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside. Nothing may train there."""
        averages = self.weights()
        kept = {n: self.tensors[n].data for n in averages}
        for n, value in averages.items():
            self.tensors[n].data = value.to(kept[n].dtype)
        try:
            yield
        finally:
            for n, value in kept.items():
                self.tensors[n].data = value

    @torch.no_grad()
    def keep(self) -> None:
        """Put the averages into the model for good."""
        for n, value in self.weights().items():
            self.tensors[n].copy_(value)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint holds: tensors and numbers."""
        return dict(self.sums), {"steps": self.steps}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self.steps = int(numbers["steps"])
        for n, own in self.sums.items():
            own.copy_(tensors[n])


class EMA(Average):
    r"""Exponential average over steps, with Adam's correction for the start, so that no initial weight remains in it.

    .. math:: \bar w_t = \frac{1 - \beta}{1 - \beta^t} \sum_{s = 1}^{t} \beta^{t - s} w_s
        = \bar w_{t-1} + \frac{1 - \beta}{1 - \beta^t} (w_t - \bar w_{t-1})

    Dense parameters cost one pass a step. A table with sparse gradients is *not* passed over: a row that is not in the
    batch keeps its value, so that n such steps are one step with :math:`\beta^n`, taken when the row is met again or the
    average is asked for. That is the same average, not an approximation; it costs the rows of the batch.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f'average="ema": decay lies between 0 and 1; got {decay}.')
        super().__init__(model)
        self.decay = decay
        self.last = {n: torch.zeros(len(p), dtype=torch.int32, device=p.device) for n, p in self.lazy.items()}
        self.met: dict[str, Tensor | None] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        self.met = {}
        for n, p in self.lazy.items():
            if p.grad is None:
                continue
            self.met[n] = rows = p.grad._indices()[0] if p.grad.is_sparse else None
            self._catch_up(n, rows)

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)
        for n, w in self._all():
            if n not in self.lazy:
                self.sums[n].lerp_(w.to(self.sums[n].dtype), share)
        for n, rows in self.met.items():
            own, w = self.sums[n], self.lazy[n].detach()
            if rows is None:
                own.lerp_(w.to(own.dtype), share)
                self.last[n].fill_(self.steps)
            else:
                now = w.index_select(0, rows).to(own.dtype)
                own.index_copy_(0, rows, own.index_select(0, rows).lerp_(now, share))
                self.last[n].index_fill_(0, rows, self.steps)

    def _catch_up(self, name: str, rows: Tensor | None) -> None:
        """Take the steps in which these rows stood still, up to the present one."""
        if not self.steps:
            return
        own, w, last = self.sums[name], self.lazy[name].detach(), self.last[name]
        met = (last if rows is None else last[rows]).double()
        keep = self.decay ** (self.steps - met) * (1 - self.decay**met) / (1 - self.decay**self.steps)
        keep = keep.to(own.dtype).view(-1, *[1] * (own.dim() - 1))
        if rows is None:
            own.sub_(w).mul_(keep).add_(w)
            last.fill_(self.steps)
        else:
            w = w.index_select(0, rows).to(own.dtype)
            own.index_copy_(0, rows, own.index_select(0, rows).sub_(w).mul_(keep).add_(w))
            last.index_fill_(0, rows, self.steps)

    @torch.no_grad()
    def renew(self, p: Tensor, rows: Tensor | None = None) -> None:
        for n, own in self.sums.items():
            if self.tensors[n] is p:
                at = slice(None) if rows is None else rows
                own[at] = p.detach()[at].to(own.dtype)
                if n in self.last:
                    self.last[n][at] = self.steps

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        for n in self.last:
            self._catch_up(n, None)
        return dict(self.sums) if self.steps else {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, numbers = super().state()
        return tensors | {f"last:{n}": last for n, last in self.last.items()}, numbers

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().load_state(tensors, numbers)
        for n, last in self.last.items():
            last.copy_(tensors[f"last:{n}"])


class SWA(Average):
    """Mean of the weights at the ends of the epochs from `start` (1 is the first) on.

    Izmailov et al., 2018, https://arxiv.org/abs/1803.05407. Running statistics are averaged too, where the paper makes
    another pass over the data for them.
    """

    def __init__(self, model: nn.Module, start: int = 1) -> None:
        if start < 1:
            raise ConfigError(f'average="swa": start is an epoch, from 1; got {start}.')
        super().__init__(model)
        self.start = start

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        if epoch >= self.start:
            self.steps += 1
            for n, t in self._all():
                self.sums[n].lerp_(t.to(self.sums[n].dtype), 1 / self.steps)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.sums) if self.steps else {}


AVERAGES: dict[str, Any] = {"ema": EMA, "swa": SWA}


def get(choice: Any, model: nn.Module) -> Average | None:
    """From None, a name, or (name, options)."""
    if choice is None:
        return None
    name, options = (choice[0], dict(choice[1])) if isinstance(choice, tuple | list) else (choice, {})
    if name not in AVERAGES:
        raise unknown("average", name, AVERAGES)
    try:
        return AVERAGES[name](model, **options)
    except TypeError as e:
        raise ConfigError(f"average={name!r} does not take these options: {e}.") from e


def _wide(t: Tensor) -> torch.dtype:
    return t.dtype if t.dtype.itemsize >= 4 else torch.float32
