"""Pairs of fields, each pair with a weight, a vector or a matrix of its own; the order is (0, 1), (0, 2), ... (F-2, F-1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def by_pair(names: Iterable[str], values: Tensor) -> dict[tuple[str, str], float]:
    """One value ``[P]`` for each pair of names: ``{(field, field): value}``, as a heat map reads it.

    >>> by_pair(["user", "item", "hour"], torch.tensor([2.0, 0.5, 1.0]))
    {('user', 'item'): 2.0, ('user', 'hour'): 0.5, ('item', 'hour'): 1.0}
    """
    return dict(zip(combinations(names, 2), values.tolist(), strict=True))


def pair_products(v: Tensor) -> Tensor:
    r"""The elementwise product of each pair of fields: ``[..., F, D] → [..., P, D]``, P = F (F - 1) / 2, in float32."""
    v = v.float()
    if v.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _Products.apply(v)
    return _products(v)


def _products(v: Tensor) -> Tensor:
    rows = (v[..., i : i + 1, :] * v[..., i + 1 :, :] for i in range(v.shape[-2] - 1))
    return torch.cat([v[..., :0, :], *rows], -2)


class _Products(torch.autograd.Function):
    """Its gradient is added up in place, where autograd's own fills a tensor of all fields for each slice of them."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return _products(v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        out = torch.zeros_like(v)
        for i, part in _by_first(v.shape[-2]):
            out[..., i + 1 :, :].addcmul_(grad[..., part, :], v[..., i : i + 1, :])
            out[..., i, :].add_((grad[..., part, :] * v[..., i + 1 :, :]).sum(-2))
        return out


def kernel_products(v: Tensor, kernels: Tensor) -> Tensor:
    r""":math:`v_i^\top W_{ij} v_j` of each pair: ``v [..., F, D]`` and ``W [P, D, D]`` give ``[..., P]``, in float32."""
    with torch.autocast(v.device.type, enabled=False):
        v, kernels = v.float(), kernels.float()
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            return _Kernels.apply(v, kernels)
        return _kernel_products(v, kernels)


def _kernel_products(v: Tensor, kernels: Tensor) -> Tensor:
    scores = [v[..., 0, :0]]
    for i, part in _by_first(v.shape[-2]):
        seen = (v[..., i, :] @ _side_by_side(kernels[part])).unflatten(-1, (-1, v.shape[-1]))
        scores.append((seen * v[..., i + 1 :, :]).sum(-1))
    return torch.cat(scores, -1)


class _Kernels(torch.autograd.Function):
    """What v_i's kernels make of it, D numbers a pair, is made again instead of kept."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(v, kernels)
        return _kernel_products(v, kernels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        v, kernels = ctx.saved_tensors
        dim, to_v, to_kernels = v.shape[-1], torch.zeros_like(v), torch.empty_like(kernels)
        for i, part in _by_first(v.shape[-2]):
            first, kernel, g = v[..., i, :], _side_by_side(kernels[part]), grad[..., part].unsqueeze(-1)
            to_v[..., i + 1 :, :].addcmul_((first @ kernel).unflatten(-1, (-1, dim)), g)
            weighed = (v[..., i + 1 :, :] * g).flatten(-2)
            to_v[..., i, :].add_(weighed @ kernel.T)
            found = first.flatten(0, -2).T @ weighed.flatten(0, -2)
            to_kernels[part] = found.unflatten(-1, (-1, dim)).transpose(0, 1)
        return to_v, to_kernels


def _by_first(fields: int) -> Iterator[tuple[int, slice]]:
    """The first field of pairs, and where its pairs with the later ones lie."""
    at = 0
    for i in range(fields - 1):
        yield i, slice(at, at := at + fields - 1 - i)


def _side_by_side(kernels: Tensor) -> Tensor:
    """``[P, D, D] → [D, P D]``."""
    return kernels.transpose(0, 1).flatten(1)


class PairWeights(nn.Module):
    r"""A weight for each pair of fields, one number or one for each dimension: ``[..., F, D] → [...]``, in float32.

    .. math:: \sum_{i<j} \sum_k r_{ij,k}\, v_{ik} v_{jk} = \sum_k v_k^\top R_k v_k

    R is upper triangular, so that pairs are weighed by one multiplication with it and nothing of P vectors is built.

    Args:
        fields: F.
        width: 1 for a number a pair, or D.

    `weight` is ``[P, width]``, all ones at first: then it is a factorisation machine.
    """

    place: Tensor

    def __init__(self, fields: int, width: int = 1):
        super().__init__()
        self.fields = fields
        first, second = torch.triu_indices(fields, fields, 1)
        self.weight = nn.Parameter(torch.ones(len(first), width))
        self.register_buffer("place", first * fields + second, persistent=False)

    def forward(self, v: Tensor) -> Tensor:
        with torch.autocast(v.device.type, enabled=False):
            v = v.float().mT  # [..., D, F]
            matrix = self.weight.new_zeros(self.fields * self.fields, self.weight.shape[1])
            matrix = matrix.index_copy(0, self.place, self.weight).T.unflatten(-1, (self.fields, self.fields))
            weighed = F.linear(v, matrix[0]) if matrix.shape[0] == 1 else torch.einsum("...kj,kij->...ki", v, matrix)
            return (v * weighed).sum((-2, -1))

    def norms(self) -> Tensor:
        """How strong each pair is: the length of its weights, ``[P]``."""
        return self.weight.detach().norm(dim=-1)


class PairMatrices(nn.Module):
    r"""A matrix for each pair of fields, which may have different widths: ``[..., W] → [...]``, in float32.

    .. math:: \sum_{i<j} v_i^\top M_{ij} v_j = x^\top M x

    M ``[W, W]`` has the matrices above its diagonal blocks: one multiplication serves all pairs.

    Args:
        widths: of the fields, which lie behind each other in x.
        symmetric: M_ij = U_ij + U_ijᵀ, for fields of one width; U is what is learned.

    `weight` holds the matrices behind each other, ``[Σ d_i d_j]``; at first each M_ij is the identity, or as much of it as
    there is room for: then it is a factorisation machine.
    """

    place: Tensor

    def __init__(self, widths: Sequence[int], symmetric: bool = False):
        super().__init__()
        self.widths, self.symmetric, total = tuple(widths), symmetric, sum(widths)
        starts = list(accumulate(widths, initial=0))
        places, values = [torch.empty(0, dtype=torch.long)], [torch.empty(0)]
        for i, j in combinations(range(len(widths)), 2):
            rows = torch.arange(starts[i], starts[i + 1]).unsqueeze(-1)
            places.append((rows * total + torch.arange(starts[j], starts[j + 1])).flatten())
            values.append(torch.eye(widths[i], widths[j]).flatten() / (2 if symmetric else 1))
        self.weight = nn.Parameter(torch.cat(values))
        self.register_buffer("place", torch.cat(places), persistent=False)

    def values(self) -> Tensor:
        """The entries of the matrices, behind each other in the order of the pairs."""
        if not self.symmetric:
            return self.weight
        half = self.weight.view(-1, self.widths[0], self.widths[0])
        return (half + half.mT).flatten()

    def matrices(self) -> list[Tensor]:
        """M_ij ``[d_i, d_j]`` of each pair."""
        shapes = list(combinations(self.widths, 2))
        return [m.view(s) for m, s in zip(self.values().split([a * b for a, b in shapes]), shapes, strict=True)]

    def norms(self) -> Tensor:
        """How strong each pair is: the Frobenius norm of its matrix, ``[P]``."""
        return torch.tensor([float(m.detach().norm()) for m in self.matrices()])

    def matrix(self) -> Tensor:
        """All of them as one matrix ``[W, W]``."""
        total = sum(self.widths)
        return self.weight.new_zeros(total * total).index_copy(0, self.place, self.values()).view(total, total)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return (x * F.linear(x, self.matrix())).sum(-1)

    def each(self, v: Tensor) -> Tensor:
        """v_iᵀ M_ij v_j of every pair by itself, for fields of one width: ``[..., F, D] → [..., P]``."""
        return kernel_products(v, self.values().view(-1, self.widths[0], self.widths[0]))
