"""What towers share that learn from a batch: each row's chosen items against those of the other rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recstack import losses
from recstack.features.columns import column
from recstack.features.tasks import target
from recstack.models.base import Batch
from recstack.schema import Schema, Task


class Shown(NamedTuple):
    """The candidates of a batch, all ``[R, L]``: int64 ids, a task's label, which cells are live, weights or None."""

    ids: Tensor
    label: Tensor
    live: Tensor
    weight: Tensor | None


def shown(batch: Batch, schema: Schema, task: Task | None = None) -> Shown:
    """The candidates of a batch, by `task` or the schema's first; those out of vocabulary are not live."""
    ids = column(batch, schema.item).long()  # type: ignore[arg-type]
    label, where, weight = target(batch, schema, task or schema.tasks[0])
    return Shown(ids, label, where & (ids > 1), weight)


class InBatchSoftmax(nn.Module):
    """`losses.in_batch_softmax` with logQ correction: how often each item is a target is counted while training.

    Args:
        size: of the item table.
        most: rows of a batch that are trained at most, since memory grows with their square; more are drawn from.
    """

    drawn: Tensor  # how often each item was a target

    def __init__(self, size: int, most: int = 4096):
        super().__init__()
        self.most = most
        self.register_buffer("drawn", torch.zeros(size))

    def forward(
        self,
        users: Tensor,
        items: Tensor,
        ids: Tensor,
        chosen: Tensor,
        others: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """users ``[R, K, D]``, items ``[R, L, D]``, ids, chosen, others and weight ``[R, L]``.

        Cells that are `chosen` are targets of their row and negatives of the other rows; `others` are negatives of all rows,
        as drawn uniformly. In training mode the chosen are counted.
        """
        row, place = chosen.nonzero(as_tuple=True)
        if len(row) > self.most:
            kept = torch.randperm(len(row), device=row.device)[: self.most]
            row, place = row[kept], place[kept]
        own = ids[row, place]
        if self.training:
            self.drawn.index_add_(0, own, self.drawn.new_ones(len(own)))
        more = torch.zeros_like(chosen) if others is None else others
        n, m, size = len(own), int(more.sum()), len(self.drawn) - 2
        share = (self.drawn + 1) / (self.drawn.sum() + size)
        log_q = ((n * share + m / size) / max(n + m, 1)).log()
        return losses.in_batch_softmax(
            users[row],
            items[row, place],
            own,
            log_q=log_q[own],
            extra_item=items[more],
            extra_ids=ids[more],
            extra_log_q=log_q[ids[more]],
            weight=None if weight is None else weight[row, place],
        )
