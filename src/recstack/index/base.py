"""What every index shares: vectors under item ids, filters, the exact search, recall, saving."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Piece
from recstack.errors import DataError, unknown
from recstack.index.rows import KINDS, Rows

Exclude = tuple[Any, Any]
_CELLS = 1 << 24  # scores held at once by the exact search: 64 MiB
_ASKED = 200  # queries that measure the recall of a new index


class Index:
    """Vectors [N, D] under item ids, searched by inner product.

    `search` answers queries [R, D], or [R, K, D] when a request has several vectors: then an item's score is that of the
    nearest of them. A subclass says how in `_search`; everything else is here.

    Args:
        rows: how vectors are kept: "float32", "int8" or "binary"; see `Rows`.
    """

    measured: float | None = None  # the recall that `build` measured, of what is not exact

    def __init__(self, rows: str = "float32") -> None:
        if rows not in KINDS:
            raise unknown("rows", rows, KINDS)
        self.rows = rows
        self._vectors, self._ids = Rows.of(torch.zeros(0, 0), rows), torch.zeros(0, dtype=torch.long)
        self._alive = torch.zeros(0, dtype=torch.bool)
        self._by_id: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return int(self._alive.sum())

    @property
    def ids(self) -> Tensor:
        """The item ids held, int64 [N]."""
        return self._ids[self._alive]

    def build(self, vectors: Tensor, ids: Tensor, queries: Tensor | None = None) -> Self:
        """Hold these vectors [N, D] under these ids [N] (positive, each once), and nothing else. Raises DataError.

        What is not exact is compared with exact search: `measured` is the share of the true ten nearest items that are
        found, for 200 `queries`; where none are given, for vectors of the items themselves.
        """
        vectors, ids = self._checked(vectors, ids)
        self._hold(Rows.of(vectors, self.rows), ids)
        self._built(vectors)
        if not self.exact and len(ids):
            asked = vectors if queries is None else torch.as_tensor(queries).detach().float().cpu()
            asked = asked[torch.linspace(0, len(asked) - 1, min(_ASKED, len(asked))).long()]
            self.measured = self._recall(Index().build(vectors, ids), asked, min(10, len(ids)))
        return self

    @property
    def exact(self) -> bool:
        """Whether the nearest items are found for certain."""
        return self.rows == "float32"

    def _hold(self, rows: Rows, ids: Tensor) -> None:
        self._vectors, self._ids, self._by_id = rows, ids, None
        self._alive = torch.ones(len(ids), dtype=torch.bool)

    def add(self, vectors: Tensor, ids: Tensor) -> Self:
        """Add items; one that is there already gets the new vector. Raises DataError."""
        if not len(self):
            return self.build(vectors, ids)
        vectors, ids = self._checked(vectors, ids)
        if vectors.shape[1] != self._vectors.dim:
            raise DataError(f"The index holds vectors of {self._vectors.dim} numbers; these have {vectors.shape[1]}.")
        self.remove(ids)
        self._vectors, self._ids = self._vectors.append(vectors), torch.cat([self._ids, ids])
        self._alive = torch.cat([self._alive, torch.ones(len(ids), dtype=torch.bool)])
        self._by_id = None
        self._added(vectors)
        return self

    def remove(self, ids: Tensor) -> int:
        """Remove items; returns how many of them were there."""
        place = self._places(torch.as_tensor(ids).long().unique())
        place = place[place >= 0]
        self._alive = self._alive.clone()
        self._alive[place] = False
        self._by_id = None
        if 2 * len(self) < len(self._ids):  # the dead cost memory and time: make room
            self._compact()
        return len(place)

    def _compact(self) -> None:
        """Forget what was removed."""
        self._hold(self._vectors.select(self._alive), self._ids[self._alive])
        self._built(self._vectors[:])

    def search(
        self, queries: Tensor, k: int, *, exclude: Exclude | None = None, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k nearest items of each request: ids int64 [R, k] and scores float32 [R, k], best first.

        `exclude` = (offsets [R + 1], items) names for each request items that may not come (the seen ones); `where` names
        items that may come: bool [M] by item id, or the ids. Filters never cost places: k items come back if so many are
        allowed; places that stay empty have id 0 and score -inf. Raises DataError.
        """
        queries = torch.as_tensor(queries).detach().float().cpu()
        if queries.dim() == 2:
            queries = queries[:, None]
        if queries.dim() != 3 or (len(self) and queries.shape[2] != self._vectors.dim):
            raise DataError(
                f"Queries are {list(queries.shape)}; give [R, {self._vectors.dim}] or [R, K, {self._vectors.dim}]."
            )
        if not queries.isfinite().all():
            raise DataError("Queries hold NaN or infinite numbers; the model that made them has diverged.")
        if not len(self):
            return torch.zeros(len(queries), k, dtype=torch.long), torch.full((len(queries), k), -torch.inf)
        if exclude is not None:
            exclude = torch.as_tensor(exclude[0]).long(), self._places(torch.as_tensor(exclude[1]).long())
            if len(exclude[0]) != len(queries) + 1:
                raise DataError(f"exclude has {len(exclude[0])} offsets for {len(queries)} requests; give one more.")
        place, score = self._search(queries, k, exclude, self._allowed(where))
        missing = k - place.shape[1]
        place = torch.nn.functional.pad(place, (0, missing), value=-1)
        score = torch.nn.functional.pad(score, (0, missing), value=-torch.inf)
        place = place.masked_fill(score == -torch.inf, -1)
        ids = torch.cat([self._ids, self._ids.new_zeros(1)])[place]  # place -1: id 0
        return ids, score

    def recall(self, queries: Tensor, k: int, *, exclude: Exclude | None = None, where: Tensor | None = None) -> float:
        """The share of the k nearest items, by the rows as they are kept, that `search` finds; an equally near one counts.

        What rows of fewer bits lose is in `measured`, which `build` takes from the vectors it is given.
        """
        exact = Index().build(self._vectors[self._alive], self.ids)
        return self._recall(exact, queries, k, exclude=exclude, where=where)

    def _recall(self, exact: Index, queries: Tensor, k: int, **filters: Any) -> float:
        found, _ = self.search(queries, k, **filters)
        _, true = exact.search(queries, k, **filters)
        worst = true.masked_fill(true == -torch.inf, torch.inf).amin(1, keepdim=True)
        asked = queries.detach().float().cpu()
        asked = asked[:, None] if asked.dim() == 2 else asked
        vectors = exact._vectors[exact._places(found.flatten()).clamp(min=0)].view(*found.shape, -1)
        score = (vectors @ asked.mT).amax(-1)
        hits = ((score >= worst - 1e-5 * worst.abs()) & (found > 0)).sum()
        return float(hits / (true > -torch.inf).sum().clamp(min=1))

    # ---- saving

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {} if self.rows == "float32" else {"rows": self.rows}

    def to_piece(self) -> Piece:
        """This index as a piece of a bundle."""
        return Piece(bundle.class_path(type(self)), bundle.encode_config(self.config()), self._tensors())

    @classmethod
    def from_piece(cls, piece: Piece) -> Self:
        """The index that `to_piece` saved."""
        index = cls(**bundle.decode_config(piece.config))
        index._restore(dict(piece.tensors))
        return index

    def _tensors(self) -> dict[str, Tensor]:
        return {**self._vectors.select(self._alive).tensors(), "ids": self.ids}

    def _restore(self, tensors: dict[str, Any]) -> None:
        self._hold(Rows.from_tensors(self.rows, tensors), tensors["ids"])

    # ---- for subclasses

    def _built(self, vectors: Tensor) -> None:
        """The vectors were replaced by these."""

    def _added(self, vectors: Tensor) -> None:
        """These vectors were appended."""

    def _search(
        self, queries: Tensor, k: int, exclude: Exclude | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Places in `self._ids` and scores, at most k columns; queries [R, K, D], exclude by place, -1 where unknown."""
        return self._exact(queries, k, exclude, allowed)

    def _exact(self, queries: Tensor, k: int, exclude: Exclude | None, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        vectors, column = self._vectors, None
        if allowed is not None and 2 * int(allowed.sum()) < len(allowed):  # few: score only these
            column = allowed.nonzero().squeeze(1)
            vectors, back = vectors.select(column), torch.full((len(allowed),), -1)
            back[column] = torch.arange(len(column))
            if exclude is not None:
                exclude = exclude[0], torch.cat([back, back.new_full((1,), -1)])[exclude[1]]
        count, interests = len(vectors), queries.shape[1]
        keep = min(k, count)
        place = torch.empty(len(queries), keep, dtype=torch.long)
        score = torch.empty(len(queries), keep)
        for rows in blocks(len(queries), max(1, _CELLS // max(1, count * interests))):
            block = queries[rows]
            scores = vectors.products(block.flatten(0, 1))
            if interests > 1:
                scores = scores.view(len(block), interests, count).amax(1)
            if allowed is not None and column is None:
                scores.masked_fill_(~allowed, -torch.inf)
            if exclude is not None:
                row, item = pairs(exclude, rows)
                scores[row[item >= 0], item[item >= 0]] = -torch.inf
            torch.topk(scores, keep, dim=1, out=(score[rows], place[rows]))
        return (place if column is None else column[place]), score

    def _allowed(self, where: Tensor | None) -> Tensor | None:
        """Which places may be found, bool [places]; None: all of them."""
        if where is None:
            return None if bool(self._alive.all()) else self._alive
        where = torch.as_tensor(where)
        if where.dim() != 1:
            raise DataError(f"where is {list(where.shape)}; give bool by item id, or a list of item ids.")
        if where.dtype != torch.bool:
            return self._alive & torch.isin(self._ids, where.long())
        if len(where) <= int(self._ids.max()):
            raise DataError(f"where covers the item ids below {len(where)}; the index holds {int(self._ids.max())}.")
        return self._alive & where[self._ids]

    def _places(self, ids: Tensor) -> Tensor:
        """The place of each item id [n], -1 for one that is not there."""
        if not len(self):
            return torch.full_like(ids, -1)
        if self._by_id is None:
            place = self._alive.nonzero().squeeze(1)
            ordered, order = self._ids[place].sort()
            self._by_id = ordered, place[order]
        ordered, place = self._by_id
        at = torch.searchsorted(ordered, ids).clamp(max=len(ordered) - 1)
        return torch.where(ordered[at] == ids, place[at], -1)

    @staticmethod
    def _checked(vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        vectors = torch.as_tensor(vectors).detach().to("cpu", torch.float32, copy=True).contiguous()  # a snapshot
        ids = torch.as_tensor(ids).to("cpu", torch.long, copy=True)
        if vectors.dim() != 2 or ids.shape != vectors.shape[:1]:
            raise DataError(f"Item vectors are {list(vectors.shape)} and ids {list(ids.shape)}; give [N, D] and [N].")
        if len(ids) and (int(ids.min()) < 1 or len(ids.unique()) < len(ids)):
            raise DataError("Item ids of an index must be positive and differ; 0 is the padding.")
        if not vectors.isfinite().all():
            bad = ids[~vectors.isfinite().all(1)]
            raise DataError(f"The vectors of {len(bad)} items (first: id {int(bad[0])}) hold NaN or infinite numbers.")
        return vectors, ids


def blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def pairs(exclude: Exclude, rows: slice) -> tuple[Tensor, Tensor]:
    """(row within the block, item) of every excluded pair of these rows."""
    offsets = exclude[0][rows.start : rows.stop + 1]
    row = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    return row, exclude[1][offsets[0] : offsets[-1]]
