"""More metrics of ordered lists; what `lists` says of arguments holds here."""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError, unknown
from recstack.metrics.lists import Ranked, answer, list_weight, mean_of_sums

PAIRS = 1 << 24  # held at once by `pair_inversions`


def expected_reciprocal_rank(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
    top_grade: float = 4.0,
) -> Tensor:
    r"""1 over the rank at which a user stops, who is satisfied by a grade y with chance R (ERR).

    .. math:: \sum_{r \le k} \frac1r R_r \prod_{i < r} (1 - R_i), \qquad R = \frac{2^y - 1}{2^{y_{\max}}}

    `top_grade` is :math:`y_{\max}`: the highest grade of the data set, not of the list. ``ties="average"`` has no formula here and raises
    ConfigError, a label above `top_grade` DataError.

    Chapelle et al., CIKM 2009, https://doi.org/10.1145/1645953.1646033

    >>> expected_reciprocal_rank(torch.tensor([3.0, 2.0]), torch.tensor([0.0, 1.0]), top_grade=1)  # ½ of ½
    tensor(0.2500, dtype=torch.float64)
    """
    if ties == "average":
        raise ConfigError('expected_reciprocal_rank has no average over ties; choose ties="stable" or "pessimistic".')
    live = label if where is None else torch.where(where, label, 0)
    if live.numel() and live.max() > top_grade:
        raise DataError(f"A label is {live.max().item():g}, above top_grade = {top_grade:g}.")

    def value(r: Ranked) -> Tensor:
        stop = r.gain / 2.0**top_grade
        before = (1 - stop).cumprod(-1) / (1 - stop)
        return (stop * before / r.rank * r.inside).sum(-1)

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction, "exponential")


def rank_biased_precision(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    n_positive: Tensor | None = None,
    reduction: str = "mean",
    patience: float = 0.8,
) -> Tensor:
    r"""Positives found by a user who looks at the next rank with chance p = `patience` (RBP).

    .. math:: (1 - p) \sum_{r \le k} p^{\,r - 1}\, [y_r > 0]

    Moffat and Zobel, TOIS 2008, https://doi.org/10.1145/1416950.1416952

    >>> rank_biased_precision(torch.tensor([3.0, 2.0]), torch.tensor([0.0, 1.0]), patience=0.5)
    tensor(0.2500, dtype=torch.float64)
    """
    if not 0 <= patience < 1:
        raise ConfigError(f"patience is a chance below 1; got {patience!r}.")

    def value(r: Ranked) -> Tensor:
        return (1 - patience) * (r.relevant * patience ** (r.rank - 1) * r.inside).sum(-1)

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction)


def average_position(
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
    """Mean rank, from 1, of the positives of each list in the order of the scores; lower is better.

    With a cut, or with positives that the list lacks, what is not found stands right behind: at k + 1.

    Grbovic and Cheng, KDD 2018 (the rank of the booked listing), https://doi.org/10.1145/3219819.3219885

    >>> average_position(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]))
    tensor(2., dtype=torch.float64)
    """

    def value(r: Ranked) -> Tensor:
        found = r.relevant * r.inside
        missed = r.n_positive - found.sum(-1)
        return ((found * r.rank).sum(-1) + missed * (r.limit.squeeze(-1) + 1)) / r.n_positive

    return answer(value, score, label, where, weight, k, ties, n_positive, reduction)


def pair_inversions(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Share of the pairs of a list with different labels whose scores are the other way round; a tie counts half.

    Lists without two different labels have no answer. Of labels 0 and 1 it is 1 - AUC of the list. Weights as in all list metrics.

    >>> pair_inversions(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 0.0]))  # one of three
    tensor(0.3333, dtype=torch.float64)
    """
    if score.shape != label.shape or not score.dim():
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. Give lists of one shape, [..., L]."
        )
    if reduction not in ("mean", "none", "sums"):
        raise unknown("reduction", reduction, ("mean", "none", "sums"))
    live = torch.ones_like(label, dtype=torch.bool) if where is None else where.expand(label.shape)
    if (missing := int((label.isnan() & live).sum())) > 0:
        raise DataError(f"Label is NaN in {missing} live cells. Leave them out with where=label.isfinite().")
    wrong = torch.zeros(label.shape[:-1], dtype=torch.float64, device=label.device).flatten()
    pairs = torch.zeros_like(wrong)
    length = max(label.shape[-1], 1)
    step = max(1, PAIRS // length**2)
    flat = [x.reshape(-1, label.shape[-1]) for x in (score.detach(), label, live)]
    for start in range(0, len(wrong), step):
        s, y, m = (x[start : start + step] for x in flat)
        higher = (y.unsqueeze(-1) > y.unsqueeze(-2)) & m.unsqueeze(-1) & m.unsqueeze(-2)
        below = (s.unsqueeze(-1) < s.unsqueeze(-2)).double() + (s.unsqueeze(-1) == s.unsqueeze(-2)).double() / 2
        wrong[start : start + step] = (below * higher).sum((-1, -2))
        pairs[start : start + step] = higher.sum((-1, -2))

    broken = (score.isnan() & live).any(-1)
    wrong, pairs = wrong.reshape(broken.shape), pairs.reshape(broken.shape)
    each, blank = torch.where(broken, torch.nan, wrong / pairs), pairs == 0
    if reduction == "none":
        return torch.where(blank, torch.nan, each)
    weight = list_weight(weight, live)
    sums = torch.stack([(weight * torch.where(blank, 0, each)).sum(), (weight * ~blank).sum()])
    return sums if reduction == "sums" else mean_of_sums(*sums)


def click_recall(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    total: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Of all that was clicked in all lists, the share among the first k of its list: a list counts as often as it was clicked.

    .. math:: \frac{\sum_s \sum_{r \le k} y_{sr}}{\sum_s Y_s}

    With what each click cost as the label it is the cost recall of advertising: the share of the revenue that retrieval would keep. `total`
    ``[...]`` is :math:`Y_s`, with what the list lacks; None: the sum of the list's labels. `recall` is the mean of the lists' shares.

    Raises DataError for a label below 0, or a total less than what is in the list.

    >>> score, cost = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([[0.5, 0.0, 2.0], [0.0, 0.5, 0.0]])
    >>> click_recall(score, (cost > 0).float(), k=2), click_recall(score, cost, k=2)
    (tensor(0.6667, dtype=torch.float64), tensor(0.3333, dtype=torch.float64))
    """
    live = _not_negative(score, label, where, "click_recall")
    held = torch.where(live, label, 0).double().sum(-1)
    total = held if total is None else total.double().expand(held.shape)
    if (total < held * (1 - 1e-9)).any():
        raise DataError("total is less than the labels of a list. Count all clicks of the request.")
    each = list_value(score, label, where=where, k=k, ties=ties, reduction="none") / total
    w = list_weight(weight, live) * total
    if reduction == "none":
        return each
    sums = torch.stack([(w * torch.where(total == 0, 0, each)).sum(), w.sum()])
    return sums if reduction == "sums" else mean_of_sums(*sums)


def list_value(
    score: Tensor,
    label: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int | None = None,
    ties: str = "stable",
    reduction: str = "mean",
    examination: Tensor | None = None,
) -> Tensor:
    r"""What a list earns in the order of the scores: :math:`\sum_{r \le k} \theta_r\, y_r`, a mean over lists, those of value 0 too.

    Labels are values from 0: clicks (then it is clicks@k), bid · ctr (expected revenue), or clicks over the chance that their
    logged place was looked at (inverse propensities). `examination` ``[at least k or L]`` is θ, the chance that a rank is looked at; None: 1.

    >>> list_value(
    ...     torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.2, 0.0, 0.4]), examination=torch.tensor([1.0, 0.6, 0.5])
    ... )
    tensor(0.4000, dtype=torch.float64)
    """
    live = _not_negative(score, label, where, "list_value")
    depth = min(score.shape[-1], k or score.shape[-1])
    if examination is not None and len(examination) < depth:
        raise DataError(f"examination holds {len(examination)} ranks, and lists are read to rank {depth}.")

    def value(r: Ranked) -> Tensor:
        looked = torch.zeros_like(r.rank)
        looked[:depth] = 1 if examination is None else examination[:depth].double().to(looked)
        return (r.gain * looked).sum(-1)

    return answer(value, score, label, live, weight, k, ties, None, reduction, "linear", 0.0)


def _not_negative(score: Tensor, label: Tensor, where: Tensor | None, name: str) -> Tensor:
    """The live cells of lists whose labels are values."""
    if score.shape != label.shape or not score.dim():
        raise DataError(
            f"Score has shape {list(score.shape)} and label {list(label.shape)}. Give lists of one shape, [..., L]."
        )
    live = torch.ones_like(score, dtype=torch.bool) if where is None else where.expand(score.shape)
    if (label[live] < 0).any():
        raise DataError(f"{name} takes values from 0 as labels, and one of {label[live].min().item():g} came.")
    return live
