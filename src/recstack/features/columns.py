"""Columns of a batch, by name and in one spelling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recstack.errors import DataError

Batch = Mapping[str, Tensor]


def column(batch: Batch, key: str) -> Tensor:
    """A column of a batch. Raises DataError, naming it, where the batch lacks it."""
    if key not in batch:
        raise DataError(
            f"The batch has no column {key!r}, which the schema declares. Columns: {', '.join(sorted(batch))}."
        )
    return batch[key]


def moments(batch: Batch, history: str) -> tuple[Tensor, Tensor] | None:
    """When a history's steps were ``[R, T]`` and when the request is ``[R]``; None where the batch does not have both."""
    times, now, offsets = (batch.get(key) for key in (f"@time@{history}", "@time", f"{history}@offsets"))
    if times is None or now is None:
        return None
    return times if offsets is None else padded(times, offsets), now


def padded(values: Tensor, offsets: Tensor) -> Tensor:
    """Jagged ids ``[n]`` or ``[n, K]`` as ``[rows, longest]`` or ``[rows, longest, K]``, left aligned, 0 where nothing is."""
    lengths = offsets.diff()
    longest = max(int(lengths.max()), 1) if lengths.numel() else 1
    step = torch.arange(longest, device=values.device)
    live = step < lengths.unsqueeze(-1)
    if not values.shape[0]:
        return values.new_zeros(*live.shape, *values.shape[1:])
    found = values[(offsets[:-1].unsqueeze(-1) + step).clamp(max=values.shape[0] - 1)]
    return found * (live if values.dim() == 1 else live.unsqueeze(-1))
