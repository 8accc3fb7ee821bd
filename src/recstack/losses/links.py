"""Arithmetic on logits that stays on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.losses.rows import full_precision


@full_precision
def product_logit(a: Tensor, b: Tensor) -> Tensor:
    r"""The log-odds of the product of two probabilities, from their logits; fold it for more than two.

    .. math:: p = \sigma(a)\,\sigma(b), \qquad \log\frac{p}{1 - p} = -\log(e^{-a} + e^{-b} + e^{-a-b})

    Finite in value and gradient wherever the logits are, where the logarithm of 1 - p is not.

    >>> product_logit(torch.tensor(0.0), torch.tensor(0.0)).sigmoid()
    tensor(0.2500)
    """
    return -torch.logaddexp(torch.logaddexp(-a, -b), -a - b)


@full_precision
def mixture_logit(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    r"""The log-odds of a mixture of two probabilities, by whether a third event happens, from the logits of all three.

    .. math:: p = \sigma(w)\,\sigma(y) + (1 - \sigma(w))\,\sigma(n)

    >>> mixture_logit(torch.tensor(0.0), torch.tensor(100.0), torch.tensor(-100.0)).sigmoid()  # half surely, half never
    tensor(0.5000)
    """
    happens = torch.logaddexp(F.logsigmoid(which) + F.logsigmoid(yes), F.logsigmoid(-which) + F.logsigmoid(no))
    fails = torch.logaddexp(F.logsigmoid(which) + F.logsigmoid(-yes), F.logsigmoid(-which) + F.logsigmoid(-no))
    return happens - fails


@full_precision
def rate_logit(rate: Tensor) -> Tensor:
    r"""The log-odds that something happens at all, from the rate at which it does.

    .. math:: p = 1 - e^{-y}, \qquad \log\frac{p}{1 - p} = \log(e^y - 1), \qquad y > 0

    >>> rate_logit(torch.tensor(2.0).log())  # p = 1/2
    tensor(0.)
    """
    rate = rate.clamp(min=1e-30)
    return rate + torch.log(-torch.expm1(-rate))
