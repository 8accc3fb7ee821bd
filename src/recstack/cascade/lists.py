"""Requests with candidate lists: what a stage of the cascade is trained on and asked to score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from recstack.candidates import Candidates
from recstack.data import Columns, ItemStore
from recstack.models.scored import pair_tensors
from recstack.schema import Numeric, Schema

Batch = dict[str, Tensor]


def scored_features(schema: Schema, names: list[str]) -> Schema:
    """`schema` with a pair feature ``score_<name>`` for each stage before: what `Cascade` fills in for later stages."""
    return schema.with_features(*[Numeric(f"score_{name}", role="pair") for name in names])


def stage_batch(
    schema: Schema, side: Mapping[str, Tensor], found: Candidates, catalog: ItemStore, known: Mapping[str, Tensor]
) -> Batch:
    """Requests and their candidates as a batch for a model of `schema`."""
    batch = {**side, **catalog.batch(found.ids), **pair_tensors(schema, known, tuple(found.ids.shape))}
    if not bool(found.mask.all()):
        batch["@mask"] = found.mask
    return batch


class CandidateLists:
    """Training lists: n requests of some columns, L candidates each, with labels and what earlier stages said.

    Stands in for Columns where a Loader reads: `n_requests` and `batch(index)`.

    Args:
        columns: where the requests' user side is.
        rows: int64 [n], the request of each list.
        candidates: ids and mask ``[n, L]``.
        labels: {task column: float32 ``[n, L]``}.
        known: {pair feature: float32 ``[n, L, ...]``}.
    """

    def __init__(
        self,
        columns: Columns,
        rows: np.ndarray,
        candidates: Candidates,
        labels: Mapping[str, Tensor],
        known: Mapping[str, Tensor],
        schema: Schema,
    ):
        self.columns, self.rows, self.candidates = columns, rows, candidates
        self.labels, self.known, self.schema = dict(labels), dict(known), schema

    @property
    def n_requests(self) -> int:
        return len(self.rows)

    @property
    def n_rows(self) -> int:
        return int(self.candidates.mask.sum())

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Any, *, times: bool = False) -> Batch:
        """All tensors of these lists."""
        index = np.arange(len(self.rows))[index]
        some = Candidates(self.candidates.ids[index], self.candidates.scores[index], self.candidates.mask[index])
        known = {name: value[index] for name, value in self.known.items()}
        side = self.columns.request_batch(self.rows[index], times=times)
        catalog = self.columns.catalog
        assert catalog is not None  # a cascade has items
        batch = stage_batch(self.schema, side, some, catalog, known)
        return batch | {f"{name}@label": value[index] for name, value in self.labels.items()}

    def select(self, index: np.ndarray) -> CandidateLists:
        """These lists only."""
        some = Candidates(self.candidates.ids[index], self.candidates.scores[index], self.candidates.mask[index])
        labels = {name: value[index] for name, value in self.labels.items()}
        known = {name: value[index] for name, value in self.known.items()}
        return CandidateLists(self.columns, self.rows[index], some, labels, known, self.schema)
