"""What every metric does first: the live cells in double precision; and what it says when there is no answer."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from recstack.errors import DataError


def live_rows(
    score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(score [n] or [n, C], label [n], weight [n]): the live cells in a row, score as it came, the rest in float64.

    Raises DataError if score and label do not fit each other, or a live label is NaN.
    """
    if score.shape != label.shape and score.shape[:-1] != label.shape:
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. "
            "Give both the same shape; a multiclass score has one more axis, the classes."
        )
    score = score.detach()
    weight = torch.ones_like(label, dtype=torch.float64) if weight is None else weight.detach().double()
    if where is not None:
        live = where.expand(label.shape)
        score, label, weight = score[live], label[live], weight.expand(label.shape)[live]
    else:
        score, weight = score.flatten(0, label.dim() - 1), weight.expand(label.shape).flatten()
    label = label.flatten().double()
    if (missing := int(label.isnan().sum())) > 0:
        raise DataError(f"Label is NaN in {missing} live cells. Leave them out with where=label.isfinite().")
    return score, label, weight


def undefined(name: str, needs: str) -> None:
    """One warning (Python shows a repeated one once) that the metric is NaN, and why."""
    warnings.warn(f"{name} is NaN: it needs {needs}.", RuntimeWarning, stacklevel=3)
