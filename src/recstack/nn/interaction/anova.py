"""Interactions of more than two fields at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def anova(v: Tensor, order: int) -> list[Tensor]:
    r"""ANOVA kernels of orders 1 to `order`, dimension by dimension: ``[..., F, D] →`` a list of ``[..., D]``, in float32.

    .. math:: a_t = \sum_{i_1 < \dots < i_t} v_{i_1} \odot \dots \odot v_{i_t}

    (Blondel et al., NIPS 2016, https://arxiv.org/abs/1607.07195.) They are the coefficients of :math:`\prod_i (1 + v_i z)`.
    The paper's recurrence multiplies by one field after the other; here one half of the fields is multiplied by the other,
    then halves of the products, so that F fields take log F steps. The work is linear in F, and nothing is subtracted.
    """
    terms = [v.float()]  # of z, z², ... in each polynomial; the constant is 1
    while terms[0].shape[-2] > 1:
        if terms[0].shape[-2] % 2:
            terms = [F.pad(t, (0, 0, 0, 1)) for t in terms]  # a field of zeros is the polynomial 1
        half = terms[0].shape[-2] // 2
        terms = _product([t[..., :half, :] for t in terms], [t[..., half:, :] for t in terms], order)
    kernels = [t.squeeze(-2) for t in terms]
    # fewer fields than `order` have no such product
    return kernels + [torch.zeros_like(kernels[0])] * (order - len(kernels))


def _product(a: list[Tensor], b: list[Tensor], order: int) -> list[Tensor]:
    """Coefficients 1 to `order` of the product of two polynomials of equal degree with constant 1."""
    degree, out = len(a), []
    for k in range(1, min(order, 2 * degree) + 1):
        terms = [a[i - 1] * b[k - i - 1] for i in range(max(1, k - degree), min(degree, k - 1) + 1)]
        if k <= degree:
            terms += [a[k - 1], b[k - 1]]
        out.append(sum(terms[1:], terms[0]))
    return out
