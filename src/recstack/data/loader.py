"""Batches of columns: shuffled by seed, prefetched by a thread, resumable from the exact position."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recstack.data.columns import Columns
from recstack.data.resident import Resident
from recstack.data.store import ItemStore
from recstack.errors import ConfigError, DataError, TrainingError, unknown
from recstack.kernels import jagged

Batch = dict[str, Tensor]


class Loader:
    """Iterates over batches of requests; each `for` loop is one epoch.

    Args:
        columns: what `Encoder.encode` or `prepare` made, or what `Columns.to` put on a device.
        batch_size: requests per batch, of all ranks together.
        shuffle: a new order each epoch, by (seed, epoch). "blocks" is for data beyond memory: blocks of `block` requests
            in a random order, and the requests of `window` blocks at a time in a random order among them, so that files
            are read in long runs. With mapped columns the memory of a window that has passed is given back, and of rows
            in their own order likewise; histories that were built from events lie by user and are read here and there.
        seed: of order and negatives.
        negatives: n makes every positive row a request of L = 1 + n candidates: its own item, then n items drawn from
            the catalog that the user does not have in `columns`. Rows whose first binary label is not 1 are left out.
            Item features are then the catalog's for all candidates, so that no one is told apart by how fresh they are.
            Labels of negatives are 0 for binary tasks and weighted_logistic ones, others are missing. A user who has
            every item gets masked cells.
        negative_power: draw items by (rows of the item) ** power; 0 is uniform over the catalog.
        proposal: draw items by these chances instead, float [N] by item id (`sampling.weighted_negatives`); batches then
            tell their logarithm of each candidate, `@log_q`, which tasks of loss "nce" and "sampled_softmax" correct for.
        hard: puts others in place of some of what was drawn, by its ``mix(users, positive, drawn, chance)``; see
            `training.HardNegatives`. What a user has is drawn again all the same.
        drop_last: leave out a last batch that is not full.
        prefetch: batches made ahead by a thread; 0 makes them in place.
        catalog: to draw negatives from; the columns' own by default.
        times: add `@time` and `@time@history`.
        part: (rank, world): the order and the negatives are those of one process, and each rank takes its run of every
            batch; runs differ by one request at most. A last batch of fewer requests than ranks joins the one before it,
            so that all ranks make equally many steps and each has a request in every one.
        device: put batches there. On CUDA they are staged in pinned memory and copied beside the computation, one ahead.
        block, window: of shuffle="blocks".

    Raises:
        ConfigError: numbers below 1, a rank that is not below the world, or negatives for lists, without a catalog, or with pair features (which are known
            only of pairs that happened).
        DataError: no rows, or fewer than ranks.
    """

    def __init__(
        self,
        columns: Columns | Resident,
        batch_size: int,
        *,
        shuffle: bool | str = False,
        seed: int = 0,
        negatives: int = 0,
        negative_power: float = 0.0,
        proposal: np.ndarray | None = None,
        hard: Any = None,
        drop_last: bool = False,
        prefetch: int = 2,
        catalog: ItemStore | None = None,
        times: bool = False,
        part: tuple[int, int] = (0, 1),
        device: str | torch.device | None = None,
        block: int = 8192,
        window: int = 64,
    ) -> None:
        given = {"batch_size": (batch_size, 1), "negatives": (negatives, 0), "negative_power": (negative_power, 0)}
        given |= {"prefetch": (prefetch, 0), "block": (block, 1), "window": (window, 1)}
        for name, (value, low) in given.items():
            if value < low:
                raise ConfigError(f"{name} is at least {low}; got {value}.")
        if shuffle not in (False, True, "blocks"):
            raise unknown("shuffle=", shuffle, ["False", "True", "blocks"])
        self.rank, self.world = part
        if not 0 <= self.rank < self.world <= batch_size:
            raise ConfigError(
                f"part= is (rank, world) with 0 <= rank < world <= batch_size, the requests of all; got {part}."
            )
        if negatives and isinstance(columns, Resident):
            raise ConfigError("negatives= draws on the CPU; give the Columns themselves and device=.")
        self.device = None if device is None else torch.device(device)
        self.block, self.window = block, window
        self.columns, self.batch_size, self.shuffle, self.seed = columns, batch_size, shuffle, seed
        self.negatives, self.drop_last, self.prefetch, self.times = negatives, drop_last, prefetch, times
        self.hard = hard
        self._requests: np.ndarray | None = (
            None  # which are loaded; None for all: of data beyond memory no list is kept
        )
        if negatives:
            self._prepare_negatives(catalog or columns.catalog, negative_power, proposal)
        self._total = columns.n_requests if self._requests is None else len(self._requests)
        if self._total < self.world:
            raise DataError(
                f"{columns!r} has no {'positive ' if negatives else ''}rows to load."
                if not self._total
                else f"{columns!r} has {self._total} rows to load for {self.world} ranks; each needs one."
            )
        self._epoch = self._step = self._resume = 0

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        full, rest = divmod(self._total, self.batch_size)
        return full + (rest > 0 and not self.drop_last and (rest >= self.world or not full))

    # -- position -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out: epoch, batches of it done, and what they depend on.

        It holds for all ranks, and for any number of them.
        """
        return {
            "epoch": self._epoch,
            "step": self._step,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "requests": self._total,
            "data": self.columns.digest,
            "shuffle": [self.shuffle, self.block, self.window] if self.shuffle == "blocks" else self.shuffle,
            "negatives": self.negatives,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position; the next loop yields the rest of that epoch.

        Raises:
            TrainingError: the state is of another seed, batch size, shuffling or data.
        """
        own = self.state_dict()
        for key in ("seed", "batch_size", "requests", "shuffle", "negatives", "data"):
            if key in state and state[key] != own[key]:
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
        made: Iterator[Batch] = _ahead(make, steps, self.prefetch) if self.prefetch else map(make, steps)
        try:
            for batch in made if self.device is None else staged(made, self.device):
                self._step += 1
                yield batch
        finally:
            if isinstance(made, Generator):
                made.close()
        self._epoch, self._step = epoch + 1, 0

    def _order(self, epoch: int) -> InPlace | InBlocks | Shuffled:
        if self.shuffle == "blocks":
            return InBlocks(self, epoch)
        if self.shuffle:
            which = self._total if self._requests is None else self._requests
            order = np.random.default_rng((self.seed, epoch)).permutation(which)
            return Shuffled(self.columns.index(order) if isinstance(self.columns, Resident) else order)
        return InPlace(self)

    def _batch(self, order: InPlace | InBlocks | Shuffled, epoch: int, step: int) -> Batch:
        start, total = step * self.batch_size, self._total
        stop = start + self.batch_size
        if stop > total or (total - stop < self.world and not self.drop_last):
            stop = total  # the last batch, with those that are too few for one of their own
        size = stop - start
        mine = slice(start + size * self.rank // self.world, start + size * (self.rank + 1) // self.world)
        if not self.negatives:
            return self.columns.batch(order.take(mine.start, mine.stop), times=self.times)
        index, mine = np.asarray(order.take(start, stop)), slice(mine.start - start, mine.stop - start)
        return self._with_negatives(index, np.random.default_rng((self.seed, epoch, step)), mine)

    # -- negatives ----------------------------------------------------------------------------------------------------
    def _prepare_negatives(self, catalog: ItemStore | None, power: float, proposal: np.ndarray | None) -> None:
        assert isinstance(self.columns, Columns)
        self._rows = self.columns
        schema = self._rows.schema
        if catalog is None or not len(catalog):
            raise ConfigError("negatives= draws items from the catalog, and the schema has no item key or no items.")
        if self._rows.n_rows != self._rows.n_requests:
            raise ConfigError("negatives= is for rows of one candidate; these columns hold lists of candidates.")
        if pairs := schema.by_role("pair"):
            raise ConfigError(
                f"negatives= cannot make pair feature {pairs[0].name!r}, known only of pairs that happened; "
                f"train without it: schema.without({pairs[0].name!r})."
            )
        self._catalog = catalog
        self._requests = np.flatnonzero(self._rows.positives())
        self._cumulative = None
        if power:
            count = np.bincount(self._rows.item_ids, minlength=catalog.size)[catalog.ids]
            self._cumulative = np.cumsum(count.astype(np.float64) ** power)
            if not self._cumulative[-1] > 0:
                raise ConfigError("negative_power= weighs items by their rows, and no item of the catalog has any.")
        self._log_q = None
        if proposal is not None:
            chance = np.asarray(proposal, np.float64)
            if power or chance.shape != (catalog.size,) or not (chance[catalog.ids] > 0).all():
                raise ConfigError(
                    f"proposal= is a positive chance of each item, [{catalog.size}] by item id, in place of negative_power=."
                )
            if self.hard is not None:
                raise ConfigError(
                    "hard= puts other items in place of drawn ones, not by the chances of proposal=; give one."
                )
            self._cumulative = np.cumsum(chance[catalog.ids])
            self._log_q = np.zeros(catalog.size, np.float32)
            self._log_q[catalog.ids] = np.log(chance[catalog.ids] / self._cumulative[-1])
        self._users = np.zeros(self._rows.n_requests, np.int32) if schema.user is None else self._rows.user_ids
        nothing = np.zeros(2, np.int64), np.zeros(0, np.int32)
        self._seen = nothing if schema.user is None else self._rows.seen_by_user

    def _draw(self, chance: np.random.Generator, n: int) -> np.ndarray:
        if self._cumulative is None:
            at = chance.integers(0, len(self._catalog.ids), n)
        else:
            at = np.searchsorted(self._cumulative, chance.random(n) * self._cumulative[-1], "right")
        return self._catalog.ids[np.minimum(at, len(self._catalog.ids) - 1)].astype(np.int32)

    def _with_negatives(self, index: np.ndarray, chance: np.random.Generator, mine: slice) -> Batch:
        """Drawn for the whole batch, made for one rank's run of it."""
        users, positive = self._users[index], self._rows.item_ids[index]
        drawn = self._draw(chance, len(index) * self.negatives).reshape(len(index), self.negatives)
        if self.hard is not None:
            drawn = self.hard.mix(users, positive, drawn, chance)
        for _ in range(16):
            wrong = self._taken(users, positive, drawn)
            if not wrong.any():
                break
            drawn[wrong] = self._draw(chance, int(wrong.sum()))
        else:
            self._draw_from_rest(chance, users, positive, drawn, self._taken(users, positive, drawn))
        index, ids = index[mine], np.concatenate([positive[:, None], drawn], 1)[mine]
        batch = self._rows.request_batch(index, times=self.times) | self._catalog.batch(ids)
        for name, label in self._rows.label_batch(index).items():
            batch[name] = self._labels_of_all(name, label)
        if not (live := ids != 0).all():
            batch["@mask"] = torch.from_numpy(live)
        if self._log_q is not None:
            batch["@log_q"] = torch.from_numpy(self._log_q[ids])
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
        unseen = [t.unseen for t in self._rows.schema.tasks if t.column == column and not t.derived]
        rest = torch.full((len(label), self.negatives), 0.0 if 0.0 in unseen else torch.nan)
        return torch.cat([label[:, None], rest], 1)


class InPlace:
    """Requests as they lie: slices, which copy nothing, or positives among them. What has passed is given back."""

    def __init__(self, loader: Loader) -> None:
        self.columns, self.requests = loader.columns, loader._requests
        self.span, self.passed = loader.block * loader.window, 0

    def take(self, start: int, stop: int) -> slice | np.ndarray:
        if start - self.passed >= self.span:
            self.columns.release()
            self.passed = start
        return slice(start, stop) if self.requests is None else self.requests[start:stop]


class Shuffled:
    """Requests in an order."""

    def __init__(self, order: Any) -> None:
        self.order = order

    def take(self, start: int, stop: int) -> Any:
        return self.order[start:stop]


class InBlocks:
    """Blocks of requests in a random order, shuffled within windows of blocks; by (seed, epoch), from any position.

    A window's pages are asked for when the window before it begins, and given back when it has passed.
    """

    def __init__(self, loader: Loader, epoch: int) -> None:
        self.columns, self.requests, self.block = loader.columns, loader._requests, loader.block
        self.total = total = loader._total
        self.key = (loader.seed, epoch)
        self.blocks = np.random.default_rng(self.key).permutation(-(-total // loader.block))
        sizes = np.minimum(total - self.blocks * loader.block, loader.block)
        self.window = loader.window
        ends = np.cumsum(sizes)[loader.window - 1 :: loader.window]
        self.bounds = np.unique([0, *ends, total])  # where windows begin and end in the epoch
        self.at, self.order = -1, np.zeros(0, np.int64)

    def take(self, start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            at = int(np.searchsorted(self.bounds, start, "right")) - 1
            if at != self.at:
                self._go(at)
            end = min(stop, int(self.bounds[at + 1]))
            parts.append(self.order[start - self.bounds[at] : end - self.bounds[at]])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _go(self, at: int) -> None:
        self.columns.release()
        for first, last in [*(self._runs(at) if at != self.at + 1 or at == 0 else []), *self._runs(at + 1)]:
            self.columns.wanted(first, last)
        rows = [np.arange(b * self.block, min((b + 1) * self.block, self.total)) for b in self._of(at)]
        chosen = np.random.default_rng((*self.key, at)).permutation(np.concatenate(rows))
        self.at, self.order = at, chosen if self.requests is None else self.requests[chosen]

    def _of(self, at: int) -> np.ndarray:
        return self.blocks[at * self.window : (at + 1) * self.window] if at >= 0 else self.blocks[:0]

    def _runs(self, at: int) -> list[tuple[int, int]]:
        """Where the blocks of a window lie, in requests."""
        of = [(b * self.block, min((b + 1) * self.block, self.total)) for b in self._of(at).tolist()]
        return of if self.requests is None else [(int(self.requests[a]), int(self.requests[b - 1]) + 1) for a, b in of]


def staged(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device; on CUDA each is copied from pinned memory on a stream of its own while the one before it is
    worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield moved(batch, device)
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            coming = moved(batch, device, pinned=True)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in coming.values():
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = coming
    if ahead is not None:
        yield ahead


def moved(batch: Batch, device: torch.device, *, pinned: bool = False) -> Batch:
    """A batch on a device: columns that are views of one block travel as that block, in one copy."""
    blocks: dict[tuple[int, int, torch.dtype], Tensor] = {}
    out = {}
    for name, tensor in batch.items():
        memory = tensor.untyped_storage()
        key = memory.data_ptr(), memory.nbytes(), tensor.dtype
        if key not in blocks:
            block = torch.empty(0, dtype=tensor.dtype).set_(memory)  # type: ignore[call-overload]
            blocks[key] = (block.pin_memory() if pinned else block).to(device, non_blocking=pinned)
        out[name] = blocks[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return out


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
