"""Columns and what they mean. Frozen and free of torch, so that a schema is a value: compared, hashed, stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from recstack.errors import SchemaError, unknown

ROLES = ("user", "item", "context", "history", "domain", "pair")
REQUEST_ROLES = ("user", "context", "domain")  # stored and computed once per request
CANDIDATE_ROLES = ("item", "pair")  # one value per candidate
POOLINGS = ("mean", "sum", "max")
COMPRESSIONS = ("hash", "double_hash", "quotient_remainder")
EVICTIONS = ("lfu", "lru", "ttl")
DTYPES = ("float32", "bfloat16")
TABLE_OPTIONS = ("compress", "rows", "admit", "evict", "ttl", "trainable", "dtype")


@dataclass(frozen=True)
class Feature:
    """A column with a name and a role; use one of the kinds below."""

    name: str
    role: str = "context"

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SchemaError(f"A feature's name is a non-empty text; got {self.name!r}.")
        if "@" in self.name:
            raise SchemaError(
                f"Feature name {self.name!r} holds '@', which marks what is not a feature. Rename the column."
            )
        if self.role not in ROLES:
            raise unknown(f"role of feature {self.name!r}", self.role, ROLES, SchemaError)
        if self.role == "history" and self.kind != "history":
            raise SchemaError(
                f"Feature {self.name!r} has role 'history'; declare History({self.name!r}, of=(...)) instead."
            )

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults, so that files stay short."""
        out: dict[str, Any] = {"kind": self.kind}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name == "size" and is_derived(self):
                continue  # it follows from the rest
            if f.name in ("name", "role") or value != f.default:
                out[f.name] = list(value) if isinstance(value, tuple) else value
        return out


@dataclass(frozen=True)
class Embedded(Feature):
    """What has rows in an embedding table: Categorical, Text, and Numeric with transform="bucketize".

    How the table is kept (the same for all features that share it; `features.tables` does it, models see ids only):

    Args:
        compress: fewer rows than ids. "hash": one of `rows` rows, by a hash of the id; "double_hash": the sum of two of
            `rows` rows, by two hashes; "quotient_remainder": row id mod `rows` times a row of a second table, of
            ceil((size - 1) / rows) rows, that id div `rows` chooses, element by element
            (Shi et al., KDD 2020, https://arxiv.org/abs/1909.02107).
        rows: rows of a compressed table; without `compress`, the table is dynamic: that many ids at a time have a row of
            their own, the others share the row of out-of-vocabulary.
        admit: a dynamic table gives an id its row at its `admit`-th occurrence in training.
        evict: whose rows a full dynamic table gives to new ids: "lfu" (the least frequent), "lru" (the least recently
            used), "ttl" (not used for `ttl` steps of training); None: new ids get none.
        ttl: steps of training, for evict="ttl".
        trainable: False keeps the table as it was made or loaded (`Model.load_vectors`); it has no optimiser.
        dtype: "float32", or "bfloat16" for half the memory; vectors are float32 either way.
    """

    dim: int | None = None
    table: str | None = None
    group: str | None = None
    arena: str | None = None
    size: int | None = None
    compress: str | None = None
    rows: int | None = None
    admit: int = 1
    evict: str | None = None
    ttl: int | None = None
    trainable: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "dim", "size", "rows", "admit", "ttl")
        for what, value, known in (
            ("compress", self.compress, COMPRESSIONS),
            ("evict", self.evict, EVICTIONS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value is not None and value not in known:
                raise unknown(f"{what} of feature {self.name!r}", value, known, SchemaError)
        if self.compress is not None and self.rows is None:
            raise SchemaError(f"Feature {self.name!r}: compress={self.compress!r} needs rows=, the rows to keep.")
        dynamic = [what for what in ("admit", "evict", "ttl") if getattr(self, what) != getattr(Embedded, what)]
        if dynamic and not self.dynamic:
            raise SchemaError(
                f"Feature {self.name!r}: {dynamic[0]}= is for a dynamic table, which has rows= and no compress=."
            )
        if (self.evict == "ttl") != (self.ttl is not None):
            raise SchemaError(f'Feature {self.name!r}: evict="ttl" and ttl=, in steps of training, go together.')
        if self.dynamic and not self.trainable:
            raise SchemaError(
                f"Feature {self.name!r}: a dynamic table (rows= without compress=) gives out its rows in training; "
                "drop rows= or trainable=False."
            )

    @property
    def dynamic(self) -> bool:
        """Whether ids get rows of their own while training goes on."""
        return self.rows is not None and self.compress is None

    @property
    def table_name(self) -> str:
        """The table that the ids look into; features that share one give the same name."""
        return self.table or self.name


@dataclass(frozen=True)
class Categorical(Embedded):
    """Ids: a vocabulary learned from the training rows, or hashed into `buckets`.

    Args:
        name: the column.
        role: user, item, context, domain or pair.
        dim: width of its embedding; None takes the model's.
        buckets: hash the values into that many rows instead of learning a vocabulary.
        multi: the column holds lists of values, pooled by `pooling` (mean, sum or max).
        max_len: keep that many of a list's values.
        min_count: rarer values become out-of-vocabulary.
        table: share an embedding table with another feature by giving both the same name.
        group: name of a field group.
        arena: keep the table apart from the others of its width, to give it an optimiser of its own.
        size: ids of the table, padding (0) and out-of-vocabulary (1) included; filled in by `Encoder.fit`.
        compress, rows, admit, evict, ttl, trainable, dtype: how the table is kept; see `Embedded`.
    """

    kind: ClassVar[str] = "categorical"

    buckets: int | None = None
    multi: bool = False
    max_len: int | None = None
    min_count: int = 1
    pooling: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "buckets", "max_len", "min_count")
        if self.pooling not in POOLINGS:
            raise unknown(f"pooling of feature {self.name!r}", self.pooling, POOLINGS, SchemaError)


@dataclass(frozen=True)
class Text(Embedded):
    """Words of a text, hashed into `buckets` and pooled. Empty text gives zeros."""

    kind: ClassVar[str] = "text"

    buckets: int = 1 << 18
    max_len: int = 64
    pooling: str = "mean"

    multi: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "buckets", "max_len")
        if self.pooling not in POOLINGS:
            raise unknown(f"pooling of feature {self.name!r}", self.pooling, POOLINGS, SchemaError)


TRANSFORMS = ("log", "standard", "quantile", "bucketize")
EMBEDDINGS = ("autodis", "piecewise")
LEARNED = "learned"  # fill= of a Numeric whose nulls the model gives a value


@dataclass(frozen=True)
class Numeric(Embedded):
    """A number.

    Args:
        transform: None; "log" (sign(x)·log(1+|x|), then standardised); "standard" (mean 0, deviation 1 on the training
            rows); "quantile" (the empirical distribution function, in [0, 1]); "bucketize" (equal-mass bins, embedded
            like a Categorical).
        fill: the value that replaces nulls, before the transform; "learned": the model learns one, after it. Without fill a
            null is an error.
        bins: how many bins for "bucketize", how many quantiles for "quantile".
        powers: the powers fed to the model, (1, 2, 0.5) in YouTubeDNN; of the transformed value, sign kept.
        embedding: how the number becomes a vector of width `dim`. None: it stays a number, and models with fields of one
            width multiply it by a vector. "autodis": a soft choice among vectors (`nn.numbers.AutoDis`), meant for
            transform="standard" or "quantile". "piecewise": a straight line within each of `bins` bins of equal mass
            (`nn.numbers.PiecewiseLinear`), which implies transform="quantile".
    """

    kind: ClassVar[str] = "numeric"

    transform: str | None = None
    fill: float | str | None = None
    bins: int = 64
    powers: tuple[float, ...] = (1.0,)
    embedding: str | None = None

    multi: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding == "piecewise" and self.transform is None:
            object.__setattr__(self, "transform", "quantile")
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise unknown(f"transform of feature {self.name!r}", self.transform, TRANSFORMS, SchemaError)
        _positive(self, "bins")
        object.__setattr__(self, "powers", tuple(float(p) for p in self.powers))
        self._check_embedding()
        if isinstance(self.fill, str) and (self.fill != LEARNED or self.embedded):
            what = "and of bins nothing can be learned" if self.fill == LEARNED else f"got {self.fill!r}"
            raise SchemaError(f"Feature {self.name!r}: fill= is a number or {LEARNED!r}, {what}.")
        _no_table_without_buckets(self)

    def _check_embedding(self) -> None:
        if self.embedding is None:
            return
        if self.embedding not in EMBEDDINGS:
            raise unknown(f"embedding of feature {self.name!r}", self.embedding, EMBEDDINGS, SchemaError)
        if self.embedding == "piecewise" and self.transform != "quantile":
            raise SchemaError(
                f'Feature {self.name!r}: embedding="piecewise" reads transform="quantile"; got {self.transform!r}.'
            )
        if self.embedded or self.powers != (1.0,):
            what = 'transform="bucketize"' if self.embedded else "powers="
            raise SchemaError(f"Feature {self.name!r}: embedding={self.embedding!r} and {what} exclude each other.")

    @property
    def learns_missing(self) -> bool:
        """Whether nulls reach the model, which learns what they stand for."""
        return self.fill == LEARNED

    @property
    def embedded(self) -> bool:
        """Whether the Encoder turns it into ids (bins) rather than into a float."""
        return self.transform == "bucketize"


@dataclass(frozen=True)
class Vector(Feature):
    """`size` given floats per row: an image or text vector, a profile from another model."""

    kind: ClassVar[str] = "vector"

    size: int = 0
    group: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise SchemaError(f"Vector {self.name!r} needs size=, the number of floats per row.")


@dataclass(frozen=True)
class History(Feature):
    """The items a user met before this event. Reads the item tables by construction.

    Args:
        of: item features to read of each past item; the first is the item's key.
        max_len: the most recent that are kept.
        where: a label column that must be 1 for an event to enter ("click"); None takes every event.
        timed: batches also carry when the steps were, for models that read it.
    """

    kind: ClassVar[str] = "history"

    role: str = "history"
    of: tuple[str, ...] = ()
    max_len: int = 50
    where: str | None = None
    group: str | None = None
    timed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", (self.of,) if isinstance(self.of, str) else tuple(self.of))
        super().__post_init__()
        if self.role != "history":
            raise SchemaError(f"History {self.name!r} has role {self.role!r}; a history's role is 'history'.")
        if not self.of:
            raise SchemaError(
                f"History {self.name!r} needs of=(...): the item features it reads, the item's key first."
            )
        _positive(self, "max_len")


@dataclass(frozen=True)
class Crossed(Embedded):
    """A cross of features: one row of a table for each combination of their values, hashed into `buckets`.

    It has no column. Models make it from the ids of the batch, so training, serving and exported graphs share its code. Its
    parts are taken in the schema's order, and their names salt the hash. Lists give a combination for each of their values
    (64 at most), a history one for each step; where a part is missing, null or unknown there is none, and no combination at
    all gives zeros.

    Args:
        name: of the feature.
        of: the parts: Categorical, Text or bucketised Numeric features, and at most one History (its items).
        buckets: rows of the table.
        pooling: of several combinations: "mean", "sum" or "max".
        role: found by the Schema: the parts' own where they have one, "context" where all are of the request, else "pair".
        dim, table, group, arena, compress, rows, admit, evict, ttl, trainable, dtype: as in `Categorical`.

    Cheng et al., DLRS 2016, https://arxiv.org/abs/1606.07792

    >>> parts = [Categorical("user", "user"), Categorical("genre", "item"), Categorical("hour", "context")]
    >>> from recstack.schema import Schema
    >>> schema = Schema([*parts, Crossed("taste", of=("user", "genre")), Crossed("when", of=("user", "hour"))])
    >>> schema.feature("taste").role, schema.feature("when").role
    ('pair', 'context')
    """

    kind: ClassVar[str] = "crossed"

    role: str = "pair"
    of: tuple[str, ...] = ()
    buckets: int = 1 << 16
    pooling: str = "mean"

    multi: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive(self, "buckets")
        object.__setattr__(self, "of", (self.of,) if isinstance(self.of, str) else tuple(self.of))
        object.__setattr__(self, "size", self.buckets + 1)
        super().__post_init__()
        if len(set(self.of)) < 2 or len(set(self.of)) < len(self.of):
            raise SchemaError(f'Crossed {self.name!r} needs of=: several features, such as ("hour", "genre").')
        if self.pooling not in POOLINGS:
            raise unknown(f"pooling of feature {self.name!r}", self.pooling, POOLINGS, SchemaError)

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that it is made of."""
        return self.of


@dataclass(frozen=True)
class Hits(Embedded):
    """How often, and how lately, a history met what the target has: its shop, its category, its brand.

    It has no column. Models make it from the ids of target and history that are in the batch, so that it is as of the
    request's own time wherever the history is, in training, in serving and in exported graphs. Statistics: whether there is
    a hit; the place of the last one from the end, 1 the most recent step; with `within`, the time since then; and of all
    steps and of each window the number of hits and their share of the window's steps. Without a hit all are empty (zeros,
    or the padding row). Values that are unknown or null hit nothing.

    Args:
        name: of the feature.
        target: a Categorical of the candidates.
        history: the History to look into.
        of: which of the features that the history reads; by default `target`. Both look into one table.
        last: windows of the most recent steps.
        within: windows of time before the request, in the unit of the schema's time column; batches then carry times.
        transform: "log": numbers, log(1 + x) but for the shares; "bucketize": a row of a table for each statistic, in
            steps of a factor of two (shares: of an eighth), and their sum.
        dim, table, group, arena, compress, rows, admit, evict, ttl, trainable, dtype: of that table, as in `Categorical`.

    >>> Hits("same_genre", target="genre", history="watched", last=(10,)).statistics
    ('any', 'last', 'count', 'share', 'count_last_10', 'share_last_10')
    """

    kind: ClassVar[str] = "hits"

    role: str = "pair"
    target: str = ""
    history: str = ""
    of: str | None = None
    last: tuple[int, ...] = (10, 50)
    within: tuple[int, ...] = ()
    transform: str = "log"

    multi: ClassVar[bool] = True
    pooling: ClassVar[str] = "sum"
    STEPS: ClassVar[int] = 16  # buckets of a statistic

    def __post_init__(self) -> None:
        for what in ("last", "within"):
            given = getattr(self, what)
            windows = (given,) if isinstance(given, int) else tuple(given)
            object.__setattr__(self, what, windows)
            if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in windows):
                raise SchemaError(f"Hits {self.name!r}: {what}= holds whole numbers of at least 1; got {given!r}.")
        if self.transform not in ("log", "bucketize"):
            raise unknown(f"transform of feature {self.name!r}", self.transform, ("log", "bucketize"), SchemaError)
        object.__setattr__(self, "size", self.STEPS * len(self.statistics) + 1 if self.embedded else None)
        super().__post_init__()
        if not self.target or not self.history:
            raise SchemaError(f"Hits {self.name!r} needs target=, a feature of the candidates, and history=.")
        if self.role != "pair":
            raise SchemaError(f"Hits {self.name!r} has role {self.role!r}; hits are of a pair.")
        _no_table_without_buckets(self)

    @property
    def embedded(self) -> bool:
        """Whether it is looked up in a table rather than given as numbers."""
        return self.transform == "bucketize"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of its numbers, in their order."""
        windows = ("", *(f"_last_{n}" for n in self.last), *(f"_within_{n}" for n in self.within))
        since = ("since",) if self.within else ()
        return ("any", "last", *since, *(f"{what}{w}" for w in windows for what in ("count", "share")))

    @property
    def reads(self) -> tuple[str, ...]:
        """The features that it is made of."""
        return (self.target, self.history)


def _no_table_without_buckets(feature: Numeric | Hits) -> None:
    given = [what for what in TABLE_OPTIONS if getattr(feature, what) != getattr(Embedded, what)]
    if given and not feature.embedded:
        raise SchemaError(
            f"Feature {feature.name!r}: {given[0]}= is for a table, and a {type(feature).__name__} has one only with "
            'transform="bucketize".'
        )


def _positive(feature: Feature, *names: str) -> None:
    for name in names:
        value = getattr(feature, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise SchemaError(f"Feature {feature.name!r}: {name} must be a whole number of at least 1; got {value!r}.")


KINDS: dict[str, type[Feature]] = {
    cls.kind: cls for cls in (Categorical, Numeric, Text, Vector, History, Crossed, Hits)
}


def is_embedded(feature: Feature) -> TypeGuard[Embedded]:
    """Whether its value is an id that looks into a table."""
    return isinstance(feature, Categorical | Text | Crossed) or (
        isinstance(feature, Numeric | Hits) and feature.embedded
    )


def is_multi(feature: Feature) -> bool:
    """Whether one row holds several ids."""
    if isinstance(feature, Hits):
        return feature.embedded
    return isinstance(feature, Text | Crossed) or (isinstance(feature, Categorical) and feature.multi)


def is_derived(feature: Feature) -> TypeGuard[Crossed | Hits]:
    """Whether it has no column of its own: models make it from other features."""
    return isinstance(feature, Crossed | Hits)
