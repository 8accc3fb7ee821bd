"""A graph of near neighbours that a greedy walk finds its way on: pruned as in HNSW, with ways back, all in reach."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recstack.kernels.topk import Sparse, offsets_of

NEAR = 64  # nearest neighbours among which links are chosen
BLOCK = 1024


def proximity_graph(vectors: Tensor, links: int, roots: Tensor) -> Sparse:
    """Links of n points by their distance (L2), ``[n, n]``, in each row nearest first.

    A neighbour is kept that is nearer to the point than to all nearer ones that were kept (Malkov and Yashunin, TPAMI 2020,
    https://arxiv.org/abs/1603.09320): `links` of a point at most, then 2 × `links` with the ways back. Points that the
    roots do not lead to are linked, both ways, to the nearest of those they do. All distances are computed, in blocks.

    Args:
        vectors: float32 [n, D].
        links: chosen for a point.
        roots: int64 [r], where walks begin.
    """
    n = len(vectors)
    near = torch.cat(
        [_nearest(part, vectors, min(NEAR, n - 1), i * BLOCK) for i, part in enumerate(vectors.split(BLOCK))]
    )
    kept = torch.cat([_spread(vectors, rows, near[rows], links) for rows in torch.arange(n).split(BLOCK)])
    row, column = kept.nonzero(as_tuple=True)[0], near[kept]
    source, target = (torch.cat(pair) for pair in ((row, column), (column, row)))
    key = torch.unique(source * n + target)
    source, target = key // n, key % n
    order = (vectors[source] - vectors[target]).norm(dim=1).argsort(stable=True)
    order = order[source[order].argsort(stable=True)]
    source, target = source[order], target[order]
    place = torch.arange(len(source)) - torch.from_numpy(offsets_of(np.bincount(source, minlength=n)))[source]
    source, target = source[place < 2 * links], target[place < 2 * links]
    while True:
        graph = _rows(source, target, n)
        reached = _reached(graph, roots)
        if bool(reached.all()):
            return graph
        outside, inside = (~reached).nonzero().squeeze(1), reached.nonzero().squeeze(1)
        closest = [torch.cdist(vectors[part], vectors[inside]).min(1) for part in outside.split(BLOCK)]
        at = torch.cat([c.values for c in closest]).argmin()
        one, other = outside[at], inside[torch.cat([c.indices for c in closest])[at]]
        source, target = torch.cat([source, one[None], other[None]]), torch.cat([target, other[None], one[None]])


def _nearest(part: Tensor, vectors: Tensor, k: int, start: int) -> Tensor:
    """The nearest others of rows from `start`, [m, k]."""
    far = torch.cdist(part, vectors)
    far[torch.arange(len(part)), torch.arange(len(part)) + start] = torch.inf
    return far.topk(k, largest=False).indices


def _spread(vectors: Tensor, rows: Tensor, near: Tensor, links: int) -> Tensor:
    """Which of the near are kept, bool [m, k]; `near` is in the order of distance."""
    x = vectors[near]
    own, between = torch.cdist(vectors[rows].unsqueeze(1), x).squeeze(1), torch.cdist(x, x)
    kept = torch.zeros_like(near, dtype=torch.bool)
    for c in range(near.shape[1]):
        hidden = ((between[:, c] < own[:, c : c + 1]) & kept).any(1)
        kept[:, c] = ~hidden & (kept.sum(1) < links)
    return kept


def _rows(source: Tensor, target: Tensor, n: int) -> Sparse:
    order = source.argsort(stable=True)
    offsets = offsets_of(np.bincount(source.numpy(), minlength=n))
    return Sparse(offsets, target[order].numpy().astype(np.int32), n)


def _reached(graph: Sparse, roots: Tensor) -> Tensor:
    reached = np.zeros(graph.height, bool)
    frontier = np.unique(roots.numpy())
    while len(frontier):
        reached[frontier] = True
        found = np.unique(graph.take(frontier).columns)
        frontier = found[~reached[found]]
    return torch.from_numpy(reached)
