"""Search in a Qdrant collection (https://qdrant.tech), the extra ``recstack[qdrant]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.index.base import Exclude, Index
from recstack.index.rows import Rows

_BATCH = 1024  # points sent at once, and queries


def _qdrant() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        raise ConfigError("Qdrant needs qdrant-client; install it with: pip install 'recstack[qdrant]'.") from error
    return qdrant_client


class Qdrant(Index):
    """An index whose vectors live in a Qdrant collection under their item ids; filters go into Qdrant's own search.

    Approximate where the server says so (see `measured` and `recall`), exact in memory. `build` makes the collection anew.
    The vectors are kept here too, to rank several interests and to measure recall, and a bundle holds them. It does not hold
    the address or the key: no file says where to connect to, and what is loaded is a collection in memory.

    Args:
        url: of a server, or ":memory:" for one inside this process.
        collection: its name.
        api_key: of the server.
        effort: candidates kept while the graph is walked (Qdrant's `hnsw_ef`); None: the server's own.

    Raises:
        ConfigError: qdrant-client is not installed.

    Example::

        index = rs.index.Qdrant("http://localhost:6333", "items").build(model.catalog_vectors()[2:], ids)
    """

    def __init__(
        self,
        url: str = ":memory:",
        collection: str = "items",
        *,
        api_key: str | None = None,
        effort: int | None = None,
    ):
        super().__init__()
        self.url, self.collection, self.effort = url, collection, effort
        client = _qdrant()
        self._client = (
            client.QdrantClient(":memory:") if url == ":memory:" else client.QdrantClient(url, api_key=api_key)
        )

    @property
    def exact(self) -> bool:
        return self.url == ":memory:"

    def config(self) -> dict[str, Any]:
        return {"collection": self.collection, "effort": self.effort}

    def _built(self, vectors: Tensor) -> None:
        models = _qdrant().models
        self._client.delete_collection(self.collection)
        if not len(vectors):
            return
        size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
        self._client.create_collection(self.collection, vectors_config=size)
        self._send(vectors, self._ids)

    def _added(self, vectors: Tensor) -> None:
        self._send(vectors, self._ids[-len(vectors) :])

    def _send(self, vectors: Tensor, ids: Tensor) -> None:
        batch = _qdrant().models.Batch
        for start in range(0, len(ids), _BATCH):
            part = slice(start, start + _BATCH)
            points = batch(ids=ids[part].tolist(), vectors=vectors[part].tolist())
            self._client.upsert(self.collection, points, wait=True)

    def remove(self, ids: Tensor) -> int:
        gone = torch.as_tensor(ids).long().unique()
        gone = gone[self._places(gone) >= 0]
        if len(gone):
            self._client.delete(self.collection, _qdrant().models.PointIdsList(points=gone.tolist()), wait=True)
        return super().remove(gone)

    def _compact(self) -> None:
        self._hold(self._vectors.select(self._alive), self._ids[self._alive])  # the collection forgot them at once

    def _search(
        self, queries: Tensor, k: int, exclude: Exclude | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        models, interests = _qdrant().models, queries.shape[1]
        k = min(k, len(self))
        options = models.SearchParams(hnsw_ef=self.effort) if self.effort else None
        where = self._where(allowed)
        place = torch.full((len(queries), k), -1)
        score = torch.full((len(queries), k), -torch.inf)
        step = max(1, _BATCH // interests)
        for start in range(0, len(queries), step):
            asked = []
            for row in range(start, min(start + step, len(queries))):
                barred = None if exclude is None else exclude[1][exclude[0][row] : exclude[0][row + 1]]
                chosen = self._filter(where, barred)
                asked += [
                    models.QueryRequest(query=query, limit=k, filter=chosen, params=options)
                    for query in queries[row].tolist()
                ]
            answers = self._client.query_batch_points(self.collection, asked)
            for row in range(start, min(start + step, len(queries))):
                own = answers[(row - start) * interests : (row - start + 1) * interests]
                ids = torch.tensor(sorted({point.id for answer in own for point in answer.points}), dtype=torch.long)
                at = self._places(ids)
                found = (self._vectors[at] @ queries[row].T).amax(1)  # of several interests the nearest
                best = found.topk(min(k, len(found)))
                place[row, : len(best.indices)], score[row, : len(best.indices)] = at[best.indices], best.values
        return place, score

    def _where(self, allowed: Tensor | None) -> tuple[list[int] | None, list[int]]:
        """(the only ids that may come, or None; those that may not), whichever is shorter to say."""
        if allowed is None:
            return None, []
        closed = self._ids[self._alive & ~allowed]
        open_ = self._ids[allowed]
        return (open_.tolist(), []) if len(open_) < len(closed) else (None, closed.tolist())

    def _filter(self, where: tuple[list[int] | None, list[int]], barred: Tensor | None) -> Any:
        models = _qdrant().models
        only, never = where
        if barred is not None:
            never = [*never, *self._ids[barred[barred >= 0]].tolist()]
        must = None if only is None else [models.HasIdCondition(has_id=only)]
        must_not = [models.HasIdCondition(has_id=never)] if never else None
        return models.Filter(must=must, must_not=must_not) if must or must_not else None

    def _restore(self, tensors: dict[str, Any]) -> None:
        rows = Rows.from_tensors(self.rows, tensors)
        self._hold(rows, tensors["ids"])
        self._built(rows[:])
