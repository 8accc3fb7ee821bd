"""Batches of columns: shuffled by seed, prefetched by a thread, resumable from the exact position."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.data.columns import Columns
from recstack.data.store import ItemStore
from recstack.errors import ConfigError, DataError, TrainingError
from recstack.kernels import jagged

Batch = dict[str, Tensor]


class Loader:
    """Iterates over batches of requests; each `for` loop is one epoch.

    Args:
        columns: what `Encoder.encode` made.
        batch_size: requests per batch.
        shuffle: a new order each epoch, by (seed, epoch).
        seed: of order and negatives.
        negatives: n makes every positive row a request of L = 1 + n candidates: its own item, then n items drawn from
            the catalog that the user does not have in `columns`. Rows whose first binary label is not 1 are left out.
            Item features are then the catalog's for all candidates, so that no one is told apart by how fresh they are.
            Binary labels of negatives are 0, other labels are missing. A user who has every item gets masked cells.
        negative_power: draw items by (rows of the item) ** power; 0 is uniform over the catalog.
        drop_last: leave out a last batch that is not full.
        prefetch: batches made ahead by a thread; 0 makes them in place.
        catalog: to draw negatives from; the columns' own by default.
        times: add `@time` and `@time@history`.

    Raises:
        ConfigError: numbers below 1, or negatives for lists, without a catalog, or with pair features (which are known
            only of pairs that happened).
        DataError: no rows.
    """

    def __init__(
        self,
        columns: Columns,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        negatives: int = 0,
        negative_power: float = 0.0,
        drop_last: bool = False,
        prefetch: int = 2,
        catalog: ItemStore | None = None,
        times: bool = False,
    ) -> None:
        least = {"batch_size": 1, "negatives": 0, "prefetch": 0, "negative_power": 0}
        for (name, low), value in zip(least.items(), (batch_size, negatives, prefetch, negative_power), strict=True):
            if value < low:
                raise ConfigError(f"{name} is at least {low}; got {value}.")
        self.columns, self.batch_size, self.shuffle, self.seed = columns, batch_size, shuffle, seed
        self.negatives, self.drop_last, self.prefetch, self.times = negatives, drop_last, prefetch, times
        self._requests = np.arange(columns.n_requests)
        if negatives:
            self._prepare_negatives(catalog or columns.catalog, negative_power)
        if not len(self._requests):
            raise DataError(f"{columns!r} has no {'positive ' if negatives else ''}rows to load.")
        self._epoch = self._step = self._resume = 0

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self._requests), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    # -- position -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, int]:
        """The position after the last batch handed out: epoch, batches of it done, and what they depend on."""
        return {
            "epoch": self._epoch,
            "step": self._step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "requests": len(self._requests),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; the next loop yields the rest of that epoch.

        Raises:
            TrainingError: the state is of another seed, batch size or number of rows.
        """
        own = self.state_dict()
        for key in ("seed", "batch_size", "requests"):
            if state[key] != own[key]:
                raise TrainingError(
                    f"The saved position has {key} {state[key]} and this loader {own[key]}; it is of another run."
                )
        self._epoch, self._step, self._resume = state["epoch"], state["step"], state["step"]

    def __iter__(self) -> Iterator[Batch]:
        """The batches of an epoch: from the loaded position if there is one, else from the epoch's start."""
        epoch, start, self._resume = self._epoch, self._resume, 0
        self._step = start
        order = self._order(epoch)
        steps = range(start, len(self))
        make = lambda step: self._batch(order, epoch, step)  # noqa: E731
        for batch in _ahead(make, steps, self.prefetch) if self.prefetch else map(make, steps):
            self._step += 1
            yield batch
        self._epoch, self._step = epoch + 1, 0

    def _order(self, epoch: int) -> np.ndarray | None:
        """Positions of an epoch, or None for the rows as they lie, which are sliced and never copied."""
        if self.shuffle:
            return np.random.default_rng((self.seed, epoch)).permutation(self._requests)
        return self._requests if self.negatives else None

    def _batch(self, order: np.ndarray | None, epoch: int, step: int) -> Batch:
        at = slice(step * self.batch_size, min((step + 1) * self.batch_size, len(self._requests)))
        index = at if order is None else order[at]
        if self.negatives:
            return self._with_negatives(np.asarray(index), np.random.default_rng((self.seed, epoch, step)))
        return self.columns.batch(index, times=self.times)

    # -- negatives ----------------------------------------------------------------------------------------------------
    def _prepare_negatives(self, catalog: ItemStore | None, power: float) -> None:
        schema = self.columns.schema
        if catalog is None or not len(catalog):
            raise ConfigError("negatives= draws items from the catalog, and the schema has no item key or no items.")
        if self.columns.n_rows != self.columns.n_requests:
            raise ConfigError("negatives= is for rows of one candidate; these columns hold lists of candidates.")
        if pairs := schema.by_role("pair"):
            raise ConfigError(
                f"negatives= cannot make pair feature {pairs[0].name!r}, known only of pairs that happened; "
                f"train without it: schema.without({pairs[0].name!r})."
            )
        self._catalog = catalog
        self._requests = np.flatnonzero(self.columns.positives())
        self._cumulative = None
        if power:
            count = np.bincount(self.columns.item_ids, minlength=catalog.size)[catalog.ids]
            self._cumulative = np.cumsum(count.astype(np.float64) ** power)
            if not self._cumulative[-1] > 0:
                raise ConfigError("negative_power= weighs items by their rows, and no item of the catalog has any.")
        self._users = np.zeros(self.columns.n_requests, np.int32) if schema.user is None else self.columns.user_ids
        nothing = np.zeros(2, np.int64), np.zeros(0, np.int32)
        self._seen = nothing if schema.user is None else self.columns.seen_by_user

    def _draw(self, chance: np.random.Generator, n: int) -> np.ndarray:
        if self._cumulative is None:
            at = chance.integers(0, len(self._catalog.ids), n)
        else:
            at = np.searchsorted(self._cumulative, chance.random(n) * self._cumulative[-1], "right")
        return self._catalog.ids[np.minimum(at, len(self._catalog.ids) - 1)].astype(np.int32)

    def _with_negatives(self, index: np.ndarray, chance: np.random.Generator) -> Batch:
        users, positive = self._users[index], self.columns.item_ids[index]
        drawn = self._draw(chance, len(index) * self.negatives).reshape(len(index), self.negatives)
        for _ in range(16):
            wrong = self._taken(users, positive, drawn)
            if not wrong.any():
                break
            drawn[wrong] = self._draw(chance, int(wrong.sum()))
        else:
            self._draw_from_rest(chance, users, positive, drawn, self._taken(users, positive, drawn))
        ids = np.concatenate([positive[:, None], drawn], 1)
        batch = self.columns.request_batch(index, times=self.times) | self._catalog.batch(ids)
        for name, label in self.columns.label_batch(index).items():
            batch[name] = self._labels_of_all(name, label)
        if not (live := ids != 0).all():
            batch["@mask"] = torch.from_numpy(live)
        return batch

    def _taken(self, users: np.ndarray, positive: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        offsets, items = self._seen
        return jagged.contains(users, drawn, offsets, items) | (drawn == positive[:, None])

    def _draw_from_rest(
        self, chance: np.random.Generator, users: np.ndarray, positive: np.ndarray, drawn: np.ndarray, wrong: np.ndarray
    ) -> None:
        """For users who have nearly everything: draw from what is left, 0 (masked) where that is nothing."""
        offsets, items = self._seen
        for row in np.flatnonzero(wrong.any(1)):
            has = np.append(items[offsets[users[row]] : offsets[users[row] + 1]], positive[row])
            rest = np.setdiff1d(self._catalog.ids, has)
            cells = wrong[row]
            drawn[row, cells] = chance.choice(rest, int(cells.sum())) if len(rest) else 0

    def _labels_of_all(self, name: str, label: Tensor) -> Tensor:
        if name == "@weight":
            return label[:, None].expand(-1, 1 + self.negatives)
        column = name.removesuffix("@label")
        binary = any(t.kind == "binary" and t.column == column for t in self.columns.schema.tasks)
        rest = torch.full((len(label), self.negatives), 0.0 if binary else torch.nan)
        return torch.cat([label[:, None], rest], 1)


def _ahead(make: Callable[[int], Batch], steps: range, depth: int) -> Iterator[Batch]:
    """`map(make, steps)`, up to `depth` ahead in a thread that ends with the iteration, however that ends."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in steps:
                if not put((make(step), None)):
                    return
            put((None, None))
        except BaseException as error:  # raised again where the batch is asked for
            put((None, error))

    thread = threading.Thread(target=work, name="recstack-loader", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stop.set()
        thread.join()
