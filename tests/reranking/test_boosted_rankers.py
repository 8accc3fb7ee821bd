"""AdaRank by hand and by a slow loop; LambdaMART is LightGBM's; what cannot be."""

import math

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.metrics import get

SCHEMA = rs.Schema([rs.Vector("x", "pair", size=3)], [rs.Task("relevance", kind="regression", metric="ndcg@10")])


def lists(seed: int = 0, requests: int = 40, length: int = 6):
    """Grades by two columns of three, one of them the wrong way round."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(requests, length, 3, generator=g)
    z = 2 * x[..., 0] - x[..., 1] + 0.3 * torch.randn(requests, length, generator=g)
    return {"x": x, "relevance@label": ((z > 0.4).float() + (z > 1.2).float())}


def test_one_round_of_adarank_by_hand():
    # Column 0 orders the first list well and the second badly, column 1 the other way round, column 2 says nothing.
    x = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.9, 0.0]]])
    batch = {"x": x, "relevance@label": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "@weight": torch.tensor([2.0, 1.0])}
    model = rs.reranking.AdaRank(SCHEMA, rounds=1, metric="mrr").fit([batch])
    quality = (2 * 1 + 1 * 0.5) / 3
    assert model.coefficients() == pytest.approx({"x@0": 0.5 * math.log((1 + quality) / (1 - quality))})
    model = rs.reranking.AdaRank(SCHEMA, rounds=2, metric="mrr").fit([batch])
    chance = np.array([2 * math.exp(-1), math.exp(-0.5)])
    quality = chance @ [1, 0.5] / chance.sum()  # columns 0 up and 1 down are equal: not column 0 up twice
    assert model.coefficients()["x@1"] == pytest.approx(-0.5 * math.log((1 + quality) / (1 - quality)))


def test_adarank_by_a_slow_loop():
    batch = lists()
    x, y = batch["x"].double().numpy(), batch["relevance@label"]
    x = (x - x.min((0, 1))) / (x.max((0, 1)) - x.min((0, 1)))
    some = (y > 0).any(1).numpy()
    x, y = x[some], y[some]
    metric = get("ndcg@3", ties="average").measure

    def measure(score):
        return np.array([float(metric(torch.tensor(s), t, k=3)) for s, t in zip(score, y, strict=True)])

    chance, f, last, due = np.full(len(x), 1 / len(x)), np.zeros(x.shape[:2]), None, np.zeros(3)
    for _ in range(8):
        best = max(
            ((c, sign) for c in range(3) for sign in (1, -1) if (c, sign) != last),
            key=lambda h: measure(h[1] * x[..., h[0]]) @ chance,
        )
        gain = measure(best[1] * x[..., best[0]]) @ chance
        alpha = 0.5 * math.log((1 + gain) / (1 - gain))
        due[best[0]] += best[1] * alpha
        f += best[1] * alpha * x[..., best[0]]
        chance = np.exp(-measure(f))
        chance, last = chance / chance.sum(), best
    model = rs.reranking.AdaRank(SCHEMA, rounds=8, metric="ndcg@3").fit([batch])
    found = model.coefficients()
    assert [found.get(f"x@{c}", 0.0) for c in range(3)] == pytest.approx(due.tolist())
    assert found["x@0"] > 0 > found["x@1"]


def test_adarank_keeps_the_best_round_of_validation_and_reads_numbers_that_are_missing(tmp_path):
    train, valid = lists(1), lists(2)
    model = rs.reranking.AdaRank(SCHEMA, rounds=60, metric="map").fit([train], valid=[valid])
    told = model.trained["relevance"]
    found = get("map", ties="average")(model(valid)["relevance"], valid["relevance@label"])
    assert found == pytest.approx(told["valid"]["map"], abs=1e-6)
    again = rs.load(model.save(tmp_path / "ada"))
    missing = {"x": valid["x"].masked_fill(valid["x"] > 0.9, torch.nan)}
    assert torch.equal(again(missing)["relevance"], model(missing)["relevance"])
    assert model(missing)["relevance"].isfinite().all()
    with pytest.raises(rs.ConfigError, match="'logloss' is not one"):
        rs.reranking.AdaRank(SCHEMA, metric="logloss")
    with pytest.raises(rs.DataError, match="AdaRank learns from requests with several candidates"):
        rs.reranking.AdaRank(SCHEMA).fit([lists(length=1)])


def test_lambdamart_is_lightgbm_with_its_options():
    lgb = pytest.importorskip("lightgbm")
    train, valid = lists(3, requests=150), lists(4, requests=60)
    model = rs.reranking.LambdaMART(SCHEMA, trees=40, lr=0.1, leaves=7, truncation=3, normalise=False, at=5, patience=5)
    model.fit([train], valid=[valid])
    sets = [
        lgb.Dataset(b["x"].flatten(0, 1).numpy(), b["relevance@label"].flatten().numpy(), group=[6] * len(b["x"]))
        for b in (train, valid)
    ]
    options = {"objective": "lambdarank", "metric": "ndcg", "eval_at": [5], "learning_rate": 0.1, "num_leaves": 7}
    options |= {"lambdarank_truncation_level": 3, "lambdarank_norm": False, "seed": 0, "verbosity": -1}
    options |= {"num_threads": 1, "deterministic": True, "force_row_wise": True}
    direct = lgb.train(
        options,
        sets[0],
        40,
        valid_sets=[sets[1].set_reference(sets[0])],
        callbacks=[lgb.early_stopping(5, verbose=False)],
    )
    scores = direct.predict(valid["x"].flatten(0, 1).numpy())
    np.testing.assert_allclose(model(valid)["relevance"].flatten().numpy(), scores, atol=1e-5)
    assert model.trained["relevance"]["trees"] == direct.best_iteration
    with pytest.raises(rs.DataError, match="LambdaMART ranks by grades"):
        model.fit([{**train, "relevance@label": torch.rand(150, 6)}])
