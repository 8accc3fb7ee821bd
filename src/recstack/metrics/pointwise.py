"""Metrics that are functions of sums over cells: a stream needs to remember only the sums.

Everywhere: score and label ``[...]``, ``where`` (True = live) and ``weight`` broadcast to the label; the answer is a
float64 scalar, NaN if nothing is live. Scores of binary tasks are logits. NaN scores give NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.metrics.rows import live_rows, undefined


class Sums(NamedTuple):
    """A metric made of weighted sums: `terms` of each cell are added up, `finish` makes the answer of the sums."""

    terms: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    finish: Callable[..., Tensor]

    def add(self, score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """[1 + terms] float64: the weight, then the sums of the terms. Sums of two halves add up to those of both."""
        score, label, weight = live_rows(score, label, where, weight)
        return torch.stack([weight.sum(), *((weight * term).sum() for term in self.terms(score.double(), label))])


def _mean(weight: Tensor, total: Tensor) -> Tensor:
    return total / weight


def _log_loss(score: Tensor, label: Tensor) -> Tensor:
    if score.dim() > label.dim():
        return F.cross_entropy(score, label.long(), reduction="none")
    return F.binary_cross_entropy_with_logits(score, label, reduction="none")


def _entropy_ratio(weight: Tensor, loss: Tensor, positive: Tensor) -> Tensor:
    rate = positive / weight
    base = -torch.xlogy(rate, rate) - torch.xlogy(1 - rate, 1 - rate)
    if not base > 0:
        undefined("Normalized entropy", "positives and negatives")
        return torch.full_like(loss, torch.nan)
    return loss / weight / base


def _prediction_ratio(weight: Tensor, predicted: Tensor, positive: Tensor) -> Tensor:
    if not positive > 0:
        undefined("Calibration ratio", "a positive")
        return torch.full_like(positive, torch.nan)
    return predicted / positive


def _right(score: Tensor, label: Tensor) -> Tensor:
    guess = score.argmax(-1) == label if score.dim() > label.dim() else (score > 0) == (label > 0.5)
    nan = score.isnan() if score.dim() == label.dim() else score.isnan().any(-1)
    return torch.where(nan, torch.nan, guess.double())


LOGLOSS = Sums(lambda score, label: (_log_loss(score, label),), _mean)
NORMALIZED_ENTROPY = Sums(lambda score, label: (_log_loss(score, label), label), _entropy_ratio)
CALIBRATION_RATIO = Sums(lambda score, label: (score.sigmoid(), label), _prediction_ratio)
MAE = Sums(lambda score, label: ((score - label).abs(),), _mean)
RMSE = Sums(lambda score, label: ((score - label).square(),), lambda weight, total: (total / weight).sqrt())
BRIER = Sums(lambda score, label: ((score.sigmoid() - label).square(),), _mean)
ACCURACY = Sums(lambda score, label: (_right(score, label),), _mean)


def logloss(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Mean negative log likelihood of logits, never clipped; with a score [..., C], of class numbers.

    >>> logloss(torch.tensor([0.0, 100.0]), torch.tensor([1.0, 1.0]))  # half of log 2
    tensor(0.3466, dtype=torch.float64)
    """
    return LOGLOSS.finish(*LOGLOSS.add(score, label, where=where, weight=weight))


def normalized_entropy(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Logloss over that of always answering the mean label (He et al., ADKDD 2014): below 1 something was learned.

    NaN, with a warning, if all labels are of one class.

    >>> normalized_entropy(torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    tensor(1., dtype=torch.float64)
    """
    return NORMALIZED_ENTROPY.finish(*NORMALIZED_ENTROPY.add(score, label, where=where, weight=weight))


def calibration_ratio(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    r"""Predicted over observed, :math:`\sum_i \sigma(s_i) / \sum_i y_i` (PCOC): above 1 the model promises too much.

    Neither higher nor lower is better: 1 is. NaN, with a warning, without a positive. (Some call its inverse COPC.)

    >>> calibration_ratio(torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor(2., dtype=torch.float64)
    """
    return CALIBRATION_RATIO.finish(*CALIBRATION_RATIO.add(score, label, where=where, weight=weight))


def mae(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error of a regression.

    >>> mae(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
    tensor(1.5000, dtype=torch.float64)
    """
    return MAE.finish(*MAE.add(score, label, where=where, weight=weight))


def rmse(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Root of the mean squared error, of all cells together and not the mean of the roots of batches.

    >>> rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 6.0])).square()
    tensor(8.0000, dtype=torch.float64)
    """
    return RMSE.finish(*RMSE.add(score, label, where=where, weight=weight))


def brier(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the probability; `calibration.brier` says what it is made of.

    >>> brier(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(0.2500, dtype=torch.float64)
    """
    return BRIER.finish(*BRIER.add(score, label, where=where, weight=weight))


def accuracy(score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Share of right guesses: of a logit's sign, or of the greatest of [..., C] class scores.

    >>> accuracy(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0]))
    tensor(0.5000, dtype=torch.float64)
    """
    return ACCURACY.finish(*ACCURACY.add(score, label, where=where, weight=weight))
