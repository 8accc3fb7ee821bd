"""What every loss does with its rows: full precision, dead cells replaced, one weighted mean."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError

P = ParamSpec("P")
T = TypeVar("T")


def full_precision(loss: Callable[P, T]) -> Callable[P, T]:
    """`loss` in float32 whatever autocast says (float64 stays): small differences of large sums do not survive bf16."""

    def up(value):
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
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


def clean_classes(
    score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `clean`, for a score with one more axis than its label, the classes; the weight has the label's shape.

    Raises DataError if the score is not one axis longer than the label.
    """
    if score.shape[:-1] != label.shape:
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. "
            "A multiclass score has the label's shape and one more axis, the classes."
        )
    if where is not None:
        score = torch.where(where.expand(label.shape).unsqueeze(-1), score, 0)
    _, label, weight = clean(score[..., 0], label, where, weight)
    return score, label, weight


def check(loss: str, option: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises ConfigError, in one sentence, unless the option's value is a finite number from `low` to `high`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        due = f"from {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ConfigError(f"Option {option} of the loss {loss!r} is a number {due}; got {value!r}.")


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Σ w·v / Σ w, and 0 (with zero gradients) where there is no weight."""
    total = weight.sum()
    return (value * weight).sum() / torch.where(total > 0, total, 1)
