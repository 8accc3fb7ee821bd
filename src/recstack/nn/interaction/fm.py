"""The second-order term of a factorisation machine."""

from __future__ import annotations

from torch import Tensor


def pairwise_sum(v: Tensor) -> Tensor:
    r"""All pairwise products of field vectors, summed: ``[..., F, D] → [..., D]``, in float32.

    .. math:: \sum_{i<j} v_i \odot v_j = \tfrac12\Big[\big(\textstyle\sum_i v_i\big)^2 - \sum_i v_i^2\Big]

    (Rendle, ICDM 2010.) Its sum over D is the factorisation machine's score; NFM feeds the vector to an MLP.
    """
    v = v.float()
    return 0.5 * (v.sum(-2).square() - v.square().sum(-2))
