"""`recstack train`: the file trains what Python would, an interrupted run goes on to the bit, and bundles survive."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.training import callbacks


def weights(path) -> dict:
    return rs.load(path).state_dict()


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_file_trains_what_python_trains(invoke, configure, size, tmp_path):
    path = configure(model={"name": "DIN", "hidden": [8], "dim": 4}, trainer={"epochs": 2, "seed": 3, "lr": 0.01})
    result = invoke("train", path, "--json")
    assert result.exit_code == 0, result.stderr
    train, valid, test = rs.split.by_time(rs.simulator.simulate(**size).log())
    encoder = rs.Encoder(train.schema).fit(train)
    torch.manual_seed(3)
    model = rs.ranking.DIN(encoder.schema, hidden=(8,), dim=4)
    trainer = rs.Trainer(model, epochs=2, seed=3, lr=0.01, progress=False)
    trainer.fit(train, valid=valid)
    assert equal(weights(tmp_path / "out"), model.state_dict())
    said = json.loads(result.stdout)
    assert said["test"]["metrics"] == trainer.evaluate(test)
    assert said["valid"]["metrics"] == said["epochs"][-1]["valid"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == said
    assert not (tmp_path / "out" / "checkpoints").exists()
    again = json.loads(invoke("evaluate", tmp_path / "out", "--config", path, "--json").stdout)
    assert again["metrics"] == said["test"]["metrics"]


def test_a_learned_retriever_keeps_its_users(invoke, configure, size, tmp_path):
    path = configure(model={"name": "DSSM", "hidden": [8], "dim": 4}, split={"by": "leave_last_out"})
    result = invoke("train", path)
    assert result.exit_code == 0, result.stderr
    assert "ndcg@10" in result.stdout
    train, _, _ = rs.split.leave_last_out(rs.simulator.simulate(**size).log())
    torch.manual_seed(0)
    model = rs.retrieval.DSSM(rs.Encoder(train.schema).fit(train).schema, hidden=(8,), dim=4)
    model.fit(train, epochs=1, progress=False)
    saved, users = rs.load(tmp_path / "out"), train.events["user_id"].unique().to_list()
    torch.testing.assert_close(saved.recommend(users, k=5).ids, model.recommend(users, k=5).ids)


def test_a_counted_model_is_counted(invoke, configure, size, tmp_path):
    path = configure(model={"name": "Popularity", "half_life": 1e5}, trainer=None)
    result = invoke("train", path, "--out", tmp_path / "other", "--json")
    assert result.exit_code == 0, result.stderr
    train, _, _ = rs.split.by_time(rs.simulator.simulate(**size).log())
    due = rs.retrieval.Popularity(half_life=1e5).fit(train)
    np.testing.assert_array_equal(rs.load(tmp_path / "other").counts, due.counts)
    assert json.loads(result.stdout)["test"]["metrics"]["ndcg@10"] > 0


def test_trees_are_grown(invoke, configure, size, tmp_path):
    path = configure(model={"name": "GBDT", "trees": 5}, trainer=None)
    result = invoke("train", path, "--json")
    assert result.exit_code == 0, result.stderr
    train, valid, test = rs.split.by_time(rs.simulator.simulate(**size).log())
    due = rs.ranking.GBDT(rs.Encoder(train.schema).fit(train).schema, trees=5).fit(train, valid)
    np.testing.assert_array_equal(rs.load(tmp_path / "out").score(test)["click"], due.score(test)["click"])
    assert "click/auc" in json.loads(result.stdout)["test"]["metrics"]


def test_a_store_is_trained_like_the_files_behind_it(invoke, configure, market, tmp_path):
    files = {"events": "events.parquet", "users": "users.csv", "items": "items.csv"}
    files = {n: str(market.folder / f) for n, f in files.items()}
    schema = str(market.folder / "schema.yaml")
    asked = [x for n in ("users", "items") for x in (f"--{n}", files[n])]
    done = invoke("prepare", "--data", files["events"], "--schema", schema, *asked, "--out", tmp_path / "store")
    assert done.exit_code == 0, done.stderr
    one = configure("one.yaml", data=files, schema=schema, out=str(tmp_path / "one"))
    two = configure("two.yaml", data={"store": str(tmp_path / "store")}, out=str(tmp_path / "two"))
    results = [invoke("train", p, "--json") for p in (one, two)]
    assert [r.exit_code for r in results] == [0, 0], results[1].stderr
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    a, b = (json.loads(r.stdout)["test"] for r in results)
    assert a == b
    by_store = invoke("evaluate", tmp_path / "one", "--data", tmp_path / "store" / "test", "--json")
    assert json.loads(by_store.stdout)["metrics"] == a["metrics"]


@pytest.fixture
def ctrl_c(monkeypatch):
    """Ctrl-C at the end of the first epoch, once."""
    plain = callbacks.Progress.on_epoch

    def on_epoch(self, record):
        plain(self, record)
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(callbacks.Progress, "on_epoch", on_epoch)


def test_an_interrupted_run_goes_on_to_the_same_weights(invoke, configure, tmp_path, ctrl_c):
    path = configure(trainer={"epochs": 3})
    result = invoke("train", path)
    assert result.exit_code == 130
    assert f"recstack train {path} --resume" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()

    again = invoke("train", path)
    assert again.exit_code == 5
    assert "holds the checkpoint of a run that did not end; --resume goes on from it" in again.stderr

    other = configure("other.yaml", trainer={"epochs": 3, "batch_size": 512})
    assert invoke("train", other, "--resume").exit_code == 5

    done = invoke("train", path, "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    assert [e["epoch"] for e in json.loads(done.stdout)["epochs"]] == [1, 2, 3]
    assert invoke("train", path, "--out", tmp_path / "whole").exit_code == 0
    assert equal(weights(tmp_path / "out"), weights(tmp_path / "whole"))


def test_an_interrupted_run_leaves_the_bundle_before_it(invoke, configure, tmp_path, request):
    path = configure()
    assert invoke("train", path).exit_code == 0
    before = weights(tmp_path / "out")
    request.getfixturevalue("ctrl_c")
    path = configure(trainer={"epochs": 2, "lr": 0.5})
    assert invoke("train", path).exit_code == 130
    assert equal(weights(tmp_path / "out"), before)


def test_a_part_that_cannot_be_measured_does_not_cost_the_model(invoke, configure, market, tmp_path):
    import polars as pl

    events = pl.read_parquet(market.folder / "events.parquet").sort("time")
    events = events.with_columns(click=pl.when(pl.int_range(pl.len()) >= 2700).then(0.0).otherwise("click"))
    events.write_parquet(tmp_path / "events.parquet")
    schema = rs.Schema.load(market.folder / "schema.yaml").without(
        "age", "gender", "category", "brand", "price", "clicked"
    )
    path = configure(
        data={"events": str(tmp_path / "events.parquet")},
        schema=schema.to_dict(),
        model={"name": "Popularity"},
        trainer=None,
    )
    result = invoke("train", path, "--json")
    assert result.exit_code == 0, result.stderr
    assert "The test part was not measured: The test holds no positive event" in result.stderr
    said = json.loads(result.stdout)
    assert (said["test"], said["valid"]["metrics"]["ndcg@10"] > 0) == (None, True)
    rs.load(tmp_path / "out")
