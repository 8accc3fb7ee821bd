"""What held-out columns hold that a recommender should have found, and how much of it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from recstack.data.columns import Columns


class Truth:
    """Items that each request's user met next, as sorted keys; answers for ids ``[n, L]`` which are among them.

    Args:
        request, items: of each relevant event; an item that is met twice counts once.
        n: how many requests there are.
        unknown: int ``[n]``, relevant items that the catalog lacks: they count as misses.
        worth: of each event, such as a bid or a price; those of one item of a request are added up.
        unknown_worth: float ``[n]``, of what the catalog lacks.
    """

    def __init__(
        self,
        request: np.ndarray,
        items: np.ndarray,
        n: int,
        unknown: np.ndarray,
        worth: np.ndarray | None = None,
        unknown_worth: np.ndarray | None = None,
    ):
        self.keys, which = np.unique(request << 32 | items, return_inverse=True)
        self.count = np.bincount(self.keys >> 32, minlength=n) + unknown
        self.worth = self.total = None
        if worth is not None:
            self.worth = np.bincount(which, worth, len(self.keys))
            self.total = np.bincount(self.keys >> 32, self.worth, n) + (0 if unknown_worth is None else unknown_worth)

    def select(self, chosen: np.ndarray) -> Truth:
        """That of some requests, numbered anew; `chosen` ascending."""
        request, item = self.keys >> 32, self.keys & 0xFFFFFFFF
        place = np.searchsorted(chosen, request).clip(max=len(chosen) - 1)
        kept = chosen[place] == request
        worth = None if self.worth is None else self.worth[kept]
        new = Truth(place[kept], item[kept], len(chosen), np.zeros(len(chosen), np.int64), worth)
        new.count = self.count[chosen]
        new.total = None if self.total is None else self.total[chosen]
        return new

    def hits(self, ids: Tensor, start: int = 0) -> Tensor:
        """bool ``[n, L]`` for the requests from `start`."""
        return torch.from_numpy(self._find(ids, start)[1])

    def worths(self, ids: Tensor, start: int = 0) -> Tensor:
        """float64 ``[n, L]``: what each is worth, 0 for what is not relevant."""
        place, found = self._find(ids, start)
        assert self.worth is not None
        return torch.from_numpy(self.worth[place] * found if len(self.worth) else np.zeros(found.shape))

    def _find(self, ids: Tensor, start: int) -> tuple[np.ndarray, np.ndarray]:
        keys = (np.arange(len(ids)) + start)[:, None] << 32 | ids.numpy()
        place = np.searchsorted(self.keys, keys).clip(max=max(len(self.keys) - 1, 0))
        found = self.keys[place] == keys if len(self.keys) else np.zeros(keys.shape, bool)
        return place, found & (ids.numpy() > 0)

    def sums(self, ids: Tensor, start: int, cuts: Sequence[int]) -> np.ndarray:
        """Summed over the requests from `start`, for each k of `cuts`: recall@k, ndcg@k (ideal over min(k, relevant))."""
        hit = self.hits(ids, start).double()
        relevant = torch.from_numpy(self.count[start : start + len(ids)])
        discount = 1 / torch.log2(torch.arange(2, max(*cuts, ids.shape[1]) + 2).double())
        out = []
        for k in cuts:
            page = hit[:, :k]
            ideal = discount[:k].cumsum(0)[relevant.clamp(max=k) - 1]
            out += [page.sum(1) / relevant, (page * discount[: page.shape[1]]).sum(1) / ideal]
        return torch.stack([v.sum() for v in out]).numpy()


def next_events(columns: Columns, worth: np.ndarray | None = None) -> tuple[np.ndarray, Truth]:
    """Each user's first request in `columns`, and all items of that user's positive rows, `worth` so much each.

    Users without a positive are left out, and so are users whom the encoder never met: they share one id.
    """
    request = _requests(columns)
    users = columns.user_ids.astype(np.int64)
    order = np.lexsort((columns.times if columns.times is not None else np.arange(len(users)), users))
    first = order[np.flatnonzero(np.diff(users[order], prepend=-1))]
    group = np.searchsorted(users[first], users[request])
    return _truth(columns, first, group, users[first] >= 2, worth)


def each_request(columns: Columns, worth: np.ndarray | None = None) -> tuple[np.ndarray, Truth]:
    """Each request of `columns` that has a positive row, and the items of its own positive rows."""
    every = np.arange(columns.n_requests)
    return _truth(columns, every, _requests(columns), np.ones(len(every), bool), worth)


def _requests(columns: Columns) -> np.ndarray:
    return np.repeat(np.arange(columns.n_requests), np.diff(columns.lists))


def _truth(
    columns: Columns, asked: np.ndarray, group: np.ndarray, allowed: np.ndarray, worth: np.ndarray | None
) -> tuple[np.ndarray, Truth]:
    """Of the requests `asked` those with a positive row; `group`: the place in `asked` of each row."""
    good = columns.positives()
    kept = (np.bincount(group[good], minlength=len(asked)) > 0) & allowed
    good = good & kept[group]
    item, place, n = columns.item_ids.astype(np.int64), np.cumsum(kept) - 1, int(kept.sum())
    known, strange = good & (item >= 2), place[group[good & (item < 2)]]
    more = () if worth is None else (worth[known], np.bincount(strange, worth[good & (item < 2)], n))
    return asked[kept], Truth(place[group[known]], item[known], n, np.bincount(strange, minlength=n), *more)
