"""`recstack evaluate`: a bundle and held-out rows → metrics, or the funnel of a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recstack.cli import sources
from recstack.cli.output import emit_json, emit_table, note, status
from recstack.errors import BundleError, ConfigError


def evaluate(
    bundle: Path,
    rows: dict[str, Any],
    config: tuple[Path, str] | None,
    options: dict[str, Any],
    figure: Path | None,
    as_text: bool,
) -> None:
    """Measure `bundle` on the rows of `sources.rows_for(**rows)`, or on one part of a configuration's data."""
    model = load(bundle)
    encoder = encoder_of(model, bundle)
    with status("Reading the data"):
        if config is not None:
            from recstack.cli.config import read

            data = sources.of_config(read(config[0])).part(config[1])
            if hasattr(data, "n_requests") and data.schema.encoder != encoder:
                raise ConfigError(f"The store of {str(config[0])!r} was encoded by another encoder than the bundle's.")
        else:
            data = sources.rows_for(encoder, **rows)
    with status("Measuring"):
        found = measure(model, data, figure=figure, **options)
    if not as_text:
        emit_json({"bundle": bundle, **found})
        return
    if "stages" in found:
        head = list(found["stages"][0])
        emit_table(head, [[row[n] for n in head] for row in found["stages"]])
    else:
        emit_table(["metric", "value"], list(map(list, found["metrics"].items())))
    note(f"{found['model']}, {found['requests']:,} requests. {found['protocol']}")


def measure(
    model: Any,
    data: Any,
    *,
    k: int = 10,
    timed: int = 100,
    max_requests: int | None = None,
    figure: Path | None = None,
) -> dict[str, Any]:
    """The funnel of a cascade or retriever, the tasks' metrics of any other model, as plain values.

    Returns:
        {"model", "requests", "metrics", "protocol"}, and "stages" for a funnel.
    """
    cascade = as_cascade(model, k)
    if cascade is not None:
        report = cascade.evaluate(data, k=k, timed=timed, max_requests=max_requests)
        if figure is not None:
            report.figure(figure)
        last = report.stages[-1]
        metrics = {f"recall@{k}": last["recall@k"], f"ndcg@{k}": last["ndcg@k"]}
        return {"model": type(model).__name__, "metrics": metrics, **report.to_dict()}
    if figure is not None:
        raise ConfigError(f"{type(model).__name__} has no funnel to draw; --figure is for cascades and retrievers.")
    from recstack.training import Trainer

    if data.implicit:
        protocol = "Each positive against 4 items drawn uniformly from those that the user does not have here."
    else:
        protocol = "On the rows as they are."
    columns = data if hasattr(data, "n_requests") else model.schema.encoder.encode(data)
    metrics = Trainer(model, progress=False).evaluate(columns)
    return {
        "model": type(model).__name__,
        "requests": columns.n_requests,
        "metrics": metrics,
        "protocol": protocol,
    }


def as_cascade(model: Any, k: int) -> Any:
    """A cascade as it is, a retriever as a cascade of one stage, None for what ranks only."""
    from recstack.cascade import Cascade
    from recstack.models.base import Recommends

    if isinstance(model, Cascade):
        return model
    if not isinstance(model, Recommends):
        return None
    cascade = Cascade([model], candidates=max(k, 200))
    cascade.profiles = model.profiles
    return cascade


def load(bundle: Path) -> Any:
    """What `bundle` holds.

    Raises:
        BundleError: it is missing, altered, or holds something else.
    """
    from recstack.models.base import load as load_bundle

    with status(f"Loading {bundle}"):
        return load_bundle(bundle)


def encoder_of(model: Any, bundle: Path) -> Any:
    """The encoder that reads raw rows for it."""
    encoder = model.encoder if hasattr(model, "encoder") else model.schema.encoder
    if encoder is None:
        raise BundleError(f"{str(bundle)!r} was saved without an encoder, so it cannot read raw rows.")
    return encoder
