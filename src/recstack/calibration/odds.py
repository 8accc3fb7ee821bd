"""Maps that need no fitting: the odds that were learned are known to be off, and by how much."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recstack.errors import ConfigError


def reweighted(logit: Tensor, *, positive: float = 1.0, negative: float = 1.0) -> Tensor:
    r"""Honest logits of a model whose positives, or negatives, had a weight (or were drawn at that rate) while it learned.

    .. math:: p = \frac{p'}{p' + (1 - p')\, w_+ / w_-}, \qquad z = z' - \log\frac{w_+}{w_-}

    Negatives of which a tenth was kept have ``negative=0.1``. Raises ConfigError for a weight that is not above 0.

    >>> reweighted(torch.tensor([0.0]), negative=0.1).sigmoid()  # even odds, with a tenth of the negatives
    tensor([0.0909])
    """
    for name, value in (("positive", positive), ("negative", negative)):
        if not value > 0:
            raise ConfigError(f"{name}= is the weight that rows had in training, above 0; got {value!r}.")
    return logit - math.log(positive / negative)


def true_from_stream(logit: Tensor) -> Tensor:
    r"""Fake negative calibration: logits learned on `data.delays.stream`, where a row of rate p is positive at p / (1 + p).

    .. math:: p = \frac{b}{1 - b}, \qquad z = z_b - \log(1 - e^{z_b})

    No rate on the stream exceeds ½; what is predicted beyond comes out as p = 1 (to 1e-6).

    Ktena et al., RecSys 2019, https://arxiv.org/abs/1907.06558

    >>> true_from_stream(torch.tensor([0.2 / 1.2]).logit()).sigmoid()
    tensor([0.2000])
    """
    logit = logit.clamp(max=-1e-6)
    return logit - torch.log(-torch.expm1(logit))
