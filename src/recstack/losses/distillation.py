"""What a teacher says, as a label: its logits, softened by a temperature. No gradient reaches the teacher.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531. The factor T² keeps
gradients of one size whatever the temperature, so that a mixture with the true labels keeps its meaning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError, DataError
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


def _check(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"A temperature is a number above 0; got {temperature!r}.")
