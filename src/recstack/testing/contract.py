"""The laws that every model keeps, whoever wrote it.

Run them on your own model with one row::

    import pytest
    from recstack import testing

    case = testing.Case(MyModel, {"dim": 4, "hidden": (8,)})


    @pytest.mark.parametrize("law", testing.laws(case))
    def test_contract(law):
        law(case)

Models are built small and *awake*: weights far from their tiny initial values, running statistics set, so that a law which
says that two outputs are equal says something.
"""

from __future__ import annotations

import copy
import dataclasses
import doctest
import functools
import importlib
import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, DataError, SchemaError, unknown
from recstack.features import tasks
from recstack.metrics import auc, gauc
from recstack.models.base import CountedRetriever, Reranker, Retriever, load
from recstack.schema import CANDIDATE_ROLES, History, Schema, is_multi
from recstack.testing import batches
from recstack.testing.batches import Batch, batch, pad_histories, pad_lists, take, to_jagged
from recstack.testing.worlds import World, communities

STEPS, LOOK, RATE, REQUESTS = 250, 50, 0.01, 256  # of the training run in the planted world


@dataclass(frozen=True)
class Case:
    """One model under the laws.

    Args:
        model: the class.
        options: every argument of its constructor beside the schema, none equal to its default, so that saving cannot
            lose one unseen. ``{}`` for a model that has none.
        schema: fitted; `testing.schema()` where None.
        band: how much of what can be known of the planted world it learns, by AUC (within lists, where there are lists):
            0 is chance, 1 the truth.
        lists: candidates a request in the planted world; None is 5 for re-rankers, else 1.
        prepare: called with each new model, for what `fit` would give it (a graph's edges).
        unread: features that the paper does not read.
        exempt: {law: reason} of laws that contradict the paper.
        label: for a second row of one model.
    """

    model: type
    options: Mapping[str, Any] = field(default_factory=dict)
    schema: Schema | None = None
    band: float = 0.8
    lists: int | None = None
    prepare: Callable[[Any], Any] | None = None
    unread: tuple[str, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return f"{self.model.__name__}-{self.label}" if self.label else self.model.__name__

    @property
    def declared(self) -> Schema:
        """Its schema, or the usual one."""
        return self.schema if self.schema is not None else batches.schema()

    def build(self, schema: Schema | None = None, *, seed: int = 0, awake: bool = True, **options: Any) -> Any:
        """A new model in evaluation mode, without dropout. Options that name columns keep those that `schema` has."""
        torch.manual_seed(seed)
        off = {name: 0.0 for name in self.options if "dropout" in name}
        schema, known = schema or self.declared, self.declared.names
        options = {**self.options, **off, **options}
        for key, value in options.items():
            if isinstance(value, tuple) and any(v in known for v in value):
                options[key] = tuple(v for v in value if v in schema.names)
        model = self.model(schema, **options)
        if self.prepare is not None:
            self.prepare(model)
        return (wake(model) if awake else model).eval()

    def batch(self, requests: int = 3, candidates: int = 2, seed: int = 0, **options: Any) -> Batch:
        """A random batch of its schema."""
        return batch(self.declared, requests, candidates, seed, **options)


@torch.no_grad()
def wake(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights of ordinary size, and running statistics from a few batches of its schema.

    One without gradients is what its data makes of it: it is fitted on a planted world.
    """
    if not getattr(model, "gradients", True):
        world = World(model.schema)  # type: ignore[arg-type]
        return model.fit([world.batch(100, 2, seed + i) for i in range(4)])  # type: ignore[operator]
    g = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for p in model.parameters():
        if id(p) in tables:
            p[1:] += 0.5 * torch.randn(p[1:].shape, generator=g)  # row 0 is padding
        else:
            p += 0.1 * torch.randn(p.shape, generator=g)
    model.train()
    for i in range(3):
        model(batch(model.schema, 8, 2, seed=100 + i))  # type: ignore[arg-type]
    return model.eval()


# -- the register of laws ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Law:
    """A law by name; called with a case, it raises AssertionError with what was broken."""

    name: str
    function: Callable[[Case], None]
    slow: bool = False
    applies: Callable[[Case], bool] = lambda case: True
    gradients: bool = False  # says nothing of a model without gradients

    def __call__(self, case: Case) -> None:
        self.function(case)

    def __repr__(self) -> str:
        return self.name


LAWS: dict[str, Law] = {}
COUNTED: dict[str, Law] = {}


def _law(
    function: Callable[[Case], None] | None = None,
    *,
    slow: bool = False,
    register: dict[str, Law] = LAWS,
    applies: Callable[[Case], bool] = lambda case: True,
    gradients: bool = False,
) -> Any:
    """Put a function into the register under its own name."""

    def put(f: Callable[[Case], None]) -> Callable[[Case], None]:
        register[f.__name__] = Law(f.__name__, f, slow, applies, gradients)
        return f

    return put if function is None else put(function)


def laws(case: Case) -> list[Law]:
    """The laws that hold for a case, without those it is exempt from.

    >>> from recstack import testing
    >>> from recstack.models.ranking.lr import LR
    >>> [law.name for law in testing.laws(testing.Case(LR))][:3]
    ['arguments', 'shapes', 'gradients']
    """
    known = COUNTED if issubclass(case.model, CountedRetriever) else LAWS
    for name in case.exempt:
        if name not in known:
            raise unknown("law", name, known)
    gradients = getattr(case.model, "gradients", True)
    known = {n: law for n, law in known.items() if gradients or not law.gradients}
    return [law for law in known.values() if law.name not in case.exempt and law.applies(case)]


def check(case: Case, *, slow: bool = True) -> None:
    """All laws on one case.

    Raises:
        AssertionError: naming every law that is broken, and how.

    >>> from recstack import testing
    >>> from recstack.models.ranking.lr import LR
    >>> testing.check(testing.Case(LR, band=0.2), slow=False)
    """
    broken = []
    for law in laws(case):
        if law.slow and not slow:
            continue
        try:
            law(case)
        except Exception as e:
            broken.append(f"{law.name}: {type(e).__name__}: {e}")
    if broken:
        raise AssertionError(f"{case} breaks {len(broken)} laws.\n" + "\n".join(broken))


def _same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, tolerance: float = 2e-5) -> None:
    assert list(found) == list(wanted), f"{what}: {list(found)} instead of {list(wanted)}"
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{what}, {n!r}: {m}"
        )


def _has(*roles: str) -> Callable[[Case], bool]:
    return lambda case: bool(case.declared.by_role(*roles))


def _total(model: Any, some: Batch, seed: int = 7) -> Tensor:
    torch.manual_seed(seed)  # what is drawn (negatives) is the same on both sides
    return torch.stack(list(model.losses(some).values())).sum()


def _draws(model: Any, some: Batch) -> bool:
    """Whether its losses sample something: then differently shaped batches give different draws."""
    return not torch.equal(_total(copy.deepcopy(model), some), _total(copy.deepcopy(model), some, seed=8))


def _gradients(model: Any, some: Batch) -> dict[str, Tensor]:
    """By name of the parameter; of a model that has none (trees), nothing."""
    if not model.gradients:
        return {}
    model.zero_grad(set_to_none=True)
    _total(model, some).backward()
    return {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


# -- what goes in, what comes out -------------------------------------------------------------------------------------
@_law
def arguments(case: Case) -> None:
    """The case gives every argument, none at its default: else saving could lose one unseen."""
    parameters = dict(list(inspect.signature(case.model).parameters.items())[1:])
    assert set(case.options) == set(parameters), f"case options {set(case.options) ^ set(parameters)}"
    for name, p in parameters.items():
        assert p.kind is p.KEYWORD_ONLY, f"{name} should be keyword-only"
        assert not isinstance(p.default, list | dict | set), f"{name} has a mutable default"
        assert case.options[name] != p.default, f"{name} equals its default {p.default!r}"


@_law
def shapes(case: Case) -> None:
    """Logits [R, L] (and classes), finite and float32, whatever R and L; losses are finite scalars."""
    model, schema = case.build(), case.declared
    for requests in (1, 2, 7):
        for candidates in (1, 2, 7):
            some = case.batch(requests, candidates, mask=candidates == 7, weight=requests == 7)
            lead = (requests, candidates if schema.by_role(*CANDIDATE_ROLES) else 1)
            for training in (True, False):
                model.train(training)
                out = model(some)
                names = [t.name for t in schema.tasks]
                assert list(out) == (names or ["score"]), f"outputs {list(out)}, tasks {names}"
                for t in schema.tasks:
                    wanted = (*lead, tasks.outputs(t)) if tasks.outputs(t) > 1 else lead
                    assert out[t.name].shape == wanted, f"{t.name}: {tuple(out[t.name].shape)}, not {wanted}"
                for name, value in out.items():
                    assert value.dtype == torch.float32, f"{name} is {value.dtype}"
                    assert value.isfinite().all(), f"{name} is not finite at R={requests}, L={candidates}"
                for name, value in model.losses(some).items():
                    assert value.shape == (), f"loss {name} has shape {tuple(value.shape)}"
                    assert value.isfinite(), f"loss {name} is {value}"
            for t in schema.tasks:
                if t.kind == "binary":
                    chance = model.predict(some)[t.name]
                    assert ((chance >= 0) & (chance <= 1)).all(), f"predicted {t.name} is no probability"


@_law(gradients=True)
def gradients(case: Case) -> None:
    """Every parameter gets a gradient, finite and not all zero."""
    model, some = case.build(), case.batch(16, 3, mask=True)
    total: dict[str, float] = {}
    for training in (True, False):
        for name, grad in _gradients(model.train(training), some).items():
            assert grad.isfinite().all(), f"{name}: gradient is not finite"
            total[name] = total.get(name, 0.0) + float(grad.abs().sum())
    blind = _unseen(model)
    dead = [n for n, p in model.named_parameters() if p.requires_grad and not total.get(n) and n not in blind]
    assert not dead, f"no gradient reaches {dead}"


def _unseen(model: Any) -> set[str]:
    """Biases of heads whose loss sees only differences within a list: what reaches them is rounding, or nothing."""
    usual = "softmax" if isinstance(model, Reranker) else None
    found = set()
    for t in model.schema.tasks:
        loss = t.loss if isinstance(t.loss, str) else t.loss[0] if t.loss else usual if t.kind == "binary" else None
        if loss in tasks.LISTS:
            found.add(f"heads.layers.{t.name}.bias")
    return found


@_law(gradients=True)
def reads_every_column(case: Case) -> None:
    """Changing any declared column changes what comes out."""
    model, schema = case.build(), case.declared
    one, other = case.batch(4, 3, seed=1), case.batch(4, 3, seed=2)
    before = model(one)
    for f in schema.features:
        if f.name in case.unread or (f.role == "pair" and issubclass(case.model, Retriever)):
            continue
        keys = [f"{name}@{f.name}" for name in f.of] if isinstance(f, History) else [f.name]
        after = model({**one, **{key: other[key] for key in keys}})
        assert any((after[n] - before[n]).abs().max() > 1e-4 for n in after), f"{f.name!r} changes nothing"


@_law
def missing_column(case: Case) -> None:
    """A column that the batch lacks is named in a DataError."""
    model, some = case.build(), case.batch()
    for f in case.declared.features:
        if f.name in case.unread or (f.role == "pair" and issubclass(case.model, Retriever)):
            continue
        key = f"{f.of[0]}@{f.name}" if isinstance(f, History) else f.name
        said = None
        try:
            model({k: v for k, v in some.items() if k != key})
        except DataError as e:
            said = str(e)
        assert said is not None, f"nobody misses {key!r}"
        assert key in said, f"without {key!r} the error says: {said}"


# -- rows, lists, histories -------------------------------------------------------------------------------------------
@_law
def requests_alone(case: Case) -> None:
    """A request alone gives what it gives among others; the order of requests does not matter."""
    model, some = case.build(), case.batch(5, 3, mask=True)
    together = model(some)
    for r in range(5):
        alone = model(take(some, case.declared, slice(r, r + 1)))
        _same(alone, {n: v[r : r + 1] for n, v in together.items()}, f"request {r} alone")
    order = torch.tensor([3, 0, 4, 1, 2])
    _same(model(take(some, case.declared, order)), {n: v[order] for n, v in together.items()}, "requests reordered")


@_law(applies=lambda case: not issubclass(case.model, Reranker) and _has(*CANDIDATE_ROLES)(case))
def candidates_alone(case: Case) -> None:
    """A candidate alone gives what it gives in a list. Re-rankers score lists, so not for them."""
    model, some = case.build(), case.batch(3, 4)
    together = model(some)
    for l in range(4):
        alone = model(take(some, case.declared, candidates=slice(l, l + 1)))
        _same(alone, {n: v[:, l : l + 1] for n, v in together.items()}, f"candidate {l} alone")


@_law(applies=_has(*CANDIDATE_ROLES))
def list_padding(case: Case) -> None:
    """More dead candidates, whatever they hold, change no score, no loss, no gradient and no running statistic."""
    some = case.batch(6, 3, mask=True, weight=True)
    more = pad_lists(some, case.declared, 4)
    live = some["@mask"]
    for training in (False, True):
        short, long = case.build().train(training), case.build().train(training)
        a, b = short(some), long(more)
        what = "in training" if training else "in evaluation"
        _same({n: v[:, :3][live] for n, v in b.items()}, {n: v[live] for n, v in a.items()}, f"padded lists {what}")
        if not _draws(short, some):
            _same(_gradients(long, more), _gradients(short, some), f"gradients of padded lists {what}", 1e-4)
        _same(dict(long.named_buffers()), dict(short.named_buffers()), f"statistics of padded lists {what}")


@_law(applies=_has(*CANDIDATE_ROLES))
def empty_lists(case: Case) -> None:
    """Lists without a live candidate stay finite, and a batch of nothing else moves no weight."""
    model, some = case.build(), case.batch(4, 3)
    some["@mask"] = torch.tensor([True, False, True, False]).unsqueeze(-1).expand(4, 3).clone()
    for training in (True, False):
        model.train(training)
        assert all(v.isfinite().all() for v in model(some).values()), "a score is not finite"
        assert all(g.isfinite().all() for g in _gradients(model, some).values()), "a gradient is not finite"
    some["@mask"][:] = False
    for name, grad in _gradients(model.train(), some).items():
        assert grad.isfinite().all(), f"with no live candidate the gradient of {name} is not finite"


@_law(applies=_has("history"))
def history_padding(case: Case) -> None:
    """More empty steps at the end of histories change nothing, in training neither."""
    some = case.batch(5, 2)
    more = pad_histories(some, case.declared, 3)
    for training in (False, True):
        short, long = case.build().train(training), case.build().train(training)
        _same(long(more), short(some), "longer padded histories")
        if not _draws(short, some):
            _same(_gradients(long, more), _gradients(short, some), "gradients of longer padded histories", 1e-4)


@_law(applies=_has("history"))
def empty_history(case: Case) -> None:
    """A user without a past has a finite score and finite gradients, jagged or padded, alone or not."""
    schema = case.declared
    some = case.batch(3, 2)
    for key in (f"{name}@{h.name}" for h in schema.histories for name in h.of):
        some[key] = torch.zeros_like(some[key])
    for spelled in (some, to_jagged(some, schema)):
        for training in (True, False):
            model = case.build().train(training)
            assert all(v.isfinite().all() for v in model(spelled).values()), "a score is not finite"
            assert all(g.isfinite().all() for g in _gradients(model, spelled).values()), "a gradient is not finite"
    model = case.build()
    _same(model(to_jagged(some, schema)), model(some), "nothing but empty histories, jagged and padded")


@_law(applies=lambda case: any(isinstance(f, History) or is_multi(f) for f in case.declared.features))
def jagged(case: Case) -> None:
    """Jagged and padded spelling of one batch give equal scores and gradients."""
    padded = case.batch(5, 3)
    flat = to_jagged(padded, case.declared)
    for training in (False, True):
        one, other = case.build().train(training), case.build().train(training)
        _same(other(flat), one(padded), "jagged instead of padded")
        _same(_gradients(other, flat), _gradients(one, padded), "gradients, jagged instead of padded", 1e-4)


@_law
def evaluation_changes_nothing(case: Case) -> None:
    """Scoring leaves weights, statistics and the batch as they were, and gives the same twice."""
    model, some = case.build(), case.batch()
    state, given = copy.deepcopy(model.state_dict()), {k: v.clone() for k, v in some.items()}
    first = model(some)
    _same(model(some), first, "the second time", 0.0)
    _same(model.state_dict(), state, "state after scoring", 0.0)
    _same(some, given, "batch after scoring", 0.0)


# -- schemas ----------------------------------------------------------------------------------------------------------
def _runs(case: Case, schema: Schema, what: str) -> None:
    try:
        model = case.build(schema)
    except (SchemaError, ConfigError) as e:
        raise AssertionError(f"{what}: {e}") from e
    some = batch(schema, 3, 2)
    for training in (True, False):
        for name, value in model.train(training)(some).items():
            assert value.isfinite().all(), f"{what}: {name} is not finite"
        assert all(v.isfinite() for v in model.losses(some).values()), f"{what}: a loss is not finite"


@_law
def no_numbers(case: Case) -> None:
    """Works without a Numeric or Vector feature."""
    _runs(case, batches.without_numbers(case.declared), "without numbers")


@_law
def keys_only(case: Case) -> None:
    """Works with the user and item keys and what the model `needs`, and nothing else."""
    _runs(case, batches.keys_only(case.declared, case.model.needs), "with keys only")


@_law(applies=lambda case: not set(case.model.needs) & {"item", "pair", "history"})
def requests_only(case: Case) -> None:
    """A table without item columns: each row is its own only candidate."""
    schema = case.declared.without(
        *(f.name for f in case.declared.by_role(*CANDIDATE_ROLES, "history") if f.role != "history"),
        *(h.name for h in case.declared.histories),
    )
    _runs(case, schema, "without item columns")
    task = next(t for t in schema.tasks if tasks.outputs(t) == 1).name
    assert case.build(schema)(batch(schema, 3))[task].shape == (3, 1)


@_law
def several_widths(case: Case) -> None:
    """Embedding widths may differ from feature to feature."""
    _runs(case, batches.with_dims(case.declared), "with several widths")


def _renamed(option: Any, new: Mapping[str, str]) -> Any:
    """The names in tuples, and in mappings of them."""
    if isinstance(option, Mapping):
        return {new.get(k, k): _renamed(v, new) for k, v in option.items()}
    return tuple(new.get(x, x) for x in option) if isinstance(option, tuple) else option


@_law
def names(case: Case) -> None:
    """Columns and tasks may be called `type`, `items` and `a.b`: the result is that of any other names."""
    schema = case.declared
    unlucky = ("type", "items", "a.b", "forward", "training", "weight", "keys", "_modules", "x y")
    columns = dict(zip([f.name for f in schema.features], unlucky, strict=False))
    labels = dict(zip([t.name for t in schema.tasks], ("pop", "c.d", "state_dict"), strict=False))
    other = batches.rename(schema, columns | labels)
    options = {k: _renamed(v, columns | labels) for k, v in case.options.items()}
    for key in ("task", "delay"):
        if isinstance(options.get(key), str):
            options[key] = labels[str(options[key])]
    renamed = dataclasses.replace(case, options=options, schema=other)
    model, wanted = renamed.build(), case.build()(case.batch(weight=True))
    found = model(renamed.batch(weight=True))
    _same({n: found[labels.get(n, n)] for n in wanted}, wanted, "with unlucky names")
    assert all(g.isfinite().all() for g in _gradients(model.train(), renamed.batch()).values())
    twin = renamed.build(seed=1)
    twin.load_state_dict(model.state_dict())
    _same(twin.eval()(renamed.batch()), model.eval()(renamed.batch()), "with unlucky names, through state_dict")


# -- building, saving -------------------------------------------------------------------------------------------------
@_law(gradients=True)
def same_seed(case: Case) -> None:
    """The same seed gives the same weights, another seed others."""
    a, b, c = (case.build(seed=s, awake=False).state_dict() for s in (3, 3, 4))
    _same(a, b, "weights of the same seed", 0.0)
    assert any(not torch.equal(a[n], c[n]) for n in a), "the seed does not matter"


@_law
def independent(case: Case) -> None:
    """Two models share no storage, and what was given to the constructor stays as it was."""
    given = copy.deepcopy(dict(case.options))
    one, two = case.build(awake=False), case.build(awake=False)
    assert _plain(given) == _plain(case.options), "the constructor changed its arguments"
    places = [{t.data_ptr() for t in m.state_dict().values() if t.numel()} for m in (one, two)]
    assert not places[0] & places[1], "two models share a tensor"
    modules = [{id(m) for m in model.modules()} for model in (one, two)]
    assert not modules[0] & modules[1], "two models share a module"


@_law
def save_and_load(case: Case) -> None:
    """What is loaded has equal arguments, schema and weights, and gives the same to the bit."""
    torch.manual_seed(0)
    model = case.model(case.declared, **case.options)
    if case.prepare is not None:
        case.prepare(model)
    wake(model)
    some = case.batch(4, 3)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/bundle")
        again = load(f"{folder}/bundle", trust=(case.model.__module__.partition(".")[0],))
    assert type(again) is case.model
    assert again.schema == model.schema
    assert _plain(again.config) == _plain(model.config), f"{again.config} instead of {model.config}"
    assert not again.training
    _same(again.state_dict(), model.state_dict(), "loaded weights", 0.0)
    for name, value in model(some).items():
        assert torch.equal(again(some)[name], value), f"{name} differs after loading"


def _plain(value: Any) -> Any:
    """Comparable: a partial is equal to another by what it does."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return (value.func, value.args, value.keywords) if hasattr(value, "func") else value


@_law(gradients=True)
def optimiser_groups(case: Case) -> None:
    """Each parameter falls into exactly one optimiser group; the embedding group holds tables, and only tables."""
    from recstack.training.optimizers import route

    model = case.build(awake=False)
    groups = {g.key: g.params for g in route(model, {"embedding": "rowwise_adagrad", "default": "adam"})}
    chosen = [n for params in groups.values() for n in params]
    assert sorted(chosen) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    tables = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    assert set(groups.get("embedding", ())) == tables


# -- precision, compilers ---------------------------------------------------------------------------------------------
@_law(gradients=True)
def bfloat16(case: Case) -> None:
    """Under bfloat16 autocast scores stay float32 and near, losses and gradients finite."""
    model, some = case.build(), case.batch(8, 3)
    exact = model(some)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(some)
        total = _total(model.train(), some)
    total.backward()
    for name, value in exact.items():
        assert near[name].dtype == torch.float32, f"{name} is {near[name].dtype}"
        gap = (near[name] - value).abs().max() / (value.abs().max() + 1)
        assert gap < 0.05, f"{name} is {gap:.3f} away, relative to its size"
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), "a gradient is not finite"


def _short(case: Case) -> Schema:
    """Its schema with the keys, histories and few features more: tracing takes seconds, by the feature, and `Inputs` is one."""
    schema = case.declared
    named = {n for v in case.options.values() for n in np.ravel(np.asarray(v, dtype=object)) if isinstance(n, str)}
    keep = {schema.user, schema.item, *named, *(n for h in schema.histories for n in (h.name, *h.of))}
    kinds = {(f.kind, is_multi(f)) for f in schema.features if f.name in keep} | {
        ("text", True),
        ("vector", False),
        ("hits", False),
    }
    for f in schema.features:
        if f.role in ("domain", *case.model.needs) or (f.kind, is_multi(f)) not in kinds:
            keep.add(f.name)
            kinds.add((f.kind, is_multi(f)))
    return schema.replace(features=[f for f in schema.features if f.name in keep])


@_law(slow=True, gradients=True)
def compiled(case: Case) -> None:
    """`torch.compile` (the tracer; kernels are torch's business) gives what eager gives; another shape is not traced anew."""
    schema, graphs = _short(case), []
    model = case.build(schema)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    fast, traced = torch.compile(case.build(schema), backend=backend, dynamic=True), 0
    # No size equals another's, or R = 3 would be taken for the width of a vector of three.
    for requests, candidates in ((11, 17), (4, 7)):
        some = batch(schema, requests, candidates)
        _same(fast(some), model(some), f"compiled at R={requests}, L={candidates}")
        traced = traced or len(graphs)
    torch.compiler.reset()
    # One that breaks its graph (rows by domain, as many as there are) may trace such a part again.
    assert traced > 1 or len(graphs) == 1, "another shape was traced anew"


@_law(slow=True, gradients=True)
def exported(case: Case) -> None:
    """`torch.export` with symbolic R, L and history length gives what eager gives."""
    schema = _short(case)
    model = case.build(schema)

    def inputs(requests: int, candidates: int, steps: int) -> Batch:
        some = batch(schema, requests, candidates, requests, mask=True, steps=steps)
        some = {k: v for k, v in some.items() if not k.endswith("@label")}
        return some if schema.by_role(*CANDIDATE_ROLES) else {k: v for k, v in some.items() if k != "@mask"}

    first, dims = inputs(3, 2, 5), {}
    rows, cells, steps = (torch.export.Dim(n, min=1, max=4096) for n in ("R", "L", "T"))
    ends = tuple(f"@{h.name}" for h in schema.histories)
    for key in first:
        if batches.is_candidate_key(key, schema):
            dims[key] = {0: rows, 1: cells}
        else:
            dims[key] = {0: rows, 1: steps} if ends and key.endswith(ends) else {0: rows}
    graph = torch.export.export(model, (first,), dynamic_shapes=(dims,)).module()
    for size in ((3, 2, 5), (4, 7, 3), (1, 1, 1)):
        some = inputs(*size)
        _same(graph(some), model(some), f"exported, at R, L, T = {size}")


# -- learning ---------------------------------------------------------------------------------------------------------
@functools.cache
def _lessons(schema: Schema, lists: int) -> tuple[list[Batch], Batch, dict[str, Tensor]]:
    """Batches to learn from, one to be examined on, and the truth of that one."""
    world = World(schema)
    test = world.batch(4000 // lists, lists, seed=1_000_000)
    return [world.batch(REQUESTS // lists, lists, seed) for seed in range(50)], test, world.truth(test)


@_law(slow=True)
def learns(case: Case) -> None:
    """Within a few hundred steps of Adam it learns what the planted world lets it know."""
    schema = batches.keys_only(case.declared, case.model.needs)
    lists = case.lists or (5 if issubclass(case.model, Reranker) else 1)
    rows, test, truth = _lessons(schema, lists)
    model = case.build(schema, awake=False)
    label = {t.name: test[f"{t.column}@label"] for t in schema.tasks if not t.derived}
    name = schema.tasks[0].name
    area = auc if lists == 1 else partial(gauc, group=torch.arange(len(label[name])).unsqueeze(-1).expand(-1, lists))
    known = float(area(truth[name], label[name])) - 0.5

    def learned() -> float:
        with torch.no_grad():
            scores = model.eval()(test)
        return (float(area(tasks.score(scores[name], schema.tasks[0]), label[name])) - 0.5) / known

    if model.gradients:
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        for step in range(STEPS):
            if step and step % LOOK == 0 and learned() >= case.band:  # enough is known
                break
            model.train()
            optimizer.zero_grad()
            torch.stack(list(model.losses(rows[step % len(rows)]).values())).sum().backward()
            optimizer.step()
    else:
        model.fit(rows)
    share = learned()
    assert share >= case.band, f"{name}: {share:.2f} of what can be known, the band begins at {case.band}"
    assert share <= 1.05, f"{name}: {share:.2f} of what can be known: it has seen the answer"


# -- documentation ----------------------------------------------------------------------------------------------------
@_law
def documented(case: Case) -> None:
    """The file says title, venue, year and link; the class its equation, its arguments, its link and an example."""
    module, cls = inspect.getdoc(sys.modules[case.model.__module__]) or "", inspect.getdoc(case.model) or ""
    assert re.search(r"\([^()]+, [^()]*\b(19|20)\d\d\b", module), "the file does not say 'Title (Authors, Venue Year).'"
    assert re.search(r"https?://\S+", module), "the file has no link"
    assert ".. math::" in cls, "the class has no equation"
    assert re.search(r"https?://\S+", cls), "the class has no link"
    assert ">>>" in cls, "the class has no example"
    for name in case.options:
        assert re.search(rf"\b{name}(, \w+)*:", cls), f"argument {name} is not described"


@_law(slow=True)
def example(case: Case) -> None:
    """The example in the docstring runs as printed."""
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    finder = doctest.DocTestFinder(recurse=False)
    for test in finder.find(
        case.model, case.model.__name__, globs=vars(importlib.import_module(case.model.__module__))
    ):
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


# -- retrievers -------------------------------------------------------------------------------------------------------
@_law(applies=lambda case: issubclass(case.model, Retriever))
def two_sides(case: Case) -> None:
    """The score is the best inner product of `user_vectors` [R, K, D] and `item_vectors` [N, D] of items alone."""
    model, schema = case.build(), case.declared
    some = case.batch(3, 4)
    users = model.user_vectors({k: v for k, v in some.items() if not batches.is_candidate_key(k, schema)})
    items = model.item_vectors({f.name: some[f.name].flatten(0, 1) for f in schema.by_role("item")})
    assert (users.dim(), users.shape[0]) == (3, 3), f"user vectors are {tuple(users.shape)}"
    assert items.shape == (12, users.shape[-1]), f"item vectors are {tuple(items.shape)}"
    slow = torch.stack([(users[r] @ items[4 * r : 4 * r + 4].T).amax(0) for r in range(3)])
    for name, score in model(some).items():
        _same({name: score}, {name: slow}, "forward and the two sides")


# -- models that count ------------------------------------------------------------------------------------------------
def _counted(case: Case) -> tuple[Any, Any]:
    world = communities()
    return case.model(**case.options).fit(world.log), world


def _equal(a: Any, b: Any) -> None:
    """Two Candidates, to the bit."""
    for name in ("ids", "scores", "mask"):
        assert torch.equal(getattr(a, name), getattr(b, name)), f"{name} differ"


@_law(register=COUNTED)
def counted_arguments(case: Case) -> None:
    """As for models that learn: every argument is given, none at its default."""
    arguments(case)


@_law(register=COUNTED)
def deterministic(case: Case) -> None:
    """Counting twice gives the same arrays and the same recommendations."""
    (one, world), (two, _) = _counted(case), _counted(case)
    for name in case.model.arrays:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    a, b = (m.recommend(world.users[0], 5) for m in (one, two))
    _equal(a, b)


@_law(register=COUNTED)
def counted_save_and_load(case: Case) -> None:
    """What is loaded has equal arguments and recommends the same to the bit, to the same raw users."""
    model, world = _counted(case)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/bundle")
        again = load(f"{folder}/bundle", trust=(case.model.__module__.partition(".")[0],))
        assert _plain({k: v for k, v in again.config.items() if k != "schema"}) == _plain(
            {k: v for k, v in model.config.items() if k != "schema"}
        )
        a, b = (m.recommend([*world.users[0], *world.users[1]], 7) for m in (model, again))
    _equal(a, b)


@_law(register=COUNTED)
def recommends(case: Case) -> None:
    """k distinct live items that the user has not met, best first; with `exclude_seen=False`, met ones too."""
    model, world = _counted(case)
    users = [*world.users[0][:5], *world.users[1][:5]]
    found = model.recommend(users, 4)
    assert found.ids.shape == found.scores.shape == found.mask.shape == (10, 4)
    requests = model.requests(users)
    offsets, seen = requests.seen
    for r in range(10):
        live = found.ids[r][found.mask[r]].tolist()
        assert len(set(live)) == len(live), "an item twice"
        assert min(live, default=2) >= 2, "padding or an unknown item"
        assert not set(live) & set(seen[offsets[r] : offsets[r + 1]].tolist()), "an item that the user has met"
        scores = found.scores[r][found.mask[r]]
        assert (scores[:-1] >= scores[1:]).all(), "not best first"
    assert found.scores.isfinite().all()
    assert not found.ids[~found.mask].any()
    everything = model.recommend(users, model.catalog.size, exclude_seen=False)
    assert everything.mask.sum() >= found.mask.sum()


@_law(register=COUNTED)
def filters(case: Case) -> None:
    """`where` leaves only what is allowed; where nothing is, nothing comes, and the mask says so."""
    model, world = _counted(case)
    allowed = torch.zeros(model.catalog.size, dtype=torch.bool)
    allowed[2::3] = True
    kept = allowed.clone()
    found = model.recommend(world.users[0], 5, where=allowed)
    assert allowed[found.ids[found.mask]].all(), "an item that is not allowed"
    assert torch.equal(allowed, kept), "recommend changed where="
    nothing = model.recommend(world.users[0], 5, where=torch.zeros_like(allowed))
    assert not nothing.mask.any()
    assert not nothing.ids.any()
    assert nothing.scores.isfinite().all()


@_law(register=COUNTED)
def unseen_users(case: Case) -> None:
    """A user whom nobody has met gets no error: popular items, or nothing."""
    model, world = _counted(case)
    found = model.recommend([world.users[0][0], 999_999_999], 3)
    assert found.mask[0].any()
    assert found.scores.isfinite().all()
    alone = model.recommend([world.users[0][0]], 3)
    assert torch.equal(alone.ids[0], found.ids[0]), "a stranger in the batch changes another's page"


@_law(register=COUNTED)
def counted_pair_scores(case: Case) -> None:
    """`pair_scores` of what was recommended are the scores it was recommended with."""
    model, world = _counted(case)
    found = model.recommend(world.users[0], 4)
    again = model.pair_scores(model.requests(world.users[0]), found.ids)
    torch.testing.assert_close(again[found.mask], found.scores[found.mask])


@_law(register=COUNTED)
def finds_the_community(case: Case) -> None:
    """In a log of two communities, what a user is recommended is their own community's (band 0: popularity's answer)."""
    model, world = _counted(case)
    hits = total = 0
    for users, items in zip(world.users, world.items, strict=True):
        ids = set(np.asarray(model.schema.encoder.encode_values(model.schema.item, items)).tolist())
        found = model.recommend(users, 5)
        hits += sum(i in ids for i in found.ids[found.mask].tolist())
        total += int(found.mask.sum())
    assert total, "nothing is recommended"
    assert hits / total >= case.band, f"{hits} of {total} from the user's own community; the band begins at {case.band}"


@_law(register=COUNTED)
def counted_documented(case: Case) -> None:
    """As for models that learn."""
    documented(case)


@_law(register=COUNTED, slow=True)
def counted_example(case: Case) -> None:
    """The example in the docstring runs as printed."""
    example(case)
