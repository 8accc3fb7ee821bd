"""What every loss does with its rows: full precision, dead cells replaced, one weighted mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

from recstack.errors import DataError

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`loss` in float32 whatever autocast says (float64 stays): small differences of large sums do not survive bf16."""

    def up(value):
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*map(up, args), **{name: up(value) for name, value in kwargs.items()})  # type: ignore

    return wrapped


def clean(score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(score, label, weight), all of the score's shape and dtype, with 0 in all three where `where` is False.

    Replaced before any arithmetic, because 0 · NaN is NaN, in the gradient too.

    Raises DataError if score and label differ in shape: [R] against [R, 1] would quietly become [R, R].
    """
    if score.shape != label.shape:
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. Give both the same shape, "
            "for example by unsqueezing a label of one candidate to [R, 1]."
        )
    label = label.to(score.dtype)
    weight = torch.ones_like(score) if weight is None else weight.to(score.dtype).expand(score.shape)
    if where is not None:
        score, label, weight = (torch.where(where, x, 0) for x in (score, label, weight))
    return score, label, weight


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Σ w·v / Σ w, and 0 (with zero gradients) where there is no weight."""
    total = weight.sum()
    return (value * weight).sum() / torch.where(total > 0, total, 1)
