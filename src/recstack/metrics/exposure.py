"""Who is seen: how attention is divided among groups of items, and whether as it should be.

``ids [R, k]`` and tables by id are those of `recstack.metrics.pages`; `group` ``[N]`` holds whole numbers from 0. The attention that
place r of a page gets is :math:`1 / \\log_2(1 + r)`, that of an empty place is nobody's. Answers are float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recstack.errors import ConfigError, DataError
from recstack.metrics.lists import Ranked

SMOOTHING = 0.01  # of a page's shares with the user's, so that a value that is missing does not cost infinity


def exposure_by_group(ids: Tensor, group: Tensor) -> Tensor:
    """``[G]``: the share of all pages' attention that goes to each group of items.

    >>> exposure_by_group(torch.tensor([[1, 2, 3]]), torch.tensor([0, 0, 1, 1])).round(decimals=4)
    tensor([0.4693, 0.5307], dtype=torch.float64)
    """
    seen = _attention(ids, group).sum(0)
    return seen / seen.sum()


def exposure_ratio(ids: Tensor, group: Tensor, *, merit: Tensor | None = None, impact: bool = False) -> Tensor:
    r"""The least attention per item over the greatest, among groups: 1 is parity, 0 a group that nobody sees.

    .. math:: \min_{G, G'} \frac{E_G / M_G}{E_{G'} / M_{G'}}, \qquad E_G = \frac{1}{|G|} \sum_{i \in G} v_i

    :math:`v_i` is what item i gets on all pages. Without `merit` it is demographic parity (all M = 1). With ``merit [N]``, the items'
    relevance, M is a group's mean and the ratio that of disparate treatment; with ``impact=True`` each :math:`v_i` counts times
    its merit, as clicks would: disparate impact. Groups without an item are left out, items are the ids from 1.

    Singh and Joachims, KDD 2018, https://arxiv.org/abs/1802.07281 (there of two groups, for one request)

    >>> group = torch.tensor([0, 0, 1, 1])  # of id 0, which is nobody; then of items 1, 2, 3
    >>> exposure_ratio(torch.tensor([[1, 2, 3]]), group).round(decimals=4)  # (0.6309 + 0.5) / 2 of 1
    tensor(0.5655, dtype=torch.float64)
    """
    if impact and merit is None:
        raise ConfigError("Impact is of what items deserve: give merit= too.")
    size = _groups(group)
    worth = torch.ones(len(group), dtype=torch.float64) if merit is None else merit.double()
    if worth.shape != group.shape:
        raise DataError(f"merit is {list(worth.shape)} and group {list(group.shape)}; give one value for each id.")
    seen = torch.zeros(len(group), dtype=torch.float64)
    live = ids > 0
    seen.index_add_(0, ids[live], _discount(ids)[live])
    seen = seen * worth if impact else seen
    total = lambda value: torch.zeros(size, dtype=torch.float64).index_add_(0, group[1:].long(), value[1:])  # noqa: E731
    count = total(torch.ones_like(worth))
    each = (total(seen) / total(worth))[count > 0]
    return each.min() / each.max()


def attention_weighted_fairness(ids: Tensor, group: Tensor, target: Tensor) -> Tensor:
    r"""1 - the Jensen-Shannon divergence, in bits, of the groups' shares of a page's attention from `target` ``[G]`` (AWRF).

    The mean over pages that show something; 1 where all are as they should be.

    Sapiezynski et al., WWW 2019 (companion), https://arxiv.org/abs/1901.10437; the distance is that of TREC's fair ranking track, 2021.

    >>> attention_weighted_fairness(
    ...     torch.tensor([[1, 2]]), torch.tensor([0, 0, 0]), torch.tensor([0.0, 1.0])
    ... )  # not its group
    tensor(0., dtype=torch.float64)
    """
    size = _groups(group)
    if target.dim() != 1 or len(target) < size or not torch.isclose(target.double().sum(), torch.tensor(1.0).double()):
        raise DataError(f"target holds the share of each of {size} groups, which add up to 1.")
    seen = _attention(ids, group, len(target))
    seen = seen[seen.sum(1) > 0]
    share, target = seen / seen.sum(1, keepdim=True), target.double().expand_as(seen)
    middle = (share + target) / 2
    return 1 - (_divergence(share, middle) + _divergence(target, middle)).mean() / 2 / _LOG2


def miscalibration(ids: Tensor, met: Tensor, values: Tensor) -> Tensor:
    r"""How far the page is from the user's tastes: mean :math:`\mathrm{KL}(p \,\|\, 0.99\, q + 0.01\, p)`, in nats; 0 is the best.

    p and q are the shares of the values of what the user ``met [R, m]`` (ids, 0 is nothing) and of the page. `values` is a category
    ``[N]`` by id, or ``[N, A]`` shares of several. Users who met nothing, and empty pages, are left out.

    Steck, RecSys 2018, https://doi.org/10.1145/3240323.3240372 (places count the same here)

    >>> miscalibration(
    ...     torch.tensor([[1, 2]]), torch.tensor([[1, 3]]), torch.tensor([0, 0, 1, 1])
    ... )  # half and half, both
    tensor(0., dtype=torch.float64)
    """
    table = values.double() if values.dim() == 2 else torch.nn.functional.one_hot(values.long()).double()
    p, q = ((table[x.clamp(min=0)] * (x > 0).unsqueeze(-1)).sum(1) for x in (met, ids))
    known = (p.sum(1) > 0) & (q.sum(1) > 0)
    p, q = (x[known] / x[known].sum(1, keepdim=True) for x in (p, q))
    return _divergence(p, (1 - SMOOTHING) * q + SMOOTHING * p).mean()


class ExpectedExposure(NamedTuple):
    """Means over requests; `loss` = `disparity` - 2 · `relevance` + that of the target."""

    loss: Tensor  # squared distance from the exposure that relevance earns
    disparity: Tensor  # Σ of squared exposures: low where chance shares them out (EE-D)
    relevance: Tensor  # exposure that goes where it is earned (EE-R)


def expected_exposure(
    score: Tensor, label: Tensor, *, where: Tensor | None = None, patience: float = 0.5
) -> ExpectedExposure:
    r"""Whether items that are equally relevant are seen equally often over many draws of the list.

    .. math:: \|\epsilon - \epsilon^*\|^2 = \|\epsilon\|^2 - 2\, \epsilon^\top \epsilon^* + \|\epsilon^*\|^2

    :math:`\epsilon` is the mean of :math:`p^{\,r - 1}`, p = `patience`, over S draws; :math:`\epsilon^*` shares the first places
    evenly among the relevant, and the rest among the others.

    Args:
        score: ``[S, R, L]``, what S draws of a stochastic ranking order by; a ranking without chance has S = 1.
        label: ``[R, L]``, relevant above 0; where: live cells ``[R, L]``.

    Diaz et al., CIKM 2020, https://arxiv.org/abs/2004.13157

    >>> one = torch.tensor([[[2.0, 1.0]]])
    >>> fixed = expected_exposure(one, torch.ones(1, 2))
    >>> drawn = expected_exposure(torch.cat([one, one.flip(-1)]), torch.ones(1, 2))
    >>> fixed.loss, drawn.loss
    (tensor(0.1250, dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    if score.dim() != 3 or label.shape != score.shape[1:]:
        raise DataError(f"Score is {list(score.shape)} and label {list(label.shape)}; give [S, R, L] and [R, L].")
    if not 0 < patience < 1:
        raise ConfigError(f"patience is a chance between 0 and 1; got {patience!r}.")
    live = torch.ones_like(label, dtype=torch.bool) if where is None else where
    place = score.masked_fill(~live, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    seen = (patience ** place.double()).mean(0) * live
    good = (label > 0) & live
    m, n = good.sum(-1, keepdim=True).double(), live.sum(-1, keepdim=True).double()
    sums = lambda begin, end: (patience**begin - patience**end) / (1 - patience)  # noqa: E731
    earned = torch.where(good, sums(0.0, m) / m, sums(m, n) / (n - m)).masked_fill(~live, 0)
    disparity, relevance = seen.square().sum(-1), (seen * earned).sum(-1)
    loss = (seen - earned).square().sum(-1)
    return ExpectedExposure(loss.mean(), disparity.mean(), relevance.mean())


_LOG2 = torch.tensor(2.0, dtype=torch.float64).log()


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL of rows, in nats; q is positive where p is."""
    return torch.where(p > 0, p * (p / q).log(), 0).sum(-1)


def _groups(group: Tensor) -> int:
    if group.dim() != 1 or group.is_floating_point() or (group < 0).any():
        raise DataError(f"group is {group.dtype} of shape {list(group.shape)}; give [N] whole numbers from 0, by id.")
    return int(group.max()) + 1


def _discount(ids: Tensor) -> Tensor:
    return Ranked.discount(torch.arange(1, ids.shape[1] + 1, dtype=torch.float64)).expand(ids.shape)


def _attention(ids: Tensor, group: Tensor, size: int | None = None) -> Tensor:
    """``[R, G]``: what each group gets of each page."""
    size = _groups(group) if size is None else size
    live = (ids > 0).double()
    seen = torch.zeros(len(ids), size, dtype=torch.float64)
    return seen.scatter_add_(1, group[ids.clamp(min=0)].long(), _discount(ids) * live)
