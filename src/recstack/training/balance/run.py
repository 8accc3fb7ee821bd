"""A way of balancing at work in one run: which losses, which are live, what is logged and saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import tasks
from recstack.training.balance.base import Balance, GradientBalance
from recstack.training.balance.gradients import Place
from recstack.training.distributed import World

ERRORS = ("mse", "mae", "huber")  # losses of a value's error, for which uncertainty has a rule of its own


class Balancing:
    """One `Balance` in a run.

    Args:
        balance: its options; the run has a copy.
        model: if it has tasks, their losses are weighed and the auxiliary ones keep weight 1; else all are weighed.
    """

    def __init__(self, balance: Balance, model: nn.Module, world: World, device: torch.device) -> None:
        self.balance, self.model, self.world, self.device = copy.deepcopy(balance), model, world, device
        self.place = None if balance.at is None else Place(balance.at, model, world)
        self.names: list[str] = []
        self.step = 0
        self.sums = self.counts = self.now = self.live = torch.zeros(0, device=device)
        self.seen: tuple[Tensor, Tensor] | None = None  # `sums` and `counts` when they were last read

    @contextmanager
    def watching(self) -> Iterator[None]:
        with nullcontext() if self.place is None else self.place.watching():
            yield

    def _begin(self, names: list[str]) -> None:
        self.names = names
        schema = getattr(self.model, "schema", None)
        values = [t for t in getattr(schema, "tasks", ()) if t.kind == "regression" and tasks.loss_name(t) in ERRORS]
        self.balance.begin(names, [t.name for t in values if t.name in names], self.device)
        self.sums, self.counts = (torch.zeros(len(names), dtype=torch.float64, device=self.device) for _ in range(2))
        self.now = torch.ones_like(self.sums)

    def _weighed(self, losses: Mapping[str, Tensor]) -> list[str]:
        known = {t.name for t in getattr(getattr(self.model, "schema", None), "tasks", ())}
        names = [n for n in losses if n in known]
        if self.balance.every_loss or not names:
            names = list(losses)
        if self.place is not None and len(names) < 2:
            raise ConfigError(
                f"{type(self.balance).__name__} weighs losses against each other, and the model has one: {names[0]!r}."
            )
        return names

    def begin_step(self, rows: Mapping[str, Any]) -> None:
        """With the (weighted) live rows of each task in the whole window, over all processes."""
        self.rows = rows
        self.fresh = True

    def weights(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What to multiply each loss of a batch with. `losses` are this process's shares of those of the step."""
        if not self.names:
            self._begin(self._weighed(losses))
        if self.fresh:  # the batches of one window have the same weights
            self.fresh = False
            live = [torch.as_tensor(self.rows.get(n, 1.0), device=self.device) > 0 for n in self.names]
            self.live = torch.stack(live)
            if self.place is None:
                self.now = self.balance.weights(self.live)
            else:
                self._solve({n: losses[n] for n in self.names})
            self.sums += self.now * self.live
            self.counts += self.live
            self.step += 1
        return {n: w.float() for n, w in zip(self.names, self.now.unbind(), strict=True)}

    def _solve(self, losses: dict[str, Tensor]) -> None:
        balance, place = self.balance, self.place
        assert isinstance(balance, GradientBalance)
        assert place is not None
        if self.step % balance.every == 0:
            values = torch.stack([x.detach().double() for x in losses.values()])
            values = self.world.sum_(values) if self.world.several else values
            gram = place.gram(losses).cpu().numpy()
            on = self.live.cpu().nonzero().flatten().numpy()
            part = gram[on[:, None], on]
            if len(on) > 1 and bool((part == part).all() and (abs(part) < float("inf")).all()):
                found = balance.solve(part, values.cpu().numpy()[on], on)
                self.now = self.now.clone()
                self.now[self.live] = torch.as_tensor(found, device=self.device)
            else:  # nothing to weigh against; a gradient that is not finite is for the loss's own check to tell
                self.now = torch.ones_like(self.now)
        place.forget()

    def observe(self, losses: Mapping[str, Tensor]) -> None:
        """The losses of the step, over all processes."""
        values = torch.stack([losses[n].double() for n in self.names])
        self.balance.observe(values, self.live)

    def read(self) -> dict[str, float]:
        """{loss: mean weight since the last reading of this epoch}, of losses that were live; waits for the device."""
        before, self.seen = self.seen, (self.sums.clone(), self.counts.clone())
        total, count = (now - then for now, then in zip(self.seen, before, strict=True)) if before else self.seen
        pairs = zip(self.names, total.tolist(), count.tolist(), strict=True)
        return {name: value / n for name, value, n in pairs if n}

    def after_epoch(self) -> dict[str, float]:
        """{loss: mean weight in this epoch}."""
        self.balance.after_epoch()
        self.seen = None
        out = self.read()
        self.sums, self.counts, self.seen = torch.zeros_like(self.sums), torch.zeros_like(self.counts), None
        return out

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        own = {f"balance.{n}": t for n, t in self.balance.state().items()} if self.names else {}
        return own | {"sums": self.sums, "counts": self.counts, "now": self.now}, {
            "names": self.names,
            "step": self.step,
        }

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        if not numbers["names"]:
            return
        self._begin(list(numbers["names"]))
        self.step = int(numbers["step"])
        for name in ("sums", "counts", "now"):
            setattr(self, name, tensors[name].to(self.device, copy=True))
        self.seen = self.sums.clone(), self.counts.clone()
        self.balance.load_state({n.removeprefix("balance."): t for n, t in tensors.items() if n.startswith("balance.")})
