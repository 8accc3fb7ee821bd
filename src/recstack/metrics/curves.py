"""Curves of a binary score, as data: one point for each distinct score, exact, weighted, ties in one step.

Everywhere: score and label ``[...]``, labels from 0 to 1 (a share y of weight w is w·y of a positive); ``where`` (True = live) and
``weight`` broadcast to the label.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError
from recstack.metrics.auc import sorted_by
from recstack.metrics.rows import live_rows, undefined


class Curve(NamedTuple):
    """Points from the highest threshold down, float64 ``[P]``; what scores at least `threshold` is taken."""

    x: Tensor
    y: Tensor
    threshold: Tensor  # +inf where nothing is taken


def roc_curve(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Curve:
    """Share of negatives taken (x) against share of positives taken (y), from (0, 0) to (1, 1); NaN without both classes.

    >>> curve = roc_curve(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    >>> curve.x.tolist(), curve.y.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    threshold, up, down = _taken(score, label, where, weight)
    if not up[-1] > 0 or not down[-1] > 0:
        undefined("A ROC curve", "positives and negatives")
    return Curve(down / down[-1], up / up[-1], threshold)


def precision_recall_curve(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Curve:
    """Recall (x) against precision (y), which is 1 where nothing is taken; NaN without positives.

    >>> curve = precision_recall_curve(torch.tensor([0.1, 0.4, 0.8]), torch.tensor([0.0, 1.0, 1.0]))
    >>> curve.x.tolist(), curve.y.round(decimals=3).tolist()
    ([0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 0.667])
    """
    threshold, up, down = _taken(score, label, where, weight)
    if not up[-1] > 0:
        undefined("A precision-recall curve", "a positive")
    taken = up + down
    return Curve(up / up[-1], torch.where(taken > 0, up / taken, 1.0), threshold)


def gain_curve(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Curve:
    """Share of all rows taken (x) against share of the positives taken (y); y / x is the lift. NaN without positives.

    >>> curve = gain_curve(torch.tensor([0.1, 0.4, 0.6, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    >>> (curve.y / curve.x)[2]  # the better half has all: twice as many as a half drawn at random
    tensor(2., dtype=torch.float64)
    """
    threshold, up, down = _taken(score, label, where, weight)
    if not up[-1] > 0:
        undefined("A gain curve", "a positive")
    return Curve((up + down) / (up + down)[-1], up / up[-1], threshold)


def average_precision(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    r"""Area under the precision-recall curve as a sum of steps (the trapezoid promises too much).

    .. math:: \sum_t (R_t - R_{t-1})\, P_t

    NaN, with a warning, without a positive; NaN if a live score is NaN.

    >>> average_precision(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    tensor(0.8333, dtype=torch.float64)
    """
    if _broken(score, where):
        return _nan(score)
    curve = precision_recall_curve(score, label, where=where, weight=weight)
    return (curve.x.diff() * curve.y[1:]).sum() + 0 * curve.x[-1]  # NaN without a positive, or a row


def partial_auc(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    max_false_positives: float = 0.1,
) -> Tensor:
    r"""The ROC curve's area up to a share m of false positives, scaled so that chance has ½ and the best 1 (McClish, 1989).

    .. math:: \tfrac12 \Big( 1 + \frac{A_m - m^2 / 2}{m - m^2 / 2} \Big)

    >>> partial_auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]), max_false_positives=0.5)
    tensor(0.6667, dtype=torch.float64)
    """
    m = max_false_positives
    if not 0 < m <= 1:
        raise ConfigError(f"max_false_positives is a share above 0 and at most 1; got {m!r}.")
    if _broken(score, where):
        return _nan(score)
    x, y, _ = roc_curve(score, label, where=where, weight=weight)
    if not (x[-1].isfinite() and y[-1].isfinite()):
        return _nan(score)
    inside = x <= m
    last = int(inside.sum()) - 1
    if last < len(x) - 1:  # the curve is cut between two points
        part = (m - x[last]) / (x[last + 1] - x[last])
        y = torch.cat([y[: last + 1], torch.lerp(y[last], y[last + 1], part).reshape(1)])
        x = torch.cat([x[: last + 1], x.new_tensor([m])])
    return (1 + (torch.trapezoid(y, x) - m * m / 2) / (m - m * m / 2)) / 2


def kolmogorov_smirnov(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """The greatest distance between the shares of positives and of negatives taken (KS), over all thresholds.

    >>> kolmogorov_smirnov(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    tensor(0.5000, dtype=torch.float64)
    """
    if _broken(score, where):
        return _nan(score)
    x, y, _ = roc_curve(score, label, where=where, weight=weight)
    return (y - x).abs().max()


def lift(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    share: float = 0.1,
) -> Tensor:
    """How many times as many positives the best `share` of the rows holds as rows drawn at random; ties are shared evenly.

    >>> lift(torch.tensor([0.1, 0.4, 0.6, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]), share=0.5)
    tensor(2., dtype=torch.float64)
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is above 0 and at most 1; got {share!r}.")
    if _broken(score, where):
        return _nan(score)
    x, y, _ = gain_curve(score, label, where=where, weight=weight)
    if not y[-1].isfinite():
        return _nan(score)
    right = int(torch.searchsorted(x, x.new_tensor(share)).clamp(1, len(x) - 1))
    part = (share - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1], y[right], part) / share


class Confusion(NamedTuple):
    """Weights of the four outcomes, float64; rates are NaN where they would divide by zero."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor

    @property
    def recall(self) -> Tensor:
        """TPR, sensitivity: of the positives, those taken."""
        return self.tp / (self.tp + self.fn)

    @property
    def specificity(self) -> Tensor:
        """TNR: of the negatives, those left."""
        return self.tn / (self.tn + self.fp)

    @property
    def false_positive_rate(self) -> Tensor:
        return self.fp / (self.fp + self.tn)

    @property
    def false_negative_rate(self) -> Tensor:
        return self.fn / (self.fn + self.tp)

    @property
    def precision(self) -> Tensor:
        """PPV: of what is taken, the positives."""
        return self.tp / (self.tp + self.fp)

    @property
    def negative_precision(self) -> Tensor:
        """NPV: of what is left, the negatives."""
        return self.tn / (self.tn + self.fn)

    @property
    def accuracy(self) -> Tensor:
        return (self.tp + self.tn) / sum(self)

    @property
    def balanced_accuracy(self) -> Tensor:
        return (self.recall + self.specificity) / 2

    @property
    def matthews(self) -> Tensor:
        """The correlation of label and decision (MCC)."""
        tp, fp, fn, tn = self
        return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()

    def f(self, beta: float = 1.0) -> Tensor:
        """The mean of precision and recall in which recall counts `beta` times as much."""
        more = beta * beta
        return (1 + more) * self.tp / ((1 + more) * self.tp + more * self.fn + self.fp)


def confusion(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    threshold: float = 0.0,
) -> Confusion:
    """What is taken, scoring above `threshold` (of logits: 0 is even odds), and whether it should be.

    >>> found = confusion(torch.tensor([2.0, 1.0, -1.0]), torch.tensor([1.0, 0.0, 1.0]))
    >>> found.precision, found.recall, found.f()
    (tensor(0.5000, dtype=torch.float64), tensor(0.5000, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    score, label, weight = _binary(score, label, where, weight)
    taken = torch.where(score.isnan(), torch.nan, (score > threshold).double())
    up, down = weight * label, weight * (1 - label)
    return Confusion((up * taken).sum(), (down * taken).sum(), (up * (1 - taken)).sum(), (down * (1 - taken)).sum())


def _binary(score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    score, label, weight = live_rows(score, label, where, weight)
    if score.shape != label.shape:
        raise DataError("A curve is of binary tasks: the score needs the label's shape, without an axis of classes.")
    if label.numel() and not (label.min() >= 0 and label.max() <= 1):
        wrong = label[(label < 0) | (label > 1)][0].item()
        raise DataError(f"A curve needs labels between 0 and 1, and {wrong:g} came.")
    return score, label, weight


def _taken(score: Tensor, label: Tensor, where: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(threshold, weight of positives taken, weight of negatives taken), each ``[P]``, the first point taking nothing."""
    score, label, weight = (x.cpu() for x in _binary(score, label, where, weight))
    order = sorted_by(score).flip(0)
    score, up, down = score[order], (weight * label)[order].cumsum(0), (weight * (1 - label))[order].cumsum(0)
    last = torch.ones(len(score), dtype=torch.bool)
    last[:-1] = score[1:] != score[:-1]
    begin = torch.zeros(1, dtype=torch.float64)
    threshold = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), score[last].double()])
    return threshold, torch.cat([begin, up[last]]), torch.cat([begin, down[last]])


def _broken(score: Tensor, where: Tensor | None) -> bool:
    live = score if where is None else score[where.expand(score.shape)]
    return bool(live.isnan().any())


def _nan(score: Tensor) -> Tensor:
    return torch.full((), torch.nan, dtype=torch.float64)
