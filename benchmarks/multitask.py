"""Multi-task models beside models of one task: Census-Income and KuaiRand-Pure.

    python benchmarks/multitask.py                 # what --out does not hold yet, then the tables
    python benchmarks/multitask.py --data census --model MMoE PLE --seeds 0 1 2
    python benchmarks/multitask.py --table         # trains nothing, draws the tables into docs/benchmarks.md

census: Census-Income as in MMoE's paper: is the income over 50,000 dollars, and was the person never married; education and
    marital status are no inputs, the instance weight is used nowhere; the test file is cut 1:1 into validation and test.
census-education: the same with education among the inputs, as toolkits have it that report higher numbers, and with the numbers as
    categories, each value one of its own; L2 3e-5 and dropout 0.2. Chosen on validation by MMoE, seed 0: income .9551; without
    the dropout and L2 1e-5 .9543, 1e-4 .9549; of the numbers themselves .9515 (40 epochs), of 50 bins of equal mass .9475.
    LightGBM (31 leaves, rate .05, stopped on validation) has .9561 there.
kuairand: KuaiRand-Pure's exposures, seven feedbacks of which click, long view, like, follow and comment are tasks, each on all
    exposures (a long view does not imply a click there); train 25 to 29 April, validation 30 April, test 1 to 8 May; the domain is
    the tab, those of under 500 test rows pooled; models do not read the user's id (see benchmarks/behaviour.py).

"single" is a model of each task alone: SharedBottom with one tower, trained and stopped by itself. All models alike: embeddings of
8, Adam 2e-3, batch 2048, L2 on whole tables (1e-5, untuned, of census; that of benchmarks/behaviour.py for kuairand), at most EPOCHS
epochs; the epoch whose mean validation AUC over the tasks is best is kept, and a run ends after two without a better one. Rate and
batch were chosen on census' validation by MMoE, seed 0: .9455 / .9943, for .9448 / .9942 with 1e-3 and 1024. Widths are near
those of the comparison in MMoE's paper (ROWS), so that models have about as many parameters. The test part is measured once, over
exactly the rows that count in each task's loss (`recstack.training.report`).
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import pages
import torch

import recstack as rs
from recstack.training.report import gain, grid, seesaw

RESULTS = Path(__file__).parent / "results" / "multitask.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- multitask: drawn by benchmarks/multitask.py -->", "<!-- multitask: end -->"
SINGLE = "single"
NEEDS = (
    "AITM",
    "DBMTL",
    "DCMT",
    "DFM",
    "DUPN",
    "ESM2",
    "ESCM2",
    "ESMM",
    "NMTR",
    "PAPERec",
    "WatchNext",
)  # a chain, delays or positions of tasks
DIM, EPOCHS, PATIENCE, BATCH, RATE = 8, 10, 2, 2048, 2e-3
FEW = 20  # positives, below which a cell of the grid says nothing and is left blank


class Data(NamedTuple):
    """One data set, encoded. `penalty`: λ of the tables' L2; `by`: the column of domains; `monitor`: decides the epoch."""

    encoder: rs.Encoder
    parts: tuple[rs.Log, rs.Log, rs.Log]
    columns: tuple[Any, Any, Any]
    penalty: float
    unread: tuple[str, ...] = ()
    by: str | None = None
    monitor: str = "auc"
    epochs: int = EPOCHS
    dropout: float = 0.0


def census(data_dir: str | None, limit: int | None) -> Data:
    return encoded(rs.datasets.census_income(data_dir=data_dir), limit, penalty=1e-5)


def census_education(data_dir: str | None, limit: int | None) -> Data:
    parts = rs.datasets.census_income(keep_education=True, categories=True, data_dir=data_dir)
    return encoded(parts, limit, penalty=3e-5, dropout=0.2)


def kuairand(data_dir: str | None, limit: int | None) -> Data:
    tasks = ["click", "long_view", "like", "follow", "comment"]
    log = rs.datasets.kuairand_pure(tasks, pool_tabs=700, data_dir=data_dir)  # that is every tab of under 500 test rows
    day = log.events["date"]
    parts = (log.select(day < 20220430), log.select(day == 20220430), log.select(day > 20220430))
    return encoded(parts, limit, penalty=1e-3, unread=("user_id",), by="tab")


def encoded(parts: tuple[rs.Log, rs.Log, rs.Log], limit: int | None, **more: Any) -> Data:
    train, valid, test = (part.select(np.arange(min(limit or len(part), len(part)))) for part in parts)
    encoder = rs.Encoder(train.schema).fit(train)
    return Data(encoder, (train, valid, test), tuple(encoder.encode(p) for p in (train, valid, test)), **more)  # type: ignore[arg-type]


DATA = {"census": census, "census-education": census_education, "kuairand": kuairand}
# What is not a model's default: sizes as near as can be to the comparison in MMoE's paper, a bottom of 113 or 8 experts of 16 under
# towers of 8. Names that are no class are variants of one.
SMALL: dict[str, Any] = {"hidden": (16,), "towers": (8,)}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    SINGLE: ("SharedBottom", {}),
    "AITM": (
        "AITM",
        {"alpha": 0.0, "hidden": (64, 16)},
    ),  # without its calibrator: income and marital status are no chain
    "PLE": ("PLE", {"levels": 2, "shared": 4, "specific": 2, **SMALL}),
    "CGC": ("CGC", {"shared": 4, "specific": 2, **SMALL}),
    "STEM": ("STEM", {"shared": 4, "specific": 2, "gate_hidden": (16,), **SMALL}),
    "AME": ("AME", {"dims": (16, 8, 4), **SMALL}),
    "CrossStitch": ("CrossStitch", {"hidden": (64,), "towers": (8,)}),
}
PUBLISHED = {  # test AUC of income and marital status
    "census": {
        "MMoE's paper, best of 400 (mean)": {
            SINGLE: ".9398 (.9337), .9933 (.9922)",
            "SharedBottom": ".9361 (.9295), .9915 (.9921)",
            "CrossStitch": ".9406 (.9361), .9917 (.9922)",
            "MoE": ".9387 (.9319), .9928 (.9923)",
            "MMoE": ".9410 (.9359), .9926 (.9927)",
        },
        "PLE's paper": {SINGLE: ".9445, .9923", "MMoE": ".9393, .9928", "PLE": ".9522, .9945"},
    },
    "census-education": {
        "torch-rechub": {
            "SharedBottom": ".9560, .9948",
            "MMoE": ".9579, .9950",
            "PLE": ".9593, .9950",
            "AITM": ".9595, .9951",
        }
    },
}


def names(data: str) -> list[str]:
    """The lines of a table: the baseline, then every multi-task model of the catalogue that these tasks suit."""
    from recstack import catalog

    room = [e.name for e in catalog.models("multitask") if e.name not in NEEDS]
    return [SINGLE, *room, *(["AITM"] if data.startswith("census") and hasattr(rs.multitask, "AITM") else [])]


def build(name: str, schema: rs.Schema, dropout: float = 0.0) -> Any:
    import inspect

    kind, options = ROWS.get(name, (name, {}))
    model = getattr(rs.multitask, kind)
    given = {"dim": DIM} | ({"dropout": dropout} if dropout else {})
    shared = {k: v for k, v in given.items() if k in inspect.signature(model).parameters}
    return model(schema, **{**shared, **options})


def fit(name: str, data: Data, schema: rs.Schema, seed: int, epochs: int) -> tuple[Any, Any]:
    """The trained model and what its training did."""
    torch.manual_seed(seed)
    model = build(name, schema, data.dropout)
    aucs = [f"{t.name}/auc" for t in schema.tasks if t.kind == "binary"]

    def validate(rows: Any) -> dict[str, float]:
        found = grid(model, rows)
        values = {f"{t.name}/auc": found[t.name, "all"]["auc"] for t in schema.tasks}
        return values | {"auc": mean(values[a] for a in aucs)}

    model.validate = validate  # type: ignore[assignment]  # the mean over the tasks decides
    trainer = rs.Trainer(
        model,
        optimizer="adam",
        lr=RATE,
        epochs=epochs,
        batch_size=BATCH,
        regularization={"embedding": data.penalty} if data.penalty else None,
        monitor="auc",
        patience=PATIENCE,
        seed=seed,
        progress=False,
    )
    return model, trainer.fit(data.columns[0], data.columns[1])


def run(name: str, data: Data, seed: int, epochs: int) -> dict[str, Any]:
    """One training (one a task, of "single"); what the table and a reader of it need."""
    schema, started = data.encoder.schema.without(*data.unread), time.perf_counter()
    parts = [[t] for t in schema.tasks] if name == SINGLE else [list(schema.tasks)]
    test: dict[str, dict[str, Any]] = {}
    valid: dict[str, float] = {}
    best, parameters = [], 0
    for part in parts:
        model, trained = fit(name, data, schema.replace(tasks=part), seed, epochs)
        for (task, domain), cell in grid(model, data.parts[2], data.by).items():
            test.setdefault(task, {})[domain] = {k: round(v, 6) if isinstance(v, float) else v for k, v in cell.items()}
        valid |= {k: round(v["auc"], 6) for (k, d), v in grid(model, data.columns[1]).items() if d == "all"}
        best.append(trained.best["epoch"])
        parameters += sum(p.numel() for p in model.parameters())
    seconds = round(time.perf_counter() - started, 1)
    rows = [len(p) for p in data.parts]
    facts = {"best_epoch": best, "parameters": parameters, "seconds": seconds, "rows": rows}
    return {"valid": valid, "test": test, **facts, "threads": torch.get_num_threads()}


def verdicts(
    found: dict[str, dict[int, dict[str, Any]]], name: str, tasks: list[str], domain: str, metric: str
) -> dict[str, Any]:
    """{task: gain over the single-task models}, over all seeds of both."""
    values = lambda n, t: [r["test"][t][domain][metric] for r in found.get(n, {}).values() if domain in r["test"][t]]  # noqa: E731
    return {t: gain(values(name, t), values(SINGLE, t)) for t in tasks}


def table(path: Path) -> str:
    """Markdown, tables for each data set; what was not run is not in them."""
    every, lines = pages.read(path), []
    for data in DATA:
        found = {name: seeds for (d, name), seeds in every.items() if d == data}
        found = {name: found[name] for name in [SINGLE, *sorted(set(found) - {SINGLE})] if name in found}
        if not found:
            continue
        first = next(iter(next(iter(found.values())).values()))
        tasks = list(first["test"])
        train, valid, test = first["rows"]
        shares = ", ".join(f"{t} {c['all']['positives'] / c['all']['rows']:.2%}" for t, c in first["test"].items())
        lines += [
            f"**{data}**: {train:,} rows of training, {valid:,} of validation, {test:,} of test; positives of the test: {shares}.",
            "",
        ]
        lines += summary(data, found, tasks)
        if "gauc" in first["test"][tasks[0]]["all"]:
            lines += ["", f"GAUC on {data}:", "", *overview(found, tasks, "gauc")]
        lines += [*domains(found, tasks, first), ""]
    return "\n".join(lines).strip()


def overview(
    found: dict[str, dict[int, dict[str, Any]]], tasks: list[str], metric: str, more: dict[str, str] | None = None
) -> list[str]:
    """A line a model: its value in each task, its gain over single-task models, and the seesaw."""
    head = ["model", "seeds", *tasks, "beside single", *(["published"] if more else [])]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, seeds in found.items():
        runs = list(seeds.values())
        cells = [pages.spread([r["test"][t]["all"][metric] for r in runs]) for t in tasks]
        said = verdicts(found, name, tasks, "all", metric)
        known = {t: v for t, v in said.items() if v["gain"] is not None}
        gains = "; ".join(
            f"{t} {v['gain']:+.4f}{' (noise)' if v['verdict'] == 'noise' else ''}" for t, v in known.items()
        )
        tilt = " **seesaw**" if len(runs) > 1 and seesaw(known) else ""
        lines.append(
            _row(
                [
                    name,
                    _seeds(seeds),
                    *cells,
                    "" if name == SINGLE else gains + tilt,
                    *([more.get(name, "")] if more else []),
                ]
            )
        )
    return lines


def summary(data: str, found: dict[str, dict[int, dict[str, Any]]], tasks: list[str]) -> list[str]:
    published: dict[str, str] = {}
    for source, values in PUBLISHED.get(data, {}).items():
        for name, value in values.items():
            published[name] = "; ".join(x for x in (published.get(name, ""), f"{value} ({source})") if x)
    lines = ["AUC of the test part:", "", *overview(found, tasks, "auc", published)]
    facts = [
        f"{n} {mean(r['seconds'] for r in s.values()):.0f} s, {next(iter(s.values()))['parameters']:,} parameters"
        for n, s in found.items()
    ]
    return [*lines, "", f"Seconds of a run (one thread of a shared machine) and parameters: {'; '.join(facts)}."]


def domains(found: dict[str, dict[int, dict[str, Any]]], tasks: list[str], first: dict[str, Any]) -> list[str]:
    """The grid of task by domain: AUC of the single-task models and of the model with the best mean validation AUC."""
    places = [d for d in first["test"][tasks[0]] if d != "all"]
    others = {n: s for n, s in found.items() if n != SINGLE}
    if not places or not others or SINGLE not in found:
        return []
    best = max(others, key=lambda n: mean(mean(r["valid"].values()) for r in others[n].values()))
    places.sort(key=lambda d: -first["test"][tasks[0]][d]["rows"])
    lines = [
        "",
        f"Task by domain, AUC / GAUC of single-task models, then the gain in AUC of {best}, best of the others on validation; cells of fewer than {FEW} positives are left blank:",
        "",
    ]
    lines += [_row(["domain", "rows", *tasks]), _row(["---"] * (2 + len(tasks)))]
    for d in places:
        cells = []
        for t, said in verdicts(found, best, tasks, d, "auc").items():
            of = lambda m, t=t, d=d: _mean([r["test"][t].get(d, {}).get(m) for r in found[SINGLE].values()])  # noqa: E731
            few = first["test"][t].get(d, {}).get("positives", 0) < FEW
            if few or of("auc") is None or said["gain"] is None:
                cells.append("")
                continue
            verdict = "" if said["noise"] is None else f", {said['verdict']}"  # of one seed there is none
            pair = " / ".join(f"{v:.4f}" if v is not None else "–" for v in (of("auc"), of("gauc")))
            cells.append(f"{pair} ({said['gain']:+.4f}{verdict})")
        lines.append(_row([d, f"{first['test'][tasks[0]][d]['rows']:,}", *cells]))
    return lines


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None and v == v]
    return mean(known) if known else None


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _seeds(seeds: dict[int, Any]) -> str:
    return " ".join(map(str, sorted(seeds)))


def main() -> None:
    pages.by_model(
        __doc__, DATA, names, run, table, (RESULTS, PAGE, BEGIN, END), epochs=EPOCHS, default=("census", "kuairand")
    )


if __name__ == "__main__":
    main()
