"""Items in the order of a tree's leaves: halved again and again, each time into two equally large clusters."""

from __future__ import annotations

import torch
from torch import Tensor


def height(n: int) -> int:
    """Levels below the root of a binary tree with room for n leaves, at least 1."""
    return max((n - 1).bit_length(), 1)


def slots(n: int) -> Tensor:
    """The leaves, of :math:`2^H`, that n items take in their order: even halves at every level, int64 [n]."""
    return torch.arange(n) * 2 ** height(n) // max(n, 1)


def balanced_order(vectors: Tensor, seed: int = 0, rounds: int = 20) -> Tensor:
    r"""Balanced 2-means from the root down: [n, D] → int64 [n], row numbers in the order of the leaves.

    A node's items go left or right by :math:`\lVert x - c_1 \rVert^2 - \lVert x - c_2 \rVert^2`, cut in the middle, until
    that moves nobody. All nodes of a level are worked on at once.

    >>> balanced_order(torch.tensor([[0.0], [9.0], [1.0], [8.0]])).view(2, 2).sort().values.sort(0).values
    tensor([[0, 2],
            [1, 3]])
    """
    n, deep = len(vectors), height(len(vectors))
    g = torch.Generator().manual_seed(seed)
    order, leaf, x = torch.arange(n), slots(n), vectors.float()
    for level in range(deep):
        node, right = leaf >> (deep - level), (leaf >> (deep - level - 1) & 1).bool()
        toward = torch.randn(2**level, x.shape[1], generator=g)  # c2 - c1
        for _ in range(rounds):
            along = (x * toward[node]).sum(1)
            by = along.argsort(stable=True)
            by = by[node[by].argsort(stable=True)]  # within its node
            if torch.equal(by, torch.arange(n)):
                break
            x, order = x[by], order[by]
            toward = _means(x, node, right, 2**level) - _means(x, node, ~right, 2**level)
    return order


def _means(x: Tensor, node: Tensor, of: Tensor, nodes: int) -> Tensor:
    total = x.new_zeros(nodes, x.shape[1]).index_add_(0, node[of], x[of])
    return total / torch.bincount(node[of], minlength=nodes).clamp(min=1).unsqueeze(1)
