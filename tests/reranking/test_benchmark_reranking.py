"""The script that measures re-rankers: lists in their initial order, honest scores, and a table of gains over it."""

import importlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("reranking")


def test_lists_keep_the_initial_order_and_say_the_place_and_those_without_a_positive_go(bench):
    parts = list(rs.split.by_time(rs.simulator.small(lists=True)))
    data = bench.encoded("simulator", parts, worth=lambda score: float(len(score)))
    clicked = [int((p.events.group_by("request").agg(pl.col("click").sum())["click"] > 0).sum()) for p in parts]
    assert data.lists == (
        clicked[0],
        clicked[1],
        parts[2].events["request"].n_unique(),
    )  # `worth` reads all of the test
    batch = data.test[0]
    item = parts[2].schema.encoder or data.schema.encoder
    shown = item.encode_values("item_id", parts[2].events["item_id"].to_list()).reshape(-1, 5)
    assert (batch["item_id"].numpy() == shown).all()
    assert (batch["place"].diff(dim=1) > 0).all()
    score, label, mask = bench.said(None, data.test)
    found = bench.measured(score, label, mask)
    hits = label[label.any(1)].numpy()
    discount = 1 / np.log2(np.arange(2, 7))
    ideal = -np.sort(-hits, 1) @ discount
    assert found["ndcg@10"] == pytest.approx(float((hits @ discount / ideal).mean()), abs=1e-6)


def test_rows_of_training_are_scored_by_a_ranker_that_did_not_see_their_list(bench, monkeypatch, tmp_path):
    seen = []

    class Fake:
        trained = torch.nn.Module()

        def __init__(self, schema, **options):
            self.trained.best = {}

        def fit(self, train, valid, **options):
            seen.append(set(train.user_ids.tolist()))
            return self

        def score(self, columns):
            known = np.array([u in seen[-1] for u in columns.user_ids.tolist()])
            return {"click": np.where(known, 0.9, 0.2).astype(np.float32)}

    monkeypatch.setattr(bench, "RANKED", tmp_path)
    monkeypatch.setattr(rs.ranking, "DIN", Fake)
    log = rs.simulator.small(lists=True)
    one_each = log.select(log.events.select(pl.int_range(pl.len()).over("user_id") < 5).to_series())  # a list a user
    parts = bench.ranked([one_each, log.select(np.arange(50)), log.select(np.arange(50))], "market")
    assert parts[0].events["ranker"].to_numpy() == pytest.approx(np.log(0.2 / 0.8), abs=1e-5)
    assert len(seen) == bench.FOLDS
    ordered = parts[1].events.with_columns(pl.col("ranker").diff().over("request").fill_null(-1.0).alias("step"))
    assert (ordered["step"] <= 0).all()


@pytest.mark.slow
def test_a_run_and_its_line(bench, tmp_path):
    data = bench.encoded("simulator", list(rs.split.by_time(rs.simulator.small(lists=True))))
    out = tmp_path / "runs.jsonl"
    for name in ("initial order", "MLP"):
        record = {
            "data": "trivago",
            "model": name,
            "seed": 0,
            **bench.run(name, data, 0, 1, bench.SETTINGS["simulator"]),
        }
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")
    drawn = bench.table(out).splitlines()
    base, line = (json.loads(x)["test"]["ndcg@10"] for x in out.read_text().splitlines())
    assert drawn[4].startswith("| initial order |")
    assert drawn[5].startswith("| MLP | 0 |")
    assert f"{line - base:+.4f}" in drawn[5]
