"""Pairs of fields, each pair with a weight, a vector or a matrix of its own; the order is (0, 1), (0, 2), ... (F-2, F-1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def by_pair(names: Iterable[str], values: Tensor) -> dict[tuple[str, str], float]:
    """One value ``[P]`` for each pair of names: ``{(field, field): value}``, as a heat map reads it.

    >>> by_pair(["user", "item", "hour"], torch.tensor([2.0, 0.5, 1.0]))
    {('user', 'item'): 2.0, ('user', 'hour'): 0.5, ('item', 'hour'): 1.0}
    """
    return dict(zip(combinations(names, 2), values.tolist(), strict=True))


def pair_products(v: Tensor) -> Tensor:
    r"""The elementwise product of each pair of fields: ``[..., F, D] → [..., P, D]``, P = F (F - 1) / 2, in float32."""
    v = v.float()
    rows = (v[..., i : i + 1, :] * v[..., i + 1 :, :] for i in range(v.shape[-2] - 1))
    return torch.cat([v[..., :0, :], *rows], -2)


class PairWeights(nn.Module):
    r"""A weight for each pair of fields, one number or one for each dimension: ``[..., F, D] → [...]``, in float32.

    .. math:: \sum_{i<j} \sum_k r_{ij,k}\, v_{ik} v_{jk} = \sum_k v_k^\top R_k v_k

    R is upper triangular, so that pairs are weighed by one multiplication with it and nothing of P vectors is built.

    Args:
        fields: F.
        width: 1 for a number a pair, or D.

    `weight` is ``[P, width]``, all ones at first: then it is a factorisation machine.
    """

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
        with torch.autocast(v.device.type, enabled=False):
            v, matrix, d = v.float(), self.matrix(), self.widths[0]
            scores = [v[..., 0, :0]]
            for i in range(len(self.widths) - 1):
                seen = v[..., i, :] @ matrix[i * d : (i + 1) * d, (i + 1) * d :]
                scores.append((seen.unflatten(-1, (-1, d)) * v[..., i + 1 :, :]).sum(-1))
            return torch.cat(scores, -1)
