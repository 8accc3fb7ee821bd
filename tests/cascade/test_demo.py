"""The demo on a small market: all of its files, and the numbers in them."""

import json

import pytest

import recstack as rs
from recstack.cli import demo


@pytest.mark.slow
def test_the_demo_writes_bundle_metrics_and_report(tmp_path, monkeypatch):
    def small(data_dir, seed):
        market = rs.simulator.simulate(users=200, items=150, impressions=20_000, seed=seed)
        parts = rs.split.by_time(market.log(), valid=0.1, test=0.1)
        return demo.Plan(*parts, "by time", retrieval=("position",), ranking=("position",), late=10, market=market)

    monkeypatch.setattr(demo, "_simulator", small)
    metrics = demo.run("simulator", out=tmp_path, serve=False, seed=1)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics))
    assert {s["name"] for s in metrics["stages"]} >= {"popularity", "swing", "dssm", "pre_ranker", "ranker", "reranker"}
    truth = metrics["expected_clicks_per_page"]
    assert truth["random"] < truth["cascade"] < truth["best possible"]
    assert metrics["seconds"]["total"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "The funnel" in page
    assert page.count("data:image/png") == 2
    cascade = rs.load(tmp_path / "bundle")
    assert len(cascade.recommend(next(iter(cascade.profiles.users)), 10)) == 10


def test_an_unknown_data_set_is_named_with_a_guess(tmp_path):
    with pytest.raises(rs.ConfigError, match="movielens-1m"):
        demo.run("movielens-1", out=tmp_path, serve=False)
