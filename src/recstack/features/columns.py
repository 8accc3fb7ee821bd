"""Columns of a batch, by name and in one spelling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
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


def of_steps(batch: Batch, key: str, history: str) -> Tensor:
    """A column of a history's steps ``[R, T]`` or ``[R, T, K]``, oldest first, left aligned, 0 where nothing is; of either
    spelling. Raises DataError where the batch lacks it."""
    values, offsets = column(batch, f"{key}@{history}"), batch.get(f"{history}@offsets")
    return values if offsets is None else padded(values, offsets)


def moments(batch: Batch, history: str) -> tuple[Tensor, Tensor] | None:
    """When a history's steps were ``[R, T]`` and when the request is ``[R]``; None where the batch does not have both."""
    times, now, offsets = (batch.get(key) for key in (f"@time@{history}", "@time", f"{history}@offsets"))
    if times is None or now is None:
        return None
    return times if offsets is None else padded(times, offsets), now


def rows_of(batch: Batch, rows: Tensor, total: int) -> dict[str, Tensor]:
    """These of a batch's `total` requests, in that order, with their lists and histories."""
    out, places = {}, {}
    for name, value in batch.items():
        owner = next((o for o in (name, name.rpartition("@")[2]) if f"{o}@offsets" in batch), None)
        if not isinstance(value, Tensor) or not value.dim():
            out[name] = value
        elif name.endswith("@offsets"):
            out[name] = F.pad(value.diff().view(total, -1)[rows].flatten().cumsum(0), (1, 0))
        elif owner is None:
            out[name] = value[rows]
        else:
            if owner not in places:
                offsets = batch[f"{owner}@offsets"]
                begin, length = (x.view(total, -1)[rows].flatten() for x in (offsets[:-1], offsets.diff()))
                first = torch.repeat_interleave(begin - (length.cumsum(0) - length), length)
                places[owner] = first + torch.arange(len(first), device=first.device)
            out[name] = value[places[owner]]
    return out


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
