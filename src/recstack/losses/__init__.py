"""Losses are pure functions of one signature: ``loss(score, label, *, where=None, weight=None) -> scalar``.

The result is the weighted mean over live rows, in float32 even under autocast; no live row gives 0 with zero gradients.
What stands in a dead cell (``where`` False), NaN included, touches neither value nor gradient.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from recstack.errors import unknown
from recstack.losses.links import product_logit
from recstack.losses.listwise import listnet, softmax
from recstack.losses.pairwise import bpr, pairwise_hinge, pairwise_logistic
from recstack.losses.pointwise import bce, cross_entropy, huber, mae, mse
from recstack.losses.sampled import full_softmax, gbce, in_batch_softmax, sampled_softmax

#: Every loss that a name can choose; those that need to know more (gbce, in_batch_softmax, full_softmax) are called.
LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        bce,
        bpr,
        cross_entropy,
        huber,
        listnet,
        mae,
        mse,
        pairwise_hinge,
        pairwise_logistic,
        sampled_softmax,
        softmax,
    )
}


def get(loss: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss of that name; a function is returned as it is. Raises ConfigError, with a guess, for an unknown name.

    >>> get("bce") is bce
    True
    >>> get("pairwise_logistics")
    Traceback (most recent call last):
    ...
    recstack.errors.ConfigError: Unknown loss 'pairwise_logistics'. Did you mean 'pairwise_logistic'? Known: bce, bpr, \
cross_entropy, huber, listnet, mae, mse, pairwise_hinge, pairwise_logistic, sampled_softmax, softmax.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    return LOSSES[loss]


__all__ = [
    "LOSSES",
    "bce",
    "bpr",
    "cross_entropy",
    "full_softmax",
    "gbce",
    "get",
    "huber",
    "in_batch_softmax",
    "listnet",
    "mae",
    "mse",
    "pairwise_hinge",
    "pairwise_logistic",
    "product_logit",
    "sampled_softmax",
    "softmax",
]
