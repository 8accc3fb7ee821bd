"""Why a loss is not finite, and which parameters never moved."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def _learned(model: nn.Module, name: str) -> bool:
    """Whether the model learns what a missing number of this feature stands for."""
    features = getattr(getattr(model, "schema", None), "features", ())
    return any(f.name == name and getattr(f, "learns_missing", False) for f in features)


def explain(model: nn.Module, batch: Any) -> str:
    """The first cause found: a feature of the batch, a parameter, or the module whose output is not finite."""
    if isinstance(batch, Mapping):
        for name, value in batch.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            missing = name.endswith("@label") or _learned(model, name)  # what is NaN there is missing, and may be
            bad = value.isinf() if missing else ~value.isfinite()
            if bool(bad.any()):
                row = int(bad.reshape(bad.shape[0], -1).any(1).nonzero()[0])
                return f"{name!r} of the batch holds {value[row][bad[row]].reshape(-1)[0].item()} in row {row}; clean the column"
    for name, p in model.named_parameters():
        if not bool(p.isfinite().all()):
            return f"parameter {name!r} is not finite since an earlier step; lower its learning rate or set clip="
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if not found and any(not bool(t.isfinite().all()) for t in _tensors(output)):
            found.append(f"{names[module] or 'the model'!r} ({type(module).__name__})")

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad():
            model.losses(batch)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"module {found[0]} is the first whose output is not finite"
    return "all inputs, parameters and module outputs are finite, so the loss itself overflows"


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _tensors(v)


class Movement:
    """Remembers the sum of the bits of every trainable parameter, which stays if the parameter does.

    Read as whole numbers, a table of gigabytes is summed at the speed of memory; as float64 it takes ten times as long.
    """

    def __init__(self, model: nn.Module) -> None:
        self.before = self._measure(model)

    @staticmethod
    @torch.no_grad()
    def _measure(model: nn.Module) -> dict[str, int]:
        return {name: _bits(p) for name, p in model.named_parameters() if p.requires_grad}

    def warn(self, model: nn.Module) -> list[str]:
        """Warn of the parameters that are as they were; returns their names."""
        after = self._measure(model)
        still = [n for n, was in self.before.items() if after.get(n) == was]
        if still:
            more = f" and {len(still) - 1} more" if len(still) > 1 else ""
            warnings.warn(
                f"Parameter {still[0]!r}{more} did not move in the first epoch: no gradient reached it. Is it used in "
                "forward, and does a loss depend on it? Freeze it with requires_grad_(False) if that is meant.",
                stacklevel=2,
            )
        return still


def _bits(p: Tensor) -> int:
    octets = p.detach().reshape(-1).view(torch.uint8)
    whole = octets.numel() // 8 * 8
    return int(octets[:whole].view(torch.int64).sum()) + int(octets[whole:].sum())
