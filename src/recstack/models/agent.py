"""What re-rankers share that learn what their pages lead to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.models.base import Reranker
from recstack.schema import Schema

AFTER, FOLLOWED = "after/", "@followed"  # of data.transitions


class Agent(Reranker):
    r"""Learns values of pages from a log of pages: what they earned, and what the user's next page is worth.

    .. math:: y_t = r_t + \gamma\, V^-(s_{t+1})

    The value of the next page is that of a slow copy of the network; after the last page of a session it is 0. The log is the
    replay memory: each epoch meets every request once, in a random order.
    """

    def __init__(self, schema: Schema, discount: float, rate: float):
        super().__init__(schema)
        if not 0 <= discount < 1 or not 0 < rate <= 1:
            raise ConfigError(
                f"discount= lies in [0, 1) and rate=, a share per step, in (0, 1]; got {discount} and {rate}."
            )
        self.discount, self.rate = discount, rate

    def fit(self, train: Any, valid: Any = None, *, gap: float = 1800.0, **options: Any) -> Self:
        """As `Model.fit`; requests of a user that are at most `gap` seconds apart follow each other.

        Batches of your own may hold what follows as `data.transitions.Transitions` gives it; without it pages are last ones.
        """
        from recstack.data.columns import Columns
        from recstack.data.transitions import Transitions

        rows = train if isinstance(train, list | tuple) else self._encoded(train)
        if isinstance(rows, Columns):
            rows = Transitions(rows, gap)
        return super().fit(rows, valid, **options)

    def after(self, batch: Mapping[str, Tensor]) -> Tensor:
        r""":math:`\gamma V^-` of what follows each request ``[R]`` float32, 0 where nothing does; no gradient."""
        if FOLLOWED not in batch or not self.discount:
            return torch.zeros((), device=next(self.parameters()).device)
        following = {k.removeprefix(AFTER): v for k, v in batch.items() if k.startswith(AFTER)}
        with torch.no_grad():
            return self.discount * torch.where(batch[FOLLOWED], self.value(following), 0)

    def value(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the best page of each request is worth ``[R]``, by the slow copies."""
        raise NotImplementedError(f"{type(self).__name__} has no value")
