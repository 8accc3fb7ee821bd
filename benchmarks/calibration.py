"""Every calibrator on a click model of the simulated market: how far off before and after, and whether the order stayed.

    python benchmarks/calibration.py            # seeds 0, 1, 2, then the table
    python benchmarks/calibration.py --table    # trains nothing, draws the table into docs/benchmarks.md

A market of 2,000 users, 1,000 items and 300,000 impressions, 10 % clicked, in the order of time: the first half trains DCNv2 (Adam 1e-3,
batch 1024, embeddings of 16, two epochs), the next fifth fits the calibrators, the rest is the test. "all rows" trains on all of
the first half; "a quarter of negatives" keeps each row without a click with chance ¼, as large logs are thinned out.

ECE and the greatest gap: ten groups of equal weight. "order": no pair of test rows that the ranker tells apart changes places
("kept"), or also none becomes tied ("strictly"); in float64. field-RCE: of the items' brand (60 of them). "ByField" is Isotonic with a
shift for each brand. "the truth itself" answers the probability by which the click was drawn: what chance leaves of each column.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pages
import torch

import recstack as rs
from recstack import calibration as cal

RESULTS = Path(__file__).parent / "results" / "calibration.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- calibration: drawn by benchmarks/calibration.py -->", "<!-- calibration: end -->"
QUARTER = 0.25
METHODS: dict[str, Any] = {
    "none": None,
    "DownSampling": partial(cal.DownSampling, negative=QUARTER),
    "Temperature": cal.Temperature,
    "Platt": cal.Platt,
    "Beta": cal.Beta,
    "Isotonic": cal.Isotonic,
    "Isotonic, no tie-break": partial(cal.Isotonic, tie_break=0.0),
    "Histogram": cal.Histogram,
    "BBQ": cal.BBQ,
    "ByField": cal.ByField,
}
COLUMNS = {
    "ece": "ECE",
    "mce": "greatest gap",
    "ratio": "Σp / Σy",
    "logloss": "log loss",
    "rce": "field-RCE",
    "auc": "AUC",
}
DIGITS = {"ece": 4, "mce": 4, "ratio": 3, "logloss": 5, "rce": 4, "auc": 5}


def order(before: torch.Tensor, after: torch.Tensor) -> str:
    moved = after[before.argsort(stable=True)]
    step, apart = moved.diff(), before.sort().values.diff() > 0
    if (step[apart] < 0).any():
        return "changed"
    return "strictly" if (step[apart] > 0).all() else "kept"


def measured(p: torch.Tensor, label: torch.Tensor, brand: torch.Tensor) -> dict[str, float]:
    logit = p.double().logit(eps=1e-12)
    return {
        "ece": cal.expected_calibration_error(p, label),
        "mce": cal.maximum_calibration_error(p, label),
        "ratio": rs.metrics.calibration_ratio(logit, label).item(),
        "logloss": rs.metrics.logloss(logit, label).item(),
        "rce": cal.field_relative_error(p, label, brand),
        "auc": rs.metrics.auc(logit, label).item(),
    }


def run(seed: int) -> list[dict[str, Any]]:
    began = time.process_time()
    market = rs.simulator.simulate(users=2000, items=1000, impressions=300_000, seed=seed)
    log = market.log().with_histories()
    n, rows, out = len(log), np.arange(len(log)), []
    fit, test = np.arange(n // 2, n * 7 // 10), np.arange(n * 7 // 10, n)
    clicked = log.events["click"].to_numpy()
    thin = (clicked == 1) | (np.random.default_rng(seed).random(n) < QUARTER)
    for name, kept in (("all rows", rows[: n // 2]), ("a quarter of negatives", rows[: n // 2][thin[: n // 2]])):
        train = log.select(kept)
        encoder = rs.Encoder(log.schema).fit(train)
        torch.manual_seed(seed)
        model = rs.ranking.DCNv2(encoder.schema.without("position"), dim=16, hidden=(64, 32))
        model.fit(train, optimizer="adam", lr=1e-3, batch_size=1024, epochs=2, seed=seed, progress=False)
        score = {}
        for part, chosen in (("fit", fit), ("test", test)):
            columns = encoder.encode(log.select(chosen))
            logit = torch.from_numpy(model.score(columns)["click"]).double().logit()
            brand = columns.batch(slice(None))["brand"][:, 0]
            score[part] = (logit, torch.from_numpy(clicked[chosen]).double(), brand)
        logit, label, brand = score["test"]
        for method, make in METHODS.items():
            if method == "DownSampling" and name == "all rows":
                continue
            calibrator, more, asked = make() if make else None, {}, ()
            begin = time.process_time()
            if method == "ByField":
                more, asked = {"field": score["fit"][2]}, (brand,)
            if calibrator is not None:
                calibrator.fit(*score["fit"][:2], **more)
            took = time.process_time() - begin
            after = logit if calibrator is None else calibrator(logit, *asked)
            row = {"seed": seed, "trained on": name, "method": method, "seconds": round(took, 3)}
            out.append(row | measured(after.sigmoid(), label, brand) | {"order": order(logit, after)})
    truth = torch.from_numpy((market.truth.shown["examine"] * market.truth.shown["click"])[test]).double()
    out.append({"seed": seed, "trained on": "", "method": "the truth itself", **measured(truth, label, brand)})
    print(f"seed {seed}: {time.process_time() - began:.0f} s of CPU")
    return out


def table() -> str:
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    lines = ["| trained on | method | " + " | ".join(COLUMNS.values()) + " | order | fitting, s of CPU |"]
    lines.append("|---|---|" + "---|" * (len(COLUMNS) + 2))
    kinds = list(dict.fromkeys((row["trained on"], row["method"]) for row in found))
    kinds.sort(key=lambda kind: ("all rows", "a quarter of negatives", "").index(kind[0]))
    for kind in kinds:
        rows = [row for row in found if (row["trained on"], row["method"]) == kind]
        cells = [pages.spread([row[name] for row in rows], DIGITS[name]) for name in COLUMNS]
        orders = ", ".join(sorted({row.get("order", "") for row in rows}))
        seconds = max(row.get("seconds", 0) for row in rows)
        lines.append(f"| {kind[0]} | {kind[1]} | {' | '.join(cells)} | {orders} | {seconds:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    pages.by_seed(__doc__, run, table, RESULTS, PAGE, BEGIN, END)
