"""The tables of many tasks and many domains say what the lines say; and both scripts run on data that is made here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

import recstack as rs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def line(model: str, seed: int, a: float, b: float) -> str:
    cell = lambda v: {"all": {"rows": 10, "positives": 4, "auc": v, "logloss": 0.5}}  # noqa: E731
    facts = {"best_epoch": [1], "parameters": 1000, "seconds": 2.0, "rows": [80, 10, 10], "threads": 1}
    test = {"income": cell(a), "marital": cell(b)}
    return json.dumps({"data": "census", "model": model, "seed": seed, "valid": {"income": a}, "test": test, **facts})


def test_a_gain_below_the_seeds_is_noise_and_a_real_loss_beside_a_gain_a_seesaw(script, tmp_path):
    runs = [("single", 0, 0.90, 0.90), ("single", 1, 0.92, 0.92), ("MMoE", 0, 0.915, 0.905), ("MMoE", 1, 0.905, 0.925)]
    runs += [("PLE", 0, 0.97, 0.80), ("PLE", 1, 0.97, 0.80)]
    (tmp_path / "runs.jsonl").write_text("\n".join(line(*r) for r in runs) + "\n")
    drawn = {
        row.split(" | ")[0][2:]: row
        for row in script("multitask").table(tmp_path / "runs.jsonl").splitlines()
        if "|" in row
    }
    assert "| 0.9100 ± 0.0141 | 0.9100 ± 0.0141 |" in drawn["single"]
    assert "income +0.0000 (noise); marital +0.0050 (noise) |" in drawn["MMoE"]
    assert "income +0.0600; marital -0.1100 **seesaw**" in drawn["PLE"]
    assert ".9410 (.9359), .9926 (.9927) (MMoE's paper" in drawn["MMoE"]


@pytest.mark.slow
def test_the_multi_domain_script_runs_and_skips_what_it_has(script, tmp_path, monkeypatch):
    file = script("multidomain")
    made = file.market(shift=0.8)
    monkeypatch.setitem(file.DATA, "differ", lambda *_: made(None, 1500))
    page, out = tmp_path / "page.md", tmp_path / "runs.jsonl"
    page.write_text(f"before\n{file.BEGIN}\n{file.END}\nafter\n")
    arguments = ["x", "--data", "differ", "--model", "merged", "separate", "--seeds", "0", "--epochs", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(out), "--page", str(page)])
    for _ in range(2):
        file.main()
    merged, separate = (json.loads(row) for row in out.read_text().splitlines())
    assert set(merged["test"]) == set(separate["test"]) == {"all", "0", "1", "2", "3"}
    assert sum(c["rows"] for d, c in separate["test"].items() if d != "all") == separate["test"]["all"]["rows"] == 1500
    assert separate["parameters"] == 4 * merged["parameters"]
    assert "| separate | 0 |" in page.read_text()


def test_separate_models_answer_each_row_by_its_domains_own(script):
    file, log = script("multidomain"), rs.simulator.small(domains=2)
    encoder = rs.Encoder(log.schema).fit(log)
    models = {i: rs.multitask.SharedBottom(encoder.schema, dim=4, hidden=(4,)).eval() for i in (2, 3)}
    batch = encoder.encode(log).batch(range(40))
    both = file.Separate(models, "domain")(batch)["click"]
    for i, model in models.items():
        own = batch["domain"] == i
        assert own.any()
        assert (both[own] == model(batch)["click"][own]).all()
    assert (file.Separate({2: models[2]}, "domain")(batch)["click"][batch["domain"] == 3] == 0).all()


def test_tasks_of_the_correlation_study_are_correlated_as_said(script):
    file = script("task_correlation")
    for p in (0.5, 1.0):
        world = file.World(p, 3, 2000, 2, 1)
        assert (world.w.norm(dim=0) - 1).abs().max() < 1e-5
        assert (world.w[:, 0] @ world.w[:, 1]).item() == pytest.approx(p, abs=1e-5)
        first, again = list(world), list(world)
        assert all((a["y1@label"] == b["y1@label"]).all() for a, b in zip(first, again, strict=True))
        assert not (first[0]["x"] == first[1]["x"]).any()
    x, y = first[0]["x"], first[0]["y1@label"] - first[0]["y2@label"]  # p = 1: the same but for the noise
    assert y.var().item() == pytest.approx(0.02, rel=0.15)
    assert x.shape == (2000, file.D)
