"""Embedding tables: one arena per width, one gather for all fields (the engine's Python side).

The id spaces of all tables of one width lie behind each other in an arena; row 0 is the padding row of all of them.
An arena is an ``nn.Embedding``: with ``sparse=False`` an ordinary parameter for any optimiser; with ``sparse=True``, which
the Trainer sets for its own optimisers, ``.grad`` is a coalesced sparse tensor with the rows of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recstack.kernels.rows import Rows, dense_gather, sparse_gather
from recstack.nn.names import ByName


class Arena(nn.Embedding):
    """Tables of one width behind each other.

    Args:
        sizes: rows of each table, its padding row included: table t's id i > 0 lies in row ``start[t] + i``.
        dim: width D.
        std: deviation of the normal initial values.

    ``named_parameters()`` shows one ``weight [1 + Σ(size - 1), D]``; ``state_dict()`` shows one tensor per table, without
    the padding row, under the table's name.
    """

    def __init__(self, sizes: Mapping[str, int], dim: int, std: float):
        self.sizes = dict(sizes)
        self.start: dict[str, int] = {}
        rows = 0
        for name, size in self.sizes.items():
            self.start[name] = rows
            rows += size - 1
        self.std = std
        super().__init__(1 + rows, dim, padding_idx=0)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, 0.0, self.std)
        with torch.no_grad():
            self.weight[0].zero_()

    def forward(self, rows: Rows) -> Tensor:  # type: ignore[override]
        lazily = self.sparse and self.weight.requires_grad and torch.is_grad_enabled()
        if lazily and not torch.compiler.is_exporting():
            return sparse_gather(self.weight, rows)
        return dense_gather(self.weight, rows)

    def tables(self, tensor: Tensor) -> dict[str, Tensor]:
        """Views of anything with a row per id (weights, optimiser state), table by table: ``[size - 1, ...]``."""
        return {name: tensor[1 + self.start[name] :][: size - 1] for name, size in self.sizes.items()}

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        for name, view in self.tables(self.weight).items():
            destination[prefix + name] = view if keep_vars else view.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata,
        strict,
        missing_keys,
        unexpected_keys,
        error_msgs,
    ) -> None:
        for name, view in self.tables(self.weight.detach()).items():
            value = state_dict.get(prefix + name)
            if value is None:
                missing_keys.append(prefix + name)
            elif value.shape != view.shape:
                error_msgs.append(
                    f"table {name!r} has shape {tuple(value.shape)}, this model's has {tuple(view.shape)}"
                )
            else:
                view.copy_(value)
        if strict:
            known = {prefix + name for name in self.sizes}
            unexpected_keys.extend(k for k in state_dict if k.startswith(prefix) and k not in known)


class Ask(NamedTuple):
    """What is wanted of a table: `ids` of any shape, or flat ids pooled between `offsets` ``[bags + 1]``."""

    table: str
    ids: Tensor
    offsets: Tensor | None = None
    mean: bool = True


class Tables(ByName):
    """All tables of a model.

    Args:
        sizes: {table: rows, padding included}.
        dims: {table: width}.
        arenas: {table: name} of tables kept apart from others of their width.
        std: deviation of the initial values.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dims: Mapping[str, int],
        arenas: Mapping[str, str] | None = None,
        std: float = 1e-4,
    ):
        super().__init__()
        groups: dict[str, dict[str, int]] = {}
        self.home: dict[str, str] = {}
        for table, size in sizes.items():
            own = (arenas or {}).get(table)
            self.home[table] = f"{dims[table]}" if own is None else f"{own}_{dims[table]}"
            groups.setdefault(self.home[table], {})[table] = size
        self.sizes, self.dims = dict(sizes), dict(dims)
        for key, members in groups.items():
            self[key] = Arena(members, dims[next(iter(members))], std)

    def weight(self, table: str) -> Tensor:
        """The whole table ``[size - 1, D]``, id 1 first; its gradient is dense."""
        arena: Arena = self[self.home[table]]  # type: ignore[assignment]
        return arena.tables(arena.weight)[table]

    def by_id(self, table: str) -> Tensor:
        """The table ``[size, D]`` by id, without a copy: row 0 is what lies before it, for padding has no vector."""
        arena: Arena = self[self.home[table]]  # type: ignore[assignment]
        return arena.weight[arena.start[table] :][: self.sizes[table]]

    def gather(self, asks: list[Ask]) -> list[Tensor]:
        """The vectors asked for, ``[*ids.shape, D]`` or ``[bags, D]``: one gather per arena and kind of pooling."""
        out: list[Tensor | None] = [None] * len(asks)
        calls: dict[tuple[str, bool, bool], list[int]] = {}
        for i, ask in enumerate(asks):
            pooled = ask.offsets is not None
            calls.setdefault((self.home[ask.table], pooled, pooled and ask.mean), []).append(i)
        for (home, pooled, mean), members in calls.items():
            arena: Arena = self[home]  # type: ignore[assignment]
            index = [self._rows(arena, asks[i]) for i in members]
            offsets = _joined([asks[i].offsets for i in members]) if pooled else None  # type: ignore[misc]
            found = arena(Rows(torch.cat(index) if len(index) > 1 else index[0], offsets, mean))
            counts = [asks[i].offsets.shape[0] - 1 if pooled else asks[i].ids.numel() for i in members]  # type: ignore[union-attr]
            for i, part in zip(members, found.split(counts) if len(members) > 1 else [found], strict=True):
                out[i] = part if pooled else part.view(*asks[i].ids.shape, arena.embedding_dim)
        return out  # type: ignore[return-value]

    @staticmethod
    def _rows(arena: Arena, ask: Ask) -> Tensor:
        ids, start = ask.ids.reshape(-1), arena.start[ask.table]
        return ids + start * (ids > 0) if start else ids


def _joined(offsets: list[Tensor]) -> Tensor:
    """Offsets of several jagged arrays laid behind each other."""
    parts, base = [offsets[0]], offsets[0][-1:]
    for more in offsets[1:]:
        parts.append(more[1:] + base)
        base = base + more[-1:]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
