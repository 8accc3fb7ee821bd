"""Demographic columns as one short vector, learned without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from recstack import bundle
from recstack.data.encoder import Encoder
from recstack.errors import BundleError, ConfigError, SchemaError, unknown
from recstack.nn.autoencoder import RowAutoencoder
from recstack.schema import Categorical, Numeric, Schema, Vector

if TYPE_CHECKING:  # the log brings polars, which serving must not import
    import polars as pl

    from recstack.data.log import Log

BLOCK = 65536


class ProfileEncoder:
    """Turns a user's attributes into a `Vector`, by an autoencoder fitted on the training users alone.

    No labels are needed, equal attributes give equal vectors, and a user whom training never saw has one as soon as the
    attributes are known. The vector is data: ranking models read it and do not change it.

    Args:
        features: names of user features, Categorical (single-valued) or Numeric; the user's key is none of them.
            Numbers are standardised unless they say another transform.
        size: floats per user.
        name: of the new column and Vector.
        hidden: width of the autoencoder's hidden layers.
        noise: share of attributes that are swapped with another user's in training.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> profile = rs.ProfileEncoder(("age", "gender"), size=4).fit(train, epochs=2, progress=False)
    >>> train, valid, test = (profile.transform(log) for log in (train, valid, test))
    >>> train.schema.feature("profile").size, profile.vectors([{"age": None, "gender": None}]).shape
    (4, (1, 4))
    """

    def __init__(
        self, features: Sequence[str], *, size: int = 16, name: str = "profile", hidden: int = 128, noise: float = 0.15
    ) -> None:
        self.features = (features,) if isinstance(features, str) else tuple(features)
        if not self.features:
            raise ConfigError("A ProfileEncoder needs features=, the user columns that it condenses.")
        if size < 1 or hidden < 1 or not 0 <= noise < 1:
            raise ConfigError(
                f"ProfileEncoder: size and hidden are at least 1 and noise is from 0 to below 1; got {size}, {hidden}, {noise}."
            )
        self.size, self.name, self.hidden, self.noise = size, name, hidden, noise
        self.encoder: Encoder | None = None
        self.network: RowAutoencoder | None = None

    def fit(
        self,
        log: Log,
        *,
        epochs: int = 50,
        batch_size: int = 256,
        lr: float = 1e-3,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """Learn from the users of these rows, each counted once; of attributes in the events, the user's last row.

        Raises:
            SchemaError: a feature that is not the user's, of a kind that has no place here, or without a column.
        """
        from recstack.data.log import Log
        from recstack.training import Trainer

        schema = Schema([self._own(log.schema, name) for name in self.features])
        table = Log(self._table(log, distinct=True), schema)
        encoder = Encoder(schema).fit(table)
        rows = self._rows(encoder.encode(table).request_batch(slice(None)), encoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the initial weights
            network = self._network(encoder)
        options = {"optimizer": "adam", "lr": lr, "epochs": epochs, "seed": seed, "progress": progress}
        Trainer(network, **options).fit(_Shuffled(*rows, batch_size))
        self.encoder, self.network = encoder, network
        return self

    def transform(self, log: Log) -> Log:
        """The log with the vector of each user as a column, where the attributes are, and its `Vector` in the schema.

        Raises:
            SchemaError: there is something of that name already, or an attribute is missing.
        """
        from recstack.data.log import Log

        frames = {"events": log.events, "users": log.users, "items": log.items}
        taken = [place for place, frame in frames.items() if frame is not None and self.name in frame.columns]
        if taken or self.name in log.schema.names:
            raise SchemaError(
                f"{'The schema' if not taken else f'The {taken[0]} frame'} has {self.name!r} already; "
                "give the ProfileEncoder another name=."
            )
        encoder, _ = self._fitted()
        table = Log(self._table(log), encoder.schema)
        vectors = self._vectors(encoder.encode(table).request_batch(slice(None)))
        place = "users" if self._framed(log) else "events"
        frames[place] = frames[place].with_columns(_series(self.name, vectors))  # type: ignore[union-attr]
        schema = log.schema.with_features(Vector(self.name, "user", self.size)).replace(encoder=None)
        options = {"implicit": log.implicit, "name": log.name, "request": log.request, "weight": log.weight}
        new = Log(frames["events"], schema, users=frames["users"], items=frames["items"], **options)
        new.timelines = dict(log.timelines)
        return new

    def vectors(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """float32 ``[len(rows), size]`` from raw attributes {column: value}, as a live request brings them.

        Raises:
            SchemaError: a column that is missing from a row, or holds what its feature does not take.
        """
        return self._vectors(self._fitted()[0].requests(rows))

    # -- inside -------------------------------------------------------------------------------------------------------
    def _own(self, schema: Schema, name: str) -> Categorical | Numeric:
        """The feature as the autoencoder reads it."""
        f = schema.feature(name)
        if f.role != "user" or name == schema.user:
            what = "the user's key, which says nothing of a new user" if name == schema.user else f"of role {f.role!r}"
            raise SchemaError(f"ProfileEncoder condenses attributes of the user; {name!r} is {what}.")
        if isinstance(f, Categorical) and not f.multi:
            return dataclasses.replace(f, table=None, arena=None)
        if isinstance(f, Numeric):
            return dataclasses.replace(f, transform=f.transform or "standard", table=None, arena=None)
        raise SchemaError(f"ProfileEncoder reads single-valued Categorical and Numeric features; {name!r} is neither.")

    def _framed(self, log: Log) -> bool:
        """Whether all attributes are in the users frame, so that the vectors belong there too."""
        return all(log.place(name) == "users" for name in self.features)

    def _table(self, log: Log, distinct: bool = False) -> pl.DataFrame:
        """The attributes, a row per user of the users frame or per event; if `distinct`, per user of the events."""
        names = list(self.features)
        if self._framed(log):
            frame = log.frame("users").select(names)
            rows = np.unique(log.rows_of("users"))
            return frame[rows[rows >= 0]] if distinct else frame
        for name in names:
            if log.place(name) is None:
                raise unknown("column for user feature", name, log.events.columns, SchemaError)
        frame = log.events
        if elsewhere := [n for n in names if log.place(n) == "users"]:
            rows = _series("row", log.rows_of("users"))
            users = log.frame("users").select(elsewhere)
            frame = frame.with_columns(users[name].gather(rows.set(rows < 0, None)) for name in elsewhere)
        if distinct and log.has(log.schema.user):
            frame = frame.unique(log.schema.user, keep="last", maintain_order=True)
        return frame.select(names)

    def _network(self, encoder: Encoder) -> RowAutoencoder:
        sizes = [encoder.schema.feature(n).size for n in _id_names(encoder)]  # type: ignore[attr-defined]
        numbers = len(self.features) - len(sizes)
        return RowAutoencoder(sizes, numbers, self.size, hidden=self.hidden, noise=self.noise)

    def _fitted(self) -> tuple[Encoder, RowAutoencoder]:
        if self.encoder is None or self.network is None:
            raise ConfigError("This ProfileEncoder has learned nothing yet; call fit(train) first.")
        return self.encoder, self.network

    def _rows(self, batch: Mapping[str, Tensor], encoder: Encoder) -> tuple[Tensor, Tensor]:
        """ids int64 ``[R, C]`` and numbers float32 ``[R, M]``."""
        ids = _id_names(encoder)
        n = batch[self.features[0]].shape[0]
        chosen = [batch[name].long() for name in ids], [batch[name] for name in self.features if name not in ids]
        none = torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0)
        columns = [torch.stack(c, 1) if c else empty for c, empty in zip(chosen, none, strict=True)]
        return columns[0], columns[1]

    @torch.no_grad()
    def _vectors(self, batch: Mapping[str, Tensor]) -> np.ndarray:
        encoder, network = self._fitted()
        ids, numbers = self._rows(batch, encoder)
        # Each combination once: cheaper, and rows of equal attributes are equal to the last bit.
        distinct, which = torch.unique(torch.cat([ids.double(), numbers.double()], 1), dim=0, return_inverse=True)
        width = ids.shape[1]
        parts = [network(part[:, :width].long(), part[:, width:].float()) for part in distinct.split(BLOCK)]
        return torch.cat(parts)[which].numpy() if len(ids) else np.zeros((0, self.size), np.float32)

    # -- saving -------------------------------------------------------------------------------------------------------
    def to_piece(self) -> bundle.Piece:
        """All that serving needs to compute vectors: what the columns mean, their vocabularies, the weights."""
        encoder, network = self._fitted()
        inner = encoder.to_piece()
        config = {k: getattr(self, k) for k in ("features", "size", "name", "hidden", "noise")}
        tensors = {f"encoder.{k}": v for k, v in inner.tensors.items()}
        tensors |= {f"network.{k}": v for k, v in network.state_dict().items()}
        return bundle.Piece(bundle.class_path(ProfileEncoder), config | {"encoder": inner.config}, tensors)

    @classmethod
    def from_piece(cls, piece: bundle.Piece) -> ProfileEncoder:
        """What `to_piece` gave, to the last bit."""
        config = dict(piece.config)

        def under(prefix: str) -> dict[str, Any]:
            return {k.removeprefix(prefix): v for k, v in piece.tensors.items() if k.startswith(prefix)}

        try:
            inner = bundle.Piece(bundle.class_path(Encoder), config.pop("encoder"), under("encoder."))
            new = cls(**config)
            new.encoder = Encoder.from_piece(inner)
            new.network = new._network(new.encoder)
            new.network.load_state_dict(under("network."))
        except (KeyError, TypeError, RuntimeError) as error:
            raise BundleError(
                f"The saved ProfileEncoder is of another version: {' '.join(str(error).split())}"
            ) from error
        new.network.eval()
        return new

    def save(self, path: str | Path) -> Path:
        """Write a bundle; `rs.load(path)` reads it."""
        return bundle.write(path, {"encoder": self.to_piece()}, {"kind": "encoder"})


class _Shuffled:
    """Batches of rows in a new order each time, drawn from the Trainer's generator."""

    def __init__(self, ids: Tensor, numbers: Tensor, size: int):
        self.ids, self.numbers, self.size = ids, numbers, size

    def __len__(self) -> int:
        return -(-self.ids.shape[0] // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for rows in torch.randperm(self.ids.shape[0]).split(self.size):
            yield {"ids": self.ids[rows], "numbers": self.numbers[rows]}


def _id_names(encoder: Encoder) -> list[str]:
    """The columns that are ids: categories, and numbers cut into bins."""
    return [f.name for f in encoder.schema.features if getattr(f, "size", None) is not None]


def _series(name: str, values: np.ndarray) -> pl.Series:
    import polars as pl

    return pl.Series(name, values)  # rows of a matrix become an Array column
