"""How the learning rate moves: a factor of each group's own rate, by step; or by what validation says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from recstack.errors import ConfigError, unknown

Factor = Callable[[int, int], float]


def constant(step: int, total: int) -> float:
    return 1.0


def warmup_cosine(step: int, total: int, *, warmup: float = 0.05, floor: float = 0.0) -> float:
    """Up in a line over the first `warmup` (a share of all steps, or their number from 1), then down half a cosine."""
    rise = warmup if warmup >= 1 else warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    done = min(1.0, (step - rise) / max(1.0, total - rise))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def warmup_linear(step: int, total: int, *, warmup: float = 0.05, floor: float = 0.0) -> float:
    """Up in a line over the first `warmup`, then down in a line."""
    rise = warmup if warmup >= 1 else warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return max(floor, 1 - (1 - floor) * (step - rise) / max(1.0, total - rise))


def warmup(step: int, total: int, *, steps: int = 1000) -> float:
    """Up in a line over `steps`, then constant."""
    return min(1.0, (step + 1) / steps)


class Plateau:
    """Each epoch whose monitored metric is no better than the best so far multiplies every rate by `factor`.

    No rate falls below `floor`. This is the schedule of the published CTR benchmarks (FuxiCTR), with `patience` epochs
    allowed without a step down in addition (there 0).
    """

    def __init__(self, factor: float = 0.1, floor: float = 1e-6, patience: int = 0) -> None:
        if not 0 < factor < 1:
            raise ConfigError(f"schedule='plateau': factor lies between 0 and 1; got {factor}.")
        self.factor, self.floor, self.patience = factor, floor, patience
        self.falls = self.waited = 0

    def observe(self, improved: bool) -> None:
        """What the epoch brought."""
        self.waited = 0 if improved else self.waited + 1
        if self.waited > self.patience:
            self.falls, self.waited = self.falls + 1, 0

    def rate(self, base: float) -> float:
        for _ in range(self.falls):  # as the benchmarks do it, and not base * factor**falls: equal to the last bit
            base = max(base * self.factor, min(base, self.floor))
        return base

    def anew(self) -> Plateau:
        """One with the same settings that has seen nothing."""
        return Plateau(self.factor, self.floor, self.patience)

    def state_dict(self) -> dict[str, int]:
        return {"falls": self.falls, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.falls, self.waited = int(state["falls"]), int(state["waited"])


SCHEDULES: dict[str, Any] = {
    "constant": constant,
    "warmup": warmup,
    "warmup_cosine": warmup_cosine,
    "warmup_linear": warmup_linear,
    "plateau": Plateau,
}


def get(choice: Any) -> Factor | Plateau:
    """From None, a name, (name, options), or a function (step, total steps) → factor.

    >>> get("plateu")
    Traceback (most recent call last):
    ...
    recstack.errors.ConfigError: Unknown schedule 'plateu'. Did you mean 'plateau'? Known: constant, plateau, warmup, \
warmup_cosine, warmup_linear.
    >>> round(get(("warmup", {"steps": 10}))(4, 100), 3)
    0.5
    """
    if choice is None:
        return constant
    name, options = (choice[0], dict(choice[1])) if isinstance(choice, tuple | list) else (choice, {})
    if isinstance(name, str):
        if name not in SCHEDULES:
            raise unknown("schedule", name, SCHEDULES)
        schedule = SCHEDULES[name]
        try:
            made = schedule(**options) if isinstance(schedule, type) else partial(schedule, **options)
            if not isinstance(made, Plateau):
                made(0, 1)  # so that a wrong option is found now and not after the first epoch
        except TypeError as e:
            raise ConfigError(f"schedule={name!r} does not take these options: {e}.") from e
        return made
    if not callable(name):
        raise ConfigError(f"schedule= is a name, (name, options) or a function (step, total) → factor; got {name!r}.")
    return name  # type: ignore[return-value]


def by_key(choice: Any, keys: Iterable[str]) -> dict[str, Factor | Plateau]:
    """The schedule of each key of `optimizer`: one for all, or from {key: choice}, constant where none is given.

    >>> rates = by_key({"default": ("warmup", {"steps": 10})}, ["embedding", "default"])
    >>> rates["embedding"](0, 100), rates["default"](0, 100)
    (1.0, 0.1)
    """
    keys = list(keys)
    if not isinstance(choice, Mapping):
        return dict.fromkeys(keys, get(choice))
    for key in choice:
        if key not in keys:
            raise unknown("key in schedule=", key, keys)
    return {key: get(choice.get(key)) for key in keys}


def anew(schedules: Mapping[str, Factor | Plateau]) -> dict[str, Factor | Plateau]:
    """The same for another run: a Plateau that several keys share is one that has seen nothing, and still shared."""
    fresh = {id(s): s.anew() for s in schedules.values() if isinstance(s, Plateau)}
    return {key: fresh.get(id(s), s) for key, s in schedules.items()}
