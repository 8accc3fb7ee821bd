"""Do two stages agree? What a pre-ranker puts first, against what the ranker would."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.metrics.lists import ndcg, recall


def stage_recall(
    score: Tensor,
    ranker: Tensor,
    *,
    where: Tensor | None = None,
    k: int = 10,
    kept: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The share of the ranker's first k among the first `kept` of the pre-ranker; with kept = k (None) their overlap.

    Score and ranker ``[..., L]``, both of all candidates that the pre-ranker was given; equal scores in the order of input. Of lists
    shorter than k all is asked for. A list with no live candidate is NaN under reduction="none", and left out of the mean.

    Raises ConfigError where kept is less than k.

    >>> score, ranker = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 4.0, 3.0, 2.0])
    >>> stage_recall(score, ranker, k=2), stage_recall(score, ranker, k=2, kept=3)
    (tensor(0.5000, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    if kept is not None and kept < k:
        raise ConfigError(f"A pre-ranker keeps at least what the ranker is asked for; got kept={kept} for k={k}.")
    first = (_place(ranker, where) < k).double()
    with _order_of_input():
        return recall(score, first, where=where, k=k if kept is None else kept, reduction=reduction)


def stage_ndcg(
    score: Tensor, ranker: Tensor, *, where: Tensor | None = None, k: int = 10, reduction: str = "mean"
) -> Tensor:
    """NDCG@k of the pre-ranker's order, where the ranker's first k have grades k, k - 1, ..., 1 (linear gains), all others 0.

    As in `stage_recall`; 1 is the ranker's own order of its first k.

    >>> score, ranker = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 4.0, 3.0, 2.0])
    >>> stage_ndcg(score, ranker, k=2)  # (2 / log2(3)) / (2 + 1 / log2(3))
    tensor(0.4796, dtype=torch.float64)
    """
    grade = (k - _place(ranker, where)).clamp(min=0).double()
    with _order_of_input():
        return ndcg(score, grade, where=where, k=k, gain="linear", reduction=reduction)


@contextmanager
def _order_of_input() -> Iterator[None]:
    """Without the warning that it decides: a stage cuts ties by the order in which candidates came."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "In .* of the lists")
        yield


def _place(score: Tensor, where: Tensor | None) -> Tensor:
    """The place of each candidate in the order of scores, from 0, those that are not live last."""
    live = score.detach() if where is None else score.detach().masked_fill(~where, -torch.inf)
    return live.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
