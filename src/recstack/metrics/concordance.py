"""XAUC: how well a regression orders; of all pairs and within groups, exact, weighted, without a loop over rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recstack.errors import DataError
from recstack.metrics.auc import numbered, spread_group
from recstack.metrics.rows import live_rows, undefined


def xauc(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    r"""Chance that of two rows with different labels the one with the greater label scores higher, a tie counting half.

    .. math:: \frac{\sum_{y_i > y_j} w_i w_j \big([s_i > s_j] + \tfrac12 [s_i = s_j]\big)}{\sum_{y_i > y_j} w_i w_j}

    AUC for labels that are numbers, such as watch times; of labels 0 and 1 it is AUC. The paper draws pairs; here all count, in
    O(n log n). Score and label ``[...]``. NaN, with a warning, if all labels are equal; NaN if a live score is NaN.

    Zhan et al., KDD 2022, https://arxiv.org/abs/2206.06003

    >>> xauc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([1.0, 2.0, 3.0, 4.0]))  # 5½ of 6 pairs
    tensor(0.9167, dtype=torch.float64)
    """
    score, label, weight = live_rows(score, label, where, weight)
    right, pairs, _ = _concordance(score, label, weight, np.zeros(len(label), np.int64), 1)
    if score.isnan().any():
        return torch.full((), torch.nan, dtype=torch.float64, device=score.device)
    if not pairs[0] > 0:
        undefined("XAUC", "two different labels")
    return (right / pairs)[0]


def xgauc(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    group: Tensor | None = None,
) -> Tensor:
    """Mean XAUC of the groups (users) that have two different labels, by their rows' weight; arguments as in `gauc`.

    >>> score, label = torch.tensor([1.0, 2.0, 5.0, 4.0, 3.0]), torch.tensor([7.0, 9.0, 1.0, 2.0, 2.0])
    >>> xgauc(score, label, group=torch.tensor([1, 1, 2, 2, 2]))  # (2 · 1 + 3 · 0) / 5
    tensor(0.4000, dtype=torch.float64)
    """
    ids = spread_group(group, label)
    ids = ids.flatten() if where is None else ids[where.expand(label.shape)]
    score, label, weight = live_rows(score, label, where, weight)
    known, index = numbered(ids)
    right, pairs, share = _concordance(score, label, weight, index, len(known))
    if score.isnan().any():
        return torch.full((), torch.nan, dtype=torch.float64, device=score.device)
    kept = pairs > 0
    if not kept.any():
        undefined("XGAUC", "a group with two different labels")
    return (share * right / pairs)[kept].sum() / share[kept].sum()


def _concordance(
    score: Tensor, label: Tensor, weight: Tensor, group: np.ndarray, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each group, float64 ``[groups]``: the weight of pairs in the right order, of pairs with different labels, of rows."""
    if score.shape != label.shape:
        raise DataError("XAUC is of regressions: the score needs the label's shape, without an axis of classes.")
    s, y, w = (x.cpu().numpy().astype(np.float64) for x in (score, label, weight))
    # By (group down, label up, score down), no pair of two groups or of equal labels has its scores ascending.
    order = np.lexsort((-s, y, -group))
    s, y, w, group = s[order], y[order], w[order], group[order]
    place = np.lexsort((-np.arange(len(s)), s, group))  # of rows by score; of equal scores the later row first
    ascending = _ascending(place, w[place], group[place], groups)
    share, same_label, same_score, same = (_pairs(w, group, groups, *keys) for keys in ((), (y,), (s,), (y, s)))
    right = ascending + (same_score - same) / 2
    mass = np.bincount(group, w, groups)
    return tuple(torch.from_numpy(x).to(score.device) for x in (right, share - same_label, mass))  # type: ignore[return-value]


def _pairs(w: np.ndarray, group: np.ndarray, groups: int, *keys: np.ndarray) -> np.ndarray:
    """[groups]: Σ of w_i w_j over the pairs whose keys are equal."""
    order = np.lexsort((*keys, group))
    new = np.ones(len(w), bool)
    new[1:] = np.any([key[order][1:] != key[order][:-1] for key in (group, *keys)], axis=0)
    begin = np.flatnonzero(new)
    if not len(begin):
        return np.zeros(groups)
    total, square = (np.add.reduceat(x[order], begin) for x in (w, w * w))
    return np.bincount(group[order][begin], (total * total - square) / 2, groups)


def _ascending(place: np.ndarray, w: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """[groups]: Σ of w_i w_j over i < j with place_i < place_j, of a permutation.

    Bit by bit from the highest: rows whose places agree so far stand together, in a block of 2 to the bits that are left.
    A pair is decided at the first bit in which its places differ.
    """
    out, here = np.zeros(groups), np.arange(len(place))
    for bit in reversed(range(len(place).bit_length())):
        right = (place >> bit & 1).astype(bool)
        block = place >> (bit + 1) << (bit + 1)
        mass, count = (np.concatenate([[0], np.cumsum(x)]) for x in (np.where(right, 0, w), ~right))
        out += np.bincount(group, np.where(right, w * (mass[:-1] - mass[block]), 0), groups)
        lefts = count[:-1] - count[block]
        target = block + np.where(right, (1 << bit) + here - block - lefts, lefts)
        moved = place, w, group
        place, w, group = (np.empty_like(x) for x in moved)
        for new, old in zip((place, w, group), moved, strict=True):
            new[target] = old
    return out
