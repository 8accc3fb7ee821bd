"""What towers share that learn from a batch: each row's chosen items against those of the other rows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recstack import losses
from recstack.errors import ConfigError
from recstack.features.columns import column
from recstack.features.tasks import target
from recstack.models.base import Batch
from recstack.nn.memory import CrossBatchMemory
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
        loss: one of `losses.OF_TOWERS`, by name or as (name, options), over the same lists in place of the softmax.
        memory: items of earlier batches that are negatives too (`CrossBatchMemory`), of width `dim`.
        dim: D.

    Raises:
        ConfigError: an unknown loss or option, or a memory for a loss that has no negatives.
    """

    drawn: Tensor  # how often each item was a target

    def __init__(
        self, size: int, most: int = 4096, *, loss: losses.Choice = "sampled_softmax", memory: int = 0, dim: int = 0
    ):
        super().__init__()
        self.most = most
        self.loss = losses.get(loss, losses.OF_TOWERS)
        self.name = getattr(self.loss, "func", self.loss).__name__
        if memory < 0 or (memory and self.name == "direct_au"):
            raise ConfigError(
                f"memory= keeps that many negatives, and direct_au has none; got {memory} and {self.name}."
            )
        self.memory = CrossBatchMemory(memory, dim) if memory else None
        self.register_buffer("drawn", torch.zeros(size))

    @property
    def logits(self) -> bool:
        """Whether the loss is of logits, which a temperature scales; else it is of cosines."""
        return self.name in ("sampled_softmax", "nce")

    def forward(
        self,
        users: Tensor,
        items: Tensor,
        ids: Tensor,
        chosen: Tensor,
        others: Tensor | None = None,
        weight: Tensor | None = None,
        user_ids: Tensor | None = None,
    ) -> Tensor:
        """users ``[R, K, D]``, items ``[R, L, D]``, ids, chosen, others and weight ``[R, L]``, user_ids ``[R]``.

        Cells that are `chosen` are targets of their row and negatives of the other rows; `others` are negatives of all rows,
        as drawn uniformly. In training mode the chosen are counted.
        """
        row, place = chosen.nonzero(as_tuple=True)
        if len(row) > self.most:
            kept = torch.randperm(len(row), device=row.device)[: self.most]
            row, place = row[kept], place[kept]
        own, user, item = ids[row, place], users[row], items[row, place]
        each = None if weight is None else weight[row, place]
        if self.training:
            self.drawn.index_add_(0, own, self.drawn.new_ones(len(own)))
        if self.name == "direct_au":
            of_user = None if user_ids is None else user_ids[row]
            return self.loss(user.squeeze(1), item, user_ids=of_user, item_ids=own, weight=each)

        more = torch.zeros_like(chosen) if others is None else others
        extra, extra_ids, past = items[more], ids[more], 0
        m = len(extra)
        if self.memory is not None:
            extra, extra_ids = torch.cat([extra, self.memory.vectors]), torch.cat([extra_ids, self.memory.ids])
            past = int((self.memory.ids > 0).sum())
        n, size = len(own) + past, len(self.drawn) - 2
        share = (self.drawn + 1) / (self.drawn.sum() + size)
        log_q = ((n * share + m / size) / max(n + m, 1)).log()
        columns: dict[str, Any] = {"extra_item": extra, "extra_ids": extra_ids}
        if self.loss is losses.sampled_softmax:
            q: dict[str, Any] = {"log_q": log_q[own], "extra_log_q": log_q[extra_ids]}
            value = losses.in_batch_softmax(user, item, own, **columns, **q, weight=each)
        else:
            score, where = losses.in_batch_scores(user, item, own, **columns)
            label = torch.zeros_like(score)
            label.fill_diagonal_(1)
            corrected: dict[str, Any] = {}
            if self.name == "nce":  # a score of 0 is a chance of 1 in all items, so that no level has to be learned
                corrected["log_q"] = (log_q[torch.cat([own, extra_ids])] + math.log(size)).expand_as(score)
            each = None if each is None else each.unsqueeze(-1)
            value = self.loss(score, label, where=where, weight=each, **corrected)
        if self.training and self.memory is not None:
            self.memory.push(item, own)
        return value
