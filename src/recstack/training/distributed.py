"""One run in several processes: data parallel, and tables whose rows are spread over the processes.

A process is one of a run that torchrun started. Each takes its slice of every global batch; after `backward` the gradients
are summed, so that all weights stay equal and the run is the run of one process on the global batches. There is no
wrapper round the model, for one sees only what goes through its `forward`, and we call `losses`.

Dense gradients travel in one flat all-reduce; sparse ones as (rows, values) that every process merges in the same order.
A sharded table keeps on each process the rows ``r`` with ``r % processes == rank``, and their optimiser state: a batch's
distinct rows are asked of their owners, and their summed gradients go back to them.
"""

from __future__ import annotations

import copy
import os
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from recstack.bundle import Bundle, Piece
from recstack.errors import ConfigError, TrainingError
from recstack.features.columns import rows_of
from recstack.kernels.rows import Rows, coalesced, dense_gather
from recstack.nn import mlp
from recstack.training.batches import Batch, requests
from recstack.training.optimizers import assign, clip

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BEAT_SECONDS = 0.5  # how often a process says that it lives
SILENCE_SECONDS = 5.0  # after so long without a word it is gone
CHUNK_BYTES = 1 << 24  # of a table on its way to another process
STATE_DICTS = ("model", "best")  # pieces of a checkpoint whose tables have their own names
NOTHING, DENSE = -1, -2  # a gradient that is not sparse


class Lost(TrainingError):
    """A message to another process did not get through."""


class World:
    """The processes of a run; with one of them, every method is the identity.

    Args:
        wanted: None: several if a process group is initialised or torchrun's variables are set; True: that, or a
            ConfigError; False: one process, whatever else is running.
        timeout: seconds that a process waits for another one that is alive but silent. One that was killed is noticed at
            once.
    """

    def __init__(self, wanted: bool | None = None, timeout: float = 600.0) -> None:
        if timeout <= 0:
            raise ConfigError(f"timeout= is in seconds and above 0; got {timeout}.")
        self.rank, self.size, self.timeout = 0, 1, timeout
        if wanted is not False and dist.is_available():
            if dist.is_initialized():
                self.rank, self.size = dist.get_rank(), dist.get_world_size()
            elif all(name in os.environ for name in TORCHRUN):
                self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            elif wanted:
                missing = next(name for name in TORCHRUN if name not in os.environ)
                raise ConfigError(
                    f"distributed=True needs a process group or torchrun, and {missing} is not set. Start the "
                    "program with: torchrun --standalone --nproc-per-node 2 program.py"
                )
        self.group: Any = None
        self.shards: dict[str, Shard] = {}
        self.stop: Any = None  # has `asked`: whether a signal came to this process
        self._stopping = False
        self.requests = 0  # of the step, on all processes
        self.empty = False  # whether the batch in hand is only there to take part

    @property
    def main(self) -> bool:
        """Whether this process speaks: logs, writes checkpoints, calls the callbacks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.size > 1

    def device(self, given: str | torch.device | None, present: torch.device) -> torch.device:
        """The given one, else where the model is; CUDA without a number is this process's own GPU."""
        device = present if given is None else torch.device(given)
        if self.several and device.type == "cuda" and (given is None or device.index is None):
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
        return device

    # -- a run --------------------------------------------------------------------------------------------------------
    @contextmanager
    def running(self, device: torch.device, folder: Path | None) -> Iterator[None]:
        """Connected inside; what ends one process ends all, with a sentence that says which was first.

        Raises:
            TrainingError: another process vanished or failed; names it and the checkpoint in `folder` to go on from.
        """
        if not self.several:
            yield
            return
        wait = timedelta(seconds=self.timeout)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=wait)
        # A group of our own: its time-out is ours, and nothing else that the program sends can come between.
        self.group = dist.new_group(timeout=wait, backend=backend)
        pulse = _Pulse(self.rank, self.size)
        try:
            yield
            self.any(False)  # nobody hangs up before all have heard the last word
        except Lost as e:
            raise TrainingError(f"{pulse.verdict(str(e))} {_way_on(folder)}") from e
        except BaseException as e:
            pulse.leave(f"{type(e).__name__}: {e}")
            raise
        finally:
            pulse.stop()
            group, self.group = self.group, None
            with suppress(Exception):
                dist.destroy_process_group(group)

    # -- messages -----------------------------------------------------------------------------------------------------
    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:
            raise Lost(str(e).splitlines()[0]) from e

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place."""
        with self._talking():
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes; they have one shape."""
        out = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._talking():
            dist.all_gather(out, tensor.contiguous(), group=self.group)
        return out

    def _exchange(self, tensor: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows to each process, first those of process 0; what came, in the order of who sent it."""
        out = tensor.new_empty(sum(received), *tensor.shape[1:])
        with self._talking():
            dist.all_to_all_single(out, tensor.contiguous(), received, sent, group=self.group)
        return out

    def _broadcast_(self, tensor: Tensor) -> None:
        """Process 0's values into `tensor`, as bytes: every dtype travels so."""
        whole = tensor.detach().contiguous()
        for part in whole.view(-1).view(torch.uint8).split(CHUNK_BYTES) if whole.numel() else ():
            with self._talking():
                dist.broadcast(part, 0, group=self.group)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(whole)

    def any(self, mine: bool) -> bool:
        """Whether it is so on any process; all must ask."""
        if not self.several:
            return mine
        return bool(self.sum_(torch.tensor([float(mine)])) > 0)

    def same(self, value: Any, what: str) -> None:
        """Raise a TrainingError unless `value` prints alike on all processes."""
        if not self.several:
            return
        prints = [int(t) for t in self._gather(torch.tensor([zlib.crc32(repr(value).encode())]))]
        other = next((r for r, p in enumerate(prints) if p != prints[0]), None)
        if other is not None:
            raise TrainingError(f"Process {other} has {what} other than process 0's; all must be given the same.")

    # -- the start ----------------------------------------------------------------------------------------------------
    def seed(self, seed: int) -> int:
        """Of this process's dropout: process 0 has what a single process would have."""
        return seed if self.rank == 0 else _other_seed(seed, self.rank)

    def begin(self, model: nn.Module) -> None:
        """Process 0's weights and buffers on every process."""
        if not self.several:
            return
        self._refuse_dynamic(model)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self.same([(n, tuple(t.shape), t.dtype) for n, t in tensors], "a model with parameters or sizes")
        for _, tensor in tensors:
            self._broadcast_(tensor)

    def _refuse_dynamic(self, model: nn.Module) -> None:
        from recstack.features.codes import Dynamic

        for module in model.modules():
            for table, code in getattr(module, "codes", {}).items():
                if isinstance(code, Dynamic):
                    raise ConfigError(
                        f"Table {table!r} admits and evicts ids by what the batches hold, and each of {self.size} processes "
                        "sees its own part of them; train it in one process (distributed=False)."
                    )

    @torch.no_grad()
    def level(self, model: nn.Module) -> None:
        """Every buffer as process 0 has it, before the model is measured."""
        if self.several:
            for buffer in model.buffers():
                self._broadcast_(buffer)

    # -- batches ------------------------------------------------------------------------------------------------------
    def sliced(self, loader: Iterable[Batch]) -> Iterable[Batch]:
        """This process's rows of each global batch; a Loader with ``part=`` gives them already.

        A process that gets no row of a small batch is given one whose labels are missing: it takes part and adds nothing.
        """
        if not self.several:
            return loader
        part = getattr(loader, "rank", 0), getattr(loader, "world", 1)
        if part == (0, 1):
            return (cut_batch(batch, self.rank, self.size) for batch in loader)
        if part != (self.rank, self.size):
            raise ConfigError(f"The Loader has part={part}, and this is process {self.rank} of {self.size}.")
        return loader

    def total(self, counts: dict[str, Any]) -> dict[str, Any]:
        """Counts summed over processes, asked at the beginning of a step: the wish to stop travels with them.

        Numbers and tensors on a CPU go in one message; tensors on a device in another, which nothing waits for.
        """
        if not self.several:
            return counts
        away = [n for n, v in counts.items() if isinstance(v, Tensor) and v.device.type != "cpu"]
        here = [n for n in counts if n not in away]
        stop = self.stop is not None and self.stop.asked
        values = self.sum_(torch.tensor([*(float(counts[n]) for n in here), float(stop)], dtype=torch.float64))
        self._stopping = bool(values[-1] > 0)
        out: dict[str, Any] = dict(zip(here, values[:-1].unbind(), strict=True))
        self.requests = round(float(out[""]))
        if away:
            out |= zip(away, self.sum_(torch.stack([counts[n].double() for n in away])).unbind(), strict=True)
        return {n: out[n] for n in counts}

    @property
    def stopping(self) -> bool:
        """Whether all end after this step, by a signal to any of them."""
        return self._stopping if self.several else self.stop is not None and self.stop.asked

    # -- gradients ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def reduce(self, params: Iterable[nn.Parameter], losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum every gradient over processes, in place, and the losses. A parameter that none used keeps no gradient."""
        if not self.several:
            return dict(losses)
        mine = {id(shard.arena.weight) for shard in self.shards.values()}  # their gradients came to their owner already
        params = [p for p in params if id(p) not in mine]
        kinds = torch.tensor([_kind(p) for p in params], dtype=torch.int64)
        every = torch.stack(self._gather(kinds), 1) if params else kinds.view(0, self.size)
        dense: dict[torch.dtype, list[Tensor]] = {}
        for p, kind in zip(params, every, strict=True):
            if bool((kind == DENSE).any()):
                grad = torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
                p.grad = grad
                dense.setdefault(grad.dtype, []).append(grad)
            elif bool((kind >= 0).any()):
                self._merge(p, kind.clamp(min=0).tolist())
        names = list(losses)
        values = torch.stack([losses[name].detach().float() for name in names])
        dense.setdefault(torch.float32, []).append(values)
        for grads in dense.values():
            flat = self.sum_(torch.cat([g.reshape(-1) for g in grads]))
            for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(part.view_as(g))
        return dict(zip(names, values.double(), strict=True))

    def _merge(self, p: nn.Parameter, counts: list[int]) -> None:
        """The sparse gradients of all processes as one, each row once, summed in the order of the processes."""
        if p.grad is None:
            index = torch.zeros(1, 0, dtype=torch.int64, device=p.device)
            p.grad = torch.sparse_coo_tensor(index, p.new_zeros(0, *p.shape[1:]), p.shape)
        grad = coalesced(p.grad)
        n = max(counts)
        rows = torch.zeros(n, dtype=torch.int64, device=p.device)  # one more than the row; 0 is not there
        values = grad._values().new_zeros(n, p[0].numel())
        own = grad._values()
        rows[: len(own)] = grad._indices()[0] + 1
        values[: len(own)] = own.reshape(-1, values.shape[1])
        p.grad = _sparse(p, torch.cat(self._gather(rows)), torch.cat(self._gather(values)))

    @torch.no_grad()
    def clip(self, params: Iterable[nn.Parameter], limit: float) -> None:
        """`optimizers.clip`, where some gradients lie on several processes."""
        if not self.shards:
            clip(params, limit)
            return
        spread = {id(shard.arena.weight) for shard in self.shards.values()}
        params = [p for p in params if p.grad is not None]
        own = [_values(p) for p in params if id(p) not in spread]
        mine = [_values(p) for p in params if id(p) in spread]
        square = self.sum_(torch.nn.utils.get_total_norm(mine).double().square())
        norm = (torch.nn.utils.get_total_norm(own).double().square() + square).sqrt()
        scale = (limit / (norm + 1e-6)).clamp(max=1).float()
        for values in (*own, *mine):
            values.mul_(scale.to(values.device))

    @contextmanager
    def normalised(self, model: nn.Module) -> Iterator[None]:
        """Inside, BatchNorm in training takes the statistics of the global batch, as one process would."""
        found = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        norms: list[Any] = list(found) if self.several else []
        for norm in norms:
            norm.forward = partial(_batch_norm, self, norm)
        try:
            yield
        finally:
            for norm in norms:
                del norm.forward

    # -- measuring ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def merge(self, meters: Mapping[str, Any]) -> None:
        """Meters of this process's rows become meters of all rows, exactly: what they remember is gathered."""
        if not self.several:
            return
        for meter in meters.values():
            states: list[dict[str, Tensor]] = [{} for _ in range(self.size)]
            for key, tensor in meter.state_dict().items():
                for state, value in zip(states, self._gather_uneven(tensor), strict=True):
                    state[key] = value
            meter.reset()
            for state in states:
                other = copy.copy(meter)
                other.load_state_dict(state)
                meter.merge(other)

    def agreed(self, values: dict[str, float]) -> dict[str, float]:
        """Process 0's numbers: what is decided by them is then decided alike."""
        if not self.several:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64)
        self._broadcast_(numbers)
        return dict(zip(values, numbers.tolist(), strict=True))

    def _gather_uneven(self, tensor: Tensor) -> list[Tensor]:
        """Tensors of one process each that differ in the length of their first axis."""
        tensor = tensor.detach().cpu().contiguous()
        if not tensor.dim():
            return self._gather(tensor)
        counts = [int(n) for n in self._gather(torch.tensor([len(tensor)]))]
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return [t[:n] for t, n in zip(self._gather(padded), counts, strict=True)]

    # -- sharded tables -----------------------------------------------------------------------------------------------
    @contextmanager
    def spread(self, model: nn.Module, keys: Sequence[str], optimizers: Iterable[Any] = ()) -> Iterator[None]:
        """Inside, each process has its rows of the tables that `keys` choose, and of their state in `optimizers`.

        After it every process has all of them again, but not the state.
        """
        if not self.several or not keys:
            yield
            return
        optimizers = list(optimizers)
        for name, arena in tables(model, keys).items():
            self.shards[name] = Shard(self, name, arena, optimizers)
        refused = _refuse_whole_tables(model, [shard.arena for shard in self.shards.values()])
        try:
            yield
            for shard in self.shards.values():  # not after an error: the others may be gone
                shard.restore()
        finally:
            for module in refused:
                del module.weight, module.by_id
            self.shards = {}

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def gathered(self, pieces: dict[str, Piece]) -> dict[str, Piece]:
        """The pieces that one process would write, whole on process 0; all must ask."""
        if not self.several:
            return pieces
        out = {}
        for name, piece in pieces.items():
            tensors: dict[str, Tensor] = {}
            for key, tensor in piece.tensors.items():
                assert isinstance(tensor, Tensor)
                shard = self._shard_of(key, tensor)
                if shard is None:
                    tensors[key] = tensor
                    continue
                whole = shard.gathered(tensor)
                if whole is not None and name in STATE_DICTS:
                    tensors |= {f"{shard.prefix}{t}": view for t, view in shard.arena.tables(whole).items()}
                elif whole is not None:
                    tensors[key] = whole
            out[name] = replace(piece, tensors=tensors)
        if "random" in out:
            states = self._gather(torch.as_tensor(out["random"].tensors["cpu"]))
            more = {f"cpu:{rank}": state for rank, state in enumerate(states) if rank}
            out["random"] = replace(out["random"], tensors=dict(out["random"].tensors) | more)
        return out

    def cut(self, saved: Bundle) -> Bundle:
        """This process's part of a checkpoint, whichever number of processes wrote it."""
        if not self.several:
            return saved
        self.same(saved.path.name, "a newest checkpoint")
        pieces = dict(saved.pieces)
        for shard in self.shards.values():
            for name, piece in pieces.items():
                tensors = dict(piece.tensors)
                if name in STATE_DICTS and tensors:
                    own = {t: tensors.pop(f"{shard.prefix}{t}") for t in shard.arena.sizes}
                    tensors[shard.name] = shard.joined(own)  # type: ignore[arg-type]
                for key in [k for k in tensors if shard.owns(k, tensors[k], shard.rows)]:  # type: ignore[arg-type]
                    tensors[key] = shard.cut(tensors[key])  # type: ignore[arg-type]
                pieces[name] = replace(piece, tensors=tensors)
        if self.rank and "random" in pieces:
            states = dict(pieces["random"].tensors)
            fresh = torch.Generator().manual_seed(_other_seed(saved.meta["step"], self.rank)).get_state()
            states["cpu"] = states[f"cpu:{self.rank}"] if len(states) >= self.size else fresh
            pieces["random"] = replace(pieces["random"], tensors=states)
        return replace(saved, pieces=pieces)

    def _shard_of(self, key: str, tensor: Tensor) -> Shard | None:
        return next((s for s in self.shards.values() if s.owns(key, tensor, len(s.arena.weight))), None)


class Shard:
    """The rows ``r`` of one arena with ``r % size == rank``; row r is this process's row ``r // size``."""

    def __init__(self, world: World, name: str, arena: Any, optimizers: Sequence[Any]) -> None:
        self.world, self.name, self.arena = world, name, arena
        self.prefix = name.removesuffix("weight")
        self.rows = len(arena.weight)
        whole = arena.weight.detach()
        for optimizer in optimizers:
            state = optimizer.state.get(arena.weight, {})
            for key in [k for k, v in state.items() if self.owns(name, v, self.rows)]:
                state[key] = self.cut(state[key])
        arena.weight.grad = None
        arena.weight.data = self.cut(whole)
        arena.remote = self.fetch
        # Shards have no tables: what asks for the state (best weights, checkpoints) is given the rows under one name.
        arena._save_to_state_dict = lambda *args: nn.Module._save_to_state_dict(arena, *args)
        arena._load_from_state_dict = lambda *args: nn.Module._load_from_state_dict(arena, *args)

    def owns(self, key: str, tensor: Any, rows: int) -> bool:
        """Whether it is a tensor with a row for each of `rows` of this arena: "exp_avg:tables.16.weight"."""
        mine = key == self.name or key.endswith((f":{self.name}", f"/{self.name}"))
        return mine and isinstance(tensor, Tensor) and tensor.dim() > 0 and len(tensor) == rows

    def cut(self, whole: Tensor) -> Tensor:
        return whole[self.world.rank :: self.world.size].clone(memory_format=torch.contiguous_format)

    def joined(self, tables: Mapping[str, Tensor]) -> Tensor:
        """This process's rows of tables that lie behind each other, the padding row before the first."""
        size, rank = self.world.size, self.world.rank
        some = next(iter(tables.values()))
        out = some.new_zeros(len(range(rank, self.rows, size)), *some.shape[1:])
        for table, rows in tables.items():
            first = 1 + self.arena.start[table]
            skip = (rank - first) % size
            mine = rows[skip::size]
            out[(first + skip) // size :][: len(mine)] = mine
        return out

    @torch.no_grad()
    def gathered(self, own: Tensor) -> Tensor | None:
        """The whole tensor on process 0's CPU, filled in chunks; None elsewhere."""
        world, group = self.world, self.world.group
        own = own.detach().cpu().contiguous()
        step = max(1, CHUNK_BYTES // max(1, own[:1].nbytes))
        if world.rank:
            for part in own.split(step):
                with world._talking():
                    dist.send(part.view(-1).view(torch.uint8), 0, group=group)
            return None
        whole = own.new_empty(self.rows, *own.shape[1:])
        whole[:: world.size] = own
        for rank in range(1, world.size):
            for part in whole[rank :: world.size].split(step):
                came = torch.empty_like(part, memory_format=torch.contiguous_format)
                with world._talking():
                    dist.recv(came.view(-1).view(torch.uint8), rank, group=group)
                part.copy_(came)
        return whole

    @torch.no_grad()
    def restore(self) -> None:
        """The arena as it was before, with the rows as they are now, on every process."""
        weight = self.arena.weight
        whole = self.gathered(weight)
        weight.data = weight.new_empty(self.rows, *weight.shape[1:]) if whole is None else whole.to(weight.device)
        self.world._broadcast_(weight)
        self.arena.remote = None
        del self.arena._save_to_state_dict, self.arena._load_from_state_dict

    # -- the way of a batch's rows ------------------------------------------------------------------------------------
    def fetch(self, weight: Tensor, rows: Rows) -> Tensor:
        """What `dense_gather` gives on the whole table; the gradient is of this process's rows, summed over all batches."""
        return _opaque_fetch()(weight, rows, self)

    def vectors(self, weight: Tensor, unique: Tensor) -> tuple[Tensor, _Route]:
        """The vectors of distinct rows [u], from their owners."""
        world = self.world
        owner = unique % world.size
        order = torch.argsort(owner, stable=True)
        sent = torch.bincount(owner, minlength=world.size)
        counts = torch.stack(world._gather(sent)).tolist()  # [from][to]
        ask, answer = counts[world.rank], [row[world.rank] for row in counts]
        wanted = world._exchange((unique // world.size)[order], ask, answer)
        found = world._exchange(weight.detach()[wanted], answer, ask)
        return torch.empty_like(found).index_copy_(0, order, found), _Route(order, ask, answer, wanted)


class _Route:
    """How the rows of one gather went, so that their gradients find the way back."""

    def __init__(self, order: Tensor, ask: list[int], answer: list[int], wanted: Tensor) -> None:
        self.order, self.ask, self.answer, self.wanted = order, ask, answer, wanted


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Rows, shard: Shard) -> Tensor:
        unique, order, first = rows.plan
        found, ctx.route = shard.vectors(weight, unique[0])
        ctx.rows, ctx.shard = rows, shard
        place = torch.zeros(rows.index.numel(), dtype=torch.int64, device=weight.device)  # in `small`; 0 is padding
        place[order.long()] = torch.repeat_interleave(
            torch.arange(1, len(first) + 1, device=weight.device), rows.counts
        )
        small = torch.cat([found.new_zeros(1, found.shape[1]), found])
        small = small.float() if small.dtype.itemsize < 4 else small
        return dense_gather(small, Rows(place.view(rows.index.shape), rows.offsets, rows.mean))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        shard, route = ctx.shard, ctx.route
        _, sums = ctx.rows.summed(grad.float() if grad.dtype.itemsize < 4 else grad)
        came = shard.world._exchange(sums[route.order], route.ask, route.answer)
        out = _sparse(shard.arena.weight, route.wanted + 1, came)
        return out if shard.arena.sparse else out.to_dense(), None, None


@cache
def _opaque_fetch() -> Any:
    return torch.compiler.disable(_Fetch.apply)  # not at import: it brings the compiler with it


def _sparse(p: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A coalesced sparse gradient of `p` from rows counted from 1, which come more than once; 0 is left out."""
    unique, sums = Rows(rows).summed(values)
    sums = sums.reshape(-1, *p.shape[1:]).to(p.dtype)
    return torch.sparse_coo_tensor(unique - 1, sums, p.shape, is_coalesced=True, check_invariants=False)


def _values(p: nn.Parameter) -> Tensor:
    """The numbers of a gradient, each row once."""
    assert p.grad is not None
    if not p.grad.is_sparse:
        return p.grad
    p.grad = coalesced(p.grad)
    return p.grad._values()


def _kind(p: nn.Parameter) -> int:
    """Number of rows of a sparse gradient, or which other kind it is."""
    if p.grad is None:
        return NOTHING
    if not p.grad.is_sparse:
        return DENSE
    return _values(p).shape[0]


def tables(model: nn.Module, keys: Sequence[str]) -> dict[str, Any]:
    """{parameter name: arena} of the tables that ``sharded=`` chooses.

    Raises:
        ConfigError: a key that takes something else, or nothing.
    """
    found: dict[str, Any] = {}
    for key, params in assign(model, keys, "sharded=").items():
        for name, p in params.items():
            arena = next((m for m in model.modules() if getattr(m, "weight", None) is p and hasattr(m, "remote")), None)
            if arena is None:
                raise ConfigError(f"sharded={key!r} takes {name!r}, which is no embedding table of recstack.features.")
            found[name] = arena
    return found


def _refuse_whole_tables(model: nn.Module, arenas: list[Any]) -> list[Any]:
    """Make what reads a whole table say that there is none; the modules that were changed."""

    def refuse(table: str) -> Tensor:
        raise ConfigError(
            f"{type(model).__name__} reads the whole table {table!r} in one piece, so it cannot be spread over processes; "
            "leave it out of sharded=."
        )

    changed = []
    for module in model.modules():
        if hasattr(module, "by_id") and any(child is arena for child in module.children() for arena in arenas):
            module.weight = module.by_id = refuse  # type: ignore[assignment]
            changed.append(module)
    return changed


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is one too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.sum_(x.clone())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.world.sum_(grad.clone()), None


def _batch_norm(world: World, norm: Any, x: Tensor) -> Tensor:
    """`norm(x)` by the statistics of all processes' rows; by the running ones where those are fewer than two."""
    if not norm.training:
        return type(norm).forward(norm, x)
    ours: Any = mlp.BatchNorm
    last = isinstance(norm, ours) or x.dim() == 2  # ours has its channels there, torch's in the second axis
    rows = (x if last else x.movedim(1, -1)).float()
    with torch.autocast(x.device.type, enabled=False):
        live = rows.flatten(0, -2)[: 0 if world.empty else None]
        total = _Sum.apply(torch.cat([live.sum(0), live.new_tensor([len(live)])]), world)
        n, few = total[-1].detach(), total[-1].detach() < 2
        mean = total[:-1] / n.clamp(min=1)
        var = _Sum.apply((live - mean).square().sum(0), world) / n.clamp(min=1)
        if norm.running_mean is not None:
            with torch.no_grad():
                momentum = torch.where(few, 0.0, norm.momentum or 0.0)
                norm.running_mean.lerp_(mean, momentum)
                norm.running_var.lerp_(var * n / (n - 1).clamp(min=1), momentum)
                norm.num_batches_tracked.add_((~few).long())
            mean = torch.where(few, norm.running_mean, mean)
            var = torch.where(few, norm.running_var, var)
        y = (rows - mean) * (var + norm.eps).rsqrt()
        if norm.affine:
            y = y * norm.weight + norm.bias
    return (y if last else y.movedim(-1, 1)).to(x.dtype)


# -- slices of batches ------------------------------------------------------------------------------------------------
def cut_batch(batch: Batch, rank: int, size: int) -> Batch:
    """The rows of process `rank` of `size`: contiguous, and as many as the others' but for one."""
    n = requests(batch)
    begin, end = n * rank // size, n * (rank + 1) // size
    return rows_of(batch, torch.arange(begin, end), n) if begin < end else blank(rows_of(batch, torch.arange(1), n))


def blank(batch: Batch) -> Batch:
    """One row without ids, marked so that it counts for nothing: for a process that must take part and has no row."""
    out = dict(batch) if requests(batch) == 1 else rows_of(batch, torch.arange(1), requests(batch))
    for name, value in out.items():
        if isinstance(value, Tensor) and value.dtype in (torch.int32, torch.int64) and not name.endswith("@offsets"):
            out[name] = torch.zeros_like(value)
    out["@empty"] = torch.tensor(True)
    return out


def _other_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence([n % 2**63 for n in numbers]).generate_state(1, np.uint64)[0] >> 1)


# -- when a process is lost -------------------------------------------------------------------------------------------
class _Pulse:
    """Each process says in the store, twice a second, that it lives, and why it leaves, so that the others can name it."""

    runs = 0

    def __init__(self, rank: int, size: int) -> None:
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        self.rank, self.size = rank, size
        _Pulse.runs += 1  # each run of a program has its own place in the store
        self.store = PrefixStore(f"recstack/{_Pulse.runs}", _get_default_store())
        self.store.set(f"left/{rank}", "")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="recstack-pulse", daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        with suppress(Exception):  # the store is gone when its process is; the run notices by itself
            while not self.ended.wait(BEAT_SECONDS):
                self.store.add(f"beat/{self.rank}", 1)

    def leave(self, why: str) -> None:
        with suppress(Exception):
            self.store.set(f"left/{self.rank}", why)

    def stop(self) -> None:
        self.ended.set()
        self.thread.join(2 * BEAT_SECONDS)

    def verdict(self, found: str) -> str:
        """Who is gone, and why if that is known; the same for all that are left."""
        try:
            if not self.store.check(["verdict"]):
                self.store.set("verdict", self._judge(found))
            return self.store.get("verdict").decode()
        except RuntimeError:  # the store went with its process, which is the first where torchrun does not keep it
            return self._vanished([0])

    def _judge(self, found: str) -> str:
        others = [r for r in range(self.size) if r != self.rank]
        before = {r: self._look(r)[0] for r in others}
        end = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS)
            now = {r: self._look(r) for r in others}
            if left := [r for r in others if now[r][1]]:
                return f"Process {left[0]} of {self.size} failed: {now[left[0]][1].rstrip('.')}."
            if all(now[r][0] != before[r] for r in others):
                break
        gone = [r for r in others if now[r][0] == before[r]]
        return self._vanished(gone) if gone else f"A message between {self.size} processes was lost: {found}."

    def _vanished(self, ranks: list[int]) -> str:
        which = f"Process {ranks[0]}" if len(ranks) == 1 else f"Processes {', '.join(map(str, ranks))}"
        return f"{which} of {self.size} vanished: killed, or the machine is lost."

    def _look(self, rank: int) -> tuple[int, str]:
        return self.store.add(f"beat/{rank}", 0), self.store.get(f"left/{rank}").decode()


def _way_on(folder: Path | None) -> str:
    kept = sorted(m.parent for m in folder.glob("step-*/manifest.json")) if folder is not None else []
    if not kept:
        return "There is no checkpoint to go on from; start anew, with checkpoint= and checkpoint_every=."
    return f"Go on from {str(kept[-1])!r} with fit(resume=True), in any number of processes."
