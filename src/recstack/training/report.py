"""What a model is worth to each task in each domain, what it gains over models of one task, and who pays for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError, SchemaError
from recstack.features import tasks
from recstack.schema import Categorical, Schema

if TYPE_CHECKING:
    import polars as pl

    from recstack.data import Columns, Log

EVERYWHERE = "all"  # the domain of all rows
UNKNOWN = "unknown"  # of rows whose domain training has not met
METRICS = {"binary": ("auc", "gauc", "logloss"), "regression": ("mae", "rmse"), "histogram": ("mae", "rmse")}


@dataclass(frozen=True)
class TaskReport:
    """A row for each task in each domain, and printed as a table.

    Attributes:
        frame: polars, with `task`, `domain` ("all" first), `rows`, `positives`, each metric (null where it is not asked or
            cannot be), its standard deviation `<metric>_std` where several runs were given, and `gain`, `noise`, `verdict`
            of the task's first metric where there are baselines.
        metrics: names of the metrics that some task has.
        seesaw: sentences about tasks that lost while others won; empty where none did.
    """

    frame: pl.DataFrame
    metrics: tuple[str, ...]
    seesaw: tuple[str, ...] = ()

    def table(self) -> Any:
        """The frame as a `rich` table."""
        from rich import box
        from rich.table import Table

        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, caption="\n".join(self.seesaw) or None, caption_justify="left"
        )
        shown = [c for c in self.frame.columns if not c.endswith("_std") and c != "noise"]
        for name in shown:
            table.add_column(name, justify="left" if name in ("task", "domain", "verdict") else "right")
        for row in self.frame.iter_rows(named=True):
            table.add_row(*(_cell(row, name) for name in shown))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=200, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, std = row[name], row.get("noise" if name == "gain" else f"{name}_std")
    if value is None:
        return ""
    if isinstance(value, float):
        spread = "" if std is None else f" ± {std:.4f}"
        return (f"{value:+.4f}" if name == "gain" else f"{value:.4f}") + spread
    return f"{value:,}" if isinstance(value, int) else str(value)


def evaluate_tasks(
    model: Any,
    rows: Log | Columns,
    *,
    by: str | None = None,
    baseline: Mapping[str, Any] | None = None,
    batch_size: int = 4096,
) -> TaskReport:
    r"""A grid of task by domain, measured over exactly the rows that count in each task's loss.

    A conversion that is ``given="click"`` is measured on clicked rows; a missing label counts nowhere; a domain's numbers
    are of its own rows. Binary tasks have AUC, GAUC (weighted by impressions, users told apart by their raw key where a Log
    is given) and logloss; regressions MAE and RMSE; the task's own metric, if it names one, comes first.

    Args:
        model: a model with tasks, or several runs of it (other seeds), whose mean and standard deviation are then told.
        rows: what to measure on; by the model's encoder.
        by: the column whose values are the domains; the first feature of role "domain" by default.
        baseline: {task: a model of that task alone, or several runs of it}. `gain` is the first metric's, positive where the
            model is better; `noise` is :math:`\sqrt{s^2 + s_b^2}` of the standard deviations of both over their runs, null where
            each has one run. `verdict` is "won" or "lost" by more than the noise, else "noise".

    Raises:
        SchemaError: no tasks, or a `by` that is not a single-valued Categorical.
        ConfigError: a baseline of a task that the model has not.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel", domains=2))
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.multitask.MMoE(schema, experts=2).fit(train, epochs=1, progress=False)
    >>> report = rs.evaluate_tasks(model, test)
    >>> report.frame.filter(task="cart", domain="all")["rows"].item() == (test.events["click"] == 1).sum()
    True
    """
    models = _runs(model)
    schema = models[0].schema
    if not schema.tasks:
        raise SchemaError("The model has no tasks to measure: the schema needs tasks=[rs.Task(...)].")
    by = _domain(schema, by)
    for name in baseline or {}:
        schema.task(name)
    found = [grid(one, rows, by, batch_size) for one in models]
    base = {name: [grid(one, rows, by, batch_size) for one in _runs(m)] for name, m in (baseline or {}).items()}
    frame, lines = [], {}
    cells = sorted(found[0], key=lambda c: _place(schema, *c))
    users = rows.schema.user is not None
    named = tuple(dict.fromkeys(m for task in schema.tasks for m in _metrics(task, users)))
    for task, domain in cells:
        runs = [one[task, domain] for one in found]
        row: dict[str, Any] = {
            "task": task,
            "domain": domain,
            "rows": runs[0]["rows"],
            "positives": runs[0]["positives"],
        }
        for metric in named:
            row |= _spread(metric, [r.get(metric) for r in runs])
        if baseline:
            first = _metrics(schema.task(task), users)[0]
            others = [one[task, domain][first] for one in base.get(task, [])]
            row |= gain([r[first] for r in runs], others, tasks.metric(first).higher_is_better is not False)
            lines.setdefault(domain, {})[task] = row
        frame.append(row)
    import polars as pl

    table = pl.DataFrame(frame, infer_schema_length=None)
    kept = [c for c in table.columns if not c.endswith("_std") or table[c].null_count() < table.height]
    return TaskReport(table.select(kept), named, tuple(s for d, r in lines.items() if (s := seesaw(r, d))))


def gain(values: Sequence[float], baseline: Sequence[float], higher: bool = True) -> dict[str, Any]:
    """{"gain", "noise", "verdict"} of runs over the baseline's runs; all None without a baseline, or where one is NaN.

    >>> gain([0.70, 0.72], [0.60, 0.62])["verdict"], gain([0.70, 0.60], [0.62, 0.64])["verdict"]
    ('won', 'noise')
    """
    both = [*values, *baseline]
    if not values or not baseline or any(v is None or v != v for v in both):
        return {"gain": None, "noise": None, "verdict": None}
    by = (mean(values) - mean(baseline)) * (1 if higher else -1)
    spreads = [stdev(v) for v in (values, baseline) if len(v) > 1]
    noise = float(np.sqrt(sum(s * s for s in spreads))) if spreads else None
    return {
        "gain": by,
        "noise": noise,
        "verdict": "noise" if abs(by) <= (noise or 0.0) else "won" if by > 0 else "lost",
    }


def seesaw(rows: Mapping[str, Mapping[str, Any]], domain: str = EVERYWHERE) -> str | None:
    """One sentence where some tasks lost while others won: {task: what `gain` says}."""
    lost, won = ([t for t, r in rows.items() if r["verdict"] == v] for v in ("lost", "won"))
    if not lost or not won:
        return None
    told = lambda names: ", ".join(f"{t} {rows[t]['gain']:+.4f}" for t in names)  # noqa: E731
    where = "" if domain == EVERYWHERE else f" in domain {domain}"
    return f"Seesaw{where}: {told(lost)} lost while {told(won)} won."


@torch.no_grad()
def grid(model: Any, rows: Log | Columns, by: str | None = None, batch_size: int = 4096) -> dict[tuple[str, str], dict]:
    """{(task, domain): {"rows", "positives", metric: value}} of one model, by streaming, exact meters."""
    schema: Schema = model.schema
    cells: dict[tuple[str, str], _Cell] = {}
    for batch, user in _batches(model, rows, batch_size):
        logits = model(batch)
        for task in schema.tasks:
            target = tasks.target(batch, schema, task)
            shape = target.label.shape
            score = tasks.score(logits[task.name], task)
            group = None if user is None else _spread_over(user, shape)
            for name, live in _parts(batch, by, schema, shape):
                cell = cells.get((task.name, name)) or cells.setdefault(
                    (task.name, name), _Cell(_metrics(task, user is not None), task.kind == "binary")
                )
                cell.update(score, target, target.where & live, group)
    return {key: cell.compute() for key, cell in cells.items()}


class _Cell:
    """The meters of one task in one domain."""

    def __init__(self, names: Sequence[str], binary: bool) -> None:
        self.meters = {name: tasks.metric(name).meter() for name in names}
        self.binary, self.rows, self.positives = binary, 0, 0

    def update(self, score: Tensor, target: tasks.Target, where: Tensor, group: Tensor | None) -> None:
        self.rows += int(where.sum())
        self.positives += int((target.label * where).sum()) if self.binary else 0
        for meter in self.meters.values():
            meter.update(score, target.label, where=where, weight=target.weight, group=group)

    def compute(self) -> dict[str, Any]:
        import warnings

        with warnings.catch_warnings():  # a small domain without positives is no news: it is null in the table
            warnings.simplefilter("ignore", RuntimeWarning)
            values = {name: float(meter.compute()) for name, meter in self.meters.items()}
        return {"rows": self.rows, "positives": self.positives if self.binary else None, **values}


def _metrics(task: Any, users: bool) -> tuple[str, ...]:
    """The task's own metric first; no GAUC without users."""
    names = [*((task.metric,) if task.metric else ()), *METRICS.get(task.kind, tasks.metric_names(task))]
    return tuple(dict.fromkeys(n for n in names if users or n != "gauc"))


def _runs(model: Any) -> list[Any]:
    runs = list(model) if isinstance(model, list | tuple) else [model]
    if not runs:
        raise ConfigError("No model came to be measured.")
    return runs


def _domain(schema: Schema, by: str | None) -> str | None:
    if by is None:
        named = [f for f in schema.by_role("domain") if isinstance(f, Categorical) and not f.multi]
        return named[0].name if named else None
    feature = schema.feature(by)
    if not isinstance(feature, Categorical) or feature.multi:
        raise SchemaError(
            f"by={by!r} names a {type(feature).__name__}; domains are the values of a single-valued Categorical."
        )
    return by


def _batches(model: Any, rows: Log | Columns, batch_size: int) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
    """Batches in the order of the rows, and the user of each request: numbered by raw key where that is known."""
    from recstack.data import Columns, Loader
    from recstack.training.batches import encoded, moved, requests

    users = None
    if rows.schema.user is not None:  # the model may not read who it is
        ids = rows.user_ids if isinstance(rows, Columns) else rows.user_codes()[1]
        users = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    device = next(iter(model.parameters()), torch.empty(0)).device
    was, at = model.training, 0
    model.eval()
    try:
        for batch in Loader(encoded(rows, model), batch_size, times=model.schema.timed):
            n = requests(batch)
            yield moved(batch, device), None if users is None else users[at : at + n].to(device)
            at += n
    finally:
        model.train(was)


def _spread_over(ids: Tensor, shape: torch.Size) -> Tensor:
    """Of each request, for each of its rows."""
    return ids.reshape(-1, *[1] * (len(shape) - 1)).expand(shape) if ids.dim() < len(shape) else ids


def _parts(
    batch: Mapping[str, Tensor], by: str | None, schema: Schema, shape: torch.Size
) -> Iterator[tuple[str, Tensor]]:
    first = next(iter(batch.values()))
    yield EVERYWHERE, torch.ones(shape, dtype=torch.bool, device=first.device)
    if by is None:
        return
    ids = _spread_over(batch[by], shape)
    for value in ids.unique().tolist():
        if value:  # 0 is padding
            yield _named(schema, by, value), ids == value


def _named(schema: Schema, by: str, value: int) -> str:
    if schema.encoder is None:
        return str(value)
    raw = schema.encoder.decode(by, [value])[0]
    return UNKNOWN if raw is None else str(raw)


def _place(schema: Schema, task: str, domain: str) -> tuple[int, int, str]:
    """Tasks in the schema's order, all rows first."""
    return [t.name for t in schema.tasks].index(task), 0 if domain == EVERYWHERE else 1, domain


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [v for v in values if v is not None and v == v]
    if not known:
        return {name: None, f"{name}_std": None}
    return {name: mean(known), f"{name}_std": stdev(known) if len(known) > 1 else None}
