"""The one bridge from names to tensors: a batch goes in, vectors per feature come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recstack.errors import SchemaError
from recstack.features import derived
from recstack.features.columns import Batch, column, of_steps, padded
from recstack.features.tables import Ask, Cut, Tables, check_ids  # noqa: F401 (LightGCN checks its own)
from recstack.nn.mlp import flat, linear
from recstack.nn.names import ByName
from recstack.nn.numbers import NUMBER_STD, NUMBERS, Missing
from recstack.nn.sequence import Pooling, pooling
from recstack.nn.sequence.pooling import Mean, Sum
from recstack.schema import (
    CANDIDATE_ROLES,
    Crossed,
    Feature,
    History,
    Hits,
    Numeric,
    Schema,
    Vector,
    is_embedded,
    is_multi,
)
from recstack.schema.features import Embedded


class Number(NamedTuple):
    """A column of plain numbers."""

    column: Tensor

    def vector(self) -> Tensor:
        """``[..., 1]``"""
        return self.column.unsqueeze(-1)


class Side(Mapping[str, Tensor]):
    """One vector per feature. Those that a gather brought side by side, and numbers, are cut out when asked for alone.

    Args:
        found: by feature, in order.
        lone: each request is its own only candidate: vectors ``[R, w]`` are read as ``[R, 1, w]``.
    """

    def __init__(self, found: dict[str, Tensor | Cut | Number], lone: bool = False):
        self.found, self.lone = found, lone

    def __getitem__(self, name: str) -> Tensor:
        vector = _vector(self.found[name])
        return vector.unsqueeze(-2) if self.lone else vector

    def __contains__(self, name: object) -> bool:
        return name in self.found

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def fields(self, names: list[str], lifts: ByName | None = None) -> list[Tensor]:
        """The vectors as ``[..., k, w]``: neighbours of one gather, and numbers (lifted by vectors), k at a time.

        A tensor a feature would be copied, and summed again on the way back, feature by feature.
        """
        out: list[Tensor] = []
        start = 0
        while start < len(names):
            first, stop = self.found[names[start]], start + 1
            if isinstance(first, Number):
                columns = [first.column]
                while stop < len(names) and isinstance(more := self.found[names[stop]], Number):
                    columns.append(more.column)
                    stop += 1
                part = torch.stack(columns, -1).unsqueeze(-1)
                if lifts is not None:
                    part = part * torch.stack([lifts[n].weight[:, 0] for n in names[start:stop]])  # type: ignore[union-attr]
            elif lifts is not None and names[start] in lifts:
                part = lifts[names[start]](_vector(first)).unsqueeze(-2)
            elif isinstance(first, Cut):
                while stop < len(names) and self._follows(first, stop - start, names[stop], lifts):
                    stop += 1
                part = first.block.narrow(1, first.place, stop - start)
                part = part.view(*first.lead, *part.shape[1:])
            else:
                part = first.unsqueeze(-2)
            out.append(part.unsqueeze(-3) if self.lone else part)
            start = stop
        return out

    def _follows(self, first: Cut, distance: int, name: str, lifts: ByName | None) -> bool:
        other = self.found[name]
        beside = isinstance(other, Cut) and other.block is first.block and other.place == first.place + distance
        return beside and (lifts is None or name not in lifts)


def _vector(found: Tensor | Cut | Number) -> Tensor:
    return found if isinstance(found, Tensor) else found.vector()


class Slots:
    """One vector per feature: ``[R, w]`` for what a request has once, ``[R, L, w]`` for what each candidate has.

    Where item tensors stand alone (a catalog) they are ``[N, w]``.
    """

    def __init__(
        self,
        request: Side,
        candidate: Side,
        sequences: dict[str, tuple[Tensor, Tensor]],
        roles: Mapping[str, str],
        lifts: ByName | None,
    ):
        self.request, self.candidate, self.sequences = request, candidate, sequences
        self._roles, self._lifts = roles, lifts

    def __getitem__(self, name: str) -> Tensor:
        return self.candidate[name] if name in self.candidate else self.request[name]

    def _chosen(self, side: Side, roles: tuple[str, ...]) -> list[str]:
        return [name for name in side if not roles or self._roles[name] in roles]

    def sides(self, *roles: str) -> tuple[Tensor, Tensor] | Tensor:
        """``(request [R, U], candidate [R, L, W])`` for an MLP that takes both, or the one side that is there."""
        request, candidate = (
            [part.flatten(-2) for part in side.fields(self._chosen(side, roles))]
            for side in (self.request, self.candidate)
        )
        if not request and not candidate:
            raise SchemaError(f"No feature of role {' or '.join(roles)} is declared.")
        parts = [torch.cat(side, -1) if len(side) > 1 else side[0] for side in (request, candidate) if side]
        return (parts[0], parts[1]) if len(parts) == 2 else parts[0]

    def flat(self, *roles: str) -> Tensor:
        """All vectors (of `roles`) behind each other, request side first: ``[R, L, U + W]``, or one side alone."""
        return flat(self.sides(*roles))

    def stack(self, *roles: str) -> Tensor:
        """All vectors as fields of one width: ``[R, L, F, D]``. Needs ``Inputs(..., stacked=True)``."""
        if self._lifts is None:
            raise SchemaError("Fields of one width need Inputs(schema, dim, stacked=True).")
        request, candidate = (
            side.fields(self._chosen(side, roles), self._lifts) for side in (self.request, self.candidate)
        )
        once, fields = (
            torch.cat(side, -2) if len(side) > 1 else side[0] if side else None for side in (request, candidate)
        )
        if once is None or fields is None:
            return fields if once is None else once  # type: ignore[return-value]
        return torch.cat([once.unsqueeze(-3).expand(*fields.shape[:-2], -1, -1), fields], -2)

    def sequence(self, name: str) -> tuple[Tensor, Tensor]:
        """A history's steps and which are live: ``[R, T, w]`` and ``[R, T]``, oldest first, left aligned."""
        return self.sequences[name]


class Inputs(nn.Module):
    """Embeds a batch. The only place where tables are made.

    Args:
        schema: a fitted one (``encoder.schema``).
        dim: embedding width D of features that do not say otherwise.
        history: how each history becomes one vector: "mean", "sum", "max", "last", "attention", a `Pooling` class, or
            None to leave the steps to the model (`Slots.sequence`).
        stacked: also offer fields of one width D (`Slots.stack`): whatever has another width is lifted by a matrix
            without bias, so that a number x becomes x·v.
        uniform: give every table width `dim`, whatever the feature says.
        std: deviation of the initial embeddings.

    Raises:
        SchemaError: where the schema is not fitted.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int = 16,
        *,
        history: str | Callable[..., Pooling] | None = "mean",
        stacked: bool = False,
        uniform: bool = False,
        std: float = 1e-4,
    ):
        super().__init__()
        self.schema, self.dim = schema.require_fitted(), dim
        embedded = [f for f in schema.fields if is_embedded(f)]
        self._embedded = {f.name for f in embedded}
        self._lists = {f.name for f in schema.fields if is_multi(f)}
        sizes = {f.table_name: f.size for f in embedded if f.size}  # fitted, so all
        dims = {f.table_name: dim if uniform else f.dim or dim for f in embedded}
        arenas = {f.table_name: f.arena for f in embedded if f.arena is not None}
        self.tables = Tables(sizes, dims, arenas, std, {f.table_name: f for f in embedded})
        chosen = [f for f in schema.features if isinstance(f, Numeric) and f.embedding is not None]
        self.numbers = ByName({f.name: NUMBERS[f.embedding](dim if uniform else f.dim or dim, f.bins) for f in chosen})  # type: ignore[index]
        learned = [f.name for f in schema.features if isinstance(f, Numeric) and f.learns_missing]
        self.missing = ByName({name: Missing() for name in learned})
        self.poolings = ByName()
        request: dict[str, int] = {}
        candidate: dict[str, int] = {}
        for f in schema.fields:
            if isinstance(f, History):
                self._check(f)
                if history is None:
                    continue
                width = sum(self._own_width(schema.feature(name)) for name in f.of)
                self.poolings[f.name] = pooled = pooling(history, width)
                (candidate if pooled.targeted else request)[f.name] = pooled.width
            else:
                (candidate if f.role in CANDIDATE_ROLES else request)[f.name] = self._own_width(f)
        self.widths = {**request, **candidate}
        self.roles = {f.name: f.role for f in schema.fields}
        self.has_candidates = bool(schema.by_role(*CANDIDATE_ROLES))
        self.fields = len(self.widths)
        lifted = {name: width for name, width in self.widths.items() if self._needs_lift(name, width)}
        self.lifts = ByName({n: linear(w, dim, bias=False) for n, w in lifted.items()}) if stacked else None
        for name in lifted if stacked else ():
            if isinstance(f := schema.feature(name), Numeric | Hits) and not f.embedded and name not in self.numbers:
                nn.init.normal_(self.lifts[name].weight, 0.0, NUMBER_STD)  # type: ignore[union-attr]

    def _needs_lift(self, name: str, width: int) -> bool:
        learned = is_embedded(self.schema.feature(name)) or name in self.poolings or name in self.numbers
        return width != self.dim or not learned

    def _own_width(self, f: Feature) -> int:
        if is_embedded(f):
            return self.tables.dims[f.table_name]  # type: ignore[attr-defined]
        if f.name in self.numbers:
            return self.numbers[f.name].width  # type: ignore[return-value]
        if isinstance(f, Hits):
            return len(f.statistics)
        return f.size if isinstance(f, Vector) else len(f.powers)  # type: ignore[attr-defined]

    def _check(self, h: History) -> None:
        for name in h.of:
            if not is_embedded(self.schema.feature(name)):
                raise SchemaError(
                    f"History {h.name!r} reads {name!r}, which has no embedding; histories read Categorical item features."
                )

    def width(self, *roles: str) -> int:
        """Width of ``slots.flat(*roles)``."""
        return sum(w for n, w in self.widths.items() if not roles or self.roles[n] in roles)

    def forward(self, batch: Batch, *roles: str) -> Slots:
        """Slots of the features of `roles` (default: of all).

        Raises:
            DataError: naming a column that the batch lacks, or one with an id that its table has not.
        """
        features = [f for f in self.schema.fields if not roles or f.role in roles]
        lead = self._candidate_shape(batch, features)
        asks: list[Ask] = []
        places: list[tuple[str, str]] = []  # (feature, history or "")
        for f in features:
            if isinstance(f, History):
                for name in f.of:
                    asks.append(self._ask_step(batch, f, self.schema.feature(name)))
                    places.append((name, f.name))
            elif f.name in self._embedded:
                asks.append(self._ask(batch, f, lead))  # type: ignore[arg-type]
                places.append((f.name, ""))
        found = dict(zip(places, self.tables.lookups(asks), strict=True))
        masks = {
            place: ask.ids > 0
            for place, ask in zip(places, asks, strict=True)
            if ask.offsets is None and (place[1] or place[0] in self._lists)
        }

        request: dict[str, Tensor | Cut | Number] = {}
        candidate: dict[str, Tensor | Cut | Number] = {}
        sequences: dict[str, tuple[Tensor, Tensor]] = {}
        for f in features:
            if isinstance(f, History):
                continue
            value = found[f.name, ""] if f.name in self._embedded else self._plain(batch, f, lead)
            if f.name in self._lists:
                value = _vector(value)
                if (f.name, "") in masks:
                    value = _pooled(value, masks[f.name, ""], f.pooling)  # type: ignore[attr-defined]
                if f.role in CANDIDATE_ROLES and value.dim() == 2 and lead is not None:
                    value = value.view(*lead, value.shape[-1])
            (candidate if f.role in CANDIDATE_ROLES else request)[f.name] = value
        for h in (f for f in features if isinstance(f, History)):
            steps = []
            for name in h.of:
                value = _vector(found[name, h.name])
                if (name, h.name) in masks and masks[name, h.name].dim() == 3:
                    feature = self.schema.feature(name)
                    value = _pooled(value, masks[name, h.name], feature.pooling)  # type: ignore[attr-defined]
                steps.append(value)
            if (h.of[0], h.name) not in masks:  # pooled on the way out of the tables
                request[h.name] = torch.cat(steps, -1)
                continue
            sequence = torch.cat(steps, -1) if len(steps) > 1 else steps[0]
            mask = masks[h.of[0], h.name]
            sequences[h.name] = (sequence, mask)
            if h.name in self.poolings:
                block: Pooling = self.poolings[h.name]  # type: ignore[assignment]
                if block.targeted:
                    if not candidate:
                        continue  # the item side alone has no target, and the user side alone has no candidate
                    query = torch.cat([_vector(candidate[name]) for name in h.of], -1)
                    candidate[h.name] = block(query, sequence, mask, batch.get("@mask"))
                else:
                    request[h.name] = block(None, sequence, mask)
        if not self.has_candidates:  # a table without item columns: each request is its own only candidate
            candidate, request = request, {}
        return Slots(
            Side({n: request[n] for n in self.widths if n in request}),
            Side({n: candidate[n] for n in self.widths if n in candidate}, lone=not self.has_candidates),
            sequences,
            self.roles,
            self.lifts,
        )

    def history_ids(self, batch: Batch, name: str) -> Tensor:
        """Item ids of a history's steps ``[R, T]``, oldest first, left aligned, 0 where nothing is; of either spelling."""
        return of_steps(batch, self.schema.feature(name).of[0], name)  # type: ignore[attr-defined]

    # -- columns ------------------------------------------------------------------------------------------------------
    def _plain(self, batch: Batch, f: Feature, lead: tuple[int, ...] | None) -> Tensor | Number:
        if isinstance(f, Hits):
            return derived.hit_numbers(derived.hits(batch, self.schema, f, lead or ()), f)
        value = column(batch, f.name)
        if f.name in self.missing:
            value = self.missing[f.name](value)
        if f.name in self.numbers:
            return self.numbers[f.name](value)
        if isinstance(f, Vector):
            return value
        powers = f.powers if isinstance(f, Numeric) else (1.0,)
        if powers == (1.0,):
            return Number(value)
        value = value.unsqueeze(-1)
        return torch.cat([value if p == 1 else value.sign() * value.abs() ** p for p in powers], -1)

    def _ask(self, batch: Batch, f: Embedded, lead: tuple[int, ...] | None) -> Ask:
        if isinstance(f, Crossed):
            return Ask(f.table_name, derived.cross_ids(batch, self.schema, f, lead), column=f.name)
        if isinstance(f, Hits):
            found = derived.hits(batch, self.schema, f, lead or ())
            return Ask(f.table_name, derived.hit_ids(found, f), column=f.name)
        ids, offsets = column(batch, f.name), batch.get(f"{f.name}@offsets")
        if offsets is None:
            return Ask(f.table_name, ids, column=f.name)
        if f.pooling == "max":  # type: ignore[attr-defined]
            return Ask(f.table_name, padded(ids, offsets), column=f.name)
        return Ask(f.table_name, ids, offsets, f.pooling == "mean", f.name)  # type: ignore[attr-defined]

    def _ask_step(self, batch: Batch, h: History, f: Feature) -> Ask:
        key, table = f"{f.name}@{h.name}", f.table_name  # type: ignore[attr-defined]
        ids, offsets = column(batch, key), batch.get(f"{h.name}@offsets")
        if offsets is None:
            return Ask(table, ids, column=key)
        block = dict(self.poolings.items()).get(h.name)
        simple = type(block) in (Mean, Sum) and not any(is_multi(self.schema.feature(n)) for n in h.of)
        if simple:
            return Ask(table, ids, offsets, type(block) is Mean, key)
        return Ask(table, padded(ids, offsets), column=key)

    def _candidate_shape(self, batch: Batch, features: list[Feature]) -> tuple[int, ...] | None:
        for f in features:
            if f.role in CANDIDATE_ROLES and f.name in batch and f"{f.name}@offsets" not in batch:
                value = batch[f.name]
                inner = 1 if isinstance(f, Vector) or is_multi(f) else 0
                return tuple(value.shape[: value.dim() - inner])
        for f in features:
            if f.role not in (*CANDIDATE_ROLES, "history") and f.name in batch and not is_multi(f):
                return (batch[f.name].shape[0], -1)
        return None


def _pooled(vectors: Tensor, mask: Tensor, how: str) -> Tensor:
    """``[..., K, D]`` over its live K: ``[..., D]``; nothing live gives zeros."""
    if how == "max":
        low = vectors.masked_fill(~mask.unsqueeze(-1), torch.finfo(vectors.dtype).min)
        return low.amax(-2) * mask.any(-1, keepdim=True)
    total = vectors.sum(-2)  # what is not there is zeros already: the padding row
    return total if how == "sum" else total / mask.sum(-1, keepdim=True).clamp(min=1)


class FirstOrder(nn.Module):
    r"""The linear part of shallow models: ``[R, L]``, or ``[R]`` where no candidate feature is declared.

    .. math:: \sum_f w_f[\mathrm{id}_f] + \sum_n w_n x_n

    Lists are averaged (their feature's pooling), histories too. The bias is the head's.
    """

    def __init__(self, schema: Schema):
        super().__init__()
        # what is given and frozen are the vectors; the weights beside them are learned
        learned = [replace(f, trainable=True) if is_embedded(f) else f for f in schema.fields]
        learned = [
            replace(f, embedding=None) if isinstance(f, Numeric) else f for f in learned
        ]  # a weight for x itself
        self.inputs = Inputs(schema.replace(features=learned), 1, uniform=True)
        numbers = {n: w for n, w in self.inputs.widths.items() if not self._weighed(n)}
        self.numbers = ByName({n: linear(w, 1, bias=False) for n, w in numbers.items()})
        for name in numbers:
            nn.init.normal_(self.numbers[name].weight, 0.0, NUMBER_STD)  # type: ignore[arg-type]

    def _weighed(self, name: str) -> bool:
        return is_embedded(self.inputs.schema.feature(name)) or name in self.inputs.poolings

    def forward(self, batch: Batch) -> Tensor:
        slots = self.inputs(batch)
        request, candidate = (
            [part.sum((-2, -1)) for part in side.fields(list(side), self.numbers)]
            for side in (slots.request, slots.candidate)
        )
        if not candidate:
            return torch.stack(request).sum(0)
        total = torch.stack(candidate).sum(0)
        return total + torch.stack(request).sum(0).unsqueeze(-1) if request else total
