r"""Losses of a value that is predicted as a histogram over ascending `values`, and read as its mean.

Everywhere: score [..., K] are logits, p their softmax; the label [...] is a number, shared by the two values next to it
so that the mean of its histogram q is the number itself (beyond the ends: the end), or is [..., K], q itself. ``where``
and ``weight`` are like the rows [...]. Differences between cumulative sums P, Q are counted in the unit of the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recstack.errors import DataError
from recstack.losses.rows import clean, full_precision, weighted_mean


def spread(label: Tensor, values: Sequence[float]) -> Tensor:
    r"""The histogram [..., K] of each number: linear binning, which keeps the mean (Jones and Lotwick, 1984).

    >>> spread(torch.tensor([0.0, 15.0, 99.0]), (0, 10, 30))
    tensor([[1.0000, 0.0000, 0.0000],
            [0.0000, 0.7500, 0.2500],
            [0.0000, 0.0000, 1.0000]])
    """
    at = torch.tensor(values, dtype=label.dtype, device=label.device)
    y, gap = label.clamp(at[0], at[-1]).unsqueeze(-1), at.diff()
    end = torch.ones_like(y)
    rising = torch.cat([end, (y - at[:-1]) / gap], -1)
    falling = torch.cat([(at[1:] - y) / gap, end], -1)
    return torch.minimum(rising, falling).clamp(0, 1)


@full_precision
def expected_value(score: Tensor, values: Sequence[float]) -> Tensor:
    r"""The mean :math:`\sum_k p_k v_k` of the histogram: [..., K] logits to [...].

    >>> expected_value(torch.zeros(1, 4), (0, 10, 20, 50))
    tensor([20.])
    """
    return score.softmax(-1) @ torch.tensor(values, dtype=score.dtype, device=score.device)


@full_precision
def kl(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    values: Sequence[float] | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence: cross entropy less what q cannot lose; the best p has the mean of the labels.

    .. math:: \sum_k q_k \log \frac{q_k}{p_k}

    >>> kl(torch.zeros(1, 2), torch.tensor([10.0]), values=(0, 10))  # log 2
    tensor(0.6931)
    """
    return _mean(lambda log_p, q: torch.xlogy(q, q).sum(-1) - (q * log_p).sum(-1), score, label, where, weight, values)


@full_precision
def js(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    values: Sequence[float] | None = None,
) -> Tensor:
    r"""Jensen-Shannon divergence, at most log 2: a row that is wrong altogether pulls no harder than one half wrong.

    .. math:: \tfrac12 \mathrm{KL}(q \| m) + \tfrac12 \mathrm{KL}(p \| m), \qquad m = \tfrac12 (p + q)

    >>> js(torch.tensor([[0.0, -200.0]]), torch.tensor([10.0]), values=(0, 10))  # nothing in common: log 2
    tensor(0.6931)
    """

    def divergence(log_p: Tensor, q: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p, q.log()) - math.log(2)
        of_q = torch.xlogy(q, q) - q * log_m
        return (of_q + log_p.exp() * (log_p - log_m)).sum(-1) / 2

    return _mean(divergence, score, label, where, weight, values)


@full_precision
def wasserstein(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    values: Sequence[float] | None = None,
) -> Tensor:
    r"""Wasserstein-1 distance, how far mass has to move: a near miss costs less than a far one.

    .. math:: \sum_{k<K} |P_k - Q_k|\, (v_{k+1} - v_k)

    In the unit of the values, at least :math:`|\sum_k p_k v_k - y|`. Of labels that differ in alike rows the best p is
    near their median, as with `mae`. Without values they are 0, 1, 2, ...

    >>> wasserstein(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([30.0]), values=(0, 10, 30))
    tensor(30.)
    """
    gap = None if values is None else torch.tensor(values, dtype=score.dtype, device=score.device).diff()

    def distance(log_p: Tensor, q: Tensor) -> Tensor:
        apart = (log_p.exp() - q).cumsum(-1)[..., :-1].abs()
        return (apart if gap is None else apart * gap).sum(-1)

    return _mean(distance, score, label, where, weight, values)


def _mean(
    divergence: Callable[[Tensor, Tensor], Tensor],
    score: Tensor,
    label: Tensor,
    where: Tensor | None,
    weight: Tensor | None,
    values: Sequence[float] | None,
) -> Tensor:
    rows = score.shape[:-1]
    if label.shape == rows and values is not None and len(values) == score.shape[-1]:
        live = None if where is None else where.expand(rows)
        _, label, weight = clean(score[..., 0], label, live, weight)
        q = spread(label, values)
    elif label.shape == score.shape:
        live = None if where is None else where.expand(rows)
        q = label.to(score.dtype) if live is None else torch.where(live.unsqueeze(-1), label.to(score.dtype), 0)
        _, _, weight = clean(score[..., 0], score[..., 0], live, weight)
    else:
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. A histogram's score has one more axis "
            "than its numbers, as long as values=, or the shape of its histograms."
        )
    if where is not None:
        score = torch.where(where.expand(rows).unsqueeze(-1), score, 0)
    return weighted_mean(divergence(score.log_softmax(-1), q), weight)
