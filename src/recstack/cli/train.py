"""`recstack train`: a configuration → a bundle, and what was measured."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import typer

from recstack import catalog
from recstack.cli import config as configs
from recstack.cli import sources
from recstack.cli.evaluate import measure
from recstack.cli.output import INTERRUPTED, as_json, emit_json, emit_table, note, replacing, speaks, status
from recstack.errors import ConfigError, RecStackError, TrainingError

METRICS = "metrics.json"


def train(path: Path, out: Path | None, resume: bool, as_text: bool) -> None:
    """Train what the file says, save the bundle and metrics.json, and print the metrics.

    Raises:
        RecStackError: in a sentence; what was saved at `out` before is then as it was.
    """
    config = configs.read(path)
    given = configs.section(config["model"], "model")
    name = given.get("name")
    if not isinstance(name, str):
        raise ConfigError("model has no name; `recstack models` lists them.")
    cls = configs.model_class(catalog.model(name))
    options = configs.arguments(cls, {k: v for k, v in given.items() if k != "name"}, "model", leave=["schema"])
    if not configs.has_trainer(cls):
        if "trainer" in config:
            raise ConfigError(f"{name} is not trained step by step; leave out the section 'trainer'.")
        if resume:
            raise ConfigError(f"{name} is made in one pass, so there is nothing to resume; leave out --resume.")
    trainer = _trainer_options(config)
    if out is None:
        if not isinstance(config.get("out"), str):
            raise ConfigError(f"{path.name} has no out: (the folder for the bundle), and there is no --out.")
        out = Path(config["out"])
    begun = time.perf_counter()
    with status("Reading the data"):
        source = sources.of_config(config)
    result: dict[str, Any] = {"model": cls.__name__, "out": str(out), "split": source.protocol}
    model, trained = _fitted(cls, options, source, trainer, out / "checkpoints", resume)
    if trained is not None:
        result |= {"parameters": sum(p.numel() for p in model.parameters()), "epochs": trained.epochs}
        result |= {"best": trained.best, "steps": trained.steps, "training_seconds": trained.seconds}
        if not speaks():  # of several processes one saves and measures
            return
        if trained.interrupted:
            note(f"Interrupted after step {trained.steps}; `recstack train {path} --resume` goes on from there.")
            raise typer.Exit(INTERRUPTED)
    with status(f"Saving {out}"):
        model.save(out)
    for part in ("valid", "test"):
        if getattr(source, part) is not None:
            with status(f"Measuring: {part}"):
                result[part] = _measured(model, getattr(source, part), part)
    result["seconds"] = time.perf_counter() - begun
    with replacing(out / METRICS) as draft:
        draft.write_text(as_json(result) + "\n", "utf8")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)  # the bundle has the weights now
    if not as_text:
        emit_json(result)
        return
    numbers = {part: result[part]["metrics"] for part in ("valid", "test") if result.get(part)}
    if numbers:
        names = list(dict.fromkeys(n for m in numbers.values() for n in m))
        emit_table(["metric", *numbers], [[n, *(m.get(n) for m in numbers.values())] for n in names])
    note(f"{cls.__name__} is saved in {out} ({result['seconds']:.1f} s).")


def _measured(model: Any, rows: Any, part: str) -> dict[str, Any] | None:
    """None, and a word on why, where a part cannot be measured: the model is saved all the same."""
    try:
        return measure(model, rows, timed=0)
    except RecStackError as error:
        note(f"The {part} part was not measured: {error}")
        return None


def _trainer_options(config: dict[str, Any]) -> dict[str, Any]:
    from recstack.training import Trainer

    given = configs.section(config.get("trainer"), "trainer")
    return configs.arguments(Trainer, given, "trainer", leave=configs.OWN_TRAINER)


def _fitted(
    cls: type, options: dict[str, Any], source: sources.Source, trainer: dict[str, Any], checkpoints: Path, resume: bool
) -> tuple[Any, Any]:
    """The model, trained or counted, and the Trainer's result (None where it counts)."""
    import torch

    if configs.is_counted(cls):
        model = cls(**options)
        with status(f"Counting: {cls.__name__}"):
            return model.fit(_encoded(source.train, source)), None
    if not configs.has_trainer(cls):
        model = cls(source.encoder.schema, **options)
        with status(f"Fitting: {cls.__name__}"):
            return model.fit(_encoded(source.train, source), _encoded(source.valid, source)), None
    torch.manual_seed(trainer.get("seed", 0))  # the weights it starts from
    model = cls(source.encoder.schema, **options)
    if not resume and checkpoints.is_dir() and any(checkpoints.iterdir()):
        raise TrainingError(
            f"{str(checkpoints)!r} holds the checkpoint of a run that did not end; --resume goes on from it, and a new "
            "run needs another --out or that folder removed."
        )
    with status("Encoding"):
        columns, valid = _encoded(source.train, source), _encoded(source.valid, source)
    model.fit(columns, valid, resume=resume, checkpoint=checkpoints, **trainer)
    return model, model.trained


def _encoded(rows: Any, source: sources.Source) -> Any:
    return rows if rows is None or hasattr(rows, "n_requests") else source.encoder.encode(rows)
