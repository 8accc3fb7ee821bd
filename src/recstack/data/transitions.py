"""Each request beside the one that follows it, for models whose pages shape what comes next."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recstack.data.columns import Columns
from recstack.errors import SchemaError

AFTER = "after/"  # before the names of the tensors of what follows
FOLLOWED = "@followed"


class Transitions(Columns):
    """Columns whose batches also hold the tensors of each request's next one, their names beginning with ``after/``.

    The next request is the same user's, at most `gap` seconds later; where there is none, ``@followed`` (bool ``[R]``) is
    False and the request itself stands there again. Without times all requests of a user follow each other, in the order of
    the rows.

    Raises:
        SchemaError: there is no user key.

    >>> import recstack as rs
    >>> log = rs.simulator.small(lists=True)
    >>> rows = Transitions(rs.Encoder(log.schema).fit(log).encode(log))
    >>> some = rows.batch(slice(0, 4))
    >>> some["after/item_id"].shape == some["item_id"].shape, some["@followed"].dtype
    (True, torch.bool)
    """

    def __init__(self, columns: Columns, gap: float = 1800.0):
        if columns.schema.user is None:
            raise SchemaError(
                "What follows a request is the same user's, and the schema has no user key: Schema(user=...)."
            )
        vars(self).update(vars(columns))
        user, n = columns.user_ids, columns.n_requests
        time = np.arange(n) if columns.times is None else columns.times
        order = np.lexsort((np.arange(n), time, user))
        one, other = order[:-1], order[1:]
        follows = user[one] == user[other]
        if columns.times is not None:
            follows &= time[other] - time[one] <= gap
        self.next = np.full(n, -1)
        self.next[one[follows]] = other[follows]

    def batch(self, index: np.ndarray | slice, *, times: bool = False, padded: bool = False) -> dict[str, Tensor]:
        """As of `Columns`, with what follows."""
        rows = np.arange(self.n_requests)[index]
        after = self.next[rows]
        found = super().batch(np.where(after < 0, rows, after), times=times, padded=padded)
        out = super().batch(index, times=times, padded=padded) | {f"{AFTER}{k}": v for k, v in found.items()}
        return out | {FOLLOWED: torch.from_numpy(after >= 0)}
