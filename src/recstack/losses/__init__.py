"""Losses are pure functions of one signature: ``loss(score, label, *, where=None, weight=None) -> scalar``.

The result is the weighted mean over live rows, in float32 even under autocast; no live row gives 0 with zero gradients.
What stands in a dead cell (``where`` False), NaN included, touches neither value nor gradient.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from recstack.errors import ConfigError, unknown
from recstack.losses.conversion import (
    agreement,
    delayed_feedback,
    doubly_robust,
    fake_negative_weighted,
    inverse_propensity,
)
from recstack.losses.distillation import rank_distillation, soft_bce, soft_cross_entropy, soft_list
from recstack.losses.histogram import expected_value, js, kl, spread, wasserstein
from recstack.losses.imbalance import focal, ghm, gradient_counts
from recstack.losses.joint import bce_pairwise, jrc
from recstack.losses.links import mixture_logit, product_logit, rate_logit
from recstack.losses.listwise import listmle, listnet, p_listmle, softmax
from recstack.losses.ndcg import approx_ndcg, neural_ndcg, softrank
from recstack.losses.pairwise import bpr, lambdaloss, lambdarank, pairwise_hinge, pairwise_logistic
from recstack.losses.pointwise import bce, cross_entropy, huber, mae, mse, weighted_logistic
from recstack.losses.sampled import (
    bpr_max,
    drawn_scores,
    full_softmax,
    gbce,
    in_batch_scores,
    in_batch_softmax,
    sampled_softmax,
)
from recstack.losses.similarity import (
    category_alignment,
    cosine_contrastive,
    direct_au,
    first_of_each,
    hardest_others,
    nce,
    triplet,
)

#: Every loss that a name can choose; those that need to know more (gbce, bpr_max, in_batch_softmax, full_softmax) are called.
LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        approx_ndcg,
        bce,
        bce_pairwise,
        bpr,
        cross_entropy,
        fake_negative_weighted,
        focal,
        ghm,
        huber,
        jrc,
        js,
        kl,
        lambdaloss,
        lambdarank,
        listmle,
        listnet,
        mae,
        mse,
        neural_ndcg,
        p_listmle,
        pairwise_hinge,
        pairwise_logistic,
        sampled_softmax,
        softmax,
        softrank,
        wasserstein,
        weighted_logistic,
    )
}
#: Those that compare the candidates of a list: of one candidate they say nothing, or less.
OF_LISTS = frozenset(
    f.__name__
    for f in (
        approx_ndcg,
        bce_pairwise,
        bpr,
        jrc,
        lambdaloss,
        lambdarank,
        listmle,
        listnet,
        nce,
        neural_ndcg,
        p_listmle,
        pairwise_hinge,
        pairwise_logistic,
        sampled_softmax,
        softmax,
        softrank,
    )
)
# Arguments that come with the data.
GIVEN = {"score", "label", "where", "weight", "log_q", "counts", "values", "user", "item", "user_ids", "item_ids"}
#: Those that a two-tower model can choose by name.
OF_TOWERS: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (cosine_contrastive, direct_au, nce, sampled_softmax, triplet)
}
#: Those that teach a list's order; a student chooses them by name.
OF_TEACHERS: dict[str, Callable[..., Tensor]] = {loss.__name__: loss for loss in (rank_distillation, soft_list)}
#: The options of each loss.
OPTIONS = {
    name: frozenset(inspect.signature(loss).parameters) - GIVEN - {"teacher"}
    for name, loss in (LOSSES | OF_TOWERS | OF_TEACHERS).items()
}

Choice = str | tuple[str, Mapping[str, Any]] | Callable[..., Tensor]


def get(loss: Choice, known: Mapping[str, Callable[..., Tensor]] = LOSSES) -> Callable[..., Tensor]:
    """The loss of that name among the `known`, or of a name and its options; a function is returned as it is.

    Raises ConfigError, with a guess, for a name or an option that does not exist.

    >>> get("bce") is bce
    True
    >>> focused = get(("focal", {"gamma": 0.0}))
    >>> get("pairwise_logistics")
    Traceback (most recent call last):
    ...
    recstack.errors.ConfigError: Unknown loss 'pairwise_logistics'. Did you mean 'pairwise_logistic'? Known: \
approx_ndcg, bce, bce_pairwise, bpr, cross_entropy, fake_negative_weighted, focal, ghm, huber, jrc, js, kl, \
lambdaloss, lambdarank, listmle, listnet, mae, mse, neural_ndcg, p_listmle, pairwise_hinge, pairwise_logistic, \
sampled_softmax, softmax, softrank, wasserstein, weighted_logistic.
    """
    if callable(loss):
        return loss
    name, options = (loss, {}) if isinstance(loss, str) else _named(loss)
    if name not in known:
        raise unknown("loss", name, known)
    for option in options:
        if option not in OPTIONS[name]:
            raise unknown(f"option of the loss {name!r}", option, OPTIONS[name])
    return functools.partial(known[name], **options) if options else known[name]


def _named(loss: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(loss, list | tuple) and len(loss) == 2 and isinstance(loss[0], str) and isinstance(loss[1], Mapping):
        return loss[0], loss[1]
    raise ConfigError(f'A loss is a name, or a name and its options as in ("focal", {{"gamma": 2.0}}); got {loss!r}.')


__all__ = [
    "LOSSES",
    "OF_LISTS",
    "OF_TEACHERS",
    "OF_TOWERS",
    "OPTIONS",
    "agreement",
    "approx_ndcg",
    "bce",
    "bce_pairwise",
    "bpr",
    "bpr_max",
    "category_alignment",
    "cosine_contrastive",
    "cross_entropy",
    "delayed_feedback",
    "direct_au",
    "doubly_robust",
    "drawn_scores",
    "expected_value",
    "fake_negative_weighted",
    "first_of_each",
    "focal",
    "full_softmax",
    "gbce",
    "get",
    "ghm",
    "gradient_counts",
    "hardest_others",
    "huber",
    "in_batch_scores",
    "in_batch_softmax",
    "inverse_propensity",
    "jrc",
    "js",
    "kl",
    "lambdaloss",
    "lambdarank",
    "listmle",
    "listnet",
    "mae",
    "mixture_logit",
    "mse",
    "nce",
    "neural_ndcg",
    "p_listmle",
    "pairwise_hinge",
    "pairwise_logistic",
    "product_logit",
    "rate_logit",
    "rank_distillation",
    "sampled_softmax",
    "soft_bce",
    "soft_cross_entropy",
    "soft_list",
    "softmax",
    "softrank",
    "spread",
    "triplet",
    "wasserstein",
    "weighted_logistic",
]
