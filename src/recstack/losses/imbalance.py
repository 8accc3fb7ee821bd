"""Losses of one cell at a time that weigh cells by how well they are answered already.

Both move the optimum: what they learn is no longer the probability of the label. Calibrate before reading it as one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError
from recstack.losses.rows import check, clean, clean_classes, full_precision, weighted_mean


@full_precision
def focal(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
) -> Tensor:
    r"""Cross entropy in which a cell counts less the better it is answered already.

    .. math:: -\alpha_t\, (1 - p_t)^\gamma \log p_t

    :math:`p_t` is the probability of what is true: of a logit [...], with labels from 0 to 1, or of a score [..., C]
    with class numbers [...]. :math:`\alpha_t` is `alpha` for positives and 1 - `alpha` for negatives (the paper's best:
    0.25 with `gamma` 2), or a number per class; None weighs all alike, and `gamma` 0 is then `bce` or `cross_entropy`.
    Raises ConfigError for a negative `gamma`, and an `alpha` that does not fit.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002

    >>> focal(torch.zeros(1), torch.ones(1))  # a quarter of log 2
    tensor(0.1733)
    >>> focal(torch.zeros(1, 2), torch.ones(1), alpha=(1.0, 3.0))
    tensor(0.5199)
    """
    check("focal", "gamma", gamma, 0)
    if score.dim() > label.dim() and score.shape[-1] > 1:
        score, label, weight = clean_classes(score, label, where, weight)
        log_p, truth = score.log_softmax(-1), label.long().unsqueeze(-1)
        log_t = log_p.gather(-1, truth).squeeze(-1)
        # The others' sum, and not 1 - p: of a p that rounds to 1 the logarithm would have no gradient.
        others = log_p.masked_fill(torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, truth, True), -torch.inf)
        value = -(gamma * others.logsumexp(-1)).exp() * log_t
        if alpha is not None:
            value = value * _of_classes(alpha, score)[label.long()]
        return weighted_mean(value, weight)
    if alpha is not None:
        check("focal", "alpha", alpha, 0, 1)
    score, label, weight = clean(score, label, where, weight)
    positive = (gamma * F.logsigmoid(-score)).exp() * F.softplus(-score)
    negative = (gamma * F.logsigmoid(score)).exp() * F.softplus(score)
    one, zero = (1.0, 1.0) if alpha is None else (float(alpha), 1.0 - float(alpha))  # type: ignore[arg-type]
    return weighted_mean(one * label * positive + zero * (1 - label) * negative, weight)


def _of_classes(alpha: float | Sequence[float], score: Tensor) -> Tensor:
    if not isinstance(alpha, list | tuple) or len(alpha) != score.shape[-1]:
        raise ConfigError(
            f"Option alpha of the loss 'focal' is a tuple of {score.shape[-1]} numbers, one per class; got {alpha!r}."
        )
    for one in alpha:
        check("focal", "alpha", one, 0)
    return torch.tensor(alpha, dtype=score.dtype, device=score.device)


@full_precision
def ghm(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    bins: int = 30,
    counts: Tensor | None = None,
) -> Tensor:
    r"""GHM-C: cells whose gradient is as large as many others' count less, the very easy and the outliers alike.

    .. math:: \frac1N \sum_i \beta_i\, \mathrm{BCE}(s_i, y_i), \qquad \beta_i = \frac{N}{M R_i}, \quad g_i = |\sigma(s_i) - y_i|

    R_i is the number of cells (their weight) whose g lies in the same one of M equal `bins` of [0, 1], of this batch,
    or from `counts` [bins]: the paper's moving average is ``0.75 * counts + 0.25 * gradient_counts(score, label)``,
    kept by the caller. Where g is even over [0, 1], this is `bce`. The authors' code divides by the bins that hold
    something in place of M. Raises ConfigError for less than one bin.

    Li, Liu and Wang, "Gradient Harmonized Single-stage Detector", AAAI 2019, https://arxiv.org/abs/1811.05181

    >>> score, label = torch.tensor([-4.0, -4.0, -4.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    >>> ghm(score, label, bins=2)  # ½ (0.0181 + 0.6931): each bin has one vote
    tensor(0.3556)
    """
    score, label, weight = clean(score, label, where, weight)
    place = _gradient_bin(score, label, bins)
    if counts is None:
        counts = _counts(place, weight, bins)
    of_cell = counts.to(weight)[place]
    # β without its N: a cell of weight 0 may lie alone in its bin.
    share = torch.where(of_cell > 0, weight / torch.where(of_cell > 0, of_cell, 1), 0)
    return (share * F.binary_cross_entropy_with_logits(score, label, reduction="none")).sum() / bins


@full_precision
def gradient_counts(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None, bins: int = 30
) -> Tensor:
    r"""How many cells (their weight) have :math:`|\sigma(s) - y|` in each of `bins` equal parts of [0, 1]: [bins].

    >>> gradient_counts(torch.tensor([-4.0, 0.0]), torch.tensor([0.0, 1.0]), bins=2)
    tensor([1., 1.])
    """
    score, label, weight = clean(score, label, where, weight)
    return _counts(_gradient_bin(score, label, bins), weight, bins)


def _gradient_bin(score: Tensor, label: Tensor, bins: int) -> Tensor:
    if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
        raise ConfigError(f"Option bins of the loss 'ghm' is a whole number from 1; got {bins!r}.")
    gradient = (score.detach().sigmoid() - label).abs()
    return (gradient * bins).long().clamp(0, bins - 1)


def _counts(place: Tensor, weight: Tensor, bins: int) -> Tensor:
    return weight.new_zeros(bins).index_add(0, place.flatten(), weight.flatten())
