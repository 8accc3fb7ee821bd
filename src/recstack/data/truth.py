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
    """Items that each request's user met next, as sorted keys; answers for ids ``[n, L]`` which are among them."""

    def __init__(self, request: np.ndarray, items: np.ndarray, n: int, unknown: np.ndarray):
        self.keys = np.unique(request << 32 | items)
        self.count = np.bincount(self.keys >> 32, minlength=n) + unknown  # items out of the catalog count as misses

    def select(self, chosen: np.ndarray) -> Truth:
        """That of some requests, numbered anew; `chosen` ascending."""
        request, item = self.keys >> 32, self.keys & 0xFFFFFFFF
        place = np.searchsorted(chosen, request).clip(max=len(chosen) - 1)
        kept = chosen[place] == request
        new = Truth(place[kept], item[kept], len(chosen), np.zeros(len(chosen), np.int64))
        new.count = self.count[chosen]
        return new

    def hits(self, ids: Tensor, start: int = 0) -> Tensor:
        """bool ``[n, L]`` for the requests from `start`."""
        keys = (np.arange(len(ids)) + start)[:, None] << 32 | ids.numpy()
        place = np.searchsorted(self.keys, keys).clip(max=max(len(self.keys) - 1, 0))
        found = self.keys[place] == keys if len(self.keys) else np.zeros(keys.shape, bool)
        return torch.from_numpy(found & (ids.numpy() > 0))

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


def next_events(columns: Columns) -> tuple[np.ndarray, Truth]:
    """Each user's first request in `columns`, and all items of that user's positive rows.

    Users without a positive are left out, and so are users whom the encoder never met: they share one id.
    """
    lists = columns.lists
    request = np.repeat(np.arange(columns.n_requests), np.diff(lists))
    good = columns.positives()
    users = columns.user_ids.astype(np.int64)
    order = np.lexsort((columns.times if columns.times is not None else np.arange(len(users)), users))
    first = order[np.flatnonzero(np.diff(users[order], prepend=-1))]
    group = np.searchsorted(users[first], users[request])
    item = columns.item_ids.astype(np.int64)
    kept = (np.bincount(group[good], minlength=len(first)) > 0) & (users[first] >= 2)
    good = good & kept[group]
    place = np.cumsum(kept) - 1
    known = good & (item >= 2)
    unknown = np.bincount(place[group[good & (item < 2)]], minlength=int(kept.sum()))
    return first[kept], Truth(place[group[known]], item[known], int(kept.sum()), unknown)
