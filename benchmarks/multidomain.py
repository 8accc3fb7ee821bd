"""Multi-domain models beside one model of all domains and a model of each: three public data sets, and three simulated markets.

    python benchmarks/multidomain.py                 # what --out does not hold yet, then the tables
    python benchmarks/multidomain.py --data kuairand --model STAR PEPNet --seeds 0 1 2
    python benchmarks/multidomain.py --table         # trains nothing, draws the tables into docs/benchmarks.md

kuairand: KuaiRand-Pure's exposures, is it clicked; the domain is the tab, those of under 500 test rows pooled; train 25 to 29
    April, validation 30 April, test 1 to 8 May; models do not read the user's id (see benchmarks/behaviour.py).
xmrec: five markets, what each user bought among items that the user did not (`rs.datasets.xmrec`); 4 negatives beside each purchase
    of training, 99 beside the one of validation and of test; of each market at most 300 users in validation, 1,000 in the test.
movielens-1m: three groups of age, is the rating 4 or 5 (`rs.datasets.movielens_1m_by_age`).
differ, apart, alike: simulated markets of four domains, 150,000 impressions; in "differ" each domain has a taste of its own
    (shift .8) and its own click rate, in "apart" the tastes have nothing in common (shift 1) and decide more of the clicks, in "alike"
    domains differ in their name only. Labels are clicks at position 1 to 5. "apart" was added after the others had been run.

"merged" is one MLP that reads the domain as a feature; "merged, batch norm" has one in each layer, since STAR normalises and a
gain over "merged" alone may be that; "STAR, one domain" is STAR to which all rows are of one domain, and which reads the true one as
a feature: what STAR gains over it, it gains from domains. "separate" is the first MLP for each domain, on its rows alone, trained and
stopped by itself. All models alike: embeddings of 16, hidden layers of 128-64-32 (DomainTowers: 128-64 under towers of 32), Adam 1e-3, batch
2048, L2 on whole tables (1e-3 for kuairand, movielens-1m and the markets, 1e-5 for xmrec: what benchmarks/behaviour.py chose for
exposures and for sampled negatives; not tuned anew), at most 8 epochs; the epoch of the best validation AUC (GAUC on xmrec) over all
rows is kept, and a run ends after two without a better one. What else a model has is at its defaults.
"""

from __future__ import annotations

import copy
import inspect
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pages
import polars as pl
import torch

import multitask
import recstack as rs
from multitask import Data, encoded
from recstack.training.report import gain, grid

RESULTS = Path(__file__).parent / "results" / "multidomain.jsonl"
PAGE = multitask.PAGE
BEGIN, END = "<!-- multidomain: drawn by benchmarks/multidomain.py -->", "<!-- multidomain: end -->"
MERGED, SEPARATE, NORMED, ALONE = "merged", "separate", "merged, batch norm", "STAR, one domain"
HIDDEN = (128, 64, 32)
DIM, EPOCHS, RATE = 16, 8, 1e-3


def kuairand(data_dir: str | None, limit: int | None) -> Data:
    log = rs.datasets.kuairand_pure(
        ["click"], pool_tabs=700, data_dir=data_dir
    )  # that is every tab of under 500 test rows
    day = log.events["date"]
    parts = (log.select(day < 20220430), log.select(day == 20220430), log.select(day > 20220430))
    return encoded(parts, limit, penalty=1e-3, unread=("user_id",), by="tab", epochs=EPOCHS)


def xmrec(data_dir: str | None, limit: int | None) -> Data:
    train, valid, test = rs.datasets.xmrec(data_dir=data_dir)

    def some(part: rs.Log, users: int) -> rs.Log:
        place = pl.col("user_id").rank("dense").over("market")
        return part.select(part.events.select(place <= users).to_series())

    shuffled = train.select(np.random.default_rng(0).permutation(len(train)))  # --limit keeps all markets
    return encoded(
        (shuffled, some(valid, 300), some(test, 1000)), limit, penalty=1e-5, by="market", monitor="gauc", epochs=EPOCHS
    )


def movielens(data_dir: str | None, limit: int | None) -> Data:
    return encoded(
        rs.datasets.movielens_1m_by_age(data_dir=data_dir), limit, penalty=1e-3, by="age_group", epochs=EPOCHS
    )


def market(**options: Any) -> Any:
    def read(data_dir: str | None, limit: int | None) -> Data:
        made = rs.simulator.simulate(
            users=1000, items=400, impressions=150_000, list_size=5, domains=4, ctr=0.25, eta=0.3, **options
        )
        parts = rs.split.by_time(made.log(), valid=0.1, test=0.3)
        return encoded(parts, limit, penalty=1e-3, by="domain", epochs=EPOCHS)

    return read


DATA = {
    "kuairand": kuairand,
    "xmrec": xmrec,
    "movielens-1m": movielens,
    "differ": market(shift=0.8),
    "apart": market(shift=1.0, taste=6.0),
    "alike": market(shift=0.0, last_rate=1.0),
}
ROWS: dict[str, dict[str, Any]] = {"DomainTowers": {"hidden": (128, 64), "towers": (32,)}}


def names(data: str) -> list[str]:
    """The lines of a table: both baselines, then every multi-domain model of the catalogue."""
    from recstack import catalog

    return [MERGED, NORMED, SEPARATE, ALONE, *(e.name for e in catalog.models("multidomain"))]


def build(name: str, schema: rs.Schema) -> Any:
    if name in (MERGED, SEPARATE, NORMED):
        norm = "batch" if name == NORMED else None
        return rs.multitask.SharedBottom(schema, dim=DIM, hidden=HIDDEN, towers=(), norm=norm)
    model = getattr(rs.multidomain, name.split(",")[0])
    known = inspect.signature(model).parameters
    options = {k: v for k, v in {"dim": DIM, "hidden": HIDDEN}.items() if k in known}
    return model(schema, **{**options, **ROWS.get(name, {})})


class Separate(torch.nn.Module):
    """Each domain's own model, for measuring them together; a domain without one is answered with log-odds of 0."""

    def __init__(self, models: dict[int, Any], by: str) -> None:
        super().__init__()
        self.ids, self.by, self.schema = list(models), by, next(iter(models.values())).schema
        self.models = torch.nn.ModuleList(models.values())

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for i, model in zip(self.ids, self.models, strict=True):
            for task, logit in model(batch).items():
                own = batch[self.by].reshape(-1, 1) == i
                out[task] = torch.where(own, logit, out.get(task, torch.zeros_like(logit)))
        return out


def one_domain(data: Data) -> Data:
    """The same rows, all of one domain; their own is a feature like others."""
    schema, name = data.parts[0].schema, "everywhere"
    features = [replace(f, role="context") if f.name == data.by else f for f in schema.features]
    schema = schema.replace(features=[*features, rs.Categorical(name, role="domain")])
    parts = [copy.copy(part) for part in data.parts]
    for part in parts:
        part.schema, part.events = schema, part.events.with_columns(pl.lit("here").alias(name))
    return encoded(tuple(parts), None, penalty=data.penalty, unread=data.unread, by=data.by, epochs=data.epochs)  # type: ignore[arg-type]


@dataclass
class Fitted:
    model: Any
    epochs: list[int]
    parameters: int


def fit(name: str, data: Data, train: Any, valid: Any, seed: int, epochs: int) -> Fitted:
    torch.manual_seed(seed)
    model = build(name, data.encoder.schema.without(*data.unread))
    (task,) = (t.name for t in model.schema.tasks)

    def validate(rows: Any) -> dict[str, float]:
        cell = grid(model, rows)[task, "all"]
        return {m: cell[m] for m in ("auc", "gauc")}

    model.validate = validate  # type: ignore[assignment]
    trainer = rs.Trainer(
        model,
        optimizer="adam",
        lr=RATE,
        epochs=min(epochs, data.epochs),
        batch_size=2048,
        regularization={"embedding": data.penalty},
        monitor=data.monitor,
        patience=2,
        seed=seed,
        progress=False,
    )
    result = trainer.fit(train, valid)
    assert result.best is not None
    return Fitted(model, [result.best["epoch"]], sum(p.numel() for p in model.parameters()))


def run(name: str, data: Data, seed: int, epochs: int) -> dict[str, Any]:
    """One training (one a domain, of "separate"); what the table and a reader of it need."""
    began, by = time.perf_counter(), data.by
    assert by is not None
    if name == SEPARATE:
        fitted: dict[int, Fitted] = {}
        for value in data.parts[0].events[by].unique(maintain_order=True).sort():
            parts = [part.select(part.events[by] == value) for part in data.parts[:2]]
            if all(len(p) for p in parts):
                own = [data.encoder.encode(p) for p in parts]
                fitted[int(data.encoder.encode_values(by, [value])[0])] = fit(name, data, own[0], own[1], seed, epochs)
        model: Any = Separate({i: f.model for i, f in fitted.items()}, by)
        done = Fitted(model, [e for f in fitted.values() for e in f.epochs], sum(f.parameters for f in fitted.values()))
    else:
        data = one_domain(data) if name == ALONE else data
        done = fit(name, data, data.columns[0], data.columns[1], seed, epochs)
    seconds = round(time.perf_counter() - began, 1)
    round_ = lambda cell: {k: round(v, 6) if isinstance(v, float) else v for k, v in cell.items()}  # noqa: E731
    valid, test = ({d: round_(c) for (_, d), c in grid(done.model, data.parts[i], by).items()} for i in (1, 2))
    facts = {"best_epoch": done.epochs, "parameters": done.parameters, "seconds": seconds}
    return {
        "valid": valid["all"],
        "test": test,
        **facts,
        "rows": [len(p) for p in data.parts],
        "threads": torch.get_num_threads(),
    }


def table(path: Path) -> str:
    """Markdown, a table for each data set; what was not run is not in it."""
    every, out = pages.read(path), []
    for data in DATA:
        found = {n: s for (d, n), s in every.items() if d == data}
        found = {
            n: found[n]
            for n in [MERGED, NORMED, SEPARATE, *sorted(set(found) - {MERGED, NORMED, SEPARATE})]
            if n in found
        }
        if not found:
            continue
        first = next(iter(next(iter(found.values())).values()))
        places = sorted((d for d in first["test"] if d != "all"), key=lambda d: -first["test"][d]["rows"])
        train, valid, test = first["rows"]
        out += [f"**{data}**: {train:,} rows of training, {valid:,} of validation, {test:,} of test.", ""]
        counts = [f"{d} ({first['test'][d]['rows']:,})" for d in places]
        head = ["model", "seeds", "AUC", "GAUC", "beside merged", "beside separate", *counts, "parameters", "s"]
        out += [_row(head), _row(["---"] * len(head))]
        for name, seeds in found.items():
            runs = list(seeds.values())
            cells = [name, " ".join(map(str, sorted(seeds))), *(_spread(runs, "all", m) for m in ("auc", "gauc"))]
            cells += [
                _gain(runs, list(found.get(base, {}).values())) if name != base else "" for base in (MERGED, SEPARATE)
            ]
            cells += [_spread(runs, d, "auc") for d in places]
            out.append(_row([*cells, f"{runs[0]['parameters']:,}", f"{mean(r['seconds'] for r in runs):.0f}"]))
        out.append("")
    return "\n".join(out).strip()


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(runs: list[dict[str, Any]], domain: str, metric: str) -> str:
    values = [r["test"][domain][metric] for r in runs if domain in r["test"]]
    return pages.spread(values) if values and all(v == v for v in values) else ""


def _gain(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    said = gain([r["test"]["all"]["auc"] for r in runs], [r["test"]["all"]["auc"] for r in base])
    return "" if said["gain"] is None else f"{said['gain']:+.4f}{' (noise)' if said['verdict'] == 'noise' else ''}"


def main() -> None:
    pages.by_model(__doc__, DATA, names, run, table, (RESULTS, PAGE, BEGIN, END), epochs=EPOCHS)


if __name__ == "__main__":
    main()
