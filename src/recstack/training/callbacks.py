"""What hears of a training run: JSON lines, TensorBoard, the progress bar, and yours."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recstack.training import gates

logger = logging.getLogger("recstack.training")


class Callback:
    """Subclass it and pass ``Trainer(callbacks=[...])``. Every method may stay as it is."""

    def on_start(self, trainer: Any, batches: int | None) -> None:
        """Before the first step; `batches` per epoch, None when the data does not know."""

    def on_read(self, at: dict[str, Any]) -> None:
        """Twice a second: {"epoch", "step", "batch", "loss", "losses": {name: mean since the last}, "rate", "lr"}.

        With ``Trainer(balance=...)`` also "weights": {loss: mean weight since the last}.
        """

    def on_epoch(self, record: dict[str, Any]) -> None:
        """After an epoch and its validation; the same record as in the result."""

    def on_end(self, result: Any) -> None:
        """After the last step, however it ended."""


class BetweenEpochs(Callback):
    """Calls a function after each epoch but the last."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.epochs = call, 0

    def on_start(self, trainer: Any, batches: int | None) -> None:
        self.epochs = trainer.epochs

    def on_epoch(self, record: dict[str, Any]) -> None:
        if record["epoch"] < self.epochs:
            self.call()


class JSONL(Callback):
    """One JSON object a line, appended: {"event": "read" | "epoch" | "end", ...}.

    Where the file cannot be written (a full disk) a warning says so, once, and the run goes on: its checkpoints matter more.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.failed = Path(path), False

    def _write(self, event: str, values: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf8") as f:
                f.write(json.dumps({"event": event, **_finite(values)}, ensure_ascii=False) + "\n")
        except OSError as e:
            if not self.failed:
                warnings.warn(
                    f"{str(self.path)!r} lacks what happens from here on, for it cannot be written: {e}.", stacklevel=2
                )
            self.failed = True

    def on_start(self, trainer: Any, batches: int | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_read(self, at: dict[str, Any]) -> None:
        self._write("read", at)

    def on_epoch(self, record: dict[str, Any]) -> None:
        self._write("epoch", record)

    def on_end(self, result: Any) -> None:
        self._write("end", {"best": result.best, "interrupted": result.interrupted, "seconds": result.seconds})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and value - value != 0 else value


class TensorBoard(Callback):
    """Scalars for TensorBoard; needs the package `tensorboard` (``pip install recstack[track]``)."""

    def __init__(self, folder: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def on_read(self, at: dict[str, Any]) -> None:
        self._write(at, "train", at["losses"] | {"loss": at["loss"], "rate": at["rate"]})
        self._write(at, "weight", at.get("weights", {}))

    def on_epoch(self, record: dict[str, Any]) -> None:
        self._write(record, "valid", record["valid"])
        self._write(record, "lr", record["lr"])
        self._write(record, "measure", record.get("measures", {}))
        self.writer.flush()

    def on_end(self, result: Any) -> None:
        self.writer.close()

    def _write(self, at: dict[str, Any], head: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{head}/{name}", value, at["step"])


def loggers(folder: str | Path) -> list[Callback]:
    """JSON lines, and TensorBoard where it is installed."""
    out: list[Callback] = [JSONL(Path(folder) / "metrics.jsonl")]
    try:
        out.append(TensorBoard(folder))
    except ImportError:
        logger.info("TensorBoard is not installed; %s holds the same numbers.", out[0].path)  # type: ignore[attr-defined]
    return out


class Progress(Callback):
    """A bar with loss and samples per second on a terminal, and everywhere what memory it will take and a line per epoch.

    With `show` off these lines are logged.
    """

    def __init__(self, show: bool = True) -> None:
        self.show, self.bar = show, None

    def on_start(self, trainer: Any, batches: int | None) -> None:
        self.epochs, self.batches = trainer.epochs, batches
        if trainer.memory is not None:
            self._say(str(trainer.memory))
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(
                *columns,
                TextColumn("loss {task.fields[loss]} · {task.fields[rate]}/s"),
                console=Console(stderr=True),
                transient=True,
            )
            self.task = self.bar.add_task("epoch", total=batches, loss="–", rate="–")
            self.bar.start()

    def on_read(self, at: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.update(
                self.task,
                description=f"epoch {at['epoch']}/{self.epochs}",
                completed=at["batch"],
                loss=f"{at['loss']:.4f}",
                rate=f"{at['rate']:,.0f}",
            )

    def on_epoch(self, record: dict[str, Any]) -> None:
        valid = "".join(f" · {name} {value:.4f}" for name, value in record["valid"].items())
        weights = ", ".join(f"{name} {value:.3g}" for name, value in record.get("weights", {}).items())
        entropies = gates.told(record.get("measures", {}))
        line = (
            f"epoch {record['epoch']}/{self.epochs} · loss {record['loss']:.4f}{valid} · "
            f"{f'weights {weights} · ' if weights else ''}"
            f"{f'entropy of gates {entropies} · ' if entropies else ''}"
            f"{record['seconds']:.1f} s · {record['rate']:,.0f} samples/s"
        )
        self._say(line)

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, highlight=False)
        elif self.show:
            print(line, file=sys.stderr, flush=True)
        else:
            logger.info(line)

    def on_end(self, result: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
