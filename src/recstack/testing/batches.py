"""Made-up schemas and batches, and the ways of spelling one batch differently."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from recstack.schema import (
    CANDIDATE_ROLES,
    Categorical,
    Feature,
    History,
    Numeric,
    Schema,
    Task,
    Text,
    Vector,
    is_embedded,
    is_multi,
)

Batch = dict[str, Tensor]
LIST = 3  # values of a multi-valued feature, at most


def schema(*, tasks: Iterable[Task] = (Task("click"),), domain: bool = False) -> Schema:
    """A fitted schema with a feature of every kind and role: ids, lists, text, numbers, vectors, a history, a shared table.

    Args:
        tasks: what to predict.
        domain: with a feature ``scene`` of role "domain", three domains.

    >>> schema().user, schema().item, schema().histories[0].of
    ('user_id', 'item_id', ('item_id', 'genre'))
    """
    features: list[Feature] = [
        Categorical("user_id", "user", size=14),
        Categorical("likes", "user", multi=True, pooling="sum", size=7),
        Categorical("favourite", "user", table="item_id", size=20),
        Numeric("age", "user"),
        Categorical("hour", "context", size=6),
        Categorical("item_id", "item", size=20),
        Categorical("genre", "item", multi=True, size=9),
        Text("title", "item", buckets=10, size=12, pooling="max"),
        Numeric("price", "item", powers=(1, 2)),
        Vector("image", "item", size=3),
        Numeric("hits", "pair"),
        History("watched", of=("item_id", "genre"), max_len=8),
    ]
    if domain:
        features.append(Categorical("scene", "domain", size=5))
    return Schema(features, tasks)


def batch(
    schema: Schema,
    requests: int = 3,
    candidates: int = 2,
    seed: int = 0,
    *,
    jagged: bool = False,
    mask: bool = False,
    weight: bool = False,
    steps: int = 5,
    missing: float = 0.0,
    times: bool = False,
) -> Batch:
    """A random batch of R `requests` by L `candidates`; the history of the first of several requests is empty.

    A schema without item and pair features has one candidate a request.

    Args:
        jagged: lists and histories as values and offsets instead of padded ids.
        mask: with ``@mask``, in which each list has its own length of at least 1.
        weight: with ``@weight`` ``[R, L]``.
        steps: length of the longest history.
        missing: share of labels that are NaN.
        times: with ``@time`` and each history's ``@time@name``, in seconds; always, where a feature looks back in time.

    >>> from recstack import testing
    >>> some = testing.batch(testing.schema(), requests=4, candidates=3)
    >>> some["user_id"].shape, some["item_id"].shape, some["item_id@watched"].shape
    (torch.Size([4]), torch.Size([4, 3]), torch.Size([4, 5]))
    """
    g = torch.Generator().manual_seed(seed)
    if not schema.by_role(*CANDIDATE_ROLES):
        candidates = 1
    times = times or schema.timed
    out: Batch = {}
    for f in schema.features:
        lead = (requests, candidates) if f.role in CANDIDATE_ROLES else (requests,)
        if isinstance(f, History):
            lengths = torch.randint(1, steps + 1, (requests,), generator=g)
            lengths[0] = 0 if requests > 1 else steps
            lengths[-1] = steps
            live = torch.arange(steps) < lengths.unsqueeze(-1)
            for name in f.of:
                out[f"{name}@{f.name}"] = _ids(schema.feature(name), (requests, steps), g, live)
            if times:
                out[f"@time@{f.name}"] = (1_000_000 + 60 * torch.arange(steps).expand(requests, -1)) * live
        elif is_embedded(f):
            out[f.name] = _ids(f, lead, g)
        else:
            size = (f.size,) if isinstance(f, Vector) else ()
            out[f.name] = torch.randn(*lead, *size, generator=g)
    if times:
        out["@time"] = torch.full((requests,), 2_000_000)
    if mask:
        lengths = torch.randint(1, candidates + 1, (requests, 1), generator=g)
        out["@mask"] = torch.arange(candidates) < lengths
    if weight:
        out["@weight"] = torch.rand(requests, candidates, generator=g) + 0.5
    out |= _labels(schema, (requests, candidates), g, missing)
    return to_jagged(out, schema) if jagged else out


def _ids(f: Feature, lead: tuple[int, ...], g: torch.Generator, live: Tensor | None = None) -> Tensor:
    """Ids from 1, int32: 0 is only where nothing is."""
    shape = (*lead, LIST) if is_multi(f) else lead
    ids = torch.randint(1, f.size or 2, shape, generator=g, dtype=torch.int32)  # type: ignore[attr-defined]
    if is_multi(f):
        ids = ids * (torch.arange(LIST) < torch.randint(0, LIST + 1, (*lead, 1), generator=g))
    if live is not None:
        ids = ids * (live.unsqueeze(-1) if is_multi(f) else live)
    return ids


def _labels(schema: Schema, shape: tuple[int, int], g: torch.Generator, missing: float) -> Batch:
    out: Batch = {}
    for task in (t for t in schema.tasks if not t.derived):
        if task.kind == "binary":
            label = torch.rand(shape, generator=g).round()
            if task.given is not None and f"{schema.task(task.given).column}@label" in out:
                label = label * out[f"{schema.task(task.given).column}@label"].nan_to_num()
        elif task.kind == "multiclass":
            label = torch.randint(0, task.classes or 2, shape, generator=g).float()
        else:
            label = 3 * torch.rand(shape, generator=g)
        if missing:
            label = label.masked_fill(torch.rand(shape, generator=g) < missing, torch.nan)
        out[f"{task.column}@label"] = label
    return out


# -- the same batch, spelled differently ------------------------------------------------------------------------------
def is_candidate_key(key: str, schema: Schema) -> bool:
    """Whether a key of a padded batch holds ``[R, L, ...]``."""
    if key in ("@mask", "@weight") or key.endswith("@label"):
        return True
    return key in schema.names and schema.feature(key).role in CANDIDATE_ROLES


def take(source: Mapping[str, Tensor], schema: Schema, requests: Any = None, candidates: Any = None) -> Batch:
    """Some requests, and some candidates of each, of a padded batch; the arguments index their axis."""
    out = dict(source) if requests is None else {key: value[requests] for key, value in source.items()}
    if candidates is not None:
        out = {key: v[:, candidates] if is_candidate_key(key, schema) else v for key, v in out.items()}
    return out


def pad_lists(source: Mapping[str, Tensor], schema: Schema, more: int, seed: int = 0) -> Batch:
    """With `more` dead candidates at the end of each list, which hold rubbish: other ids, large numbers, NaN labels."""
    some = next(v for k, v in source.items() if is_candidate_key(k, schema))
    rubbish = batch(schema, some.shape[0], more, seed + 1)
    out = dict(source)
    out.setdefault("@mask", torch.ones(some.shape[:2], dtype=torch.bool))
    out.setdefault("@weight", torch.ones(some.shape[:2]))
    for key, value in out.items():
        if key == "@mask":
            dead = torch.zeros(value.shape[0], more, dtype=torch.bool)
        elif key == "@weight" or key.endswith("@label"):
            dead = torch.full((value.shape[0], more), torch.nan)
        elif is_candidate_key(key, schema):
            dead = rubbish[key] if not value.is_floating_point() else 30 * rubbish[key]
        else:
            continue
        out[key] = torch.cat([value, dead], 1)
    return out


def pad_histories(source: Mapping[str, Tensor], schema: Schema, more: int) -> Batch:
    """With `more` empty steps at the end of each padded history."""
    ends = tuple(f"@{h.name}" for h in schema.histories)
    out = dict(source)
    for key, value in source.items():
        if ends and key.endswith(ends):
            out[key] = torch.cat([value, value.new_zeros(value.shape[0], more, *value.shape[2:])], 1)
    return out


def to_jagged(source: Mapping[str, Tensor], schema: Schema) -> Batch:
    """Lists and histories as flat values with ``@offsets``; what they say stays the same."""
    out = dict(source)
    for f in schema.features:
        if isinstance(f, History):
            live = source[f"{f.of[0]}@{f.name}"] > 0
            for key in (*(f"{name}@{f.name}" for name in f.of), f"@time@{f.name}"):
                if key in source:
                    out[key] = source[key][live]
            out[f"{f.name}@offsets"] = _offsets(live)
        elif is_multi(f):
            live = source[f.name].flatten(0, -2) > 0
            out[f.name] = source[f.name].flatten(0, -2)[live]
            out[f"{f.name}@offsets"] = _offsets(live)
    return out


def _offsets(live: Tensor) -> Tensor:
    return torch.nn.functional.pad(live.sum(-1).cumsum(0), (1, 0))


# -- other schemas ----------------------------------------------------------------------------------------------------
def rename(schema: Schema, names: Mapping[str, str]) -> Schema:
    """With other names for features, tables and tasks."""

    def new(name: str | None) -> str | None:
        return None if name is None else names.get(name, name)

    features = []
    for f in schema.features:
        change: dict = {"name": new(f.name)}
        if isinstance(f, History):
            change |= {"of": tuple(new(n) for n in f.of), "where": new(f.where)}
        elif is_embedded(f):
            change |= {"table": new(f.table)}  # type: ignore[attr-defined]
        features.append(dataclasses.replace(f, **change))
    tasks = []
    for t in schema.tasks:
        product = None if t.product is None else tuple(new(n) for n in t.product)
        tasks.append(dataclasses.replace(t, name=new(t.name), label=new(t.label), given=new(t.given), product=product))
    return schema.replace(features=features, tasks=tasks, user=new(schema.user), item=new(schema.item))


def without_numbers(schema: Schema) -> Schema:
    """Only what is embedded."""
    return schema.without(*(f.name for f in schema.features if not is_embedded(f) and not isinstance(f, History)))


def keys_only(schema: Schema, roles: Iterable[str] = ()) -> Schema:
    """The user and item keys, the first feature of each of `roles`, and histories of the item key alone."""
    keep = {schema.user, schema.item, *(schema.by_role(r)[0].name for r in roles if schema.by_role(r))}
    small = [dataclasses.replace(f, of=f.of[:1]) if isinstance(f, History) else f for f in schema.features]
    return schema.replace(features=[f for f in small if f.name in keep])


def with_dims(schema: Schema, dims: Iterable[int] = (3, 5, 2)) -> Schema:
    """Every table with another width than its neighbours."""
    cycle = itertools.cycle(dims)
    width: dict[str, int] = {}
    features = []
    for f in schema.features:
        if is_embedded(f):
            table = f.table_name  # type: ignore[attr-defined]
            width[table] = width.get(table) or next(cycle)
            f = dataclasses.replace(f, dim=width[table])
        features.append(f)
    return schema.replace(features=features)
