"""Latent Cross: Making Use of Context in Recurrent Recommender Systems (Beutel et al., WSDM 2018).

https://doi.org/10.1145/3159652.3159727
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import SchemaError, unknown
from recstack.features import Inputs
from recstack.models.next_item import NextItem
from recstack.nn.dropout import Dropout
from recstack.nn.sequence.hstu import BUCKETS, time_bucket
from recstack.nn.sequence.recurrent import GRU
from recstack.schema import Feature, Schema, is_embedded
from recstack.schema.features import REQUEST_ROLES

PLACES = ("both", "before", "after")


class LatentCross(NextItem):
    r"""Contexts multiply what goes into a GRU over the history, and the states that look for the next item.

    .. math:: h' = \Big(1 + \sum_c w_c\Big) \odot h, \qquad s_{t,i} = \langle \mathrm{GRU}(e'_1, \dots, e'_t)', E_i \rangle

    The history ``[R, T]``. Contexts of a step are the time since the step before it (before the GRU) and until the one
    that follows (after it), in buckets, where the History is `timed`. Contexts of the request, such as the hour or the
    device, are known at the request only, and cross its newest step. Each context has its own vectors w, drawn near 0,
    so that the cross begins as the identity.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and states.
        context: features of the request that cross; None is those of role "context", which may be none.
        place: where contexts cross: "before" the GRU, "after" it, or "both".
        dropout: of what goes into the GRU, and of what comes out.
        loss: "softmax" over all items, "sampled_softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step, uniformly; the softmax draws none.

    Beutel et al., WSDM 2018, https://doi.org/10.1145/3159652.3159727

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.LatentCross(rs.Encoder(train.schema).fit(train).schema, dim=16)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        context: Sequence[str] | None = None,
        place: str = "both",
        dropout: float = 0.2,
        loss: str = "softmax",
        negatives: int = 256,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        if place not in PLACES:
            raise unknown("place", place, PLACES)
        found = _contexts(schema, context)
        self.before, self.after = (_Cross(found, dim) if place in ("both", at) else None for at in PLACES[1:])
        self.gru, self.dropout = GRU(dim), Dropout(dropout)

    def states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        last = mask.sum(-1, keepdim=True) - 1 == torch.arange(mask.shape[1], device=mask.device)
        since, until = self.gaps(batch, mask, last)
        x = x if self.before is None else self.before(batch, x, since, last)
        x = self.gru(self.dropout(x), mask)
        return self.dropout(x if self.after is None else self.after(batch, x, until, last)), mask

    def gaps(self, batch: Mapping[str, Tensor], mask: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Buckets of the time since the step before, and until what follows: int64 ``[R, T]``, 0 where it is not known."""
        times, now = self.times(batch), batch.get("@time")
        if times is None:
            unknown_gap = torch.zeros_like(mask, dtype=torch.int64)
            return unknown_gap, unknown_gap
        gap = (time_bucket(times[:, 1:] - times[:, :-1]) + 1) * mask[:, 1:]
        since, until = F.pad(gap, (1, 0)), F.pad(gap, (0, 1))
        if now is not None:
            until = torch.where(last, time_bucket(now.unsqueeze(-1) - times) + 1, until)
        return since, until


class _Cross(nn.Module):
    """``x [R, T, D]``, element by element times one plus the vectors of contexts."""

    def __init__(self, context: list[Feature], dim: int):
        super().__init__()
        self.gap = nn.Parameter(0.01 * torch.randn(BUCKETS + 1, dim))
        self.inputs = Inputs(Schema(context), dim, stacked=True, uniform=True, std=0.01) if context else None

    def forward(self, batch: Mapping[str, Tensor], x: Tensor, gap: Tensor, last: Tensor) -> Tensor:
        cross = F.embedding(gap, self.gap)
        if self.inputs is not None:
            cross = cross + self.inputs(batch).stack().sum(-2) * last.unsqueeze(-1)  # [R, 1, D] at the newest step
        return (1 + cross) * x


def _contexts(schema: Schema, names: Sequence[str] | None) -> list[Feature]:
    found = list(schema.by_role("context")) if names is None else [schema.feature(name) for name in names]
    for f in found:
        if f.role not in REQUEST_ROLES:
            raise SchemaError(
                f"LatentCross crosses what a request has once, and {f.name!r} has role={f.role!r}; "
                f"give context= features of role {', '.join(REQUEST_ROLES)}."
            )
    return [replace(f, trainable=True) if is_embedded(f) else f for f in found]  # vectors that cross are learned
