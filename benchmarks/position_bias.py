"""Clicks that fall with the position: what each model makes of the curve, and how well it orders by true relevance.

    python benchmarks/position_bias.py            # seeds 0, 1, 2, then the table
    python benchmarks/position_bias.py --table    # trains nothing, draws the table into docs/benchmarks.md

A market of 1,000 users, 300 items and 150,000 impressions in lists of 10, 15 % clicked; position k is looked at with chance
k^-0.8, and the policy puts at the top what it believes its user likes. The last fifth of the requests is the test, on which
nothing is learned from clicks: relevance is the chance of a click where the item is looked at, as the simulator knows it. All: embeddings of
16, layers of 64-32, Adam 2e-3, 100 lists a batch, L2 on whole tables of 1e-3, four epochs, nothing chosen by a validation.

curve: correlation of the learned examination with the true one, and the greatest error of a position (both scaled to 1 at the top).
nDCG: within the test's lists, true relevance as the gain. AUC: all test rows, each being its relevance of a positive (what the truth
itself reaches stands first). "naive" reads no position; "feature" reads it beside all others and is asked for position 1; "IPW" is a
listwise softmax whose clicks have the inverse of the true curve as weights ("of EM": of the curve that RegressionEM found), "naive
softmax" the same without weights. The curve of "additive tower" is the
factor of each position on the odds.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
import polars as pl
import torch

import recstack as rs
from recstack.data.positions import examination_weights

RESULTS = Path(__file__).parent / "results" / "position_bias.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- position bias: drawn by benchmarks/position_bias.py -->", "<!-- position bias: end -->"
LISTS = 10
COLUMNS = {
    "correlation": "curve, correlation",
    "error": "greatest error",
    "ndcg": "nDCG",
    "auc": "AUC",
    "cpu": "s of CPU",
}
SIZES: dict[str, Any] = {"dim": 16, "hidden": (64, 32)}


def fitted(model: Any, train: rs.Log, seed: int) -> Any:
    model.fit(
        train,
        optimizer="adam",
        lr=2e-3,
        batch_size=100,
        epochs=4,
        regularization={"embedding": 1e-3},
        seed=seed,
        progress=False,
    )
    return model.eval()


def run(seed: int) -> list[dict[str, Any]]:
    market = rs.simulator.simulate(
        users=1000, items=300, impressions=150_000, list_size=LISTS, ctr=0.15, eta=0.8, seed=seed
    )
    log = market.log(lists=True).with_histories()
    cut = len(log) // LISTS * 4 // 5 * LISTS
    train, test = log.select(np.arange(cut)), log.select(np.arange(cut, len(log)))
    true = market.truth.examine(np.arange(1, LISTS + 1))
    relevance = torch.from_numpy(market.truth.shown["click"][cut:].astype(np.float64))
    first = test.with_columns([pl.Series("position", np.ones(len(test)), test.events["position"].dtype)])
    encoder = rs.Encoder(log.schema).fit(train)
    schema, out = encoder.schema, []
    softmax = rs.Task("click", loss="softmax")

    def measured(name: str, score: np.ndarray, curve: Any = None, began: float = 0.0) -> None:
        s = torch.from_numpy(score.astype(np.float64))
        row = {"seed": seed, "model": name, "cpu": round(time.process_time() - began, 1) if began else 0.0}
        row["ndcg"] = rs.metrics.ndcg(
            s.view(-1, LISTS), relevance.view(-1, LISTS), gain="linear", ties="average"
        ).item()
        row["auc"] = rs.metrics.auc(s, relevance).item()
        if curve is not None:
            found = np.array([curve[k] for k in range(1, LISTS + 1)]) / curve[1]
            row["correlation"] = float(np.corrcoef(found, true)[0, 1])
            row["error"] = float(np.abs(found - true).max())
        out.append(row)
        print(json.dumps(row), flush=True)

    def learned(name: str, make: Any, asked: rs.Log = test, weights: Any = None, tasks: Any = None) -> Any:
        began, of = time.process_time(), schema if tasks is None else schema.replace(tasks=tasks)
        weight = None if weights is None else examination_weights(train.events["position"].to_numpy(), weights)
        torch.manual_seed(seed)
        model = fitted(make(of), changed(train, of, weight), seed)
        curve = None
        if getattr(model, "shallow", None) is not None:
            curve = additive(model)
        elif getattr(model, "biased", None):
            curve = model.examination()
        measured(name, model.score(changed(asked, of, None))["click"], curve, began)
        return curve

    measured("the truth itself", relevance.numpy())
    learned("naive", lambda s: rs.ranking.PAL(s.without("position"), **SIZES))
    learned("feature", lambda s: rs.ranking.PAL(s, **SIZES), asked=first)
    learned("additive tower", tower)
    learned("PAL", lambda s: rs.ranking.PAL(s, position=("position",), **SIZES))
    found = learned("RegressionEM", lambda s: rs.ranking.RegressionEM(s, position=("position",), **SIZES))
    learned("naive softmax", lambda s: rs.ranking.PAL(s.without("position"), **SIZES), tasks=[softmax])
    learned("DLA", lambda s: rs.ranking.DLA(s, position=("position",), **SIZES))
    exact = {k: float(true[k - 1]) for k in range(1, LISTS + 1)}
    learned("IPW", lambda s: rs.ranking.PAL(s.without("position"), **SIZES), weights=exact, tasks=[softmax])
    learned(
        "IPW, curve of EM", lambda s: rs.ranking.PAL(s.without("position"), **SIZES), weights=found, tasks=[softmax]
    )
    return out


def tower(schema: rs.Schema) -> Any:
    return rs.multitask.WatchNext(
        schema, dim=16, shared=(64,), experts=2, hidden=(32,), towers=(), position=("position",)
    )


@torch.no_grad()
def additive(model: Any) -> dict[int, float]:
    """The factor of each position on the odds of a click."""
    size = model.schema.feature("position").size
    shift = model.shallow.of({"position": torch.arange(size).unsqueeze(0)})[0, :, 0].numpy()
    raw = model.schema.encoder.decode("position", np.arange(2, size))
    return {int(k): float(np.exp(z)) for k, z in zip(raw, shift[2:], strict=True)}


def changed(log: rs.Log, schema: rs.Schema, weight: np.ndarray | None) -> rs.Log:
    """The same rows under another schema's tasks, with weights."""
    new = log.with_columns([] if weight is None else [pl.Series("inverse", weight)])
    new.schema, new.weight = schema, None if weight is None else "inverse"
    return new


def table() -> str:
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    lines = ["| model | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name in dict.fromkeys(row["model"] for row in found):
        rows = [row for row in found if row["model"] == name]
        cells = [
            pages.spread([row[c] for row in rows], 1 if c == "cpu" else 4) if c in rows[0] else "" for c in COLUMNS
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    pages.by_seed(__doc__, run, table, RESULTS, PAGE, BEGIN, END)
