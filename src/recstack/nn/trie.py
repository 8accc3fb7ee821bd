"""Ids of several codes as a tree of their beginnings, so that a search writes only ids that exist."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recstack.errors import DataError


class Trie:
    """The codes of items as a tree: at each level the beginnings that exist, as sorted numbers in base `codes`.

    Args:
        item_codes: ``[N, C]``, from 1; 0 is no code.
        allowed: bool ``[N]``.
        codes: values of a code.

    >>> trie = Trie(torch.tensor([[0, 0], [1, 2], [2, 1], [2, 2]]), torch.ones(4, dtype=torch.bool), 2)
    >>> trie.children(torch.tensor([0]), 0)[1], trie.children(torch.tensor([0, 1]), 1)[1]
    (tensor([[True, True]]), tensor([[False,  True],
            [ True,  True]]))
    """

    def __init__(self, item_codes: Tensor, allowed: Tensor, codes: int):
        self.codes, length = codes, item_codes.shape[1]
        items = (allowed & (item_codes[:, 0] > 0)).nonzero().flatten()
        power = codes ** torch.arange(length - 1, -1, -1)
        whole, order = ((item_codes[items] - 1) * power).sum(-1).sort()
        self.items = items[order] if len(items) else torch.zeros(1, dtype=torch.int64)
        self.beginnings = [torch.unique_consecutive(whole // p) for p in power.tolist()]

    def children(self, key: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Of beginnings of `level` codes ``[...]``, each with one code more: its place among those that exist, and whether it does."""
        child = key.unsqueeze(-1) * self.codes + torch.arange(self.codes)
        known = self.beginnings[level]
        if not len(known):
            return torch.zeros_like(child), torch.zeros_like(child, dtype=torch.bool)
        place = torch.searchsorted(known, child).clamp(max=len(known) - 1)
        return place, known[place] == child

    def search(
        self, next_code: Callable[[Tensor], Tensor], n: int, width: int, k: int, forbidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Beam search: for each of n requests the k best items ``[n, k or all]``, best first, and their scores.

        Args:
            next_code: log p of each value of the next code, ``[n, B, K]``, by what is written so far, from 1, ``[n, B, l]``.
            n: requests.
            width: beginnings that are kept.
            k: items that are wanted.
            forbidden: bool ``[n, N]``: items that a request may not be given; they take up beams all the same.

        >>> trie = Trie(torch.tensor([[0, 0], [1, 2], [2, 1], [2, 2]]), torch.ones(4, dtype=torch.bool), 2)
        >>> trie.search(lambda written: torch.tensor([0.4, 0.6]).log().expand(1, written.shape[1], 2), 1, 3, 1)[0]
        tensor([[3]])
        """
        codes, key, score = torch.zeros(n, 1, 0).long(), torch.zeros(n, 1).long(), torch.zeros(n, 1)
        last = len(self.beginnings) - 1
        for level in range(last + 1):
            place, there = self.children(key, level)  # [n, B, K]
            score = (score.unsqueeze(-1) + next_code(codes)).masked_fill(~there, -torch.inf)
            if level == last:
                break
            best = score.flatten(1).topk(min(width, score[0].numel()))
            beam, code = best.indices // self.codes, best.indices % self.codes
            score, key = best.values, key.gather(1, beam) * self.codes + code
            before = codes.gather(1, beam.unsqueeze(-1).expand(-1, -1, level))
            codes = torch.cat([before, code.unsqueeze(-1) + 1], -1)
        ids = self.items[place].flatten(1)
        if forbidden is not None:
            score = score.masked_fill(forbidden.gather(1, ids).view(score.shape), -torch.inf)
        best = score.flatten(1).topk(min(k, score[0].numel()))
        return ids.gather(1, best.indices), best.values


def kept_apart(codes: Tensor, values: int) -> Tensor:
    """Codes ``[n, L]``, from 0, and one more that numbers those who share them all: int64 ``[n, L + 1]``, no two rows equal.

    Where more share all codes than a code has `values`, the rest take places of the next values of code L.

    Raises:
        DataError: more than ``values ** 2`` rows share the codes before the last.

    >>> kept_apart(torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]]), 2).tolist()
    [[1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 0]]
    """
    _, group = codes[:, :-1].unique(dim=0, return_inverse=True)
    order = (group * values + codes[:, -1]).argsort(stable=True)
    own, n = group[order], torch.bincount(group)
    if int(n.max()) > values**2:
        raise DataError(f"{int(n.max())} items share all codes but the last; give more codes= or levels=.")
    position = torch.arange(len(codes)) - (n.cumsum(0) - n)[own]
    # the first place that is free and not before its code's, yet leaves room for all that follow
    place = torch.minimum(codes[order, -1] * values - position, values**2 - n[own])
    step = values**2 + len(codes) + 1  # groups do not reach into each other
    place = (place + own * step).cummax(0).values - own * step + position
    last = torch.empty(len(codes), 2, dtype=torch.int64)
    last[order] = torch.stack([place // values, place % values], -1)
    return torch.cat([codes[:, :-1], last], -1)
