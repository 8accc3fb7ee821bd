"""Buffers as long as the data they were counted in."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Sized(nn.Module):
    """A module that loads buffers of any length: those in `sized` take the shape that was saved."""

    sized: ClassVar[tuple[str, ...]] = ()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.sized:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, saved.new_empty(saved.shape, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
