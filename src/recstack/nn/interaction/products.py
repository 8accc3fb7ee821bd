"""Products of pairs of fields, kept apart: inner, through a kernel, outer, and by a small network of each pair's own.

Pairs (i, j) with i < j come in the order (0, 1), (0, 2), ..., (1, 2), ...: that of ``torch.triu_indices(F, F, 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.nn.interaction.pairs import kernel_products, pair_products

KERNELS = ("matrix", "vector", "number")


def inner_products(v: Tensor, diagonal: bool = False) -> Tensor:
    r"""All :math:`\langle v_i, v_j \rangle`, i < j: ``[..., F, D] → [..., F (F - 1) / 2]``, in float32.

    `diagonal` adds those of each field with itself, i ≤ j: F more.
    """
    fields = v.shape[-2]
    i, j = torch.triu_indices(fields, fields, 0 if diagonal else 1, device=v.device)
    with torch.autocast(v.device.type, enabled=False):
        v = v.float()
        return (v @ v.transpose(-1, -2)).flatten(-2).index_select(-1, i * fields + j)


def outer_product(v: Tensor) -> Tensor:
    r"""The outer products of all pairs, summed: ``[..., F, D] → [..., D (D + 1) / 2]``, in float32.

    .. math:: \sum_i \sum_j v_i v_j^\top = f f^\top, \qquad f = \sum_i v_i

    (Qu et al., ICDM 2016.) The matrix is symmetric; this is its upper triangle, row by row.
    """
    width = v.shape[-1]
    i, j = torch.triu_indices(width, width, device=v.device)
    f = v.float().sum(-2)
    return f.index_select(-1, i) * f.index_select(-1, j)


class KernelProducts(nn.Module):
    r""":math:`v_i^\top W_{ij} v_j`, a kernel for each pair: ``[..., F, D] → [..., F (F - 1) / 2]``, in float32.

    (Qu et al., TOIS 2018, https://arxiv.org/abs/1807.00311.) Kernels begin as the identity, so as inner products.

    Args:
        fields: F.
        dim: D.
        kernel: W is a "matrix" ``[D, D]``, a "vector" (its diagonal) or a "number".
    """

    def __init__(self, fields: int, dim: int, kernel: str = "matrix"):
        super().__init__()
        if kernel not in KERNELS:
            raise unknown("kernel", kernel, KERNELS)
        self.kernel, pairs = kernel, fields * (fields - 1) // 2
        start = {"matrix": torch.eye(dim).repeat(pairs, 1, 1), "vector": torch.ones(pairs, dim)}
        self.weight = nn.Parameter(start.get(kernel, torch.ones(pairs)))

    def forward(self, v: Tensor) -> Tensor:
        if self.kernel == "number":
            return inner_products(v) * self.weight
        if self.kernel == "vector":
            return (pair_products(v) * self.weight).sum(-1)
        return kernel_products(v, self.weight)


class PairNetworks(nn.Module):
    r"""A small network for each pair: ``[..., F, D] → [..., P · H]``, P pairs, H the last of `hidden`.

    .. math:: p_{ij} = f_{ij}([v_i; v_j; v_i \odot v_j])

    (Qu et al., TOIS 2018, https://arxiv.org/abs/1807.00311.) ReLU after each layer; the layers of all pairs are one product
    over stacked weights ``[P, in, out]``, initialised as if each network stood alone.

    Args:
        fields: F.
        dim: D.
        hidden: widths of each network.
    """

    def __init__(self, fields: int, dim: int, hidden: Sequence[int]):
        super().__init__()
        pairs = fields * (fields - 1) // 2
        self.width = pairs * hidden[-1]
        self.weights = nn.ParameterList(torch.empty(pairs, a, b) for a, b in pairwise((3 * dim, *hidden)))
        self.biases = nn.ParameterList(torch.zeros(pairs, b) for b in hidden)
        for layer in self.weights:
            for weight in layer:
                nn.init.xavier_normal_(weight)

    def forward(self, v: Tensor) -> Tensor:
        i, j = torch.triu_indices(v.shape[-2], v.shape[-2], 1, device=v.device)
        first = v.flatten(0, -3).transpose(0, 1).contiguous()  # [F, rows, D]: so that a pair's rows lie together
        a, b = first.index_select(0, i), first.index_select(0, j)
        x = torch.cat([a, b, a * b], -1)  # [P, rows, 3 D]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.baddbmm(bias.unsqueeze(1), x, weight).relu_()
        return x.transpose(0, 1).flatten(1).unflatten(0, v.shape[:-2])
