"""Scores of given candidates, and popular items for strangers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recstack.candidates import Candidates
from recstack.cascade import Cascade
from recstack.cascade.lists import stage_batch
from recstack.data.profiles import Profiles, Requests
from recstack.models.retrieval.popularity import Popularity


@torch.no_grad()
def score(
    cascade: Cascade, requests: Requests, ids: Tensor, items: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What every stage up to the calibrator says of given candidates, by the code of the cascade.

    Args:
        requests: R requests.
        ids: int64 ``[R, L]`` item ids; 1 is an item that the catalogue lacks.
        items: item and pair tensors ``[R, L, ...]`` that replace those of the catalogue.

    Returns:
        ``{stage or retriever: float32 [R, L]}``, the deciding one last; then, with a calibrator, "probability".
    """
    found = Candidates(ids, torch.zeros(ids.shape))
    known = {f"score_{r.name}": r.pair_scores(requests, ids) for r in cascade.retrievers}
    out = {r.name: known[f"score_{r.name}"] for r in cascade.retrievers}
    for name in ("pre_ranker", "ranker"):
        model = getattr(cascade, name)
        if model is None:
            continue
        batch = stage_batch(model.schema, requests.batch, found, cascade.encoder.catalog, cascade.scaled(known))
        columns = {f.name for f in model.schema.by_role("item", "pair")}
        batch |= {n: v for n, v in (items or {}).items() if n in columns}
        scores = cascade.scores(model, batch, name)[0]
        known[f"score_{name}"] = scores[name]
        out |= scores
    if cascade.calibrator is not None:
        field = cascade.field_ids(ids)
        own = (items or {}).get(cascade.calibrator.field)
        out["probability"] = cascade.calibrator.probability(out["ranker"], **(field if own is None else {"field": own}))
    return out


def popularity(cascade: Cascade) -> Popularity:
    """The cascade's own popularity, or how many users met each item."""
    for retriever in cascade.retrievers:
        if isinstance(retriever, Popularity):
            return retriever
    profiles: Profiles = cascade.profiles
    own = Popularity(cascade.encoder.schema)
    own.counts = np.zeros(cascade.encoder.catalog.size, np.float32)
    users = profiles.users
    for start in range(0, len(users), 8192):
        _, items = profiles.requests(users[start : start + 8192], padded=False).seen
        own.counts += np.bincount(items, minlength=len(own.counts)).astype(np.float32)
    return own


@torch.no_grad()
def popular_page(cascade: Cascade, popular: Popularity, requests: Requests, k: int) -> Candidates:
    """The most popular items that the user has not met, under the cascade's rules."""
    found = popular.recommend(requests, max(k, cascade.candidates))
    context = cascade.context(k, requests)
    for rule in cascade.rules:
        found = rule(found, context)
    return found.head(k)
