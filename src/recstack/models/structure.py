"""What retrievers share that find the best items without scoring all of them: exact answers where too few were found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.models.base import Recommends
from recstack.models.counting import user_items
from recstack.models.scored import best_of_all

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

CELLS = 1 << 22  # of requests times items, at a time


class Structured(Recommends):
    """A retriever whose scores are those of a scorer, and which asks it about a few items only.

    A subclass gives `walk` and `every_score`. Requests for which a walk finds fewer than k items, of as many as are
    allowed, are answered by scoring everything.
    """

    def walk(self, requests: Requests, k: int, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is found of the items that are alive (bool ``[R, N]``): distinct ids and scores ``[R, W]``, -inf where
        there is nothing, and how many scores were computed for each request, int64 ``[R]``."""
        raise NotImplementedError

    def every_score(self, requests: Requests) -> Tensor:
        """The scorer's scores of all items, float32 ``[R, N]``."""
        raise NotImplementedError

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        return self.counted_search(requests, k, exclude_seen, allowed)[:2]

    @torch.no_grad()
    def measure(self, users: Any, k: int = 10, exclude_seen: bool = True) -> dict[str, float]:
        """How well it finds what scoring everything would: the mean `recall` of the k items with the best scores of the same
        scorer, and the `share` of the catalogue's size that was scored (nodes of a structure count as items do)."""
        requests = self.requests(users)
        allowed = self.catalog.live()
        _, found, scored = self.counted_search(requests, k, exclude_seen, allowed)
        _, best = best_of_all(self.every_score, requests, k, exclude_seen, allowed, CELLS)
        worst = best.masked_fill(best == -torch.inf, torch.inf).amin(1, keepdim=True)
        hits = (found >= worst - 1e-5 * worst.abs()).sum()
        recall = hits / best.isfinite().sum().clamp(min=1)
        return {"recall": float(recall), "share": float(scored.double().mean() / len(self.catalog))}

    @torch.no_grad()
    def counted_search(
        self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `search`, and how many scores were computed for each request, int64 ``[R]``."""
        k, size = min(k, len(allowed)), max(1, CELLS // len(allowed))
        ids, scores = torch.zeros(len(requests), k, dtype=torch.int64), torch.full((len(requests), k), -torch.inf)
        counted = torch.zeros(len(requests), dtype=torch.int64)
        for start in range(0, len(requests), size):
            part = requests.slice(start, start + size)
            rows = slice(start, start + len(part))
            alive = allowed.repeat(len(part), 1)
            if exclude_seen:
                alive[part.seen_pairs()] = False
            items, found, counted[rows] = self.walk(part, k, alive)
            found, place = found.topk(min(k, found.shape[1]))
            ids[rows, : found.shape[1]], scores[rows, : found.shape[1]] = items.gather(1, place), found
            short = scores[rows].isfinite().sum(1) < alive.sum(1).clamp(max=k)
            if bool(short.any()):
                exact, values = best_of_all(self.every_score, part, k, exclude_seen, allowed, CELLS)
                at = short.nonzero().squeeze(1)
                ids[at + start], scores[at + start] = exact[at], values[at]
                counted[at + start] += len(allowed) - 2
        return ids, scores, counted


def factors(train: Columns, dim: int, seed: int = 0) -> Tensor:
    """Directions of items by who met them, ``[N, dim]``: a truncated SVD of the interactions, divided by the root of what
    each side has; zeros for items that nobody met."""
    users = user_items(train)
    row, column = torch.from_numpy(users.rows), torch.from_numpy(users.columns).long()
    degree = torch.bincount(column, minlength=users.width).float()
    value = (torch.from_numpy(users.counts)[row] * degree[column]).rsqrt()
    matrix = torch.sparse_coo_tensor(
        torch.stack([column, row]), value, (users.width, users.height), check_invariants=False
    ).coalesce()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, singular, _ = torch.svd_lowrank(matrix, q=min(dim, users.height, users.width), niter=4)
    return F.normalize(left * singular, dim=1) * (degree > 0).unsqueeze(1)
