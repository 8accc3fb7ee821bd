"""The contract of every model: what it is built from, what it answers, how it is saved."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from recstack import bundle, losses
from recstack.candidates import Candidates
from recstack.errors import BundleError, ConfigError, DataError, SchemaError
from recstack.features import tasks
from recstack.features.inputs import column
from recstack.features.tables import Tables, load_grown
from recstack.nn.modes import evaluating
from recstack.schema import Categorical, Schema, is_embedded

if TYPE_CHECKING:
    from recstack.data import Columns, Log, Requests

Batch = Mapping[str, Tensor]


class Configured:
    """Constructor arguments are the configuration: remembered once, with their defaults, for every subclass.

    An argument is None, a bool, int, finite float, text, a tuple or text-keyed dict of these, a Schema, or a class (or
    `functools.partial` of one) that is given its widths; never a built module. Other values still train; saving names them.
    """

    _arguments: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" not in vars(cls):
            return
        init, signature = cls.__init__, inspect.signature(cls.__init__)
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
            raise TypeError(
                f"{cls.__name__}.__init__: spell every argument out; *args and **kwargs would swallow a typo."
            )

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if "_arguments" not in vars(self):  # the outermost constructor only
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                vars(self)["_arguments"] = {k: _frozen(v) for k, v in list(bound.arguments.items())[1:]}
            init(self, *args, **kwargs)

        cls.__init__ = __init__  # type: ignore[method-assign]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return dict(self._arguments)


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value


class Saved(Configured):
    """What can be saved as a bundle and loaded again: its arguments, tensors, encoder and, if kept, users' state."""

    schema: Schema
    profiles: Any = None
    bits: int | None = None  # of the rows of quantised tables

    def pieces(self, prefix: str = "") -> dict[str, bundle.Piece]:
        """The pieces of the bundle, "model" (or ``prefix + "model"``) being this object."""
        config = bundle.encode_config(self._arguments, schema=self.schema)
        config["$schema"] = self.schema.to_dict()
        if self.bits is not None:
            config["$bits"] = self.bits
        return {f"{prefix}model": bundle.Piece(bundle.class_path(type(self)), config, self._tensors())}

    def save(self, path: str | Path) -> Path:
        """Write a bundle, atomically: arguments, schema, vocabularies, weights. `rs.load(path)` reads it.

        Raises:
            BundleError: naming an argument that cannot be remembered.
        """
        pieces = self.pieces()
        for name, part in (("encoder", self.schema.encoder), ("profiles", self.profiles)):
            if part is not None:
                pieces[name] = part.to_piece()
        return bundle.write(path, pieces, {"kind": "model", "name": type(self).__name__})

    @classmethod
    def from_piece(cls, piece: bundle.Piece, encoder: Any = None, trust: Sequence[str] = ()) -> Self:
        """From a piece that `pieces` made; `encoder` gives vocabularies to its schema."""
        config = dict(piece.config)
        schema, bits = _schema(config.pop("$schema"), encoder), config.pop("$bits", None)
        new = cls(**bundle.decode_config(config, trust=trust, schema=schema))
        new.schema = schema
        if bits is not None:
            new._quantize(bits)
        new._load_tensors(dict(piece.tensors))
        return new

    def _tensors(self) -> dict[str, Any]:
        raise NotImplementedError

    def _load_tensors(self, tensors: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _quantize(self, bits: int) -> None:
        raise BundleError(f"{type(self).__name__} has no tables, and {bits}-bit ones are saved for it.")


def _check_grown(old: Schema, new: Schema) -> None:
    """Raises SchemaError, in one sentence, where `new` is not `old` with larger tables."""
    new.require_fitted()
    if old.names != new.names or old.tasks != new.tasks:
        raise SchemaError("The grown schema has other features or tasks; a model grows with its vocabularies only.")
    for a, b in zip(old.features, new.features, strict=True):
        sizes = (a.size, b.size) if is_embedded(a) and is_embedded(b) else (0, 0)
        if (replace(a, size=None) if is_embedded(a) else a) != (replace(b, size=None) if is_embedded(b) else b):
            raise SchemaError(f"Feature {a.name!r} has changed; a model grows with its vocabularies only.")
        if sizes[0] > sizes[1]:  # type: ignore[operator]
            raise SchemaError(f"Table {a.table_name!r} had {sizes[0]} ids and would have {sizes[1]}; tables only grow.")  # type: ignore[attr-defined]
    if old.encoder is None or new.encoder is None or old.encoder is new.encoder:
        return
    for f in old.features:
        if isinstance(f, Categorical) and f.buckets is None and f.size is not None:
            ids = np.arange(f.size)
            before, after = old.encoder.decode(f.name, ids), new.encoder.decode(f.name, ids)
            if not np.array_equal(before, after):
                at = int(np.flatnonzero(before != after)[0])
                raise SchemaError(
                    f"Id {at} of {f.name!r} was {before[at]!r} and would be {after[at]!r}; grow the Encoder with "
                    "encoder.grown(log) instead of fitting a new one."
                )


def _schema(data: dict[str, Any], encoder: Any) -> Schema:
    schema = Schema.from_dict(data)
    return schema.replace(encoder=encoder) if encoder is not None else schema


def load(path: str | Path, *, trust: Sequence[str] = ()) -> Any:
    """The model, cascade, encoder or calibrator that was saved at `path`, ready to score raw rows exactly as in training.

    Imports only ``recstack.*`` and the packages in `trust`, and no training code.

    Raises:
        BundleError: for what is missing, altered or not trusted.
    """
    saved = bundle.read(path)
    kind = saved.meta.get("kind")
    if kind == "model":
        return load_model(saved, trust=trust)
    if kind in ("encoder", "calibrator"):
        return bundle.resolve(saved.piece(kind).class_path, trust).from_piece(saved.piece(kind))
    if kind == "cascade":
        return bundle.resolve(saved.piece("cascade").class_path, trust).from_bundle(saved, trust=trust)
    raise BundleError(f"{str(path)!r} holds a {kind!r}, not a model, encoder, calibrator or cascade.")


def load_model(saved: bundle.Bundle, prefix: str = "", trust: Sequence[str] = (), encoder: Any = None) -> Any:
    """The model whose pieces carry `prefix`; `encoder` where one was read already."""
    if encoder is None and "encoder" in saved.pieces:
        piece = saved.piece("encoder")
        encoder = bundle.resolve(piece.class_path, trust).from_piece(piece)
    piece = saved.piece(f"{prefix}model")
    model = bundle.resolve(piece.class_path, trust).from_piece(piece, encoder, trust)
    if "profiles" in saved.pieces:
        piece = saved.piece("profiles")
        model.profiles = bundle.resolve(piece.class_path, trust).from_piece(piece, encoder)
    model.fitted = True
    return model.eval() if isinstance(model, nn.Module) else model


class Model(Saved, nn.Module):
    """Three verbs: `forward` gives logits, `losses` what training minimises, `predict` what people read.

    A subclass's constructor takes a fitted schema first, builds modules and does nothing else. `needs` names the roles
    without which the model has no meaning.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    trainer: ClassVar[dict[str, Any]] = {}  # options of rs.Trainer that the paper chose; `fit` takes them as defaults
    ends_in_heads: ClassVar[bool] = (
        True  # False: logits are changed after `self.heads`, so the model is no trunk of another
    )
    market: ClassVar[str | None] = None  # the simulator's tasks for a first try, where those of its stage would not do
    gradients: ClassVar[bool] = True  # False: learns in one go by a `fit` of its own (trees), and no Trainer trains it
    fitted = False  # set by the Trainer and by loading; a cascade trains only what is not
    trained: Any = None  # the FitResult of the last `fit`

    def __init__(self, schema: Schema):
        super().__init__()
        for role in self.needs:
            if not schema.by_role(role):
                raise SchemaError(f"{type(self).__name__} needs a feature with role={role!r}, and none is declared.")
        self.schema = schema.require_fitted()
        tasks.check(schema)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``{task: float32 logit [R, L]}``, ``[R, L, C]`` for tasks of several outputs (classes, bins, jrc's two)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``{name: scalar}``, to be summed: each task's own, and the `auxiliary_losses`."""
        return tasks.losses(self(batch), batch, self.schema) | self.auxiliary_losses(batch)

    def auxiliary_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``{name: scalar}`` of a paper's losses that need no logits: they hold where the model is another's trunk, too."""
        return {}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``{task: probability, class probabilities or value}``, derived tasks included."""
        return tasks.predictions(self(batch), self.schema)

    def fit(
        self,
        train: Any,
        valid: Any = None,
        *,
        resume: bool = False,
        start_from: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Train with ``rs.Trainer(self, **options).fit(train, valid, resume=resume, start_from=start_from)``.

        What it did is in `trained`.
        """
        from recstack.training import Trainer

        trainer = Trainer(self, **{**self.trainer, **options})
        self.trained = trainer.fit(train, valid, resume=resume, start_from=start_from)
        return self

    @torch.no_grad()
    def score(self, rows: Log | Columns, batch_size: int = 4096) -> dict[str, np.ndarray]:
        """Predictions for raw rows, ``{task: float32 [rows]}``, in the order of the rows."""
        columns = self._encoded(rows)
        parts: dict[str, list[np.ndarray]] = {}
        with evaluating(self):
            for start in range(0, columns.n_requests, batch_size):
                batch = columns.batch(np.arange(start, min(start + batch_size, columns.n_requests)))
                for name, value in self.predict(batch).items():
                    live = value[batch["@mask"]] if "@mask" in batch else value.flatten(0, 1)
                    parts.setdefault(name, []).append(live.numpy())
        return {name: np.concatenate(part) for name, part in parts.items()}

    # -- tables -------------------------------------------------------------------------------------------------------
    def grown(self, source: Any) -> Self:
        """This model over larger vocabularies: rows of old ids and all other weights equal, rows of new ids fresh.

        What was counted in the training data (a graph's edges, users' histories) is left to `fit`.

        Args:
            source: the grown Encoder (``encoder.grown(log)``), or its schema.

        Raises:
            SchemaError: a feature or task that changed, a table that shrank, an id that means another value, or a weight
                beside the embedding tables that depends on their size.
        """
        schema = getattr(source, "schema", source)
        if self.bits is not None:
            raise ConfigError("Quantised tables cannot grow; grow the model that quantized() was called on.")
        _check_grown(self.schema, schema)
        new = self._again(schema)
        load_grown(new, self.state_dict())
        return new

    def quantized(self, bits: int = 8) -> Self:
        """A copy for serving whose embedding tables have rows of 8 or 4 bits; it scores, saves and loads, but cannot train.

        See `features.quantized` for sizes and errors.

        Raises:
            ConfigError: other bits, or no table that would become smaller.
        """
        if self.bits is not None:
            raise ConfigError(f"This model's tables have {self.bits} bits already.")
        new = self._again(self.schema)
        new._load_tensors(self._tensors())
        new.profiles = self.profiles
        new._quantize(bits)
        return new.eval()

    def _again(self, schema: Schema) -> Self:
        """A new model of the same class and arguments, over `schema`."""
        arguments = {k: schema if isinstance(v, Schema) else v for k, v in self._arguments.items()}
        new = type(self)(**arguments)
        new.schema, new.fitted = schema, self.fitted
        if isinstance(self, Recommends) and isinstance(new, Recommends):
            new._name = self._name
        where = next(iter(self.parameters()), torch.empty(0)).device
        return new.to(where).train(self.training)

    def _quantize(self, bits: int) -> None:
        from recstack.features.quantized import quantize

        quantize(self.eval(), bits)
        self.bits = bits

    def load_vectors(self, feature: str, vectors: Mapping[Any, Any] | tuple[Sequence[Any], Any]) -> int:
        """Set a feature's embeddings to given vectors; declare it ``trainable=False`` to keep them.

        Args:
            feature: a Categorical with a learned vocabulary.
            vectors: ``{raw value: vector}`` or ``(raw values, matrix [n, D])``, of the width of the feature's table. Values that
                the Encoder does not know are passed over; ids without a vector keep what they have.

        Returns:
            how many ids of the table were set.

        Raises:
            SchemaError: no Encoder, a feature that is not embedded, hashed or compressed ids, another width.
            DataError: vectors that are not finite, not all of one width, or not one for each value.
        """
        encoder, f = self.schema.encoder, self.schema.feature(feature)
        if encoder is None:
            raise SchemaError(
                "This model's schema knows no Encoder, so raw values have no ids; build it from encoder.schema."
            )
        if not isinstance(f, Categorical) or f.buckets is not None:
            raise SchemaError(
                f"Feature {feature!r} has no learned vocabulary, so vectors cannot be given to its values."
            )
        values, matrix = (list(vectors), list(vectors.values())) if isinstance(vectors, Mapping) else vectors
        try:
            given = torch.as_tensor(np.asarray(matrix, dtype=np.float32))
        except ValueError as e:
            raise DataError(f"The vectors for {feature!r} are not all of one width: {e}.") from e
        if given.dim() != 2 or len(given) != len(values):
            raise DataError(
                f"{len(values)} values of {feature!r} need a matrix of as many rows; got {tuple(given.shape)}."
            )
        if not bool(given.isfinite().all()):
            row = int((~given.isfinite()).any(1).nonzero()[0])
            raise DataError(f"The vector for {feature!r} {values[row]!r} is not finite; leave that value out.")
        ids = torch.from_numpy(encoder.encode_values(feature, values))
        known = ids > 1
        places = [m for m in self.modules() if isinstance(m, Tables) and f.table_name in m.home]
        fitting = [m for m in places if m.dims[f.table_name] == given.shape[1]]
        if not fitting:
            widths = sorted({m.dims[f.table_name] for m in places})
            raise SchemaError(
                f"The vectors for {feature!r} have {given.shape[1]} columns, its table has {' or '.join(map(str, widths))}; "
                f"declare it with dim={given.shape[1]}, or give {type(self).__name__} that dim=."
            )
        for tables in fitting:
            tables.load(f.table_name, ids[known], given[known])
        return int(ids[known].unique().numel())

    def _encoded(self, rows: Any) -> Any:
        if not hasattr(rows, "n_requests"):
            if self.schema.encoder is None:
                raise DataError(
                    "This model's schema knows no Encoder, so it cannot read raw rows; give encoder.encode(log)."
                )
            rows = self.schema.encoder.encode(rows)
        return rows

    def _tensors(self) -> dict[str, Tensor]:
        return self.state_dict()

    def _load_tensors(self, tensors: Mapping[str, Any]) -> None:
        try:
            self.load_state_dict(tensors)
        except RuntimeError as e:
            raise BundleError(f"The weights do not fit {type(self).__name__}: {' '.join(str(e).split())[:300]}") from e


class Recommends(Saved):
    """What retrievers share: users in, `Candidates` out, seen items left out, never fewer than there are.

    `users` is a `Requests`, or raw user ids of users met in training (their state is kept in `profiles`). `name` is
    what its scores are called in `Candidates.source`; by default the class's, in lower case.
    """

    _name: str | None = None

    @property
    def name(self) -> str:
        return self._name or type(self).__name__.lower()

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    def recommend(
        self, users: Requests | Sequence[Any], k: int, exclude_seen: bool = True, where: Tensor | None = None
    ) -> Candidates:
        """The best `k` items of each user.

        Args:
            users: R requests.
            k: how many; fewer come (and the mask says so) only where fewer are allowed.
            exclude_seen: leave out what the user has met.
            where: bool ``[N]`` by item id: the items allowed.
        """
        requests = self.requests(users)
        if k < 1:
            raise ConfigError(f"k must be at least 1; got {k}.")
        allowed = self.catalog.live() if where is None else where & self.catalog.live()
        ids, scores = self.search(requests, k, exclude_seen, allowed)
        mask = scores.isfinite() & (ids > 0)
        ids, scores = ids * mask, scores.masked_fill(~mask, 0.0)
        return Candidates(ids, scores, mask, {self.name: scores})

    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """(ids int64 ``[R, k]``, scores float32 ``[R, k]``), -inf where fewer than k are allowed."""
        raise NotImplementedError

    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """This retriever's score of given items: ``[R, K]`` int64 ids → ``[R, K]`` float32."""
        raise NotImplementedError

    def requests(self, users: Any) -> Requests:
        """`users` as Requests."""
        from recstack.data import Requests

        if isinstance(users, Requests):
            return users
        if self.profiles is None:
            raise DataError(f"{type(self).__name__} keeps no users yet; fit it, or give Requests instead of raw ids.")
        return self.profiles.requests(users)

    @property
    def catalog(self) -> Any:
        """The encoded items, by id."""
        if self.schema.encoder is None:
            raise DataError(
                "This retriever's schema knows no Encoder, so it has no catalog; build it from encoder.schema."
            )
        return self.schema.encoder.catalog

    def _remember(self, train: Any) -> None:
        from recstack.data import Profiles

        self.profiles = Profiles.build(train)


class Retriever(Recommends, Model):
    """A retriever that learns: two sides that meet in an inner product.

    `user_vectors(batch) → [R, K, D]` (K interests), `item_vectors(batch) → [N, D]`. Item vectors of the catalog are
    computed once and kept until the weights change (training, loading).
    """

    needs: ClassVar[tuple[str, ...]] = ("item",)
    _cached: Tensor | None = None

    def user_vectors(self, batch: Batch) -> Tensor:
        """``[R, K, D]`` from the user side of a batch."""
        raise NotImplementedError

    def item_vectors(self, batch: Batch) -> Tensor:
        """``[N, D]`` from item tensors ``[N]``."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The score of each candidate, as the logit of every task: ``{task: float32 [R, L]}``."""
        users, vectors = self.user_vectors(batch), self.candidate_vectors(batch)
        with torch.autocast(users.device.type, enabled=False):
            score = torch.einsum("rkd,rld->rlk", users.float(), vectors.float()).amax(-1)
        return tasks.of_score(score, self.schema)

    def candidate_vectors(self, batch: Batch) -> Tensor:
        """The item vectors of a batch's candidates, ``[R, L, D]``."""
        ids = column(batch, self.schema.item)  # type: ignore[arg-type]  # a retriever's schema has items
        items = {f.name: batch[f.name] for f in self.schema.by_role("item") if f.name in batch}
        items |= {f"{n}@offsets": batch[f"{n}@offsets"] for n in items if f"{n}@offsets" in batch}
        flat = {n: v.flatten(0, 1) if v.dim() >= 2 and v.shape[:2] == ids.shape else v for n, v in items.items()}
        return self.item_vectors(flat).view(*ids.shape, -1)

    def fit(self, train: Any, valid: Any = None, *, hard: Any = None, **options: Any) -> Self:
        """As `Model.fit`; keeps the users' state too, so that `recommend` takes raw ids.

        `hard`, a `training.HardNegatives`, puts hard negatives among those that are drawn.
        """
        train = self._encoded(train)
        self._remember(train)
        self.prepare(train)
        rows = self.training_columns(train)
        if hard is not None:
            rows, options = hard.loader(self, rows, {**self.trainer, **options})
        return super().fit(rows, valid, **options)

    def prepare(self, train: Columns) -> None:
        """Take from the training data what is no weight, such as a graph. Nothing, unless a model needs it."""

    def training_columns(self, train: Any) -> Any:
        """The requests that training needs; all of them, unless a model learns several events from one request."""
        return train

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._cached = None
        return super().train(mode)

    def _load_tensors(self, tensors: Mapping[str, Any]) -> None:
        super()._load_tensors(tensors)
        self._cached = None

    def _here(self, batch: Batch) -> Batch:
        """The batch where the model is; what comes of it is searched on the CPU."""
        where = next(self.parameters(), torch.empty(0)).device  # one without gradients has none
        return batch if where.type == "cpu" else {name: value.to(where) for name, value in batch.items()}

    @torch.no_grad()
    def catalog_vectors(self, block: int = 65536) -> Tensor:
        """``[N, D]`` float32 by item id; rows 0 and 1 are zeros."""
        if self._cached is None or self.training:
            parts = torch.arange(2, self.catalog.size).split(block)
            with evaluating(self):
                found = [self.item_vectors(self._here(self.catalog.batch(part))).float().cpu() for part in parts]
            vectors = torch.cat(found) if found else torch.zeros(0, 1)
            vectors = torch.cat([vectors.new_zeros(2, vectors.shape[1]), vectors])
            if self.training:
                return vectors
            self._cached = vectors
        return self._cached

    @torch.no_grad()
    def _users(self, requests: Requests) -> Tensor:
        """User vectors ``[R, K, D]`` float32, computed once per Requests."""
        key = ("user_vectors", id(self))
        if key not in requests.memo or self.training:
            parts = [requests.slice(i, i + 1024) for i in range(0, max(len(requests), 1), 1024)]
            with evaluating(self):
                found = [self.user_vectors(self._here(part.batch)).float().cpu() for part in parts]
            requests.memo[key] = torch.cat(found)
        return requests.memo[key]

    @torch.no_grad()
    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        items, users = self.catalog_vectors(), self._users(requests)
        offsets, seen = (torch.as_tensor(x).long() for x in requests.seen)
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(requests), 1024):
            stop = min(start + 1024, len(requests))
            score = (users[start:stop] @ items.T).amax(1).masked_fill(~allowed, -torch.inf)
            if exclude_seen:
                row = torch.repeat_interleave(torch.arange(stop - start), offsets[start : stop + 1].diff())
                score[row, seen[offsets[start] : offsets[stop]]] = -torch.inf
            found.append(score.topk(min(k, score.shape[1])))
        return torch.cat([f[1] for f in found]), torch.cat([f[0] for f in found])

    @torch.no_grad()
    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        return torch.einsum("rkd,rld->rlk", self._users(requests), self.catalog_vectors()[ids]).amax(-1)

    def validate(self, data: Any) -> dict[str, float]:
        """Full-ranking metrics of held-out Columns, which the Trainer watches: recall@10, recall@20, ndcg@10, ndcg@20.

        Each user is asked once, before their first event of `data`; what they met in training is left out.
        """
        from recstack.data import Requests
        from recstack.data.truth import next_events

        rows, truth = next_events(data)
        total = np.zeros(4)
        for start in range(0, len(rows), 1024):
            requests = Requests.of(data, rows[start : start + 1024])
            if self.profiles is not None:
                seen = self.profiles.requests(requests.users, encoded=True).seen
                requests = Requests(requests.batch, requests.users, seen)
            found = self.recommend(requests, 20, exclude_seen=self.profiles is not None)
            total += truth.sums(found.ids, start, (10, 20))
        names = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")
        return dict(zip(names, (total / max(len(rows), 1)).tolist(), strict=True))


class Reranker(Model):
    """Scores a list as a whole: `forward` reads ``[R, L]`` candidates with their ``@mask`` and gives logits ``[R, L]``."""

    needs: ClassVar[tuple[str, ...]] = ("item",)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The listwise softmax for binary tasks that name no loss (a list without a positive counts nothing), else the task's."""
        return self.list_losses(self(batch), batch)

    def list_losses(self, logits: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """`losses` of logits that are there already."""
        out = {}
        for task in self.schema.tasks:
            if task.weight == 0:
                continue
            label, where, weight = tasks.target(batch, self.schema, task)
            loss = losses.softmax if task.loss is None and task.kind == "binary" else tasks.loss(task)
            out[task.name] = loss(logits[task.name], label, where=where, weight=weight) * task.weight
        return out


class CountedRetriever(Recommends):
    """A retriever that counts instead of learning: no gradients, one pass over the log.

    A subclass's constructor takes its options only; the schema comes with the data. `count` makes the arrays that are
    named in `arrays`, which is what a bundle keeps.
    """

    fitted = False
    arrays: ClassVar[tuple[str, ...]] = ()

    def fit(self, train: Log | Columns, valid: Any = None) -> Self:
        """Count `train`. A Log is encoded by its own Encoder, fitted on it if the schema has none."""
        from recstack.data import Encoder

        if not hasattr(train, "n_requests"):
            encoder = train.schema.encoder or (self.schema.encoder if getattr(self, "schema", None) else None)
            train = (encoder or Encoder(train.schema).fit(train)).encode(train)
        self.schema = train.schema
        self.count(train)
        self._remember(train)
        self.fitted = True
        return self

    def count(self, train: Columns) -> None:
        """Make the arrays named in `arrays` from positive interactions."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Any]:
        if not hasattr(self, "schema"):
            raise ConfigError(f"{type(self).__name__} has counted nothing yet; call fit(train) before save.")
        return {name: getattr(self, name) for name in self.arrays}

    def _load_tensors(self, tensors: Mapping[str, Any]) -> None:
        for name in self.arrays:
            if name not in tensors:
                raise BundleError(f"{type(self).__name__}'s piece has no array {name!r}.")
            setattr(self, name, tensors[name].numpy())
