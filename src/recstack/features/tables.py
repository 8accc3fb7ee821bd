"""Embedding tables: one arena per width, one gather for all fields (the engine's Python side).

The id spaces of all tables of one width lie behind each other in an arena; row 0 is the padding row of all of them.
An arena is an ``nn.Embedding``: with ``sparse=False`` an ordinary parameter for any optimiser; with ``sparse=True``, which
the Trainer sets for its own optimisers, ``.grad`` is a coalesced sparse tensor with the rows of the batch.

A table that has not one row for each id (`recstack.features.codes`) lies in the arena as the parts of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError, DataError, SchemaError
from recstack.features.codes import Dynamic, Hash, code
from recstack.kernels.rows import Rows, dense_gather, huge_pages, sparse_gather
from recstack.nn.names import ByName
from recstack.schema.features import Embedded


class Layout:
    """Parts behind each other, all sharing row 0: part p's row i > 0 lies in row ``start[p] + i``.

    Args:
        sizes: ids of each table, padding included; a table without a code is one part of as many rows.
        codes: {table: code} of the others.
    """

    sizes: dict[str, int]  # rows of each part, the padding row included
    start: dict[str, int]
    codes: dict[str, Hash]
    short = False  # whether its rows are of fewer bits than the vectors

    def _lay(self, sizes: Mapping[str, int], codes: Mapping[str, Hash]) -> None:
        self.codes = dict(codes)
        self.sizes, self.start, self.rows = {}, {}, 1
        for table, size in sizes.items():
            for part, n in codes[table].parts.items() if table in codes else ((table, size),):
                self.sizes[part], self.start[part] = n, self.rows - 1
                self.rows += n - 1

    def tables(self, tensor: Tensor) -> dict[str, Tensor]:
        """Views of anything with a row per id (weights, optimiser state), part by part: ``[size - 1, ...]``."""
        return {name: tensor[1 + self.start[name] :][: size - 1] for name, size in self.sizes.items()}

    def look(self, table: str, ids: Tensor) -> list[tuple[str, Tensor]]:
        """(part, row in it) of ids: one, or several whose vectors the code joins."""
        return self.codes[table].look(ids) if table in self.codes else [(table, ids)]

    def gathering(self) -> None:
        """Called before the ids of a forward pass are looked up."""

    def every(self) -> Tensor:
        """All rows as vectors ``[rows, D]``."""
        raise NotImplementedError

    @property
    def _learned(self) -> dict[str, Tensor]:
        """What is saved beside the rows: the owners of dynamic tables' rows."""
        owners = {name: c.table.state for name, c in self.codes.items() if isinstance(c, Dynamic)}
        return {f"{name}@{field}": tensor for name, state in owners.items() for field, tensor in state.items()}

    def _write(self, values: Tensor, destination: dict, prefix: str, keep_vars: bool) -> None:
        for name, tensor in (self.tables(values) | self._learned).items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _read(
        self,
        values: Tensor,
        state_dict: Mapping[str, Any],
        prefix: str,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        wanted = self.tables(values) | self._learned
        for name, view in wanted.items():
            value = state_dict.get(prefix + name)
            if value is None:
                missing_keys.append(prefix + name)
            elif value.shape != view.shape:
                error_msgs.append(
                    f"table {name!r} has shape {tuple(value.shape)}, this model's has {tuple(view.shape)}"
                )
            else:
                view.copy_(value)
        for c in self.codes.values():
            if isinstance(c, Dynamic):
                c.table.load(c.table.state)
        if strict:
            known = {prefix + name for name in wanted}
            unexpected_keys.extend(k for k in state_dict if k.startswith(prefix) and k not in known)


class Arena(Layout, nn.Embedding):
    """Tables of one width behind each other.

    Args:
        sizes: ids of each table, padding (0) included: table t's id i > 0 lies in row ``start[t] + i``.
        dim: width D.
        std: deviation of the normal initial values.
        codes: {table: code} of tables that have not one row for each id.
        dtype: of the storage; the vectors of bfloat16 rows are float32.
        trainable: False for rows that no optimiser touches.

    ``named_parameters()`` shows one ``weight [1 + Σ(size - 1), D]``; ``state_dict()`` shows one tensor per table, without
    the padding row, under the table's name, and the owners of a dynamic table's rows under ``name@…``.

    Hooks of the training loop:
        asked: None, or a list to which each training gather adds its `Rows`.
        remote: None, or (weight, rows) → vectors for tables that lie on several processes.
        renewed(): rows that went to another id.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dim: int,
        std: float,
        codes: Mapping[str, Hash] | None = None,
        dtype: torch.dtype | None = None,
        trainable: bool = True,
    ):
        self._lay(sizes, codes or {})
        self.std = std
        self.asked: list[Rows] | None = None
        self.remote: Callable[[Tensor, Rows], Tensor] | None = None
        self._fresh: list[Tensor] = []
        super().__init__(self.rows, dim, padding_idx=0, dtype=dtype)
        self.weight.requires_grad_(trainable)
        self.short = dtype is torch.bfloat16

    def reset_parameters(self) -> None:
        huge_pages(self.weight.detach())
        nn.init.normal_(self.weight, 0.0, self.std)
        with torch.no_grad():
            self.weight[0].zero_()
            for name, part in self.tables(self.weight).items():
                if name.endswith("@quotient"):  # products start as the remainder's rows would
                    part.add_(1.0)

    def forward(self, rows: Rows) -> Tensor:  # type: ignore[override]
        learns = self.weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_exporting()
        if learns and self.asked is not None:
            self.asked.append(rows)
        if self.remote is not None:
            return self.remote(self.weight, rows)
        found = sparse_gather(self.weight, rows) if self.sparse and learns else dense_gather(self.weight, rows)
        return found.float() if self.short else found

    def every(self) -> Tensor:
        return self.weight.float() if self.short else self.weight

    # -- tables whose rows change hands ---------------------------------------------------------------------------------
    @property
    def _dynamic(self) -> list[Dynamic]:
        return [c for c in self.codes.values() if isinstance(c, Dynamic)]

    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled() and not torch.compiler.is_exporting()

    def gathering(self) -> None:
        if self.codes and self._learns():
            for c in self._dynamic:
                c.table.gathering()

    def look(self, table: str, ids: Tensor) -> list[tuple[str, Tensor]]:
        found = self.codes.get(table)
        if isinstance(found, Dynamic) and self._learns():
            return [(table, _opaquely(self._admit, found, ids))]
        return super().look(table, ids)

    def _admit(self, found: Dynamic, ids: Tensor) -> Tensor:
        """Rows of ids in training: counted and admitted; rows that change hands begin anew."""
        if self.remote is not None or (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            raise ConfigError(
                f"Table {found.name!r} is dynamic, and each of several processes would give its rows to other ids; train it "
                "in one process, or declare it with compress=."
            )
        local, fresh = found.table.learn(ids)
        if len(fresh):
            fresh = (fresh + self.start[found.name]).to(self.weight.device)
            new = torch.empty(len(fresh), self.embedding_dim, device=fresh.device).normal_(0.0, self.std)
            self.weight.data[fresh] = new.to(
                self.weight.dtype
            )  # data: no graph reads rows that nobody used in this step
            self._fresh.append(fresh)
        return local

    def renewed(self) -> Tensor | None:
        """Rows int64 that went to another id since this was last called; their weights have begun anew already.

        Called once for each step of the optimiser, before it, so that its state of these rows can begin anew too. Rows
        used in one step are never given away within it; where nobody calls this, each forward pass is a step.
        """
        for c in self._dynamic:
            c.table.stepped()
        fresh, self._fresh = self._fresh, []
        return torch.cat(fresh) if fresh else None

    def train(self, mode: bool = True) -> Arena:
        if not mode:
            for c in self._dynamic:
                c.table.forget_steps()
        return super().train(mode)

    # -- files ----------------------------------------------------------------------------------------------------------
    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        self._write(self.weight, destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, *lists) -> None:  # type: ignore[override]
        self._read(self.weight.detach(), state_dict, prefix, strict, *lists)


class Ask(NamedTuple):
    """What is wanted of a table: `ids` of any shape, or flat ids pooled between `offsets` ``[bags + 1]``.

    `column` is what an error calls the ids; by default the table's name.
    """

    table: str
    ids: Tensor
    offsets: Tensor | None = None
    mean: bool = True
    column: str = ""


class Cut(NamedTuple):
    """A vector that a gather brought side by side with others, ``block [n, k, D]``: cut out when it is wanted alone."""

    block: Tensor
    place: int
    lead: tuple[int, ...]

    def vector(self) -> Tensor:
        """``[*lead, D]``"""
        return self.block.select(1, self.place).view(*self.lead, self.block.shape[-1])


class _Look(NamedTuple):
    """A lookup in one part of an arena; its vectors go to place `ask`."""

    ask: int
    part: str
    ids: Tensor
    offsets: Tensor | None
    mean: bool


class Tables(ByName):
    """All tables of a model.

    Args:
        sizes: {table: ids, padding included}.
        dims: {table: width}.
        arenas: {table: name} of tables kept apart from others of their width.
        std: deviation of the initial values.
        declared: {table: feature} whose options say how the table is kept; one row per id, float32, trainable, otherwise.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dims: Mapping[str, int],
        arenas: Mapping[str, str] | None = None,
        std: float = 1e-4,
        declared: Mapping[str, Embedded] | None = None,
    ):
        super().__init__()
        groups: dict[str, dict[str, int]] = {}
        self.home: dict[str, str] = {}
        declared = declared or {}
        for table, size in sizes.items():
            own, f = (arenas or {}).get(table), declared.get(table)
            key = f"{dims[table]}" if own is None else f"{own}_{dims[table]}"
            if f is not None:
                key += ("" if f.dtype == "float32" else f"_{f.dtype}") + ("" if f.trainable else "_frozen")
            self.home[table] = key
            groups.setdefault(key, {})[table] = size
        self.sizes, self.dims = dict(sizes), dict(dims)
        for key, members in groups.items():
            first = next(iter(members))
            f = declared.get(first)
            codes = {t: c for t, n in members.items() if t in declared and (c := code(t, n, declared[t])) is not None}
            dtype = None if f is None or f.dtype == "float32" else getattr(torch, f.dtype)
            self[key] = Arena(members, dims[first], std, codes, dtype, f is None or f.trainable)

    def arena(self, table: str) -> Arena:
        """Where a table lies: an Arena, or a `QuantizedArena`, which can be read like one."""
        return self[self.home[table]]  # type: ignore[return-value]

    def weight(self, table: str) -> Tensor:
        """The whole table ``[size - 1, D]``, id 1 first; its gradient is dense.

        Raises:
            SchemaError: for a dynamic table of more than 2^24 ids.
        """
        arena = self.arena(table)
        if table not in arena.codes:
            return arena.tables(arena.every())[table]
        return self._made(table, 1)

    def by_id(self, table: str) -> Tensor:
        """The table ``[size, D]`` by id; row 0 is anything, for padding has no vector. Without a copy where ids have rows.

        Raises:
            SchemaError: as `weight`.
        """
        arena = self.arena(table)
        if table not in arena.codes:
            return arena.every()[arena.start[table] :][: self.sizes[table]]
        return self._made(table, 0)

    def _made(self, table: str, first: int) -> Tensor:
        """Vectors of the ids from `first` on, from the parts of a coded table; nothing is learned about the ids."""
        arena, size = self.arena(table), self.sizes[table]
        found = arena.codes[table]
        if isinstance(found, Dynamic) and size > 1 << 24:
            raise SchemaError(
                f"Table {table!r} is dynamic and has {size} ids, too many to be laid out by id, as is asked here; give it "
                "fewer buckets."
            )
        every = arena.every()
        parts = found.look(torch.arange(first, size, device=every.device))
        padded = {part: F.pad(arena.tables(every)[part], (0, 0, 1, 0)) for part, _ in parts}
        return found.vector([F.embedding(row, padded[part]) for part, row in parts])

    def load(self, table: str, ids: Tensor, vectors: Tensor) -> None:
        """Set the rows of ids > 0 to vectors ``[n, D]``.

        Raises:
            SchemaError: the table has not one row for each id, or another width.
            DataError: an id that the table has not.
        """
        arena = self.arena(table)
        if not isinstance(arena, Arena):
            raise SchemaError(f"Table {table!r} is quantised, for serving; load the vectors before quantized().")
        if table in arena.codes:
            raise SchemaError(
                f"Table {table!r} has not one row for each id, so vectors cannot be given to ids; declare it without rows=."
            )
        if vectors.shape != (len(ids), arena.embedding_dim):
            raise SchemaError(
                f"The vectors for table {table!r} have shape {tuple(vectors.shape)}, and its {len(ids)} ids need "
                f"{(len(ids), arena.embedding_dim)}; declare the feature with dim={vectors.shape[-1]}."
            )
        check_ids(ids, table, self.sizes[table])
        with torch.no_grad():
            live = ids > 0
            rows = (ids[live].long() + arena.start[table]).to(arena.weight.device)
            arena.weight[rows] = vectors[live].to(arena.weight)

    def gather(self, asks: list[Ask]) -> list[Tensor]:
        """The vectors asked for, ``[*ids.shape, D]`` or ``[bags, D]``: one gather per arena and kind of pooling.

        Raises:
            DataError: naming the column with an id that its table has not.
        """
        return [found.vector() if isinstance(found, Cut) else found for found in self.lookups(asks)]

    def lookups(self, asks: list[Ask]) -> list[Tensor | Cut]:
        """`gather`, leaving vectors that lie side by side as they lie."""
        calls: dict[tuple[str, bool, bool], list[_Look]] = {}
        arenas: dict[str, Arena] = {}
        for i, ask in enumerate(asks):
            home = self.home[ask.table]
            if home not in arenas:
                arenas[home] = self[home]  # type: ignore[assignment]
                arenas[home].gathering()
            arena = arenas[home]
            if ask.table in arena.codes:
                check_ids(ask.ids, ask.column or ask.table, self.sizes[ask.table])
            parts = arena.look(ask.table, ask.ids)
            late = len(parts) > 1 or arena.short  # vectors are joined, or widened to float32, and then pooled
            offsets = None if late else ask.offsets
            pooled, mean = offsets is not None, offsets is not None and ask.mean
            for part, ids in parts:
                calls.setdefault((home, pooled, mean), []).append(_Look(i, part, ids, offsets, mean))
        found: list[list[Tensor | Cut]] = [[] for _ in asks]
        for (home, pooled, mean), looks in calls.items():
            index, groups = self._index(arenas[home], looks, asks)
            offsets = _joined([look.offsets for look in looks]) if pooled else None  # type: ignore[misc]
            vectors = arenas[home](_shared(index, offsets, mean, own=len(looks) > 1))
            rows = [g[0].offsets.shape[0] - 1 if pooled else g[0].ids.numel() * len(g) for g in groups]  # type: ignore[union-attr]
            for group, part in zip(groups, vectors.split(rows) if len(groups) > 1 else [vectors], strict=True):
                if len(group) > 1:
                    block = part.view(-1, len(group), part.shape[-1])
                    for k, look in enumerate(group):
                        found[look.ask].append(Cut(block, k, tuple(look.ids.shape)))
                else:
                    (look,) = group
                    found[look.ask].append(part if pooled else part.view(*look.ids.shape, part.shape[-1]))
        return [self._vector(ask, parts) for ask, parts in zip(asks, found, strict=True)]

    def _vector(self, ask: Ask, parts: list[Tensor | Cut]) -> Tensor | Cut:
        if ask.offsets is None and len(parts) == 1:
            return parts[0]
        arena, several = self.arena(ask.table), len(parts) > 1
        found = [part.vector() if isinstance(part, Cut) else part for part in parts]
        vector = arena.codes[ask.table].vector(found) if several else found[0]
        late = ask.offsets is not None and (several or arena.short)
        return _bags(vector, ask.ids, ask.offsets, ask.mean) if late else vector  # type: ignore[arg-type]

    def _index(self, arena: Arena, looks: list[_Look], asks: list[Ask]) -> tuple[Tensor, list[list[_Look]]]:
        """Rows of the arena, flat, and the lookups in the order in which they lie there, group by group.

        Lookups of n single ids are a group: k of them are rows ``[n, k]``, made and read by a few operations for all.
        Ids of tables without a code are checked on the way.
        """
        groups: dict[Any, list[_Look]] = {}
        for j, look in enumerate(looks):
            single = look.offsets is None and not torch.compiler.is_compiling()
            groups.setdefault((look.ids.numel(), look.ids.dtype) if single else j, []).append(look)
        parts = []
        for group in groups.values():
            if len(group) == 1:
                (look,) = group
                self._check(arena, look, asks[look.ask])
                parts.append(_placed(look.ids.reshape(-1), arena.start[look.part]))
                continue
            block = torch.stack([look.ids.reshape(-1) for look in group], 1)
            if block.device.type == "cpu" and block.numel():
                low, high = block.aminmax(dim=0)
                if bool(((low < 0) | (high >= torch.tensor([arena.sizes[look.part] for look in group]))).any()):
                    for look in group:
                        self._check(arena, look, asks[look.ask])
            start = torch.tensor([arena.start[look.part] for look in group], dtype=block.dtype, device=block.device)
            parts.append((block + start * (block > 0)).view(-1))
        return torch.cat(parts) if len(parts) > 1 else parts[0], list(groups.values())

    @staticmethod
    def _check(arena: Arena, look: _Look, ask: Ask) -> None:
        if ask.table not in arena.codes:
            check_ids(look.ids, ask.column or look.part, arena.sizes[look.part])


def _placed(ids: Tensor, start: int) -> Tensor:
    return ids + start * (ids > 0) if start else ids


def check_ids(ids: Tensor, name: str, size: int) -> None:
    """Raises DataError where a column holds an id that its table has not: past it, there may be another table's rows.

    9 µs a column. Not on a GPU, where it would be a wait, nor in a compiled graph, which cannot branch on data.
    """
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or not ids.numel():
        return
    low, high = (int(x) for x in ids.aminmax())
    if low < 0 or high >= size:
        raise DataError(
            f"Column {name!r} holds id {high if high >= size else low}, and its table has {size} ids, from 0; the schema's "
            "Encoder makes ids of raw values."
        )


_alive: WeakValueDictionary[tuple, Rows] = WeakValueDictionary()


def _shared(index: Tensor, offsets: Tensor | None, mean: bool, own: bool) -> Rows:
    """The Rows of an index, or equal ones that some graph still holds, for their order by row is worked out once.

    DeepFM reads the same rows of an arena of width 1 and one of width D. Looking whether two indices are equal costs a
    hundredth of ordering one. `own` says that nobody else can write to the index.
    """
    if index.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Rows(index, offsets, mean)
    key = index.shape, index.dtype, None if offsets is None else offsets.shape, mean
    old = _alive.get(key)
    if (
        old is not None
        and torch.equal(old.index, index)
        and (offsets is None or old.offsets is None or torch.equal(old.offsets, offsets))
    ):
        return old
    if not own:  # a batch may be written to before the next one is asked for
        index, offsets = index.clone(), None if offsets is None else offsets.clone()
    _alive[key] = rows = Rows(index, offsets, mean)
    return rows


def _bags(vectors: Tensor, ids: Tensor, offsets: Tensor, mean: bool) -> Tensor:
    """Vectors ``[n, D]`` summed, or averaged over the ids that are there, between offsets: ``[bags, D]``."""
    every = torch.arange(vectors.shape[0], device=vectors.device)
    total = F.embedding_bag(every, vectors, offsets.to(every.dtype), mode="sum", include_last_offset=True)
    if not mean:
        return total
    return total / Rows(ids, offsets).live.clamp(min=1)[:, None]


def _joined(offsets: list[Tensor]) -> Tensor:
    """Offsets of several jagged arrays laid behind each other."""
    parts, base = [offsets[0]], offsets[0][-1:]
    for more in offsets[1:]:
        parts.append(more[1:] + base)
        base = base + more[-1:]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


_disabled: Any = None


def _opaquely(function: Callable[..., Any], *args: Any) -> Any:
    """A call that torch.compile does not look into."""
    global _disabled
    if not torch.compiler.is_compiling():
        return function(*args)
    if _disabled is None:
        _disabled = torch.compiler.disable(lambda f, *args: f(*args))
    return _disabled(function, *args)


def load_grown(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Load weights whose tables may have fewer rows than the model's: old ids keep their rows, new ones stay as they are.

    Buffers of another shape than the model's (an edge list, counts by id) come from the data: their module keeps its own,
    and `fit` takes them anew.

    Args:
        state: what `state_dict()` of the smaller model gave.

    Returns:
        {path of the arena (or nn.Embedding): {part: rows it had, padding included}}, for `carry`.

    Raises:
        SchemaError: a table that shrank or is missing, or another parameter of another shape.
    """
    own, params = model.state_dict(), dict(model.named_parameters())
    sizes: dict[str, dict[str, int]] = {}
    merged: dict[str, Tensor] = {}
    for path, table in model.named_modules():
        if not isinstance(table, nn.Embedding):
            continue
        views = table.tables(table.weight.detach()) if isinstance(table, Arena) else {"weight": table.weight.detach()}
        sizes[path] = {}
        for part, view in views.items():
            name = f"{path}.{part}" if path else part
            if name not in state:
                raise SchemaError(f"The weights have no table {name!r}; a grown model has the same tables.")
            value = state[name]
            if value.shape[1:] != view.shape[1:] or len(value) > len(view):
                raise SchemaError(
                    f"Table {name!r} has shape {tuple(value.shape)} in the weights and {tuple(view.shape)} in the model; "
                    "a table can only grow."
                )
            sizes[path][part] = len(value) + isinstance(table, Arena)
            merged[name] = torch.cat([value.to(view), view[len(value) :]])
    changed = {name for name, value in state.items() if name in own and own[name].shape != value.shape} - set(merged)
    for name in changed & set(params):
        raise SchemaError(
            f"{name!r} has shape {tuple(state[name].shape)} in the weights and {tuple(own[name].shape)} in the model; only "
            "embedding tables can grow."
        )
    anew = {name.rpartition(".")[0] for name in changed}
    for name, value in state.items():
        if name not in merged and (name in params or name.rpartition(".")[0] not in anew):
            merged[name] = value
    for name in set(own) - set(state):
        raise SchemaError(f"The weights have no {name!r}; they are of another model.")
    model.load_state_dict({**own, **merged})
    return sizes


def carry(table: nn.Embedding, old: Tensor, sizes: Mapping[str, int], into: Tensor) -> None:
    """Rows of `old`, aligned with an arena's rows before it grew, to where they are now in `into`.

    For anything with a row per id, such as an optimiser's state ``[rows, ...]``: `into` is that of the grown table's
    weight before its first step, and keeps it in the rows of new ids. `sizes` is what `load_grown` gave for this table.
    """
    assert len(old) == (1 + sum(n - 1 for n in sizes.values()) if isinstance(table, Arena) else sum(sizes.values()))
    with torch.no_grad():
        if not isinstance(table, Arena):
            into[: len(old)] = old
            return
        into[0], first = old[0], 1
        for name, part in table.tables(into).items():
            n = sizes[name] - 1
            part[:n] = old[first : first + n]
            first += n
