"""One loop for every stage of the cascade."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, TrainingError, unknown
from recstack.kernels.memory import keep_freed
from recstack.training import (
    averaging,
    balance,
    checkpoints,
    evaluation,
    gates,
    incremental,
    memory,
    optimizers,
    schedules,
)
from recstack.training import batches as feeding
from recstack.training.callbacks import Callback, Progress, loggers
from recstack.training.diagnosis import Movement, explain
from recstack.training.distributed import World
from recstack.training.distributed import tables as tables_to_shard
from recstack.training.optimizers import Group
from recstack.training.regularization import Asked, Limits, Penalties
from recstack.training.turns import Turn, check_names, turns

logger = logging.getLogger("recstack.training")

PRECISIONS = ("fp32", "bf16")
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
READ_SECONDS = 0.5  # reading a loss waits for the device, so it is done by the clock and not by the step
CHECK_STEPS = 50  # how late a loss that is not finite may be noticed on a device that runs ahead of us


@runtime_checkable
class Trainable(Protocol):
    """What the Trainer asks of a model. It knows none by name.

    A model may also define ``validate(data) -> {metric: value}``, which is asked in place of the tasks' metrics; `data` is
    what was given as `valid`, a raw Log encoded. One may define ``measures(batch) -> {name: scalar}``, asked once an epoch about a
    batch of it and logged; of gates (names as in `models.trunk.MultiTask.measures`) a collapse is told. An attribute `fitted`
    is set to True after training.
    """

    def losses(self, batch: Any) -> dict[str, Tensor]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...


@dataclass
class FitResult:
    """What a run did.

    epochs: one record each: {"epoch", "step", "loss", "losses", "valid", "lr", "seconds", "rate"}, and with `balance` the
        mean "weights" of the losses; with a model that has them its "measures", such as what gates do.
    best: {"epoch", "monitor", "value"} of the weights that the model now has; None if nothing was monitored.
    interrupted: whether Ctrl-C or SIGTERM ended it; ``fit(resume=True)`` goes on.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    interrupted: bool = False
    steps: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains whatever has `losses` and parameters.

    Args:
        model: on which device it is, training happens, unless `device` says otherwise.
        optimizer: a choice for all parameters or {key: choice}; see `optimizers.route`. By default embedding tables step
            with row-wise Adagrad, only on the rows of the batch, the rest with Adam. ``"adam"`` moves whole tables.
        lr: one for every optimiser, or by the keys of `optimizer`; None takes each one's own default.
        epochs: passes over the data, at most.
        batch_size: requests a step, where `train` is not batches already.
        negatives: sampled per positive where a log is implicit.
        schedule: "warmup_cosine", "warmup_linear", "warmup", "plateau", (name, options), or (step, total steps) → factor;
            or one of these by the keys of `optimizer`, the others' rates staying as they are:
            ``{"default": ("warmup", {"steps": 1000})}`` warms up all but the tables, as CowClip does.
        clip: largest norm of all gradients together, or {key: choice}: a norm, ("cowclip", {"r": 1, "zeta": 1e-5}) for
            tables in very large batches, ("max_norm", 1.0) for rows after each step; see `regularization.Limits`.
        regularization: {key: λ}: adds λ/2 · ‖W‖² over the *whole* tables to the loss (λ W to their gradients), at every
            step; such tables are trained densely. {"embedding": (kind, λ)} looks at the rows of the batch: "lazy", "batch"
            or "count"; see `regularization.Penalties`.
        precision: "fp32", or "bf16" for autocast; weights stay float32.
        accumulate: batches a step.
        average: "ema" or ("ema", {"decay": 0.999}), over steps; or ("swa", {"start": 3}), over the ends of epochs. The
            averaged weights are what is measured, what the best epoch keeps, and what the model has at the end. Tables
            are in it, at the cost of the rows of a batch (`averaging.EMA`); an average takes the memory of the weights.
        alternate: loss names in turn, one group a step, as in ``(("click",), ("like", "follow"))``. Each group minimises
            its own losses with its own `optimizer` and state. ``{"teacher": {"teacher": "adam"}, "student": {...}}`` gives
            each group its optimisers; parameters that a choice leaves out stand still in that turn.
        balance: what each loss is multiplied with: {loss: weight}, a name such as "uncertainty", "dwa", "gradnorm", "pcgrad"
            or "mgda", (name, options), or one of `recstack.balance`. Losses are logged as they are, beside their weights.
        reset_embeddings: initialise the tables anew before each epoch but the first and keep the rest of the model, so
            that more than one epoch can be trained without the overfitting of ids that CTR models are known for (MEDA,
            https://arxiv.org/abs/2407.01607).
        compile: True, or a mode of `torch.compile`, for `model.losses`; gathers with sparse gradients are left out of the
            graph. "reduce-overhead" records CUDA graphs, which is worth it where a GPU waits for kernel launches. On a
            CPU it rarely is, and the first steps of each new shape take a minute.
        monitor: validation metric that chooses the best epoch: "auc", "click/auc", "ndcg@10", "loss"; its weights are
            restored at the end. Needed by `patience` and "plateau"; None keeps the last weights.
        patience: stop after that many epochs in a row without a better value; better means by more than `min_delta`.
        seed: of dropout, shuffling and negatives. The caller's generators are left as they were.
        checkpoint: folder; one is written after each epoch, when interrupted, and every `checkpoint_every` (steps, or a
            timedelta); the two newest stay.
        log_dir: folder for metrics.jsonl, and TensorBoard if installed.
        progress: a bar on a terminal, a line per epoch elsewhere; False only logs.
        callbacks: more of them.
        distributed: None: a run of several processes where torchrun started them (or a process group is initialised),
            `batch_size` being that of all together; False: one process all the same; True: several, or an error. Then
            only process 0 logs, calls the callbacks and writes checkpoints. See `recstack.training.distributed`.
        sharded: keys as in `optimizer`, "embedding" for all tables, of tables whose rows, and their optimiser's state,
            are spread over the processes while training.
        timeout: seconds after which a process that does not answer is taken for lost; one that ended is noticed at once.

    Raises:
        ConfigError: for what does not exist or does not fit together, before the first step.

    >>> class Line(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(1, 1)
    ...
    ...     def losses(self, batch):
    ...         return {"square": (self.layer(batch["x"]) - batch["y"]).square().mean()}
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> model = Line()
    >>> trainer = Trainer(model, optimizer="adam", lr=0.1, epochs=200, progress=False)
    >>> result = trainer.fit([{"x": x, "y": 3 * x}])
    >>> round(model.layer.weight.item(), 2)
    3.0
    """

    def __init__(
        self,
        model: Any,
        *,
        optimizer: Any = None,
        lr: float | Mapping[str, float] | None = None,
        epochs: int = 10,
        batch_size: int = 1024,
        negatives: int = 4,
        schedule: Any = None,
        clip: float | Mapping[str, Any] | None = None,
        regularization: Mapping[str, Any] | None = None,
        precision: str = "fp32",
        accumulate: int = 1,
        average: Any = None,
        alternate: Any = None,
        balance: Any = None,
        reset_embeddings: bool = False,
        compile: bool | str = False,
        monitor: str | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | timedelta | None = None,
        log_dir: str | Path | None = None,
        progress: bool = True,
        device: str | torch.device | None = None,
        callbacks: Iterable[Callback] = (),
        distributed: bool | None = None,
        sharded: str | Sequence[str] = (),
        timeout: float = 600.0,
    ) -> None:
        if not isinstance(model, nn.Module) or not isinstance(model, Trainable):
            raise ConfigError(
                f"{type(model).__name__} cannot be trained: a model is a torch module with losses(batch)."
            )
        if precision not in PRECISIONS:
            raise ConfigError(f"precision= is 'fp32' or 'bf16'; got {precision!r}.")
        for name, value in (("epochs", epochs), ("batch_size", batch_size), ("accumulate", accumulate)):
            if value < 1:
                raise ConfigError(f"{name}= must be at least 1; got {value}.")
        self.compile = ("default" if compile is True else compile) or None
        if self.compile not in (None, *COMPILE):
            raise unknown("mode in compile=", compile, COMPILE)
        self.optimizer = {"embedding": "rowwise_adagrad", "default": "adam"} if optimizer is None else optimizer
        self.lr, self.alternate = lr, alternate
        self.balance = _balance(balance, accumulate, alternate, compile)
        made = turns(model, self.optimizer, lr, alternate)  # a wrong key is an error here, not after data was encoded
        self.schedules = schedules.by_key(schedule, {g.key: None for turn in made for g in turn.groups})
        plateau = any(isinstance(s, schedules.Plateau) for s in self.schedules.values())
        if monitor is None and (patience is not None or plateau):
            raise ConfigError('patience= and schedule="plateau" need monitor=, the validation metric that they watch.')
        if monitor is not None:
            evaluation.direction(monitor)
        self.model: nn.Module = model
        self.epochs, self.batch_size, self.negatives = epochs, batch_size, negatives
        self.clip, self.regularization = clip, dict(regularization or {})
        self.precision, self.accumulate = precision, accumulate
        self.average, self.reset_embeddings = average, reset_embeddings
        self.monitor, self.patience, self.min_delta, self.seed = monitor, patience, min_delta, seed
        self.checkpoints = None if checkpoint is None else checkpoints.Checkpoints(checkpoint)
        self.checkpoint_every = checkpoint_every
        self.world = World(distributed, timeout)
        self.sharded = (sharded,) if isinstance(sharded, str) else tuple(sharded)
        tables_to_shard(model, self.sharded)
        if self.sharded and reset_embeddings:
            raise ConfigError("reset_embeddings=True needs whole tables; leave out sharded=.")
        if batch_size < self.world.size:
            raise ConfigError(f"batch_size={batch_size} is that of all {self.world.size} processes; take a larger one.")
        self.callbacks: list[Callback] = []
        if self.world.main:
            self.callbacks = [Progress(progress), *([] if log_dir is None else loggers(log_dir)), *callbacks]
        where = next(iter(model.parameters()), torch.empty(0)).device
        self.device = self.world.device(device, where)
        kind = type(averaging.get(average, nn.Module()))
        if reset_embeddings and kind is averaging.SWA:
            raise ConfigError(
                'average="swa" is a mean over epochs, and reset_embeddings=True begins anew in each: take "ema".'
            )
        self.memory: memory.Memory | None = None  # the estimate, from the start of `fit`
        self._balancing()
        Penalties(model, self.regularization)
        Limits(model, clip)

    # -- the three verbs ----------------------------------------------------------------------------------------------
    def fit(
        self, train: Any, valid: Any = None, *, resume: bool = False, start_from: str | Path | None = None
    ) -> FitResult:
        """Train; afterwards the model has its best weights (with `monitor`) or its last, and is in eval mode.

        Args:
            train, valid: a Log (encoded by the encoder of the model's schema), Columns, a Loader, or batches that can be
                read again and again.
            resume: go on from the newest checkpoint to the very weights that an uninterrupted run would have had, or
                start anew if there is none. Without it, a folder that holds checkpoints is refused, so that none is lost.
            start_from: the checkpoints of another run, or a saved model: begin with its last weights and, of a checkpoint,
                its optimisers' state. Tables may have grown since (``encoder.grown``): old rows are carried over, new
                ones are as the model has them. Steps, schedules and epochs begin at 0. Where `resume` finds a checkpoint
                of this run, that one counts.

        Raises:
            TrainingError: a loss that is not finite, naming what caused it; a checkpoint of another model or settings, or
                one that could not be written: the run stops, and those before it are whole.
        """
        if not getattr(self.model, "gradients", True):
            raise ConfigError(
                f"{type(self.model).__name__} has no gradients to train by; call its own fit(train, valid)."
            )
        if self.monitor is not None and valid is None:
            raise ConfigError(f"monitor={self.monitor!r} watches validation data; pass valid=.")
        if resume and self.checkpoints is None:
            raise ConfigError("resume=True needs checkpoint=, the folder of the checkpoints.")
        with self.world.running(self.device, None if self.checkpoints is None else self.checkpoints.folder):
            result = self._fit(train, valid, resume, start_from)
        if hasattr(self.model, "fitted"):
            self.model.fitted = True  # type: ignore[assignment]
        return result

    def _fit(self, train: Any, valid: Any, resume: bool, start_from: str | Path | None) -> FitResult:
        self.model.to(self.device)
        self.world.begin(self.model)
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "negatives": self.negatives,
            "seed": self.seed,
            "device": self.device,
        }
        part = self.world.rank, self.world.size
        loader = feeding.batches(train, self.model, shuffle=True, part=part, **options)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.world.seed(self.seed))
            run = _Run(self, loader, feeding.encoded(valid, self.model))
            if start_from is not None and (self.checkpoints is None or not self.checkpoints.complete()):
                incremental.start(start_from, self.model, run.turns)
            with (
                _sparse(self.model, run.groups, run.penalties),
                run.asked.watching(),
                _interruptible(self.world.several or self.checkpoints is not None) as self.world.stop,
                self.checkpoints or nullcontext(),
                self.world.normalised(self.model),
                self.world.spread(self.model, self.sharded, [g.optimizer for g in run.groups]),
                nullcontext() if run.balancing is None else run.balancing.watching(),
            ):
                return run.go(resume)

    def evaluate(self, data: Any) -> dict[str, float]:
        """The metrics of `data`, taken as in `fit`: the model's own `validate`, or those of its tasks."""
        return self._measure(feeding.encoded(data, self.model))

    def predict(self, data: Any) -> dict[str, Tensor]:
        """{task: probabilities or values [R, L]} in the order of `data`, on the CPU."""
        self.model.to(self.device)
        with _evaluating(self.model):
            return evaluation.predict(self.model, self._ordered(data), self.device, self._autocast)

    def _measure(self, data: Any, world: World | None = None) -> dict[str, float]:
        """By all processes of `world` together where the tasks' meters can be merged; else each measures all of it."""
        self.model.to(self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        with _evaluating(self.model), torch.random.fork_rng(devices=devices):
            if hasattr(self.model, "validate"):
                with torch.no_grad():
                    return {name: float(value) for name, value in self.model.validate(data).items()}  # type: ignore[operator]
            loader, merge = self._ordered(data), None
            if world is not None and evaluation.mergeable(self.model, self.monitor):
                loader, merge = world.sliced(loader), world.merge
            return evaluation.evaluate(self.model, loader, self.device, self._autocast, self.monitor, merge)

    def _ordered(self, data: Any) -> Any:
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "negatives": self.negatives,
            "seed": self.seed,
            "device": self.device,
        }
        return feeding.batches(data, self.model, shuffle=False, **options)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _balancing(self) -> balance.Balancing | None:
        return None if self.balance is None else balance.Balancing(self.balance, self.model, self.world, self.device)

    def _settings(self, turns: list[Turn], total: int | None, length: int | None) -> dict[str, Any]:
        """What must be equal for two runs to be one."""
        looks_ahead = any(_looks_ahead(s) for s in self.schedules.values())
        named = {key: _named(s) for key, s in self.schedules.items()}
        return {
            "parameters": {n: f"{p.dtype} {list(p.shape)}" for n, p in self.model.named_parameters()},
            "optimizers": {
                turn.head + g.key: {
                    "class": type(g.optimizer).__name__,
                    "parameters": list(g.params),
                    "options": {k: repr(v) for k, v in g.optimizer.defaults.items()},
                }
                for turn in turns
                for g in turn.groups
            },
            "schedule": next(iter(named.values())) if len(set(named.values())) == 1 else named,
            "total steps": total if looks_ahead else None,
            "batches": length,
            "regularization": self.regularization,
            **{k: getattr(self, k) for k in ("clip", "precision", "accumulate", "seed", "batch_size", "negatives")},
            **{k: getattr(self, k) for k in ("monitor", "patience", "min_delta")},
            **{k: getattr(self, k) for k in ("average", "reset_embeddings", "compile")},
            "balance": None if self.balance is None else repr(self.balance),
        }


def _balance(choice: Any, accumulate: int, alternate: Any, compile: Any) -> balance.Balance | None:
    found = balance.get(choice)
    if found is not None and found.at is not None:
        others = {"accumulate=": accumulate > 1, "alternate=": alternate is not None, "compile=": bool(compile)}
        for name in (name for name, given in others.items() if given):
            raise ConfigError(
                f"{type(found).__name__} compares the losses' gradients of one batch, which {name} does not leave whole. "
                f"Drop {name}, or balance by numbers only: {{loss: weight}}, 'uncertainty', 'dwa', ..."
            )
    return found


def _looks_ahead(schedule: Any) -> bool:
    """Whether it asks for the number of all steps."""
    return schedule is not schedules.constant and not isinstance(schedule, schedules.Plateau)


def _named(schedule: Any) -> str:
    if isinstance(schedule, schedules.Plateau):
        return f"plateau(factor={schedule.factor}, floor={schedule.floor}, patience={schedule.patience})"
    function = getattr(schedule, "func", schedule)
    return f"{getattr(function, '__name__', type(function).__name__)}({getattr(schedule, 'keywords', {})})"


@dataclass
class _Stop:
    asked: bool = False
    at: float = 0.0


@contextmanager
def _interruptible(terminable: bool) -> Iterator[_Stop]:
    """The first Ctrl-C, or SIGTERM where `terminable`, asks for an end after the step; one a second later ends at once.

    Sooner it counts as the same: a terminal and torchrun may both pass one on.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        now = time.monotonic()
        if stop.asked and now - stop.at > 1:
            raise KeyboardInterrupt
        stop.asked, stop.at = True, now

    numbers = [signal.SIGINT, signal.SIGTERM] if terminable else [signal.SIGINT]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@contextmanager
def _sparse(model: nn.Module, groups: list[Group], penalties: Penalties) -> Iterator[None]:
    """Sparse gradients for the tables whose optimiser is ours, while training; a whole-table penalty makes them dense."""
    penalised = {id(p) for p, _ in penalties.whole}
    theirs = {id(p) for g in groups if not g.ours for p in g.params.values()}
    ours = {id(p) for g in groups if g.ours for p in g.params.values()} - theirs - penalised
    changed = [
        m
        for m in model.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and not m.sparse and id(m.weight) in ours
    ]
    try:
        for m in changed:
            m.sparse = True
        yield
    finally:
        for m in changed:
            m.sparse = False


class _Run:
    """One call of `fit`: what changes from step to step."""

    def __init__(self, trainer: Trainer, loader: Iterable[Any], valid: Any) -> None:
        self.t, self.model, self.loader, self.valid = trainer, trainer.model, loader, valid
        self.turns = turns(self.model, trainer.optimizer, trainer.lr, trainer.alternate)
        self.groups = [g for turn in self.turns for g in turn.groups]
        self.params = list({id(p): p for turn in self.turns for p in turn.params}.values())
        self.batches = feeding.length(loader)
        self.penalties = Penalties(self.model, trainer.regularization, self.batches)
        self.penalties.require_length()
        self.limits = Limits(self.model, trainer.clip)
        self.asked = Asked([*self.penalties.arenas, *self.limits.arenas])
        if trainer.world.several:
            self.asked.total = trainer.world.sum_
        self.total = None if self.batches is None else trainer.epochs * math.ceil(self.batches / trainer.accumulate)
        self.schedules = schedules.anew(trainer.schedules)  # the Trainer may fit twice
        self.plateaus = list({id(s): s for s in self.schedules.values() if isinstance(s, schedules.Plateau)}.values())
        if self.total is None and any(_looks_ahead(s) for s in self.schedules.values()):
            raise ConfigError(
                "The schedule needs the number of steps, and the batches have no len(). Use a Loader or a list."
            )
        self.balancing = trainer._balancing()
        self.best = None
        if trainer.monitor is not None:
            self.best = evaluation.Best(trainer.monitor, trainer.patience, trainer.min_delta)
            known = evaluation.meters(self.model, trainer.monitor)
            if known and not hasattr(self.model, "validate"):
                evaluation.resolve(trainer.monitor, [*known, "loss"])
        self.settings = trainer._settings(self.turns, self.total, self.batches)
        self.tables: list[Any] = [m for m in self.model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
        self.average: averaging.Average | None = None
        self.losses: Any = self.model.losses
        if trainer.compile is not None:
            self.losses = torch.compile(self.losses, mode=trainer.compile)
        self.epoch = self.batch = self.step = 0  # finished epochs, batches of this epoch, steps of the run
        self.finished = False
        self.sums: dict[str, Tensor] = {}  # of the losses of this epoch, on the device
        self.last_batch: Any = None  # what the model's measures are taken of
        self.alarms: set[str] = set()
        self.samples = 0
        self.epochs: list[dict[str, Any]] = []
        self.spent = 0.0  # seconds of this epoch before the process was restarted

    # -- the loop -----------------------------------------------------------------------------------------------------
    def go(self, resume: bool) -> FitResult:
        begun = time.perf_counter()
        keep_freed()
        self.average = averaging.get(self.t.average, self.model)  # here, for it asks which tables are sparse
        self.t.world.same(self.settings, "settings or a number of batches")
        self._resume(resume)
        self.t.memory = self._memory()
        self.saved_at = time.monotonic()
        for callback in self.t.callbacks:
            callback.on_start(self.t, self.batches)
        interrupted = False
        result = FitResult(self.epochs)
        try:
            movement = Movement(self.model) if self.epoch == 0 and not self.finished and self.t.world.main else None
            while not self.finished and not interrupted:
                interrupted = self._epoch()
                if interrupted:
                    break
                self._close_epoch()
                if movement is not None and self.step > 0:
                    movement.warn(self.model)
                    movement = None
                self._save()
                interrupted = self.t.world.any(self.t.world.stop.asked) and not self.finished
            if self.best is not None and self.best.weights:
                self.model.load_state_dict(self.best.weights)
            elif self.average is not None:
                self.average.keep()
            self.model.eval()
        finally:
            if self.best is not None:
                result.best = self.best.summary()
            result.interrupted, result.steps = interrupted, self.step
            result.seconds = time.perf_counter() - begun
            for callback in self.t.callbacks:
                callback.on_end(result)
        return result

    def _epoch(self) -> bool:
        """The rest of an epoch; whether it was interrupted."""
        self.model.train()
        if self.t.reset_embeddings and self.epoch and not self.batch:
            self._reset_embeddings()
        self.epoch_begun = self.read_at = time.perf_counter()
        self.read_samples, self.read_sums, self.read_batch = self.samples, self._copy_sums(), self.batch
        for window in feeding.windows(self.t.world.sliced(self._rest()), self.t.accumulate):
            self._step(window)
            if self._due():
                self._save()
            if self.t.world.stopping:
                self._save()
                return True
        return False

    def _rest(self) -> Iterable[Any]:
        """The batches of this epoch that were not seen yet."""
        if self.batch and not hasattr(self.loader, "load_state_dict"):
            return islice(iter(self.loader), self.batch, None)
        return self.loader

    def _step(self, window: list[Any]) -> None:
        turn = self.turns[self.step % len(self.turns)]
        batches = [feeding.moved(batch, self.t.device) for batch in window]
        self.last_batch = batches[-1]
        world, sums = self.t.world, {}
        rows: dict[str, Any] = {}

        def summed(counts: dict[str, Any]) -> dict[str, Any]:
            rows.update(world.total(counts))
            return rows

        alone = self.t.accumulate == 1 and not world.several and self.balancing is None
        shares = [None] if alone else feeding.shares(batches, self.model, summed)
        if self.balancing is not None:
            self.balancing.begin_step(rows)
        for batch, share in zip(batches, shares, strict=True):
            world.empty = isinstance(batch, Mapping) and "@empty" in batch
            if self.t.compile is not None:
                torch.compiler.cudagraph_mark_step_begin()
            with self.t._autocast():
                losses = self.losses(batch)
            if share is not None:
                losses = {name: loss * share.get(name, share[""]) for name, loss in losses.items()}
            if turn.names is not None and not self.sums:
                check_names(self.turns, losses)
            loss = turn.loss(losses)
            for name, value in losses.items():
                value = value.detach().double()
                sums[name] = sums[name] + value if name in sums else value
            self._check(losses, loss, batch)
            if self.balancing is not None:
                weights = self.balancing.weights(losses)
                loss = turn.loss({name: x * weights[name] if name in weights else x for name, x in losses.items()})
            loss.backward()
        sums = world.reduce(turn.params, sums)
        if self.balancing is not None:
            self.balancing.observe(sums)
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        requests = world.requests if world.several else sum(feeding.requests(batch) for batch in batches)
        self.samples += requests
        self.penalties.add(self.asked, requests, len(window))
        self.limits.before(self.asked, turn.params, world.clip)
        self.asked.forget()
        self._renew()
        if self.average is not None:
            self.average.before_step()
        for group in turn.groups:
            group.scale(partial(self._rate, group.key))
            group.optimizer.step()
        self.limits.after()
        if self.average is not None:
            self.average.after_step()
        for p in self.params:
            p.grad = None
        self.step += 1
        self.batch += len(window)
        if time.perf_counter() - self.read_at >= READ_SECONDS:
            self._read()

    def _rate(self, key: str, base: float) -> float:
        schedule = self.schedules[key]
        if isinstance(schedule, schedules.Plateau):
            return schedule.rate(base)
        return base * schedule(self.step, self.total or 0)

    def _renew(self) -> None:
        """Rows that have a new owner begin with no history, in the optimisers as in the average."""
        for table in self.tables:
            rows = table.renewed() if hasattr(table, "renewed") else None
            if rows is None:
                continue
            for group in self.groups:
                if any(p is table.weight for p in group.params.values()):
                    optimizers.reset_rows(group.optimizer, table.weight, rows)
            if self.average is not None:
                self.average.renew(table.weight, rows)

    def _reset_embeddings(self) -> None:
        tables = [table for table in self.tables if table.weight.requires_grad]
        for table in tables:
            table.reset_parameters()
        self.t.world.begin(self.model)  # each process drew its own
        for table in tables:
            for group in self.groups:
                group.optimizer.state.pop(table.weight, None)
            if self.average is not None:
                self.average.renew(table.weight)

    def _memory(self) -> memory.Memory:
        """The estimate, with a warning where the machine has less."""
        batch, times = feeding.example(self.loader)
        copies = {"average": self.average is not None, "best": self.best is not None}
        found = memory.estimate(
            self.model,
            self.groups,
            batch=batch,
            times=times * self.t.accumulate,
            checkpoint=self.t.checkpoints is not None,
            device=self.t.device,
            **copies,
        )
        if found.short and self.t.world.main:
            warnings.warn(
                f"Training takes about {memory.size(found.wanted)} beside the weights, and {memory.size(found.free or 0)} are "
                "free. A row-wise optimiser, smaller tables or bf16 storage need less.",
                stacklevel=2,
            )
        return found

    def _check(self, losses: dict[str, Tensor], loss: Tensor, batch: Any) -> None:
        """A loss that is not finite ends the run. On a CPU it is seen before it can spoil a weight."""
        if self.t.device.type != "cpu" and self.step % CHECK_STEPS:
            return
        if math.isfinite(float(loss.detach())):
            return
        name = next((n for n, v in losses.items() if not math.isfinite(float(v.detach()))), "sum")
        with self.t._autocast():
            cause = explain(self.model, batch)
        raise TrainingError(
            f"Loss {name!r} is {float(losses[name].detach()) if name in losses else float('nan')} in epoch "
            f"{self.epoch + 1}, step {self.step + 1}: {cause}."
        )

    def _copy_sums(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.sums.items()}

    def _read(self) -> None:
        now, sums = time.perf_counter(), self._copy_sums()
        n = max(1, self.batch - self.read_batch) / self.t.accumulate
        losses = {name: (value - self.read_sums.get(name, 0.0)) / n for name, value in sums.items()}
        at = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "batch": self.batch,
            "loss": sum(losses.values()),
            "losses": losses,
            "rate": (self.samples - self.read_samples) / max(1e-9, now - self.read_at),
            "lr": self._rates(),
        }
        if self.balancing is not None:
            at["weights"] = self.balancing.read()
        for callback in self.t.callbacks:
            callback.on_read(at)
        self.read_at, self.read_sums, self.read_samples, self.read_batch = now, sums, self.samples, self.batch

    def _rates(self) -> dict[str, float]:
        return {t.head + g.key: g.optimizer.param_groups[0]["lr"] for t in self.turns for g in t.groups}

    def _close_epoch(self) -> None:
        """Validation, the record, the best weights, the plateau, and whether there is another epoch."""
        if not self.batch:
            raise TrainingError("The training data has no batches.")
        if self.t.device.type != "cpu" and not all(math.isfinite(v) for v in self._copy_sums().values()):
            raise TrainingError(f"A loss was not finite in epoch {self.epoch + 1}; train on the CPU to see the cause.")
        seconds = self.spent + time.perf_counter() - self.epoch_begun
        windows = math.ceil(self.batch / self.t.accumulate)
        losses = {name: value / windows for name, value in self._copy_sums().items()}
        self.epoch += 1
        self.t.world.level(self.model)
        averaged: AbstractContextManager = nullcontext()
        if self.average is not None:
            self.average.after_epoch(self.epoch)
            averaged = self.average.applied()
        record = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": sum(losses.values()),
            "losses": losses,
            "valid": {},
            "lr": self._rates(),
            "seconds": seconds,
            "rate": self.samples / max(1e-9, seconds),
        }
        if self.balancing is not None:
            record["weights"] = self.balancing.after_epoch()
        self.epochs.append(record)
        with averaged:
            if self.valid is not None:
                record["valid"] = self.t.world.agreed(self.t._measure(self.valid, self.t.world))
            improved = self.best is not None and self.best.observe(record, self.model)
            if measures := self._measures():
                record["measures"] = measures
        self.finished = self.epoch >= self.t.epochs
        if self.best is not None:
            for plateau in self.plateaus:
                plateau.observe(improved)
            self.finished = self.finished or self.best.exhausted
        for callback in self.t.callbacks:
            callback.on_epoch(record)
        if self.t.world.main:
            gates.warn(self.epochs, self.alarms)
        self.batch, self.samples, self.spent, self.sums = 0, 0, 0.0, {}

    def _measures(self) -> dict[str, float]:
        """What the model tells of the epoch's last batch; of several processes each asks, for tables may be spread."""
        if not hasattr(self.model, "measures") or self.last_batch is None:
            return {}
        devices = [self.t.device] if self.t.device.type == "cuda" else []
        with _evaluating(self.model), torch.random.fork_rng(devices=devices), torch.no_grad(), self.t._autocast():
            found = {n: float(v) for n, v in self.model.measures(self.last_batch).items()}  # type: ignore[operator]
        self.last_batch = None
        return {name: value for name, value in found.items() if math.isfinite(value)}

    # -- checkpoints --------------------------------------------------------------------------------------------------
    def _due(self) -> bool:
        every = self.t.checkpoint_every
        if self.t.checkpoints is None or every is None:
            return False
        if isinstance(every, timedelta):
            return self.t.world.any(time.monotonic() - self.saved_at >= every.total_seconds())
        return self.step % every == 0

    def _save(self) -> None:
        if self.t.checkpoints is None:
            return
        loader = self.loader.state_dict() if hasattr(self.loader, "state_dict") else {}  # type: ignore[attr-defined]
        in_epoch = time.perf_counter() - self.epoch_begun if self.batch else 0.0
        meta = {
            "settings": self.settings,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "samples": self.samples,
            "spent": self.spent + in_epoch,
            "epochs": self.epochs,
            "loader": loader,
            "plateaus": [plateau.state_dict() for plateau in self.plateaus],
            "tables": incremental.tables(self.model),
            "vocabularies": incremental.vocabularies(getattr(self.model, "schema", None)),
            "best": None if self.best is None else {k: getattr(self.best, k) for k in ("value", "epoch", "waited")},
        }
        pieces = {
            "model": checkpoints.piece(self.model.state_dict()),
            **{f"optimizers-{i}": checkpoints.packed(turn.groups) for i, turn in enumerate(self.turns)},
            "random": checkpoints.randomness(self.t.device),
            "sums": checkpoints.piece(self.sums),
            "regularization": checkpoints.piece(self.penalties.state_dict()),
        }
        if self.best is not None and self.best.weights:
            pieces["best"] = checkpoints.piece(self.best.weights, fixed=True)
        if self.balancing is not None:
            pieces["balance"] = checkpoints.piece(*self.balancing.state())
        if self.average is not None:
            pieces["average"] = checkpoints.piece(*self.average.state())
        pieces = self.t.world.gathered(pieces)
        if self.t.world.main:
            self.t.checkpoints.save(self.step, pieces, meta)
        self.saved_at = time.monotonic()

    def _resume(self, resume: bool) -> bool:
        """Whether there was a checkpoint to go on from."""
        store = self.t.checkpoints
        if store is not None and not resume and store.complete():
            raise TrainingError(
                f"{str(store.folder)!r} holds a checkpoint of step {int(store.complete()[-1].name[5:])}. "
                "Pass resume=True to go on from it, or another folder to start anew."
            )
        saved = None if store is None else store.latest()
        if saved is None:
            return False
        saved = self.t.world.cut(saved)
        meta = saved.meta
        checkpoints.require_same(meta["settings"], self.settings, saved.path)
        self.model.load_state_dict(saved.piece("model").tensors)
        for i, turn in enumerate(self.turns):
            checkpoints.unpack(turn.groups, saved.piece(f"optimizers-{i}"))
        if self.average is not None:
            self.average.load_state(saved.piece("average").tensors, saved.piece("average").config)  # type: ignore[arg-type]
        if self.balancing is not None:
            self.balancing.load_state(saved.piece("balance").tensors, saved.piece("balance").config)  # type: ignore[arg-type]
        checkpoints.restore_randomness(saved.piece("random"), self.t.device)
        self.sums = {k: v.to(self.t.device, copy=True) for k, v in saved.piece("sums").tensors.items()}  # type: ignore[union-attr]
        self.epoch, self.batch, self.step = meta["epoch"], meta["batch"], meta["step"]
        self.samples, self.spent = meta["samples"], meta["spent"]
        for record in meta["epochs"]:  # JSON has no NaN
            record["valid"] = {k: math.nan if v is None else v for k, v in record["valid"].items()}
            self.epochs.append(record)
        self.penalties.load_state_dict(saved.piece("regularization").tensors)  # type: ignore[arg-type]
        if hasattr(self.loader, "load_state_dict"):
            self.loader.load_state_dict(meta["loader"])  # type: ignore[attr-defined]
        for plateau, state in zip(self.plateaus, meta["plateaus"], strict=True):
            plateau.load_state_dict(state)
        if self.best is not None:
            for key, value in meta["best"].items():
                setattr(self.best, key, value)
            if "best" in saved.pieces:
                self.best.weights = {k: v.clone().to(self.t.device) for k, v in saved.piece("best").tensors.items()}  # type: ignore[union-attr]
        self.finished = self.epoch >= self.t.epochs or (self.best is not None and self.best.exhausted)
        return True
