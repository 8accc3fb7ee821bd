"""Crossed and Hits features: made inside the model from ids that are in the batch anyway.

Training, serving and exported graphs run this code and no other, so what they compute cannot differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from recstack.errors import DataError
from recstack.features.codes import hashed
from recstack.features.columns import Batch, column, padded
from recstack.schema import CANDIDATE_ROLES, Crossed, Feature, History, Hits, Schema, is_multi

COMBINATIONS = 64  # of the values of lists, at most, in one cross
_MIXER = -0x61C8864680B583EB  # an odd 64-bit multiplier
_UNKNOWN = 1  # the id of what is unknown or null
_FAR = 1 << 30  # the place of a hit that is not there


# -- crosses ------------------------------------------------------------------------------------------------------------
def values_of(batch: Batch, f: Feature, lead: Sequence[int] | None, most: int | None = None) -> Tensor:
    """Ids of a feature of candidates ``[*lead, K]``, of the request's ``[R, 1, K]``; of lists at most the first `most`.

    Without `lead` nothing is of candidates, and ids are ``[R, K]``.
    """
    ids = column(batch, f"{f.of[0]}@{f.name}" if isinstance(f, History) else f.name)
    offsets = batch.get(f"{f.name}@offsets")
    if offsets is not None:
        ids = padded(ids, offsets)
    elif not isinstance(f, History) and not is_multi(f):
        ids = ids.unsqueeze(-1)
    if is_multi(f):
        ids = ids[..., :most]
    if lead is None:
        return ids
    return ids.reshape(*lead, ids.shape[-1]) if f.role in CANDIDATE_ROLES else ids.unsqueeze(-2)


def longest_list(parts: Sequence[Feature]) -> int:
    """How many values of each list a cross takes, so that all lists together give at most `COMBINATIONS`."""
    return int(COMBINATIONS ** (1 / max(1, sum(is_multi(f) for f in parts))) + 1e-9)


def crossed(parts: Sequence[Tensor], buckets: int, salt: int = 0) -> Tensor:
    """All combinations of the ids of several features ``[..., K_1], [..., K_2], …``: ids 1 … `buckets`, ``[..., K_1 K_2 …]``.

    0, where one of a combination's parts is 0. Another `salt` (63 bits) gives another hash.
    """

    def joined(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        key = (a[0] * _MIXER).unsqueeze(-1) + b[0].unsqueeze(-2)
        return key.flatten(-2), (a[1].unsqueeze(-1) & b[1].unsqueeze(-2)).flatten(-2)

    key, live = reduce(joined, [(ids.long(), ids > 0) for ids in parts])
    return hashed((key & 0x7FFFFFFFFFFFFFFF) ^ salt, buckets, 0) * live


def cross_ids(batch: Batch, schema: Schema, f: Crossed, lead: Sequence[int] | None) -> Tensor:
    """The combinations of a Crossed: ``[*lead, K]`` of candidates, ``[R, K]`` of the request; 0 where there is none."""
    parts = [schema.feature(name) for name in f.of]
    lead = lead if f.role in CANDIDATE_ROLES else None
    values = [values_of(batch, part, lead, longest_list(parts)) for part in parts]
    salt = int.from_bytes(hashlib.blake2b("@".join(f.of).encode(), digest_size=8).digest(), "little") >> 1
    return crossed([ids * (ids > _UNKNOWN) for ids in values], f.buckets, salt).int()


# -- hits ---------------------------------------------------------------------------------------------------------------
def hits(batch: Batch, schema: Schema, f: Hits, lead: Sequence[int]) -> list[Tensor]:
    """The statistics of a Hits as they are, float32 ``[R, L]`` each, in the order of `Hits.statistics`; 0 without a hit.

    Raises:
        DataError: naming a column that the batch lacks.
    """
    history, offsets = schema.feature(f.history), batch.get(f"{f.history}@offsets")
    steps, past = column(batch, f"{history.of[0]}@{f.history}"), column(batch, f"{f.of}@{f.history}")  # type: ignore[attr-defined]
    if offsets is not None:
        steps, past = padded(steps, offsets), padded(past, offsets)
    past = past if past.dim() == 3 else past.unsqueeze(-1)  # [R, T, K]
    target = values_of(batch, schema.feature(f.target), lead)  # [R, L, J]
    equal = (target[:, :, None, :, None] == past[:, None, :, None, :]) & (target > _UNKNOWN)[:, :, None, :, None]
    live = steps > 0
    hit = equal.flatten(-2).any(-1) & live.unsqueeze(1)  # [R, L, T]
    place = live.sum(-1, keepdim=True) - torch.arange(live.shape[-1], device=live.device)  # 1 is the most recent
    windows = [live, *(live & (place <= n) for n in f.last)]
    any_hit = hit.any(-1)
    out = [any_hit, torch.where(hit, place.unsqueeze(1), _FAR).amin(-1) * any_hit]
    if f.within:
        age = _age(batch, f, offsets)  # [R, T]
        since = torch.where(hit, age.unsqueeze(1), torch.iinfo(torch.int64).max).amin(-1)
        out.append(torch.where(any_hit, since, 0))
        windows += [live & (age <= span) for span in f.within]
    for window in windows:
        count = (hit & window.unsqueeze(1)).sum(-1)
        out += [count, count / window.sum(-1).clamp(min=1).unsqueeze(-1)]
    return [x.float() for x in out]


def _age(batch: Batch, f: Hits, offsets: Tensor | None) -> Tensor:
    """How long before the request each step was, int64 ``[R, T]``."""
    for key in ("@time", f"@time@{f.history}"):
        if key not in batch:
            raise DataError(
                f"Hits {f.name!r} looks back in time, and the batch has no {key!r}: the log needs its time column, and "
                "live users the moment, profiles.requests(users, time=now)."
            )
    times = batch[f"@time@{f.history}"]
    return (batch["@time"].unsqueeze(-1) - (times if offsets is None else padded(times, offsets))).clamp(min=0)


def hit_numbers(found: Sequence[Tensor], f: Hits) -> Tensor:
    """Statistics as numbers ``[R, L, statistics]``: log(1 + x), the time in the shortest window; "any" and shares as they are."""
    return torch.stack(
        [
            x if name == "any" or name.startswith("share") else (x / _unit(name, f)).log1p()
            for name, x in zip(f.statistics, found, strict=True)
        ],
        -1,
    )


def hit_ids(found: Sequence[Tensor], f: Hits) -> Tensor:
    """Statistics as ids of `Hits.STEPS` buckets each, int32 ``[R, L, statistics]``; 0 where there is nothing."""
    out = []
    for i, (name, x) in enumerate(zip(f.statistics, found, strict=True)):
        if name.startswith("share"):
            bucket = (x * 8).ceil().int() - 1
        else:  # a count of 1, 2-3, 4-7 ...; a time from 1/256 of the shortest window on
            edges = [2.0**k for k in range(1, f.STEPS)]
            scaled = x * 256 / _unit(name, f) if name == "since" else x
            bucket = torch.bucketize(scaled, torch.tensor(edges, device=x.device), right=True)
        there = found[0] if name == "since" else x
        out.append((1 + i * f.STEPS + bucket.clamp(min=0)) * (there > 0))
    return torch.stack(out, -1).int()


def _unit(name: str, f: Hits) -> int:
    return min(f.within) if name == "since" else 1
