"""Area under the ROC curve, of everything and of each group: exact, ties count half, weighted, without loops.

A label between 0 and 1 is a share: label y of weight w is w·y of a positive and w·(1 - y) of a negative.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError, unknown
from recstack.metrics.rows import live_rows, undefined


class GroupAUC(NamedTuple):
    """One row per group that has a live cell, by ascending id."""

    group: Tensor  # [G] ids
    auc: Tensor  # [G] float64, NaN for a group of one class
    impressions: Tensor  # [G] Σ weight
    clicks: Tensor  # [G] Σ weight · label


class Coverage(NamedTuple):
    """What GAUC speaks of: the shares that belong to groups with both classes."""

    groups: float
    impressions: float


def auc(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Chance that a positive scores above a negative, a tie counting half; float64.

    Score and label [...]. NaN, with a warning, without both classes; NaN if a live score is NaN.
    Raises DataError for labels outside 0 to 1.

    >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))  # 3½ of 4 pairs
    tensor(0.8750, dtype=torch.float64)
    """
    score, label, weight = live_rows(score, label, where, weight)
    value = _auc(score, label, weight, torch.zeros(label.shape, dtype=torch.long, device=label.device), 1)[0][0]
    if value.isnan() and not score.isnan().any():
        undefined("AUC", "positives and negatives")
    return value


def gauc(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    group: Tensor | None = None,
    weights: str = "impressions",
) -> Tensor:
    r"""Mean AUC of the groups (users) that have both classes, which a popular-item bias cannot please.

    .. math:: \frac{\sum_u w_u \mathrm{AUC}_u}{\sum_u w_u}

    `group` holds integer ids, of the label's shape or one axis less ([R] beside [R, L]); None makes each list of the
    last axis a group. `weights`: "impressions" (DIN's paper), "clicks" or "uniform". Beside it, report
    `gauc_coverage`. NaN, with a warning, if no group has both classes; NaN if a live score is NaN.

    >>> score, label = torch.tensor([0.9, 0.1, 0.1, 0.9, 0.5]), torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    >>> group = torch.tensor([1, 1, 2, 2, 2])
    >>> gauc(score, label, group=group), gauc(score, label, group=group, weights="uniform")
    (tensor(0.4000, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    if weights not in ("impressions", "clicks", "uniform"):
        raise unknown("GAUC weights", weights, ("impressions", "clicks", "uniform"))
    each = auc_by_group(score, label, where=where, weight=weight, group=group)
    share = {"impressions": each.impressions, "clicks": each.clicks, "uniform": torch.ones_like(each.auc)}[weights]
    live_score = score if where is None else score[where.expand(score.shape)]
    if live_score.isnan().any():
        return torch.full((), torch.nan, dtype=torch.float64, device=each.auc.device)
    kept = each.auc.isfinite()
    if not kept.any():
        undefined("GAUC", "a group with positives and negatives")
    return (share * each.auc)[kept].sum() / share[kept].sum()


def auc_by_group(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    group: Tensor | None = None,
) -> GroupAUC:
    """The AUC of every group; arguments as in `gauc`.

    >>> auc_by_group(torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])).auc
    tensor([1., nan], dtype=torch.float64)
    """
    ids = spread_group(group, label)
    ids = ids.flatten() if where is None else ids[where.expand(label.shape)]
    score, label, weight = live_rows(score, label, where, weight)
    known, index = ids.unique(return_inverse=True)
    return GroupAUC(known, *_auc(score, label, weight, index, known.shape[0]))


def gauc_coverage(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    group: Tensor | None = None,
) -> Coverage:
    """The shares of groups and of impressions that GAUC keeps; arguments as in `gauc`.

    >>> gauc_coverage(torch.zeros(5), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]), group=torch.tensor([1, 1, 2, 2, 2]))
    Coverage(groups=0.5, impressions=0.4)
    """
    each = auc_by_group(score, label, where=where, weight=weight, group=group)
    kept = each.auc.isfinite().double()
    return Coverage(kept.mean().item(), ((kept * each.impressions).sum() / each.impressions.sum()).item())


def spread_group(group: Tensor | None, label: Tensor) -> Tensor:
    """A group id for every cell of the label. Raises ConfigError if none is given and there are no lists."""
    if group is None:
        if label.dim() < 2:
            raise ConfigError("GAUC of a flat score needs group=, the user of each row.")
        lists = label[..., 0].numel() if label.shape[-1] else 0
        group = torch.arange(lists, device=label.device).reshape(label.shape[:-1])
    if group.shape == label.shape[:-1]:
        group = group.unsqueeze(-1)
    return group.expand(label.shape)


def _auc(score: Tensor, label: Tensor, weight: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """(AUC, Σ weight, Σ weight · label), each [groups], of flat cells with groups numbered from 0."""
    if score.shape != label.shape:
        raise DataError("AUC is of binary tasks: the score needs the label's shape, without an axis of classes.")
    if label.numel() and not (label.min() >= 0 and label.max() <= 1):
        wrong = label[(label < 0) | (label > 1)][0].item()
        raise DataError(f"AUC needs labels between 0 and 1, and {wrong:g} came. Choose mae or rmse for a regression.")
    order = score.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    score, group = score[order], group[order]
    positive, negative = (weight * label)[order], (weight * (1 - label))[order]

    # A tie: equal scores in one group. Each wins over the negatives of its group below it, and half of its own.
    first = torch.ones_like(group, dtype=torch.bool)
    first[1:] = (score[1:] != score[:-1]) | (group[1:] != group[:-1])
    tie, home = first.cumsum(0) - 1, group[first]
    in_tie = torch.bincount(tie, negative, minlength=home.shape[0])
    in_group = torch.bincount(group, negative, minlength=groups)
    below = in_tie.cumsum(0) - in_tie - (in_group.cumsum(0) - in_group)[home]
    won = torch.bincount(home, torch.bincount(tie, positive, minlength=home.shape[0]) * (below + in_tie / 2), groups)
    clicks = torch.bincount(group, positive, minlength=groups)
    broken = torch.bincount(group, score.isnan(), minlength=groups) > 0
    value = torch.where(broken | (clicks * in_group == 0), torch.nan, won / (clicks * in_group))
    return value, clicks + in_group, clicks
