"""What a teacher says, as a label: its logits, softened by a temperature. No gradient reaches the teacher.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531. The factor T² keeps
gradients of one size whatever the temperature, so that a mixture with the true labels keeps its meaning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError, DataError
from recstack.losses.grades import check_cut
from recstack.losses.rows import clean, full_precision, weighted_mean


@full_precision
def soft_bce(
    score: Tensor,
    teacher: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""How far a logit is from its teacher's: 0 where they agree.

    .. math:: T^2\, \mathrm{KL}\big(\sigma(t / T) \,\|\, \sigma(s / T)\big)

    Score and teacher ``[...]``, both logits. Raises ConfigError for a temperature that is not above 0.

    >>> soft_bce(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), temperature=2.0)
    tensor(0.)
    """
    _check(temperature)
    score, teacher, weight = clean(score, teacher.detach(), where, weight)
    s, t = score / temperature, teacher / temperature
    p = t.sigmoid()
    value = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * weighted_mean(value, weight)


@full_precision
def soft_cross_entropy(
    score: Tensor,
    teacher: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""The same of classes: score and teacher ``[..., C]``, where and weight without the last axis.

    .. math:: T^2\, \mathrm{KL}\big(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T)\big)

    >>> soft_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([[200.0, 0.0]]))  # log 2
    tensor(0.6931)
    """
    _check(temperature)
    if score.shape != teacher.shape:
        raise DataError(f"Score has shape {list(score.shape)} and its teacher {list(teacher.shape)}; give the same.")
    teacher = teacher.detach()
    if where is not None:
        live = where.expand(score.shape[:-1]).unsqueeze(-1)
        score, teacher = torch.where(live, score, 0), torch.where(live, teacher, 0)
    _, _, weight = clean(score[..., 0], teacher[..., 0], where, weight)
    log_s, log_t = (score / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return temperature**2 * weighted_mean((log_t.exp() * (log_t - log_s)).sum(-1), weight)


@full_precision
def soft_list(
    score: Tensor,
    teacher: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    temperature: float = 1.0,
    k: int | None = None,
) -> Tensor:
    r"""The same of lists: how the teacher shares out its first k candidates, among all that the list holds.

    .. math:: T^2 \sum_{i \in \mathrm{top}_k(t)} p_i \log \frac{p_i}{q_i}, \qquad
        p = \mathrm{softmax}_{\mathrm{top}_k}(t / T), \quad q = \mathrm{softmax}(s / T)

    Score and teacher ``[..., L]``; each list has one vote, its candidates' mean weight. Lists of one candidate say nothing.

    >>> soft_list(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]), k=2) > 8
    tensor(True)
    """
    _check(temperature)
    score, teacher, weight = clean(score, teacher.detach(), where, weight)
    order, live = _first(teacher, where, k)
    low = torch.finfo(score.dtype).min
    q = (score / temperature if where is None else (score / temperature).masked_fill(~where, low)).log_softmax(-1)
    p = (teacher.gather(-1, order) / temperature).masked_fill(~live, low).log_softmax(-1)
    value = torch.where(live, p.exp() * (p - q.gather(-1, order)), 0).sum(-1)
    return temperature**2 * weighted_mean(value, _of_list(weight, where))


@full_precision
def rank_distillation(
    score: Tensor,
    teacher: Tensor,
    *,
    where: Tensor | None = None,
    weight: Tensor | None = None,
    k: int = 10,
    sharpness: float = 10.0,
) -> Tensor:
    r"""The teacher's first k candidates are positives, the first the most.

    .. math:: -\sum_{r \le k} w_r \log \sigma(s_{\pi_r}), \qquad w_r \propto e^{-r / \lambda}, \quad \sum_r w_r = 1

    π is the teacher's order of the list, λ the `sharpness`. It has no negatives: mix it with a loss of labels. Departs from the paper:
    weights by rank only, not by the discrepancy of the two ranks; observed candidates are not left out.

    Tang and Wang, KDD 2018, https://arxiv.org/abs/1809.07428

    >>> rank_distillation(torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[2.0, 1.0, 3.0]]), k=2)  # log 2
    tensor(0.6931)
    """
    if not 0 < sharpness < float("inf"):
        raise ConfigError(f"A sharpness is a number above 0; got {sharpness!r}.")
    score, teacher, weight = clean(score, teacher.detach(), where, weight)
    order, live = _first(teacher, where, k)
    share = (-torch.arange(1, order.shape[-1] + 1, device=score.device, dtype=score.dtype) / sharpness).softmax(
        -1
    ) * live
    share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)
    value = -(share * F.logsigmoid(score.gather(-1, order))).sum(-1)
    return weighted_mean(value, _of_list(weight, where))


def _first(teacher: Tensor, where: Tensor | None, k: int | None) -> tuple[Tensor, Tensor]:
    """The teacher's first k candidates ``[..., min(k, L)]``, and which of them are live."""
    check_cut(k)
    live = torch.ones_like(teacher, dtype=torch.bool) if where is None else where.expand(teacher.shape)
    order = teacher.masked_fill(~live, -torch.inf).argsort(dim=-1, descending=True, stable=True)[..., :k]
    return order, live.gather(-1, order)


def _of_list(weight: Tensor, where: Tensor | None) -> Tensor:
    """The mean weight of a list's live candidates; 0 where nothing lives. `weight` is 0 in dead cells."""
    live = weight.shape[-1] if where is None else where.expand(weight.shape).sum(-1).clamp(min=1)
    return weight.sum(-1) / live


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"A temperature is a number above 0; got {temperature!r}.")
