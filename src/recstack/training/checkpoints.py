"""Checkpoints: everything that a run needs to go on as if it had never stopped. JSON and safetensors, written atomically.

Saving has two halves. The tensors are copied at once, which is what the run waits for: one pass over the memory of weights
and optimiser state, so for large tables it costs what the tables cost (and their memory once more until they are written).
A thread then writes, syncs and rotates, beside the training.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recstack import bundle
from recstack.bundle import Bundle, Piece
from recstack.errors import BundleError, TrainingError
from recstack.training.optimizers import Group, RowOptimizer

_STEP = re.compile(r"step-(\d{9,})")
_OWNER = "recstack.training.checkpoints:Checkpoints"


FORMAT = 2  # of what the pieces and `meta` mean; 1 had one optimiser state and one plateau


def piece(tensors: Mapping[str, Tensor], config: dict[str, Any] | None = None, *, fixed: bool = False) -> Piece:
    """A part of a checkpoint. Tensors that go on changing (not `fixed`) are copied, all of them to the CPU."""
    return Piece(_OWNER, config or {}, {name: t.detach().to("cpu", copy=not fixed) for name, t in tensors.items()})


class Checkpoints:
    """A folder of checkpoints, step-000001200 and so on; the newest `keep` stay.

    One that was being written when the process was killed has no manifest and is passed over. As a context it waits, at
    the end, for what is being written.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def paths(self) -> list[Path]:
        """Oldest first."""
        found = [p for p in self.folder.glob("step-*") if _STEP.fullmatch(p.name)] if self.folder.is_dir() else []
        return sorted(found, key=lambda p: int(p.name[5:]))

    def complete(self) -> list[Path]:
        """Those that were written to the end, oldest first."""
        return [p for p in self.paths() if (p / "manifest.json").exists()]

    def save(self, step: int, pieces: Mapping[str, Piece], meta: Mapping[str, Any]) -> None:
        """Begin to write one, when the one before is done; older ones go only after it is safe on the disk.

        Raises:
            TrainingError: the one *before* could not be written. `wait` raises it for this one.
        """
        self.wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="recstack-checkpoint")
        self._writing = self._thread.submit(
            self._write, step, dict(pieces), {**copy.deepcopy(dict(meta)), "format": FORMAT}
        )

    def _write(self, step: int, pieces: dict[str, Piece], meta: dict[str, Any]) -> None:
        path = self.folder / f"step-{step:09d}"
        try:
            bundle.write(path, pieces, meta)
        except OSError as e:
            if not (path / "manifest.json").exists():
                shutil.rmtree(path, ignore_errors=True)
            kept = ", ".join(p.name for p in self.complete())
            raise TrainingError(
                f"The checkpoint of step {step} could not be written to {str(self.folder)!r}: {e}. "
                + (f"Kept and whole: {kept}. " if kept else "There is no earlier one. ")
                + "Make room, then go on with fit(resume=True)."
            ) from e
        for old in set(self.paths()) - set(self.complete()[-self.keep :]):
            (old / "manifest.json").unlink(missing_ok=True)  # first: half a folder must not look like a whole one
            shutil.rmtree(old, ignore_errors=True)

    def wait(self) -> None:
        """Until nothing is being written. Raises what writing raised, once."""
        writing = self._writing
        if writing is not None:
            writing.exception()  # interrupted here, it is still waited for at the end
            self._writing = None
            writing.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.wait()
        except Exception as e:
            if kind is None:
                raise
            warnings.warn(str(e), stacklevel=2)  # what ended the run matters more
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def latest(self) -> Bundle | None:
        """The newest that can be read; a damaged one is passed over with a warning. None if there is none at all.

        Raises:
            TrainingError: there are some, and none can be read or the newest that can has another format.
        """
        passed = None
        for path in reversed(self.complete()):
            try:
                saved = bundle.read(path)
            except BundleError as e:
                warnings.warn(f"Checkpoint {str(path)!r} is passed over: {e}", stacklevel=2)
                passed = passed or e
                continue
            if saved.meta.get("format") != FORMAT:
                raise TrainingError(
                    f"Checkpoint {str(path)!r} has format {saved.meta.get('format', 1)} (RecStack {saved.version}), and "
                    f"this RecStack reads format {FORMAT}. Go on with the version that wrote it, or start anew in another "
                    "folder."
                )
            return saved
        if passed is not None:
            raise TrainingError(f"No checkpoint in {str(self.folder)!r} can be read. The newest: {passed}") from passed
        return None


def packed(groups: Sequence[Group]) -> Piece:
    """The state of every optimiser, by parameter name: tensors "exp_avg:mlp.0.weight", plain values in the config."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for group in groups:
        for name, p in group.params.items():
            for key, value in group.optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{key}:{name}"] = value
                else:
                    plain.setdefault(name, {})[key] = value
    return piece(tensors, plain)


def unpack(groups: Sequence[Group], saved: Piece) -> None:
    """Put the state back."""
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in saved.config.items()}
    for full, tensor in saved.tensors.items():
        key, _, name = full.partition(":")
        states.setdefault(name, {})[key] = tensor.clone()  # type: ignore[union-attr]
    for group in groups:
        here = {name: states[name] for name in group.params if name in states}
        if isinstance(group.optimizer, RowOptimizer):
            for name, state in here.items():
                p = group.params[name]
                group.optimizer.state[p] = {k: v.to(p.device) if isinstance(v, Tensor) else v for k, v in state.items()}
            continue
        whole = group.optimizer.state_dict()
        order = [id(p) for g in group.optimizer.param_groups for p in g["params"]]
        whole["state"] = {order.index(id(group.params[name])): state for name, state in here.items()}
        group.optimizer.load_state_dict(whole)


def randomness(device: torch.device) -> Piece:
    """The state of torch's generators."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return piece(states)


def restore_randomness(saved: Piece, device: torch.device) -> None:
    torch.set_rng_state(saved.tensors["cpu"].clone())  # type: ignore[union-attr]
    if device.type == "cuda" and "cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["cuda"].clone(), device)  # type: ignore[union-attr]


def require_same(saved: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise a TrainingError that names the first setting or parameter in which two runs differ."""
    now = json.loads(json.dumps(now))
    for part in sorted({*saved, *now}):
        a, b = saved.get(part), now.get(part)
        if a == b:
            continue
        where = part
        while isinstance(a, dict) and isinstance(b, dict):
            key = next(k for k in [*a, *b] if a.get(k, "nothing") != b.get(k, "nothing"))
            where, a, b = f"{where}[{key!r}]", a.get(key, "nothing"), b.get(key, "nothing")
        raise TrainingError(
            f"Checkpoint {str(path)!r} was made with {where} = {a}, and this run has {b}. "
            "Resume with the same model and settings, or start anew in another folder."
        )
