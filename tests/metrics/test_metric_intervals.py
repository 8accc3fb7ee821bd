"""Metrics by group, bootstrap intervals and tests, against loops, scipy and what is known of coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from recstack import metrics
from recstack.errors import ConfigError, DataError


def rows(n=400, users=30, seed=0):
    chance = np.random.default_rng(seed)
    score = torch.from_numpy(chance.normal(size=n).round(1))
    label = torch.from_numpy((chance.random(n) < 1 / (1 + np.exp(-score.numpy()))).astype(float))
    user = torch.from_numpy(chance.integers(0, users, n) * 3)
    where, weight = torch.from_numpy(chance.random(n) < 0.9), torch.from_numpy(chance.uniform(0.5, 2, n))
    return score, label, user, where, weight


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["auc", "logloss", "rmse", "calibration_ratio", "average_precision", "ks"])
def test_by_group_is_the_metric_of_each_groups_rows(name):
    score, label, user, where, weight = rows()
    found = metrics.by_group(name, score, label, user, where=where, weight=weight)
    assert found.group.tolist() == sorted(set(user[where].tolist()))
    for u, value, mass in zip(found.group, found.value, found.weight, strict=True):
        mine = (user == u) & where
        torch.testing.assert_close(
            value, metrics.get(name)(score[mine], label[mine], weight=weight[mine]), equal_nan=True
        )
        assert mass.item() == pytest.approx(weight[mine].sum().item())


def test_lists_by_group_are_the_mean_of_its_lists():
    score, label, _, _, _ = rows()
    score, label = score.view(80, 5), label.view(80, 5)
    country = torch.arange(80) % 4
    found = metrics.by_group("ndcg@3", score, label, country, ties="average")
    for c in range(4):
        expected = metrics.ndcg(score[country == c], label[country == c], k=3, ties="average")
        torch.testing.assert_close(found.value[c], expected)
    with pytest.raises(DataError, match="one id per list"):
        metrics.by_group("ndcg", score, label, label.long())
    with pytest.raises(ConfigError, match="ask for 'auc' by group"):
        metrics.by_group("gauc", score, label, country)


@pytest.mark.parametrize("name", ["logloss", "auc", "gauc", "ndcg"])
def test_an_interval_is_the_quantiles_of_the_metric_of_drawn_users(name):
    """A resample has the metric of the log in which each drawn user stands as often as it was drawn, as another user."""
    score, label, user, where, weight = rows(n=300, users=12)
    lone = name == "ndcg"
    if lone:
        score, label, where, weight, user = (x.view(60, 5) for x in (score, label, where, weight, user))
        user = user[:, 0]
    given = {"where": where, "weight": weight, "group": user}
    more = {"ties": "average"} if lone else {}
    found = metrics.bootstrap(name, score, label, samples=40, seed=3, level=0.9, **given, **more)
    chance, values = np.random.default_rng(3), []
    known = sorted(set((user if lone else user[where]).tolist()))
    draws = [chance.integers(0, len(known), len(known)) for _ in range(40)]
    for drawn in draws:
        parts = [torch.nonzero(user == known[d])[:, 0] for d in drawn]
        order, again = torch.cat(parts), torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts)])
        asked = {"where": where[order], "weight": weight[order]} | ({"group": again} if name == "gauc" else {})
        values.append(metrics.get(name, **more)(score[order], label[order], **asked).item())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))
    assert found.value == pytest.approx(metrics.get(name, **more).function(score, label, **given).item())


def test_intervals_hold_the_truth_as_often_as_they_say():
    chance, inside = torch.Generator().manual_seed(0), 0
    for i in range(200):
        x = torch.randn(60, generator=chance) * 2 + 1
        found = metrics.bootstrap_mean(x, samples=200, seed=i)
        inside += found.low <= 1 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_ratios_of_users_are_wider_than_those_of_rows():
    user = torch.arange(50).repeat_interleave(20)
    click = (user % 5 == 0).double()  # a user clicks all or nothing
    whole = metrics.bootstrap_ratio(click, torch.ones(1000), user)
    each = metrics.bootstrap_ratio(click, torch.ones(1000))
    assert whole.value == each.value == pytest.approx(0.2)
    assert whole.high - whole.low > 3 * (each.high - each.low)
    assert whole.high - whole.low == pytest.approx(2 * 1.96 * math.sqrt(0.16 / 50), rel=0.2)


def test_tests_are_scipys_and_the_permutations_counted():
    stats = pytest.importorskip("scipy.stats")
    chance = np.random.default_rng(1)
    a = chance.normal(size=40)
    b = a + chance.normal(0.2, 0.5, 40)
    a[3] = np.nan
    kept = ~np.isnan(a)
    ours = metrics.compare(torch.from_numpy(a), torch.from_numpy(b))
    student = stats.ttest_rel(b[kept], a[kept])
    assert ours.p_value == pytest.approx(student.pvalue)
    interval = student.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.n == 39
    ranks = metrics.compare(torch.from_numpy(a), torch.from_numpy(b), test="wilcoxon")
    assert ranks.p_value == pytest.approx(stats.wilcoxon(b[kept], a[kept]).pvalue)
    signs = metrics.compare(torch.from_numpy(a), torch.from_numpy(b), test="permutation", samples=4000)
    assert signs.p_value == pytest.approx(ours.p_value, abs=0.02)
    d = (b - a)[kept][:6]
    exact = metrics.compare(torch.zeros(6).double(), torch.from_numpy(d), test="permutation").p_value
    every = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=6)]
    assert exact == pytest.approx(np.mean([x >= abs(d.sum()) - 1e-12 for x in every]))


def test_runs_that_are_alike_do_not_differ_and_holm_keeps_the_order():
    x = torch.rand(20)
    for test in ("t", "permutation", "wilcoxon"):
        assert metrics.compare(x, x, test=test).p_value == 1
    found = metrics.holm({"a": 0.01, "b": 0.02, "c": 0.5, "d": 0.02})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.5, "d": 0.06})
    with pytest.raises(ConfigError, match="Did you mean 'wilcoxon'"):
        metrics.compare(x, x, test="wilcoxn")
    with pytest.raises(DataError, match="same order"):
        metrics.compare(x, x[1:])
    with pytest.raises(DataError, match="answer for 1 users"):
        metrics.compare(x[:1], x[:1])
