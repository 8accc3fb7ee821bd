"""What every way of balancing losses is: numbers in, one weight a loss out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, unknown


class Balance:
    r"""Weights :math:`w_k` of K losses, for one backward of :math:`\sum_k w_k L_k`.

    A run calls `begin` once, `weights` before each step, `observe` after it and `after_epoch`. All tensors are of shape
    [K], float64, on the device of the run; nothing here waits for it. A loss that is not `live` has no valid row in the
    batch of any process: weights of the others are what they would be without it, and nothing of its own state moves.
    """

    saved: ClassVar[tuple[str, ...]] = ()  # attributes that a checkpoint holds: tensors and whole numbers
    at: str | None = None  # where gradients are taken; None: it asks for none
    every_loss = False  # whether it weighs a paper's auxiliary losses too; else only those that are tasks' own
    adam: Adam | None = None  # what moves the numbers that are learned, if any are
    names: list[str]
    device: torch.device

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        """Before the first step, the losses that are weighed; `regression`: those of squared-error kind."""
        self.names, self.device = list(names), device

    def weights(self, live: Tensor) -> Tensor:
        """[K], from what was seen so far."""
        raise NotImplementedError

    def observe(self, losses: Tensor, live: Tensor) -> None:
        """The losses of a step, over all processes."""

    def after_epoch(self) -> None:
        """When an epoch is finished."""

    def state(self) -> dict[str, Tensor]:
        own = {name: torch.as_tensor(getattr(self, name)) for name in self.saved}
        return own if self.adam is None else own | {f"adam.{n}": getattr(self.adam, n) for n in Adam.saved}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            home, _, name = name.rpartition(".")
            owner = self.adam if home else self
            whole = isinstance(getattr(owner, name), int)
            setattr(owner, name, int(value) if whole else value.to(self.device, copy=True))

    def given(self, values: Mapping[str, float], rest: float, what: str) -> Tensor:
        """[K]: the value of each loss, `rest` where none is given.

        Raises:
            ConfigError: a name that no loss has.
        """
        for name in values:
            if name not in self.names:
                raise unknown(f"loss in {what} of balance=", name, self.names)
        return torch.tensor([float(values.get(n, rest)) for n in self.names], dtype=torch.float64, device=self.device)

    def __repr__(self) -> str:
        """Of one that has not begun: its options, which two runs must share to be one."""
        options = {k: v for k, v in vars(self).items() if k not in self.saved}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


class GradientBalance(Balance):
    """Weights from the Gram matrix of the losses' gradients.

    Args:
        at: where gradients are taken: "shared" (dense parameters that two losses or more reach), "tables" (those and the
            rows of embedding tables), or the path of a module: then with respect to its output, through which all losses
            pass, which costs K backwards of what lies above it and one of what lies below.
    """

    every = 1  # steps between two solutions; weights stay in between

    def __init__(self, at: str = "shared") -> None:
        self.at = at

    def solve(self, gram: np.ndarray, losses: np.ndarray, live: np.ndarray) -> np.ndarray:
        """Weights [n] of the n live losses; `gram` [n, n] and `losses` [n] are theirs, `live` [n] their places among K."""
        raise NotImplementedError


def over_live(values: Tensor, live: Tensor) -> Tensor:
    """`values` scaled so that those of live losses have mean 1."""
    mean = (values * live).sum() / live.sum().clamp(min=1)
    return torch.where(mean > 0, values / mean, 1.0)


class Adam:
    """Adam without weight decay over K numbers, each of which counts the steps in which it was live."""

    saved = ("mean", "square", "steps")

    def __init__(self, k: int, lr: float, device: torch.device | None = None) -> None:
        self.lr = lr
        self.mean, self.square, self.steps = (torch.zeros(k, dtype=torch.float64, device=device) for _ in range(3))

    def step(self, values: Tensor, grad: Tensor, live: Tensor) -> Tensor:
        """The values after one step; those that are not live stay, and so do their moments."""
        self.steps = self.steps + live
        self.mean = torch.where(live, 0.9 * self.mean + 0.1 * grad, self.mean)
        self.square = torch.where(live, 0.999 * self.square + 0.001 * grad.square(), self.square)
        first, second = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        return torch.where(live, values - self.lr * first / (second.sqrt() + 1e-8), values)


def positive(value: float, what: str, zero: bool = False) -> float:
    if not (value > 0 or (zero and value == 0)) or value != value or value == float("inf"):
        raise ConfigError(f"{what} of balance= is a number above 0{' or 0' if zero else ''}; got {value}.")
    return float(value)


def choice(value: Any, known: Iterable[str], what: str) -> Any:
    if value not in tuple(known):
        raise unknown(f"{what} of balance=", value, known)
    return value
