"""Metrics of ordered lists: precision, recall, hit rate, MRR, MAP and NDCG, each cut at k.

Everywhere:

- score and label ``[..., L]``, the last axis is the list; a label above 0 is a positive. ``where`` (True = live).
- ``k`` is the cut; None is the whole list. A list shorter than k is not forgiven: precision@k divides by k.
- ``ties`` among equal scores: "stable" keeps the order of input, "pessimistic" puts positives last, "average" gives
  the expected value over all orders (McSherry & Najork, ECIR 2008). Where input order knows the label (the positive
  first, then its negatives) a constant scorer is perfect under "stable": choose "average" there.
- ``n_positive`` ``[...]`` is the number of relevant items there are, if some may be missing from the list (the top k of
  a catalog); labels then count as 0 or 1. None: those in the list.
- ``weight`` is of the list, ``[...]`` or ``[..., 1]``; a weight per candidate is averaged over the live ones.
- A list with nothing relevant has no answer: NaN under reduction="none", left out of the weighted mean.
- ``reduction``: "mean", "none" (one value per list, for intervals and tests) or "sums" (Σ w·value, Σ w), for streams.

The answer is float64. A live NaN score makes its list NaN, and the mean too. DataError if shapes do not fit, a live
label is NaN, or n_positive is less than the positives in the list. RuntimeWarning if "stable" decides much.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError, unknown
from recstack.metrics.rows import undefined


def precision(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Positives among the first k, over k.

    >>> precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]), k=2)
    tensor(0.5000, dtype=torch.float64)
    """

    def value(r: Ranked) -> Tensor:
        return (r.relevant * r.inside).sum(-1) / r.limit.squeeze(-1)

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction)


def recall(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
    capped: bool = False,
) -> Tensor:
    """Positives among the first k, over all positives; with ``capped=True`` over min(k, positives), so that 1 can be reached.

    >>> score, label = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    >>> recall(score, label, k=2), recall(score, label, k=2, n_positive=torch.tensor(4))
    (tensor(0.5000, dtype=torch.float64), tensor(0.2500, dtype=torch.float64))
    """

    def value(r: Ranked) -> Tensor:
        most = torch.minimum(r.limit.squeeze(-1), r.n_positive) if capped else r.n_positive
        return (r.relevant * r.inside).sum(-1) / most

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction)


def hit_rate(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 if any of the first k is a positive. With one positive per list it is the recall.

    >>> hit_rate(torch.tensor([[3.0, 2.0], [3.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), k=1)
    tensor(0.5000, dtype=torch.float64)
    """

    def value(r: Ranked) -> Tensor:
        return (r.first() * r.inside).sum(-1)

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction)


def mrr(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 over the rank of the first positive; 0 if it is not among the first k.

    >>> score, label = torch.zeros(2), torch.tensor([1.0, 0.0])
    >>> mrr(score, label, ties="pessimistic"), mrr(score, label, ties="average")
    (tensor(0.5000, dtype=torch.float64), tensor(0.7500, dtype=torch.float64))
    """

    def value(r: Ranked) -> Tensor:
        return (r.first() / r.rank * r.inside).sum(-1)

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction)


def mean_average_precision(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum of the precisions at the ranks of the positives among the first k, over min(k, positives).

    >>> mean_average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]))  # (1/1 + 2/3) / 2
    tensor(0.8333, dtype=torch.float64)
    """

    def value(r: Ranked) -> Tensor:
        # At place j of a tie of n cells with p positives: c come before it, and (j-1)(p-1)/(n-1) within, if j is one.
        place = r.rank - r.before
        above = r.positives_before + (place - 1) * (r.positives - 1) / (r.size - 1).clamp(min=1)
        total = (r.relevant * (1 + above) / r.rank * r.inside).sum(-1)
        return total / torch.minimum(r.limit.squeeze(-1), r.n_positive)

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction)


def ndcg(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
    gain: str = "exponential",
    blank: float | None = None,
) -> Tensor:
    r"""Discounted cumulative gain over that of the ideal order of all positives, not only of those found.

    .. math:: \frac{\sum_{r \le k} G(y_r) / \log_2(1 + r)}{\max_{\mathrm{order}} \sum_{r \le k} G(y_r) / \log_2(1 + r)}

    `gain` is "exponential", 2^y - 1, or "linear", y: for binary labels the same. `blank` is what a list with nothing relevant
    counts; None leaves it out. LightGBM, XGBoost and allRank count 1, scikit-learn and TREC 0: say which.

    >>> ndcg(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]), k=10)  # 1 / log2(3)
    tensor(0.6309, dtype=torch.float64)
    """
    if gain not in ("exponential", "linear"):
        raise unknown("gain of NDCG", gain, ("exponential", "linear"))

    def value(r: Ranked) -> Tensor:
        return (r.gain * r.discount(r.rank) * r.inside).sum(-1) / r.ideal

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction, gain, blank)


class Ranked(NamedTuple):
    """The lists in the order of their scores: what a metric may ask of each rank.

    A tie is a run of equal scores whose order is open; under ties="stable" or "pessimistic" each is one cell long.
    Positives, gains and so on are then certain, otherwise they are expected values: one formula serves both.
    """

    rank: Tensor  # [L] 1, 2, ...
    inside: Tensor  # [..., L] rank ≤ k
    limit: Tensor  # [..., 1] k, or the number of live cells, at least 1
    relevant: Tensor  # [..., L] chance that a positive stands here
    gain: Tensor  # [..., L] expected gain here
    before: Tensor  # [..., L] cells above the tie that this rank belongs to
    size: Tensor  # [..., L] cells in the tie
    positives: Tensor  # [..., L] positives in the tie
    positives_before: Tensor  # [..., L] positives above the tie
    n_positive: Tensor  # [...]
    ideal: Tensor  # [...] the greatest possible discounted gain

    @staticmethod
    def discount(rank: Tensor) -> Tensor:
        return 1 / torch.log2(1 + rank)

    def first(self) -> Tensor:
        """[..., L] the chance that the first positive of the list stands at this rank."""
        place, n, p = self.rank - self.before, self.size, self.positives
        # Of the C(n, p) places of the tie's positives, C(n - place, p - 1) have their first one here.
        log_chance = _log_binomial(n - place, p - 1) - _log_binomial(n, p)
        possible = (self.positives_before == 0) & (p > 0) & (n - place >= p - 1)
        return torch.where(possible, log_chance.exp(), 0)


def _log_binomial(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def answer(
    value: Callable[[Ranked], Tensor],
    score: Tensor,
    label: Tensor,
    where: Tensor | None,
    weight: Tensor | None,
    k: int | None,
    ties: str,
    n_positive: Tensor | None,
    reduction: str,
    gain: str = "linear",
    empty: float | None = None,
) -> Tensor:
    """What every list metric does: rank, ask `value` of each list, and reduce; `empty` is that of lists with nothing relevant."""
    if score.shape != label.shape or not score.dim():
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. Give lists of one shape, [..., L]."
        )
    if reduction not in ("mean", "none", "sums"):
        raise unknown("reduction", reduction, ("mean", "none", "sums"))
    score = score.detach()
    live = torch.ones_like(score, dtype=torch.bool) if where is None else where.expand(score.shape)
    label = torch.where(live, label, 0).double()
    if (missing := int(label.isnan().sum())) > 0:
        raise DataError(f"Label is NaN in {missing} live cells. Leave them out with where=label.isfinite().")

    ranked = _rank(score, label, live, k, ties, n_positive, gain)
    each = torch.where((score.isnan() & live).any(-1), torch.nan, value(ranked))
    blank = ranked.n_positive == 0
    if empty is not None:
        each, blank = torch.where(blank & live.any(-1), empty, each), ~live.any(-1)
    if reduction == "none":
        return torch.where(blank, torch.nan, each)
    weight = list_weight(weight, live)
    sums = torch.stack([(weight * torch.where(blank, 0, each)).sum(), (weight * ~blank).sum()])
    if reduction == "sums":
        return sums
    return mean_of_sums(*sums)


def mean_of_sums(total: Tensor, weight: Tensor) -> Tensor:
    """The mean that belongs to reduction="sums"; NaN, with a warning, if no list has a positive."""
    if not weight > 0:
        undefined("A list metric", "a list with a positive")
    return total / weight


def list_weight(weight: Tensor | None, live: Tensor) -> Tensor:
    """[...]: the weight of each list."""
    if weight is None:
        return torch.ones(live.shape[:-1], dtype=torch.float64, device=live.device)
    weight = weight.double()
    if weight.shape == live.shape[:-1]:
        return weight
    count = live.sum(-1).clamp(min=1)
    return torch.where(live, weight.expand(live.shape), 0).sum(-1) / count


def _rank(
    score: Tensor, label: Tensor, live: Tensor, k: int | None, ties: str, n_positive: Tensor | None, gain: str
) -> Ranked:
    if k is not None and k < 1:
        raise ConfigError(f"A list is cut at k = {k}. Give k=None or a number from 1.")
    if ties not in ("stable", "pessimistic", "average"):
        raise unknown("rule for ties", ties, ("stable", "pessimistic", "average"))
    length = score.shape[-1]
    positive = (label > 0).double()
    gains = label.exp2() - 1 if gain == "exponential" else label
    found = positive.sum(-1)
    if n_positive is not None:
        gains, n_positive = positive, n_positive.to(found).expand(found.shape)
        if (n_positive < found).any():
            raise DataError("n_positive is less than the positives in a list. Count all relevant items of the request.")

    order = label.argsort(dim=-1, stable=True) if ties == "pessimistic" else None
    order = _then_by(score, order, descending=True)
    order = order if bool(live.all()) else _then_by((~live).byte(), order)  # dead cells last, below a live -inf

    rank = torch.arange(1, length + 1, dtype=torch.float64, device=score.device)
    relevant, gain_at = positive.gather(-1, order), gains.gather(-1, order)
    above = relevant.cumsum(-1) - relevant
    ranked_score, ranked_live = score.gather(-1, order), live.gather(-1, order)
    if ties == "stable":
        _warn_if_input_order_decides(_equal_neighbours(ranked_score, ranked_live) & (relevant.diff() != 0))
    before, size, positives = (rank - 1).expand(score.shape), torch.ones_like(relevant), relevant
    if ties == "average" and length:
        new = torch.ones_like(ranked_live)
        new[..., 1:] = ~_equal_neighbours(ranked_score, ranked_live)
        tie = new.cumsum(-1) - 1
        begin = torch.where(new, before.long(), 0).cummax(-1).values

        def in_tie(value: Tensor) -> Tensor:
            return torch.zeros_like(value).scatter_add(-1, tie, value).gather(-1, tie)

        size, positives, gain_at = in_tie(size), in_tie(relevant), in_tie(gain_at)
        relevant, gain_at = positives / size, gain_at / size
        before, above = begin.double(), above.gather(-1, begin)

    # An empty list is cut at 1: with something to find, finding nothing is 0.
    limit = live.sum(-1).clamp(min=1).double() if k is None else torch.full_like(found, k)
    limit = limit.unsqueeze(-1)
    if n_positive is None:
        best = gains.sort(-1, descending=True).values
        ideal = (best * Ranked.discount(rank) * (rank <= limit)).sum(-1)
    else:
        best_rank = torch.minimum(limit.squeeze(-1), n_positive)
        ranks = torch.arange(1, int(best_rank.max().item() if best_rank.numel() else 0) + 1, device=score.device)
        total = torch.cat([ranks.new_zeros(1, dtype=torch.float64), Ranked.discount(ranks.double()).cumsum(0)])
        ideal = total[best_rank.long()]
    return Ranked(
        rank=rank,
        inside=(rank <= limit).double(),
        limit=limit,
        relevant=relevant,
        gain=gain_at,
        before=before,
        size=size,
        positives=positives,
        positives_before=above,
        n_positive=found if n_positive is None else n_positive,
        ideal=ideal,
    )


def _equal_neighbours(score: Tensor, live: Tensor) -> Tensor:
    """[..., L - 1]: is the next cell tied with this one."""
    return (score[..., 1:] == score[..., :-1]) & (live[..., 1:] == live[..., :-1])


def _warn_if_input_order_decides(tied: Tensor) -> None:
    share = tied.any(-1).double().mean().item() if tied.numel() else 0.0
    if share > 0.01:
        warnings.warn(
            f"In {share:.0%} of the lists a positive is tied with a negative, and the order of input decides. "
            'Choose ties="average" unless that order is meant.',
            RuntimeWarning,
            stacklevel=5,
        )


def _then_by(key: Tensor, order: Tensor | None, *, descending: bool = False) -> Tensor:
    """The stable order by `key` of what is already in `order`."""
    if order is None:
        return key.argsort(dim=-1, descending=descending, stable=True)
    return order.gather(-1, key.gather(-1, order).argsort(dim=-1, descending=descending, stable=True))
