"""Ways to turn a history into one vector. All take (query, sequence, mask), so that models can swap them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown


class Pooling(nn.Module):
    """``forward(query, sequence [R, T, W], mask [R, T]) → [R, W]``.

    One that is `targeted` is asked ``forward(query [R, L, W], sequence, mask, candidates)`` and gives ``[R, L, W]``;
    `candidates` ``[R, L]`` says which are live, None that all are. For the others `query` is None. `width` is the width of
    what comes out; an empty history gives zeros.
    """

    targeted = False  # whether the result depends on the target item

    def __init__(self, width: int):
        super().__init__()
        self.width = width


class Mean(Pooling):
    """The mean over live steps."""

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        live = mask.unsqueeze(-1).to(sequence.dtype)
        return (sequence * live).sum(-2) / live.sum(-2).clamp(min=1)


class Sum(Pooling):
    """The sum over live steps."""

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        return (sequence * mask.unsqueeze(-1)).sum(-2)


class Max(Pooling):
    """The largest value over live steps, axis by axis."""

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        low = sequence.masked_fill(~mask.unsqueeze(-1), torch.finfo(sequence.dtype).min)
        return low.amax(-2) * mask.any(-1, keepdim=True)


class Last(Pooling):
    """The most recent live step."""

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        last = (mask.sum(-1) - 1).clamp(min=0)  # histories are left aligned
        picked = sequence.gather(-2, last[..., None, None].expand(*last.shape, 1, sequence.shape[-1])).squeeze(-2)
        return picked * mask.any(-1, keepdim=True)


POOLINGS: dict[str, Callable[..., Pooling]] = {"mean": Mean, "sum": Sum, "max": Max, "last": Last}


def pooling(choice: str | Callable[..., Pooling], width: int) -> Pooling:
    """A pooling by name, or from a class (or partial of one) that is given the sequence's width.

    Raises:
        ConfigError: for a name that is not known, or a module that was already built.
    """
    if isinstance(choice, str):
        if choice not in POOLINGS:
            raise unknown("history aggregation", choice, POOLINGS)
        choice = POOLINGS[choice]
    if not (inspect.isclass(choice) or isinstance(choice, partial)):
        raise ConfigError(
            f"history= takes a name or a class of Pooling, so that every model builds its own; got {choice!r}."
        )
    return choice(width)
