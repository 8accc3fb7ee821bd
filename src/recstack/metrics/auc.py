"""Area under the ROC curve, of everything and of each group: exact, ties count half, weighted, without loops.

A label between 0 and 1 is a share: label y of weight w is w·y of a positive and w·(1 - y) of a negative.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
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
    value = _auc(score, label, weight, None, 1)[0][0]
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
    known, index = numbered(ids)
    return GroupAUC(known, *_auc(score, label, weight, index, len(known)))


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


def _auc(
    score: Tensor, label: Tensor, weight: Tensor, group: np.ndarray | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(AUC, Σ weight, Σ weight · label), each [groups], of flat cells with groups numbered from 0, or all of one.

    It works on the CPU, where sorting is fastest, and answers on the device of the score.
    """
    if score.shape != label.shape:
        raise DataError("AUC is of binary tasks: the score needs the label's shape, without an axis of classes.")
    if label.numel() and not (label.min() >= 0 and label.max() <= 1):
        wrong = label[(label < 0) | (label > 1)][0].item()
        raise DataError(f"AUC needs labels between 0 and 1, and {wrong:g} came. Choose mae or rmse for a regression.")
    if _whole(score) and bool((weight == 1).all()) and bool(((label == 0) | (label == 1)).all()):
        won, clicks, views = _counted(score, label, group, groups)
    else:
        won, clicks, views = _weighed(score, label, weight, group, groups)
    broken = np.zeros(groups, bool)
    if score.isnan().any():
        broken[0 if group is None else group[score.isnan().cpu().numpy()]] = True
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(broken | (clicks * views == 0), np.nan, won / (clicks * views))
    answer = (torch.from_numpy(x).to(score.device) for x in (value, clicks + views, clicks))
    return next(answer), next(answer), next(answer)


def _counted(
    score: Tensor, label: Tensor, group: np.ndarray | None, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each group (pairs won, positives, negatives), of labels 0 and 1 that all weigh 1.

    Group, score and label fit into one number, so nothing is fetched from where it stood before. In a tie negatives come
    first: a positive has as many of them before it as it wins over, and those of its tie.
    """
    n = len(score)
    packed = _key(score).astype(np.int64)
    packed += 1 << 31
    packed <<= 1
    packed |= label.cpu().numpy().astype(np.int64)
    if group is not None:
        packed |= group << 33
    packed.sort()
    place = np.flatnonzero(packed & 1)
    key = packed[place]
    below = (place - np.arange(len(place))).astype(np.float64)
    first = np.ones(len(key), bool)
    first[1:] = key[1:] != key[:-1]
    at, least = place[first], key[first] - 1
    tied = np.flatnonzero((at > 0) & (packed[at - 1] == least))
    half = np.zeros(len(at))
    half[tied] = (at[tied] - np.searchsorted(packed, least[tied])) / 2
    below -= half[np.cumsum(first) - 1]
    if group is None:
        return np.array([below.sum()]), np.array([1.0 * len(place)]), np.array([1.0 * (n - len(place))])
    home = key >> 33
    clicks = np.bincount(home, minlength=groups).astype(np.float64)
    views = np.bincount(group, minlength=groups) - clicks
    below -= (np.cumsum(views) - views)[home]
    return np.bincount(home, below, groups), clicks, views


def _weighed(
    score: Tensor, label: Tensor, weight: Tensor, group: np.ndarray | None, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of any weights and shares, as weights of pairs, positives and negatives."""
    won, clicks, views = np.zeros(groups), np.zeros(groups), np.zeros(groups)
    if not len(label):
        return won, clicks, views
    order = sorted_by(score, group)
    ranked, total = score.cpu()[order].numpy(), weight.cpu()[order].numpy()
    positive = label.cpu()[order].numpy() * total
    home = np.zeros(len(order), np.int64) if group is None else group[order.numpy()]
    # A tie: equal scores in one group. Each wins over the negatives of its group below it, and half of its own.
    first = np.ones(len(order), bool)
    first[1:] = (ranked[1:] != ranked[:-1]) | (home[1:] != home[:-1])
    tie = np.flatnonzero(first)
    home, up, down = home[tie], np.add.reduceat(positive, tie), np.add.reduceat(total - positive, tie)
    begin = np.flatnonzero(np.diff(home, prepend=-1))
    below = np.cumsum(down) - down
    below -= np.repeat(below[begin], np.diff(begin, append=len(home)))
    pairs = up * (below + down / 2)
    live = home[begin]
    won[live], clicks[live], views[live] = (np.add.reduceat(x, begin) for x in (pairs, up, down))
    return won, clicks, views


def _whole(score: Tensor) -> bool:
    """Whether scores, and places or groups, are of 32 bits."""
    return score.dtype != torch.float64 and score.numel() < 1 << 30


def _key(score: Tensor) -> np.ndarray:
    """int32 in the order of the scores, equal where they are."""
    bits = (score.cpu().float() + 0.0).numpy().view(np.int32)  # + 0.0: -0.0 ties with 0.0
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def sorted_by(score: Tensor, group: np.ndarray | None = None) -> Tensor:
    """The stable order by score, within groups if there are some, on the CPU; NaN stands anywhere.

    32 bits of score and 32 of place in one number: plain sorting is several times as fast as sorting places.
    """
    order = _places(_key(score)) if _whole(score) else score.cpu().argsort(stable=True).numpy()
    if group is not None:
        order = order[_places(group[order])]
    return torch.from_numpy(order)


def _places(key: np.ndarray) -> np.ndarray:
    """The stable order of whole numbers of at most 32 bits."""
    packed = key.astype(np.int64)
    packed <<= 32
    packed |= np.arange(len(key))
    packed.sort()
    packed &= 0xFFFFFFFF
    return packed


def numbered(ids: Tensor) -> tuple[Tensor, np.ndarray]:
    """(the ids that occur, ascending; the place of each row's id among them)."""
    values = ids.cpu().numpy()
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if high - low > 4 * len(values) + 1024:
        known, index = np.unique(values, return_inverse=True)
    else:  # dense ids are looked up and not sorted
        index = values.astype(np.int64) - low
        seen = np.zeros(high - low + 1, bool)
        seen[index] = len(values) > 0
        known = np.flatnonzero(seen)
        if len(known) < len(seen):
            index = (np.cumsum(seen) - 1)[index]
        known += low
    return torch.from_numpy(known).to(ids.dtype).to(ids.device), index
