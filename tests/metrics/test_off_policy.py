"""Off-policy estimates against the known value of a small bandit, by sums over all that can happen and by drawn logs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from recstack.errors import ConfigError, DataError
from recstack.metrics import off_policy as ope

CONTEXT = np.array([0.3, 0.7])
LOGGED = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])  # chances by context
POLICY = np.array([[0.1, 0.1, 0.8], [0.6, 0.4, 0.0]])
RATE = np.array([[0.1, 0.5, 0.9], [0.3, 0.6, 0.2]])
TRUE = float((CONTEXT[:, None] * POLICY * RATE).sum())
WRONG = np.array([[0.4, 0.4, 0.4], [0.2, 0.9, 0.1]])  # a model of the rewards that is off


def log(n=4000, seed=0, logged=LOGGED):
    chance = np.random.default_rng(seed)
    x = (chance.random(n) > CONTEXT[0]).astype(int)
    arm = (chance.random(n)[:, None] > logged[x].cumsum(1)).sum(1).clip(max=2)
    reward = (chance.random(n) < RATE[x, arm]).astype(float)
    return x, arm, reward


def everything():
    """All (chance, context, arm, reward) of one row."""
    for x, a, r in itertools.product(range(2), range(3), range(2)):
        yield CONTEXT[x] * LOGGED[x, a] * (RATE[x, a] if r else 1 - RATE[x, a]), x, a, float(r)


@pytest.mark.parametrize("model", [RATE, WRONG])
def test_ips_and_doubly_robust_are_unbiased_whatever_the_model(model):
    by_ips = by_dr = 0.0
    for p, x, a, r in everything():
        w = ope.importance([POLICY[x, a]], [LOGGED[x, a]])
        by_ips += p * ope.ips([r], w).value
        by_dr += p * ope.doubly_robust([r], w, [a], model[[x]], POLICY[[x]]).value
    assert by_ips == pytest.approx(TRUE)
    assert by_dr == pytest.approx(TRUE)


@pytest.mark.filterwarnings("ignore:The log covers")
@pytest.mark.parametrize("interval", ["normal", "bootstrap"])
def test_intervals_hold_the_true_value_about_as_often_as_they_say(interval):
    held = {"ips": 0, "snips": 0, "dm": 0, "dr": 0}
    runs = 20 if interval == "bootstrap" else 100
    for seed in range(runs):
        x, arm, reward = log(500, seed)
        w = ope.importance(POLICY[x, arm], LOGGED[x, arm])
        options = {"interval": interval, "level": 0.9}
        found = {
            "ips": ope.ips(reward, w, **options),
            "snips": ope.snips(reward, w, **options),
            "dm": ope.direct(RATE[x], POLICY[x], **options),
            "dr": ope.doubly_robust(reward, w, arm, WRONG[x], POLICY[x], **options),
        }
        for name, e in found.items():
            assert e.low <= e.value <= e.high
            held[name] += e.low <= TRUE <= e.high
    assert all(0.78 * runs <= n <= runs for n in held.values()), held


def test_snips_by_hand_and_a_constant_reward_is_known_exactly():
    assert ope.snips([1.0, 0.0, 1.0], [2.0, 1.0, 0.5]).value == pytest.approx(2.5 / 3.5)
    x, arm, reward = log()
    w = ope.importance(POLICY[x, arm], LOGGED[x, arm])
    assert ope.snips(np.full_like(reward, 0.7), w) == pytest.approx((0.7, 0.7, 0.7))
    half = 1.959964 * reward.std(ddof=1) / math.sqrt(len(reward))
    assert ope.on_policy(reward) == pytest.approx((reward.mean(), reward.mean() - half, reward.mean() + half))


def test_replay_of_an_even_log_finds_the_value_of_a_fixed_choice():
    x, arm, reward = log(60_000, logged=np.full((2, 3), 1 / 3))
    best = np.array([2, 1])
    found = ope.replay(reward, best[x] == arm, level=0.999)
    assert found.low <= CONTEXT @ RATE[[0, 1], best] <= found.high
    assert found.value == reward[best[x] == arm].mean()


def test_a_log_that_covers_the_policy_badly_is_told():
    with pytest.warns(RuntimeWarning, match=r"rows count as 1, the mean weight is 5\.83"):
        ope.importance(np.full(1000, 0.5), [*[0.6] * 999, 0.0001])
    assert ope.overlap([3.0, 1.0]) == (2.0, 3.0, 1.6)
    with pytest.warns(RuntimeWarning, match="no row"):
        assert math.isnan(ope.snips([1.0], [0.0]).value)


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match="outside"):
        ope.importance([0.5], [0.0])
    with pytest.raises(DataError, match="one value per row"):
        ope.ips([1.0, 0.0], [1.0])
    with pytest.raises(DataError, match="NaN"):
        ope.ips([math.nan], [1.0])
    with pytest.raises(DataError, match="add up to 1"):
        ope.direct([[1.0, 0.0]], [[0.5, 0.1]])
    with pytest.raises(ConfigError, match="Did you mean 'bootstrap'"):
        ope.ips([1.0], [1.0], interval="bootstap")


FIRST = {"log": np.array([0.5, 0.3, 0.2]), "policy": np.array([0.2, 0.2, 0.6])}
SECOND = {"log": np.array([0.4, 0.4, 0.2]), "policy": np.array([0.1, 0.8, 0.1])}


def slates(user):
    """All (chance in the log, in the policy, place weights, place rewards) of pages of two places."""
    for a, b in itertools.product(range(3), repeat=2):
        rewards = {
            "independent": [RATE[0, a], RATE[1, b]],
            "cascade": [RATE[0, a], RATE[1, b] * (1 - RATE[0, a])],
            "any": [RATE[0, a] * (1 + b), RATE[1, b] * (1 + a)],
        }[user]
        weights = [FIRST["policy"][a] / FIRST["log"][a], SECOND["policy"][b] / SECOND["log"][b]]
        chances = [FIRST[of][a] * SECOND[of][b] for of in ("log", "policy")]
        yield *chances, weights, rewards


@pytest.mark.parametrize("user", ["independent", "cascade", "any"])
def test_each_slate_estimator_is_unbiased_for_its_users(user):
    true = sum(to * sum(r) for _, to, _, r in slates(user))
    stronger = ["independent", "cascade", "any"]
    for assumed in stronger:
        found = sum(p * ope.slate_ips([r], [w], assumed).value for p, _, w, r in slates(user))
        right = stronger.index(assumed) >= stronger.index(user)
        assert (found == pytest.approx(true)) == right, assumed
    additive = sum(p * ope.pseudo_inverse([sum(r)], [w]).value for p, _, w, r in slates(user))
    assert (additive == pytest.approx(true)) == (user == "independent")


def test_weights_of_switch_and_shrinkage():
    x, arm, reward = log(300)
    w = POLICY[x, arm] / LOGGED[x, arm]
    options = {"arm": arm, "predicted": WRONG[x], "policy": POLICY[x]}
    whole, none = (ope.doubly_robust(reward, ope.shrunk(w, s), **options) for s in (1e12, 0.0))
    assert whole.value == pytest.approx(ope.doubly_robust(reward, w, **options).value)
    assert none.value == pytest.approx(ope.direct(WRONG[x], POLICY[x]).value)
    assert ope.switched(w, 2.0).max() <= 2.0 < w.max()
    assert ope.shrunk(w, 3.0) == pytest.approx([3 * v / (v * v + 3) for v in w])
    with pytest.raises(DataError, match=r"give both as \[n, K\]"):
        ope.slate_ips([1.0], [1.0])
    with pytest.raises(ConfigError, match="Unknown user"):
        ope.slate_ips([[1.0]], [[1.0]], "all")
