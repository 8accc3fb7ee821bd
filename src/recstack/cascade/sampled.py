"""Metrics among sampled negatives, by a name that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recstack.cascade.retrieval import BLOCK, training_events
from recstack.data import Columns, Requests
from recstack.data.truth import next_events
from recstack.errors import DataError

if TYPE_CHECKING:
    from recstack.data import Log
    from recstack.models.base import Recommends


@torch.no_grad()
def evaluate_sampled(
    retriever: Recommends,
    test: Log | Columns,
    negatives: int | Sequence[Sequence[Any]] = 100,
    *,
    power: float = 0.0,
    k: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    r"""The protocol of old papers: one chosen item among a few others, not among all. Only to compare with them.

    Sampled metrics do not order models as full ranking does (Krichene and Rendle, KDD 2020,
    https://doi.org/10.1145/3394486.3403226). Each user's first positive event of `test` is ranked among its negatives; of
    equal scores the chosen item comes last.

    Args:
        negatives: how many are drawn that the user never met; or the raw items for each user, in the order of the users' ids in
            the encoder.
        power: drawn by :math:`\mathrm{count}^{power}`: 0 is uniform, 1 by popularity.
        k: the cut.
        seed: of the draw.

    Returns:
        ``{"hit@10 of 101": ..., "ndcg@10 of 101": ..., "mrr of 101": ...}``.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(items=200))
    >>> found = rs.evaluate_sampled(rs.retrieval.Swing().fit(train), test, 20, k=5)
    >>> list(found)
    ['hit@5 of 21', 'ndcg@5 of 21', 'mrr of 21']
    """
    encoder: Any = retriever.schema.encoder
    columns = test if isinstance(test, Columns) else encoder.encode(test)
    rows, _ = next_events(columns)
    if not len(rows):
        raise DataError("The test holds no positive event, so there is nothing to find.")
    wanted = _first_positive(columns, rows)
    rows, wanted = rows[wanted >= 2], wanted[wanted >= 2]
    chance, count = np.random.default_rng(seed), training_events(retriever)
    weight = np.where(np.arange(len(count)) >= 2, np.maximum(count, 1e-12) ** power, 0.0)
    cumulated = np.cumsum(weight) / weight.sum()
    ranks = []
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        requests = Requests.of(columns, part)
        if retriever.profiles is not None:
            seen = retriever.profiles.requests(requests.users, encoded=True).seen
            requests = Requests(requests.batch, requests.users, seen)
        target = wanted[start : start + BLOCK]
        if isinstance(negatives, int):
            others = _drawn(chance, cumulated, requests.seen, target, negatives)
        else:
            given = [negatives[i] for i in range(start, start + len(part))]
            if any(len(g) != len(given[0]) for g in given):
                raise DataError("negatives= holds lists of different lengths; give as many for each user.")
            flat = encoder.encode_values(retriever.schema.item, [x for g in given for x in g])
            others = flat.astype(np.int64).reshape(len(part), -1)
        score = retriever.pair_scores(requests, torch.from_numpy(np.concatenate([target[:, None], others], 1)))
        ranks.append((score[:, 1:] >= score[:, :1]).sum(1) + 1)
        among = others.shape[1] + 1
    rank = torch.cat(ranks).double()
    inside = (rank <= k).double()
    return {
        f"hit@{k} of {among}": float(inside.mean()),
        f"ndcg@{k} of {among}": float((inside / (rank + 1).log2()).mean()),
        f"mrr of {among}": float((1 / rank).mean()),
    }


def _first_positive(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """The item of the first positive row of each request's user, in the order of time."""
    request = np.repeat(np.arange(columns.n_requests), np.diff(columns.lists))
    good = np.flatnonzero(columns.positives())
    when = columns.times[request[good]] if columns.times is not None else request[good]
    good = good[np.lexsort((good, when, columns.user_ids[request[good]]))]
    users = columns.user_ids[request[good]].astype(np.int64)
    begin = np.searchsorted(users, columns.user_ids[rows].astype(np.int64))
    return columns.item_ids[good[begin]].astype(np.int64)


def _drawn(chance: Any, cumulated: np.ndarray, seen: Any, target: np.ndarray, n: int) -> np.ndarray:
    """int64 ``[R, n]``: items that the user never met, each at most once a user."""
    offsets, items = seen
    row = np.arange(len(target))
    met = np.concatenate([row << 32 | target, np.repeat(row, np.diff(offsets)) << 32 | items])
    met = np.unique(met)
    free = len(cumulated) - 2 - np.bincount(met >> 32, minlength=len(target))
    if len(free) and free.min() < n:
        raise DataError(f"A user has only {free.min()} items never met, and {n} negatives were asked for.")
    out = np.zeros((len(target), n), np.int64)
    again = np.ones(out.shape, bool)
    while again.any():
        out[again] = np.searchsorted(cumulated, chance.random(int(again.sum())), side="right")
        keys = row[:, None] << 32 | out
        again = met[np.searchsorted(met, keys).clip(max=len(met) - 1)] == keys
        order = out.argsort(1, kind="stable")
        ranked = np.take_along_axis(out, order, 1)
        twice = np.zeros(out.shape, bool)
        np.put_along_axis(twice, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)  # the first of equals stays
        again |= twice
    return out
