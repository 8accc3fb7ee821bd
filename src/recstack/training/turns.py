"""Which losses and which optimisers have their turn at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.training.optimizers import Group, route


@dataclass
class Turn:
    """The losses of some steps (None: all of them) and the optimisers that these move, with their own state."""

    names: tuple[str, ...] | None
    groups: list[Group]

    @cached_property
    def params(self) -> list[nn.Parameter]:
        return [p for g in self.groups for p in g.params.values()]

    @property
    def head(self) -> str:
        """What the keys of its groups begin with, where they are told apart from those of other turns."""
        return "" if self.names is None else "+".join(self.names) + "/"

    def loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum that this turn minimises."""
        total = sum(losses.values() if self.names is None else (losses[name] for name in self.names))
        assert isinstance(total, Tensor)
        return total


class _Still(torch.optim.Optimizer):
    """For parameters that have no step in a turn."""

    def __init__(self, params: Any, lr: float = 0.0) -> None:
        super().__init__(params, {"lr": lr})


def turns(model: nn.Module, optimizer: Any, lr: Any, alternate: Any) -> list[Turn]:
    """One turn with everything, or those of `alternate` (see `Trainer`).

    Raises:
        ConfigError: a loss in two turns, a parameter that no turn moves, or what `route` refuses.
    """
    if alternate is None:
        return [Turn(None, route(model, optimizer, lr))]
    own = isinstance(alternate, Mapping)
    if own and isinstance(lr, Mapping):
        raise ConfigError('With alternate={losses: optimizer}, give rates in the choices: ("adam", {"lr": 0.01}).')
    out: list[Turn] = []
    for key in alternate:
        names = (key,) if isinstance(key, str) else tuple(key)
        for name in names:
            if any(name in (turn.names or ()) for turn in out):
                raise ConfigError(f"alternate= names the loss {name!r} in two turns; it can have one.")
        choice = optimizer
        if own:  # what the choice leaves out stands still in this turn
            given = alternate[key]
            choice = {"default": _Still, **(given if isinstance(given, Mapping) else {"default": given})}
        groups = route(model, choice, lr)
        out.append(Turn(names, [g for g in groups if not isinstance(g.optimizer, _Still)]))
    if not out:
        raise ConfigError("alternate= is empty; name the losses of each turn.")
    moved = {id(p) for turn in out for p in turn.params}
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in moved:
            raise ConfigError(f"Parameter {name!r} has no optimiser in any turn of alternate=. Add a key for it.")
    return out


def check_names(turns: list[Turn], losses: Mapping[str, Tensor]) -> None:
    """Raise a ConfigError where turns and the model's losses have different names."""
    named = [name for turn in turns for name in turn.names or losses]
    for name in named:
        if name not in losses:
            raise ConfigError(f"alternate= names the loss {name!r}; the model has {', '.join(losses)}.")
    for name in losses:
        if name not in named:
            raise ConfigError(
                f"Loss {name!r} has no turn in alternate=, so nothing would learn from it. Add it to one."
            )
