"""The search for static weights: what it returns is a Pareto front, and its picture."""

from __future__ import annotations

import sys

import pytest
import torch
from test_balance_training import Two
from worlds import world

from recstack.errors import ConfigError
from recstack.training import balance


class Judged(Two):
    """Each task's own loss on held-out rows as its metric."""

    def validate(self, data):
        losses = [self.losses(batch) for batch in data]
        return {f"{n}/logloss": sum(float(x[n]) for x in losses) / len(losses) for n in losses[0]}


METRICS = ("click/logloss", "like/logloss")


def test_no_trial_beats_one_of_the_front(tmp_path):
    pytest.importorskip("optuna")
    options = {"trials": 6, "losses": ("click", "like"), "epochs": 1, "progress": False}
    front = balance.search_weights(Judged, world(4), world(1, seed=9), METRICS, **options)
    assert front.trials[0]["weights"] == {"click": 1, "like": 1}
    assert all(0.1 <= t["weights"]["like"] <= 10 for t in front.trials)
    points = torch.tensor([[t["metrics"][m] for m in METRICS] for t in front.trials])
    for trial, point in zip(front.trials, points, strict=True):
        beaten = ((points <= point).all(1) & (points < point).any(1)).any()
        assert trial["pareto"] is not bool(beaten)
    again = balance.search_weights(Judged, world(4), world(1, seed=9), METRICS, **options)
    assert again == front
    pytest.importorskip("matplotlib")
    assert front.plot(tmp_path / "front.png").stat().st_size > 1000


def test_a_search_that_cannot_be_is_one_sentence(monkeypatch):
    with pytest.raises(ConfigError, match="give two or more, got"):
        balance.search_weights(Judged, world(1), world(1), METRICS[:1], losses=("click", "like"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs Optuna: pip install \"recstack\[tune\]\""):
        balance.search_weights(Judged, world(1), world(1), METRICS, losses=("click", "like"))
