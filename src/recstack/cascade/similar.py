"""Items like an item, as a retriever sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recstack.candidates import Candidates
from recstack.data import Columns
from recstack.data.truth import each_request
from recstack.errors import ConfigError, DataError
from recstack.kernels.topk import Sparse, recommend_from_rows

if TYPE_CHECKING:
    from recstack.data import Log
    from recstack.models.base import Recommends

BLOCK = 1024


def similar_items(retriever: Recommends, items: Sequence[Any], k: int = 10) -> Candidates:
    """The k items most similar to each of some raw item ids, by a retriever's neighbour lists or the cosine of its vectors.

    Raises:
        ConfigError: a retriever that has neither.
        DataError: an item that the catalogue lacks.

    >>> import recstack as rs
    >>> train, _, _ = rs.split.by_time(rs.simulator.small())
    >>> swing = rs.retrieval.Swing().fit(train)
    >>> rs.similar_items(swing, train.events["item_id"][:2].to_list(), k=3).ids.shape
    torch.Size([2, 3])
    """
    ids = retriever.schema.encoder.encode_values(retriever.schema.item, items)  # type: ignore[union-attr]
    if (ids < 2).any():
        raise DataError(f"The catalogue lacks item {items[int(np.flatnonzero(ids < 2)[0])]!r}.")
    return _similar(retriever, ids.astype(np.int64), k)


def _similar(retriever: Any, ids: np.ndarray, k: int) -> Candidates:
    size = retriever.catalog.size
    if hasattr(retriever, "similar"):
        one = Sparse(np.arange(len(ids) + 1), ids.astype(np.int32), size)
        found, scores, live = recommend_from_rows(one, retriever.similar, k, seen=one)
        mask = torch.from_numpy(np.arange(k) < live[:, None])
        return Candidates(torch.from_numpy(found).long(), torch.from_numpy(scores), mask)
    if not hasattr(retriever, "catalog_vectors"):
        raise ConfigError(f"{type(retriever).__name__} has neither neighbour lists nor item vectors to compare.")
    vectors = torch.nn.functional.normalize(retriever.catalog_vectors(), dim=1)
    best = []
    for part in torch.from_numpy(ids).split(BLOCK):
        score = vectors[part] @ vectors.T
        score[:, :2] = -torch.inf
        score[torch.arange(len(part)), part] = -torch.inf
        best.append(score.topk(min(k, size)))
    scores, found = (torch.cat(x) for x in zip(*best, strict=True))
    return Candidates(found, scores, scores.isfinite())


@torch.no_grad()
def item_hit_rate(retriever: Recommends, test: Log | Columns, k: int = 10) -> float:
    """i2i hit rate: how often the item a user chose next is among the k most similar to the one chosen just before.

    Asked are the first positive events of `test`, of users with a history (the schema's first).

    Raises:
        DataError: no History in the schema, or nobody with a history and a positive event.
    """
    columns = test if isinstance(test, Columns) else retriever.schema.encoder.encode(test)  # type: ignore[union-attr]
    if not columns.schema.histories:
        raise DataError("The item chosen before is read from a History, and the schema declares none.")
    rows, truth = each_request(columns)
    history = columns.schema.histories[0]
    steps = columns.request_batch(rows, padded=True)[f"{columns.schema.item}@{history.name}"]
    length = (steps > 0).sum(1)
    last = steps.gather(1, (length - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    asked = ((length > 0) & (last > 1)).numpy()
    users = columns.user_ids[rows].astype(np.int64)
    first = np.zeros(len(rows), bool)
    order = np.lexsort((columns.times[rows] if columns.times is not None else np.arange(len(rows)), users))
    first[order[np.flatnonzero(np.diff(users[order], prepend=-1))]] = True
    chosen = np.flatnonzero(asked & first)
    if not len(chosen):
        raise DataError("Nobody in the test has both a history and a positive event.")
    found = _similar(retriever, last.numpy()[chosen].astype(np.int64), k)
    return float(truth.select(chosen).hits(found.ids).any(1).double().mean())
