"""Tasks, and the schema that holds columns and tasks together."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from recstack.errors import SchemaError, unknown
from recstack.schema.features import (
    CANDIDATE_ROLES,
    KINDS,
    REQUEST_ROLES,
    TABLE_OPTIONS,
    Categorical,
    Crossed,
    Feature,
    History,
    Hits,
    Numeric,
    is_derived,
    is_embedded,
)

TASK_KINDS = ("binary", "regression", "multiclass", "histogram")


@dataclass(frozen=True)
class Task:
    """Something to predict. Holds names only; `features.tasks` turns it into labels, masks, losses and metrics.

    Args:
        name: of the output; also the label's column unless `label` says otherwise.
        kind: "binary", "regression", "multiclass" (then `classes`) or "histogram" (then `bins`): a number, such as
            watch time, whose distribution is predicted and whose expected value is read.
        weight: of its loss; 0 keeps the head, predicted and measured, without a loss of its own.
        given: a binary task: loss *and* metric count only where that label is 1.
        product: binary tasks that form a `given` chain; the probability, and the label, of all of them together.
        transform: "log1p" trains a regression on log(1 + y).
        bins: of a histogram: the ascending values that its bins stand for, or how many (at most) an Encoder chooses
            from the training labels: the least, and quantiles of those above it.
        loss: by name, or by name and options as in ``("focal", {"gamma": 2.0})``; None takes the kind's usual one.
        metric: by name; None takes the kind's usual ones.
    """

    name: str
    kind: str = "binary"
    label: str | None = None
    weight: float = 1.0
    given: str | None = None
    product: tuple[str, ...] | None = None
    transform: str | None = None
    classes: int | None = None
    bins: int | tuple[float, ...] | None = None
    loss: str | tuple[str, dict[str, Any]] | None = field(default=None, hash=False)
    metric: str | None = None

    TRANSFORMS: ClassVar[tuple[str, ...]] = ("log1p",)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "@" in self.name:
            raise SchemaError(f"A task's name is a non-empty text without '@'; got {self.name!r}.")
        if self.kind not in TASK_KINDS:
            raise unknown(f"kind of task {self.name!r}", self.kind, TASK_KINDS, SchemaError)
        if self.product is not None:
            object.__setattr__(self, "product", tuple(self.product))
            if self.kind != "binary":
                raise SchemaError(f"Task {self.name!r}: a product of probabilities is binary, not {self.kind}.")
            if self.label is not None or self.given is not None:
                raise SchemaError(
                    f"Task {self.name!r}: a product's label is made from its members; drop label= and given=."
                )
        if self.transform is not None and (self.kind != "regression" or self.transform not in self.TRANSFORMS):
            raise SchemaError(
                f"Task {self.name!r}: transform= is 'log1p', and for a regression; got {self.transform!r}."
            )
        if self.kind == "multiclass" and (self.classes or 0) < 2:
            raise SchemaError(f"Task {self.name!r} is multiclass; give classes=, at least 2.")
        self._check_bins()
        if self.loss is not None and not isinstance(self.loss, str):
            name, options = self.loss if isinstance(self.loss, list | tuple) and len(self.loss) == 2 else (None, None)
            if not isinstance(name, str) or not isinstance(options, dict):
                raise SchemaError(
                    f"Task {self.name!r}: loss= is a name, or a name and its options as in "
                    f'("focal", {{"gamma": 2.0}}); got {self.loss!r}.'
                )
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
            object.__setattr__(self, "loss", (name, options))
        if self.weight < 0:
            raise SchemaError(f"Task {self.name!r}: weight must not be negative; got {self.weight}.")

    def _check_bins(self) -> None:
        if self.kind != "histogram":
            if self.bins is not None:
                raise SchemaError(f"Task {self.name!r}: bins= is for kind='histogram', and it is {self.kind}.")
            return
        bins = tuple(self.bins) if isinstance(self.bins, list | tuple) else self.bins
        if isinstance(bins, tuple):
            numbers = all(isinstance(x, int | float) and math.isfinite(x) for x in bins)
            right = numbers and len(bins) > 1 and all(a < b for a, b in itertools.pairwise(bins))
            object.__setattr__(self, "bins", bins)
        else:
            right = isinstance(bins, int) and bins > 1
        if not right:
            raise SchemaError(
                f"Task {self.name!r} is a histogram; give bins=, a number of bins from 2 or their ascending values; "
                f"got {self.bins!r}."
            )

    @property
    def column(self) -> str:
        """The label's column."""
        return self.label or self.name

    @property
    def loss_name(self) -> str | None:
        """The loss without its options."""
        return self.loss[0] if isinstance(self.loss, tuple) else self.loss

    @property
    def unseen(self) -> float:
        """The label of a candidate that was drawn, not shown: 0 for binary tasks and weighted_logistic, else missing."""
        return 0.0 if self.kind == "binary" or self.loss_name == "weighted_logistic" else math.nan

    @property
    def derived(self) -> bool:
        """Whether it has no head of its own."""
        return self.product is not None

    def to_dict(self) -> dict[str, Any]:
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return {k: _lists(v) for k, v in out.items()}


@dataclass(frozen=True)
class Schema:
    """What the columns mean, and what to predict.

    Args:
        features: the columns, and what models make of them (Crossed, Hits), which is kept apart in `derived`.
        tasks: what to predict; may be empty for retrievers that only count.
        user, item: the key columns; by default the first single-valued Categorical of that role.
        time: the column that orders a user's events (any number or timestamp); needed to build histories.

    Raises:
        SchemaError: names that appear twice, a history of features that are not the item's, tasks that do not fit.

    >>> schema = Schema([Categorical("user_id", "user"), Categorical("item_id", "item")], [Task("click")])
    >>> schema.user, schema.item, schema.fitted
    ('user_id', 'item_id', False)
    """

    features: tuple[Feature, ...]
    tasks: tuple[Task, ...] = ()
    user: str | None = None
    item: str | None = None
    time: str | None = None
    encoder: Any = field(default=None, compare=False, repr=False, hash=False)
    derived: tuple[Crossed | Hits, ...] = ()

    def __init__(
        self,
        features: Iterable[Feature],
        tasks: Iterable[Task] = (),
        *,
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
        encoder: Any = None,
    ) -> None:
        put = object.__setattr__
        features = tuple(features)
        put(self, "features", tuple(f for f in features if not is_derived(f)))
        put(self, "derived", tuple(f for f in features if is_derived(f)))
        put(self, "tasks", tuple(tasks))
        put(self, "user", user or self._key("user"))
        put(self, "item", item or self._key("item"))
        put(self, "time", time)
        put(self, "encoder", encoder)
        self._check_features()
        self._check_tasks()

    # -- looking up ---------------------------------------------------------------------------------------------------
    def feature(self, name: str) -> Feature:
        for f in self.fields:
            if f.name == name:
                return f
        raise unknown("feature", name, [f.name for f in self.fields], SchemaError)

    def task(self, name: str) -> Task:
        for t in self.tasks:
            if t.name == name:
                return t
        raise unknown("task", name, [t.name for t in self.tasks], SchemaError)

    @property
    def fields(self) -> tuple[Feature, ...]:
        """What models read: the columns, then what is made of them."""
        return (*self.features, *self.derived)

    @property
    def timed(self) -> bool:
        """Whether a feature looks back in time, so that batches carry times."""
        return any(h.timed for h in self.histories) or any(isinstance(f, Hits) and f.within for f in self.derived)

    def by_role(self, *roles: str) -> tuple[Feature, ...]:
        """The columns of these roles."""
        return tuple(f for f in self.features if f.role in roles)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.features)

    @property
    def histories(self) -> tuple[History, ...]:
        return tuple(f for f in self.features if isinstance(f, History))

    @property
    def tables(self) -> dict[str, int | None]:
        """Rows of each embedding table, {table: size}."""
        return {f.table_name: f.size for f in self.fields if is_embedded(f)}  # type: ignore[attr-defined]

    @property
    def fitted(self) -> bool:
        """Whether every table knows its size, and every histogram its bins."""
        return all(size is not None for size in self.tables.values()) and not self._unlearned

    def require_fitted(self) -> Schema:
        """Itself, or a SchemaError that names a table without a size, or a histogram without bins."""
        missing = [name for name, size in self.tables.items() if size is None]
        if missing:
            raise SchemaError(
                f"Table {missing[0]!r} has no size yet. Fit an Encoder and build the model from encoder.schema: "
                "rs.Encoder(schema).fit(train).schema."
            )
        if self._unlearned:
            raise SchemaError(
                f"Task {self._unlearned[0]!r} has no values for its {self.task(self._unlearned[0]).bins} bins yet. Fit an "
                "Encoder and build the model from encoder.schema, or give the values: bins=(0, 10, 60)."
            )
        return self

    @property
    def _unlearned(self) -> list[str]:
        return [t.name for t in self.tasks if isinstance(t.bins, int)]

    # -- changing: a new schema each time --------------------------------------------------------------------------------
    def replace(self, **changes: Any) -> Schema:
        """With other arguments. New `features` keep what is made of them, unless they hold a feature of the same name."""
        kept = {"features": self.fields, "tasks": self.tasks, "user": self.user, "item": self.item, "time": self.time}
        if "features" in changes:
            changes["features"] = self._with_derived(tuple(changes["features"]))
        return Schema(**{**kept, "encoder": self.encoder, **changes})

    def _with_derived(self, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
        names = {f.name for f in features}
        return (*features, *(f for f in self.derived if f.name not in names and names.issuperset(f.reads)))

    def with_features(self, *features: Feature) -> Schema:
        """With these added; one of the same name is replaced in place."""
        new = {f.name: f for f in features}
        old = [new.pop(f.name, f) for f in self.fields]
        return self.replace(features=(*old, *new.values()))

    def without(self, *names: str) -> Schema:
        """Without these, and without what is made of them."""
        for name in names:
            self.feature(name)
        kept = [f for f in self.features if f.name not in names]
        left = {f.name for f in kept}
        return Schema(
            [*kept, *(f for f in self.derived if f.name not in names and left.issuperset(f.reads))],
            self.tasks,
            user=None if self.user in names else self.user,
            item=None if self.item in names else self.item,
            time=self.time,
            encoder=self.encoder,
        )

    # -- files --------------------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"features": [f.to_dict() for f in self.fields]}
        if self.tasks:
            out["tasks"] = [t.to_dict() for t in self.tasks]
        for key in ("user", "item", "time"):
            if getattr(self, key) is not None:
                out[key] = getattr(self, key)
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schema:
        """The schema that `to_dict` wrote, or that a person wrote as YAML or JSON.

        Raises:
            SchemaError: naming the key or the kind that is not known.
        """
        if not isinstance(data, dict) or not isinstance(data.get("features"), list):
            raise SchemaError("A schema is a mapping with a list called 'features'.")
        _only(data, ("features", "tasks", "user", "item", "time"), "schema")
        features = [_build(_kind(f), f, "feature") for f in data["features"]]
        tasks = [_build(Task, t, "task") for t in data.get("tasks") or []]
        return cls(features, tasks, user=data.get("user"), item=data.get("item"), time=data.get("time"))

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """From a .json, .yaml or .yml file."""
        path = Path(path)
        try:
            text = path.read_text("utf8")
        except OSError as e:
            raise SchemaError(f"Cannot read schema {str(path)!r}: {e.strerror}.") from e
        try:
            if path.suffix == ".json":
                data = json.loads(text)
            else:
                import yaml

                data = yaml.safe_load(text)
        except ValueError as e:
            raise SchemaError(f"Schema {str(path)!r} is not valid JSON: {e}.") from e
        except Exception as e:  # yaml.YAMLError, without importing yaml for JSON files
            raise SchemaError(f"Schema {str(path)!r} is not valid YAML: {' '.join(str(e).split())}.") from e
        return cls.from_dict(data)

    def save(self, path: str | Path) -> None:
        """To a .json, .yaml or .yml file, by the ending of `path`."""
        path = Path(path)
        if path.suffix == ".json":
            path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", "utf8")
        else:
            import yaml

            path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), "utf8")

    # -- checks -------------------------------------------------------------------------------------------------------
    def _key(self, role: str) -> str | None:
        single = (f for f in self.features if isinstance(f, Categorical) and f.role == role and not f.multi)
        return next((f.name for f in single), None)

    def _check_features(self) -> None:
        for f in self.features:
            if not isinstance(f, Feature):
                raise SchemaError(
                    f"A schema's features are Categorical, Numeric, Text, Vector, History, Crossed or Hits; got {f!r}."
                )
        names = [f.name for f in self.fields]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise SchemaError(f"Feature {twice[0]!r} is declared twice. Give each column one feature.")
        for key, role in ((self.user, "user"), (self.item, "item")):
            if key is not None and self.feature(key).role != role:
                raise SchemaError(f"{role}={key!r} names a feature of role {self.feature(key).role!r}, not {role!r}.")
        for h in self.histories:
            for name in h.of:
                if name not in names:
                    raise unknown(
                        f"item feature in History {h.name!r}", name, [f.name for f in self.by_role("item")], SchemaError
                    )
                if self.feature(name).role != "item":
                    raise SchemaError(
                        f"History {h.name!r} reads {name!r}, whose role is {self.feature(name).role!r}; a history reads item features."
                    )
            if h.of[0] != self.item:
                raise SchemaError(
                    f"History {h.name!r}: the first of of= is the item's key {self.item!r}; got {h.of[0]!r}."
                )
        made = (self._crossed(f) if isinstance(f, Crossed) else self._hits(f) for f in self.derived)
        object.__setattr__(self, "derived", tuple(made))
        self._check_tables()

    def _part(self, f: Crossed | Hits, name: str) -> Feature:
        """A column that a feature is made of."""
        if name not in self.names:
            raise unknown(f"feature that {type(f).__name__} {f.name!r} reads", name, self.names, SchemaError)
        return self.feature(name)

    def _crossed(self, f: Crossed) -> Crossed:
        """With its role, and its parts in the schema's order."""
        parts = [self._part(f, name) for name in f.of]
        for part in parts:
            if not is_embedded(part) and not isinstance(part, History):
                raise SchemaError(
                    f"Crossed {f.name!r} reads {part.name!r}, which has no ids; bucketise it, or leave it out."
                )
        if sum(isinstance(part, History) for part in parts) > 1:
            raise SchemaError(f"Crossed {f.name!r} has several histories; one is enough.")
        roles = {"user" if part.role == "history" else part.role for part in parts}
        shared = roles.pop() if len(roles) == 1 else "context" if roles.issubset(REQUEST_ROLES) else "pair"
        return dataclasses.replace(f, role=shared, of=tuple(n for n in self.names if n in f.of))

    def _hits(self, f: Hits) -> Hits:
        """With the feature of the history that it reads."""
        target, history, of = self._part(f, f.target), self._part(f, f.history), f.of or f.target
        if not isinstance(target, Categorical) or target.role not in CANDIDATE_ROLES:
            raise SchemaError(f"Hits {f.name!r}: target={f.target!r} is no Categorical of the candidates.")
        if not isinstance(history, History):
            raise SchemaError(f"Hits {f.name!r}: history={f.history!r} is a {type(history).__name__}, not a History.")
        if of not in history.of:
            raise unknown(f"of= of Hits {f.name!r} in History {f.history!r}", of, history.of, SchemaError)
        if getattr(self.feature(of), "table_name", None) != target.table_name:
            raise SchemaError(
                f"Hits {f.name!r} holds {f.target!r} against {of!r}, whose ids mean other values; give both one table=."
            )
        if f.within and self.time is None:
            raise SchemaError(f"Hits {f.name!r}: within= looks back in time; name the time column, Schema(..., time=).")
        return dataclasses.replace(f, of=of)

    def _check_tables(self) -> None:
        first: dict[str, Any] = {}
        for f in self.fields:
            if not is_embedded(f):
                continue
            other = first.setdefault(f.table_name, f)  # type: ignore[attr-defined]
            for what in ("dim", "arena", "buckets", "size", *TABLE_OPTIONS):
                a, b = getattr(other, what, None), getattr(f, what, None)
                if a != b:
                    raise SchemaError(
                        f"{type(f).__name__} {f.name!r} gives table {other.table_name!r} {what} {b}, {other.name!r} gives it {a}. "
                        f"Give one {what}, or another table= name."
                    )
            if type(f) is not type(other) or (isinstance(f, Numeric) and f is not other):
                raise SchemaError(
                    f"{f.name!r} and {other.name!r} are of different kinds and cannot share table {other.table_name!r}."
                )

    def _check_tasks(self) -> None:
        for t in self.tasks:
            if not isinstance(t, Task):
                raise SchemaError(f'A schema\'s tasks are Tasks, such as Task("click"); got {t!r}.')
        names = [t.name for t in self.tasks]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise SchemaError(f"Task {twice[0]!r} is declared twice.")
        for t in self.tasks:
            if t.given is not None:
                parent = self.task(t.given)
                if parent.kind != "binary":
                    raise SchemaError(
                        f"Task {t.name!r} is given {t.given!r}, which is {parent.kind}; a condition is binary."
                    )
                seen = [t.name]
                while parent is not None:
                    if parent.name in seen:
                        raise SchemaError(f"Tasks {' → '.join([*seen, parent.name])} are given each other in a circle.")
                    seen.append(parent.name)
                    parent = self.task(parent.given) if parent.given else None
            if t.product is not None:
                members = [self.task(name) for name in t.product]
                if len(members) < 2 or any(m.kind != "binary" or m.derived for m in members):
                    raise SchemaError(
                        f"Task {t.name!r}: a product needs two or more binary tasks that are not products."
                    )
                for above, below in itertools.pairwise(members):
                    if below.given != above.name:
                        raise SchemaError(
                            f"Task {t.name!r} multiplies {above.name!r} and {below.name!r}, which is a probability only if "
                            f'{below.name!r} is conditional: Task("{below.name}", given="{above.name}").'
                        )
                if members[0].given is not None:
                    raise SchemaError(
                        f"Task {t.name!r}: the chain must begin at {members[0].given!r}, on which {members[0].name!r} depends."
                    )


def _lists(value: Any) -> Any:
    """With lists for tuples, as files have them."""
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


def _only(data: dict[str, Any], known: Iterable[str], what: str) -> None:
    for key in data:
        if key not in set(known):
            raise unknown(f"key in {what}", key, known, SchemaError)


def _kind(data: Any) -> type[Feature]:
    if not isinstance(data, dict) or "kind" not in data:
        raise SchemaError(f"A feature is a mapping with 'kind' and 'name'; got {data!r}.")
    if data["kind"] not in KINDS:
        raise unknown("kind of feature", data["kind"], KINDS, SchemaError)
    return KINDS[data["kind"]]


def _build(cls: type, data: Any, what: str) -> Any:
    if not isinstance(data, dict):
        raise SchemaError(f"A {what} is a mapping; got {data!r}.")
    data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "kind" or cls is Task}
    _only(data, [f.name for f in dataclasses.fields(cls)], f"{what} {data.get('name', '')!r}")
    if "name" not in data:
        raise SchemaError(f"A {what} needs a name; got {data!r}.")
    return cls(**data)
