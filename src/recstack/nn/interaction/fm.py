"""The second-order term of a factorisation machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pairwise_sum(v: Tensor) -> Tensor:
    r"""All pairwise products of field vectors, summed: ``[..., F, D] → [..., D]``, in float32.

    .. math:: \sum_{i<j} v_i \odot v_j = \tfrac12\Big[\big(\textstyle\sum_i v_i\big)^2 - \sum_i v_i^2\Big]

    (Rendle, ICDM 2010.) Its sum over D is the factorisation machine's score; NFM feeds the vector to an MLP.
    """
    v = v.float()
    if v.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _Pairs.apply(v)
    return _pairs(v)


def _pairs(v: Tensor) -> Tensor:
    return 0.5 * (v.sum(-2).square() - v.square().sum(-2))


class _Pairs(torch.autograd.Function):
    """Its gradient is `g ⊙ (Σ v - v_i)`: two passes over the fields, where autograd's own takes seven."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return _pairs(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        grad = grad.unsqueeze(-2)
        return torch.addcmul(grad * v.sum(-2, keepdim=True), v, grad, value=-1)
