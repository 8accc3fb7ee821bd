"""Approximate search with FAISS (https://github.com/facebookresearch/faiss), the extra ``recstack[index]``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.errors import BundleError, ConfigError, unknown
from recstack.index.base import Exclude, Index, blocks, pairs
from recstack.index.rows import Rows

_KINDS = ("hnsw", "ivf", "ivf_pq")
_ROWS = 1024  # queries searched at once
_FEW = 0.1  # below this share of allowed items the graph search misses too many, and scoring just these is cheap


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("Faiss needs faiss; install it with: pip install 'recstack[index]'.") from error
    return faiss


class Faiss(Index):
    """A FAISS index by inner product: a neighbour graph ("hnsw"), an inverted file of clusters ("ivf"), or one of product codes.

    "ivf_pq" keeps `code` bytes for each item (default D / 4) and finds ten times what is asked for by them; with
    ``rows="int8"`` an item takes D + D / 4 bytes instead of the 8 D of the other two. Scores are those of the `rows`, the
    neighbours approximate (see `measured` and `recall`). A larger `effort` (graph: candidates kept; clusters: how many are
    scanned) finds more and costs more; `links` and `build_effort` shape the graph, `cells` is the number of clusters (default
    4 √N, never more than N / 39). Filters go into the search; requests for which it returns fewer than k items are searched
    exactly.
    """

    exact = False  # type: ignore[assignment]

    def __init__(
        self,
        kind: str = "hnsw",
        *,
        effort: int = 128,
        links: int = 32,
        build_effort: int = 100,
        cells: int | None = None,
        code: int | None = None,
        rows: str = "float32",
    ):
        super().__init__(rows)
        if kind not in _KINDS:
            raise unknown("FAISS index", kind, _KINDS)
        self.kind, self.effort, self.links, self.build_effort = kind, effort, links, build_effort
        self.cells, self.code = cells, code
        self._index: Any = None
        _faiss()  # say at once that it is not installed

    def config(self) -> dict[str, Any]:
        names = ("kind", "effort", "links", "build_effort", "cells", "code", "rows")
        return {name: getattr(self, name) for name in names}

    def _built(self, vectors: Tensor) -> None:
        faiss, (count, dim) = _faiss(), vectors.shape
        if not count:
            self._index = None
            return
        if self.kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(dim, self.links, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = self.build_effort
        else:
            cells = max(1, min(self.cells or int(4 * count**0.5), count // 39))  # FAISS wants 39 points a cluster
            quantizer = faiss.IndexFlatIP(dim)
            if self.kind == "ivf":
                self._index = faiss.IndexIVFFlat(quantizer, dim, cells, faiss.METRIC_INNER_PRODUCT)
            else:
                bits = max(
                    1, min(8, (count // 39).bit_length() - 1)
                )  # a code book needs 39 points for each of its 2^bits
                parts = _parts(dim, self.code)
                self._index = faiss.IndexIVFPQ(quantizer, dim, cells, parts, bits, faiss.METRIC_INNER_PRODUCT)
                self._index.pq.cp.min_points_per_centroid = 1
            self._index.cp.spherical = True  # inner products with centres of unequal length would favour the long ones
            self._index.cp.min_points_per_centroid = 1
            self._index.train(vectors.numpy())
        self._index.add(vectors.numpy())

    def _added(self, vectors: Tensor) -> None:
        self._index.add(vectors.numpy())

    def _search(
        self, queries: Tensor, k: int, exclude: Exclude | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count = len(self) if allowed is None else int(allowed.sum())
        longest = int(exclude[0].diff().max()) if exclude is not None and len(queries) else 0
        fetch = (10 * k if self.kind == "ivf_pq" else k) + min(longest, 3 * k + 64)
        if count <= max(2 * fetch, _FEW * len(self._ids)):
            return self._exact(queries, k, exclude, allowed)
        parts = []
        for rows in blocks(len(queries), max(1, _ROWS // queries.shape[1])):
            block = queries[rows]
            place = self._nearest(block.flatten(0, 1), fetch, allowed, count).view(len(block), -1)
            barred = place < 0
            if queries.shape[1] > 1:  # several interests find the same item: keep one
                place, _ = place.sort(1)
                barred = place < 0
                barred[:, 1:] |= place[:, 1:] == place[:, :-1]
            if exclude is not None:
                row, item = pairs(exclude, rows)
                key = torch.arange(len(block))[:, None] * len(self._ids) + place
                barred |= torch.isin(key, row[item >= 0] * len(self._ids) + item[item >= 0])
            scores = (self._vectors[place.clamp(min=0)] @ block.mT).amax(-1).masked_fill(barred, -torch.inf)
            score, at = scores.topk(k, dim=1)
            place = place.gather(1, at)
            short = (score[:, -1] == -torch.inf).nonzero().squeeze(1)
            if len(short):
                some = None if exclude is None else _rows(exclude, short + rows.start)
                place[short], score[short] = self._exact(block[short], k, some, allowed)
            parts.append((place, score))
        if not parts:
            return torch.zeros(0, k, dtype=torch.long), torch.zeros(0, k)
        return torch.cat([place for place, _ in parts]), torch.cat([score for _, score in parts])

    def _nearest(self, queries: Tensor, fetch: int, allowed: Tensor | None, count: int) -> Tensor:
        """Places [R, fetch] of the nearest allowed vectors, -1 where there are fewer."""
        faiss, options = _faiss(), {}
        if allowed is not None:
            bits = np.packbits(allowed.numpy(), bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bits)
        if self.kind == "hnsw":  # the graph is walked over barred items too: look at more of them
            effort = int(max(self.effort, fetch) * len(self._ids) / count)
            parameters = faiss.SearchParametersHNSW(efSearch=effort, **options)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=min(self.effort, self._index.nlist), **options)
        _, place = self._index.search(queries.contiguous().numpy(), fetch, params=parameters)
        return torch.from_numpy(place)

    def _tensors(self) -> dict[str, Tensor]:
        if not bool(self._alive.all()):  # the file holds no dead items
            self._compact()
        if self._index is None:
            return {"ids": self._ids}
        rows = {} if self._whole else self._vectors.tensors()
        return {"ids": self._ids, "index": torch.from_numpy(_faiss().serialize_index(self._index)), **rows}

    @property
    def _whole(self) -> bool:
        """Whether FAISS keeps the same vectors, so that a file needs them once."""
        return self.kind != "ivf_pq" and self.rows == "float32"

    def _restore(self, tensors: dict[str, Any]) -> None:
        if "index" not in tensors:
            return
        index = _faiss().deserialize_index(tensors["index"].numpy())
        ids = tensors["ids"]
        if index.ntotal != len(ids):
            raise BundleError(f"The saved FAISS index holds {index.ntotal} vectors for {len(ids)} items.")
        if self._whole:
            if self.kind == "ivf":
                index.make_direct_map()
            rows = Rows.of(torch.from_numpy(index.reconstruct_n(0, index.ntotal)), self.rows)
        else:
            rows = Rows.from_tensors(self.rows, tensors)
        self._hold(rows, ids)
        self._index = index


def _parts(dim: int, code: int | None) -> int:
    """How many parts a vector is cut into, each a byte; they have to divide it."""
    if code is None:
        return next(m for m in range(max(1, dim // 4), 0, -1) if dim % m == 0)
    if code < 1 or dim % code:
        raise ConfigError(f"code={code} bytes cannot share {dim} numbers evenly; give a divisor of {dim}.")
    return code


def _rows(exclude: Exclude, rows: Tensor) -> Exclude:
    """The excluded items of some of the requests."""
    length = exclude[0].diff()[rows]
    offsets = torch.nn.functional.pad(length.cumsum(0), (1, 0))
    start = torch.repeat_interleave(exclude[0][rows] - offsets[:-1], length)
    return offsets, exclude[1][start + torch.arange(len(start))]
