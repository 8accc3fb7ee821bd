"""What retrievers share that score every item: the best of all scores, block by block, whom an id table knows, what a
live request knows of a pair, and which rows teach them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recstack.errors import DataError
from recstack.schema import Schema, Task, Vector, is_embedded

if TYPE_CHECKING:
    from recstack.data import Columns, Requests


@torch.no_grad()
def best_of_all(
    scores: Callable[[Requests], Tensor],
    requests: Requests,
    k: int,
    exclude_seen: bool,
    allowed: Tensor,
    cells: int = 1 << 24,
) -> tuple[Tensor, Tensor]:
    """What `search` gives back, from scores ``[R, N]`` of all items, of which `cells` are made at a time.

    A score of -inf is no candidate.
    """
    k, size = min(k, len(allowed)), max(1, cells // len(allowed))
    ids, found = torch.zeros(len(requests), k, dtype=torch.int64), torch.zeros(len(requests), k)
    for start in range(0, len(requests), size):
        part = requests.slice(start, min(start + size, len(requests)))
        score = scores(part).masked_fill(~allowed, -torch.inf)
        if exclude_seen:
            score[part.seen_pairs()] = -torch.inf
        best = score.topk(k)
        ids[start : start + len(part)], found[start : start + len(part)] = best.indices, best.values
    return ids, found


@torch.no_grad()
def of_pairs(scores: Callable[[Requests], Tensor], requests: Requests, ids: Tensor) -> Tensor:
    """Those of given items, ids ``[R, K]``, from scores ``[R, N]`` of all items that are made for a few requests at a time."""
    size, found = 256, torch.zeros(ids.shape)
    for start in range(0, len(requests), size):
        part = requests.slice(start, min(start + size, len(requests)))
        found[start : start + len(part)] = scores(part).gather(1, ids[start : start + len(part)])
    return found


def require_known(model: Any, requests: Requests) -> None:
    """Raises DataError, in one sentence, where the user of a request was not met in training."""
    strangers = (torch.from_numpy(requests.users) < 2).nonzero().flatten()
    if len(strangers):
        raise DataError(
            f"{type(model).__name__} knows users by their ids alone, and that of request {int(strangers[0])} was not met in "
            "training; leave such users out, or ask iALS, EASE or SLIM, which read what a user has met."
        )


def pair_tensors(schema: Schema, known: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The pair features of `schema` for candidates ``[R, L]``: those that earlier stages know, else "unknown".

    Unknown is 0 for numbers and vectors and out-of-vocabulary (1) for ids: a live request has no shown position.
    """
    out: dict[str, Tensor] = {}
    for f in schema.by_role("pair"):
        if f.name in known:
            out[f.name] = known[f.name]
        elif is_embedded(f):
            out[f.name] = torch.ones(shape, dtype=torch.int32)
        else:
            out[f.name] = torch.zeros(*shape, f.size) if isinstance(f, Vector) else torch.zeros(shape)
    return out


def chosen_only(train: Columns, task: Task | None = None) -> Columns:
    """The rows that were chosen, by `task` or the first binary one, as an implicit log's: the Trainer draws their negatives.

    What was shown and not chosen is left out: as negatives it makes a retriever worse (Huang et al., KDD 2020, section
    4.1.1), and no drawn pair has pair features. Lists stay as they are: there the candidates with label 0 are the negatives.
    """
    pairs = [f.name for f in train.schema.by_role("pair")]
    if train.has_lists or (train.implicit and not pairs):
        return train
    label = None if task is None else train.labels.get(task.column)
    rows = np.ones(train.n_rows, bool)
    if not train.implicit:
        rows = train.positives() if task is None else rows if label is None else label > 0
    found = train.select(np.flatnonzero(rows))
    found.schema, found.implicit = found.schema.without(*pairs), True
    return found
