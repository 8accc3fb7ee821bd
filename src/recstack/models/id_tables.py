"""What retrievers share that know users and items by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import SchemaError
from recstack.features.columns import column
from recstack.features.tables import check_ids
from recstack.models.base import Retriever
from recstack.models.scored import require_known
from recstack.schema import Schema

Batch = Mapping[str, Tensor]


class IdTables(Retriever):
    """A vector for each user id and each item id, `users` and `items`; rows 0 are padding and stay zeros.

    A user whom training has not met is refused, in one sentence.

    Args:
        schema: a fitted schema with a user and an item key.
        dim: width of the vectors.
        std: deviation of the initial ones.
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "item")

    def __init__(self, schema: Schema, dim: int, *, std: float):
        super().__init__(schema)
        if schema.user is None or schema.item is None:
            raise SchemaError(
                f"{type(self).__name__} needs a user key and an item key: a Categorical of each role, or user=, item=."
            )
        self.user, self.item = schema.user, schema.item
        sizes = [schema.feature(name).size for name in (self.user, self.item)]  # type: ignore[attr-defined]
        self.users, self.items = (nn.Embedding(size, dim, padding_idx=0) for size in sizes)  # type: ignore[arg-type]
        for table in (self.users, self.items):
            nn.init.normal_(table.weight[1:], std=std)

    def user_vectors(self, batch: Batch) -> Tensor:
        return F.embedding(self._ids(batch, self.user), self.users.weight, padding_idx=0).unsqueeze(-2)

    def item_vectors(self, batch: Batch) -> Tensor:
        return F.embedding(self._ids(batch, self.item), self.items.weight, padding_idx=0)

    def _ids(self, batch: Batch, key: str) -> Tensor:
        ids = column(batch, key)
        check_ids(ids, key, (self.users if key == self.user else self.items).num_embeddings)
        return ids

    def _users(self, requests: Any) -> Tensor:
        require_known(self, requests)
        return super()._users(requests)

    @property
    def task(self) -> Any:
        """The task that is learned: the schema's first."""
        return next(t for t in self.schema.tasks if not t.derived)
