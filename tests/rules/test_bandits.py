"""Bandits against full inverses, the papers' row-by-row algorithms, integrals, and worlds whose best arm is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack import bundle
from recstack.candidates import Candidates
from recstack.errors import ConfigError, DataError
from recstack.rules import Explore, PageContext, bandits
from recstack.rules.bandits import UCB1, EpsilonGreedy, HybridLinUCB, LinTS, LinUCB, Thompson

ARMS, D, S = 4, 3, 2


def rows(n=40, dim=D, seed=0):
    chance = torch.Generator().manual_seed(seed)
    arm = torch.randint(0, ARMS, (n,), generator=chance)
    x = torch.randn(n, dim, generator=chance, dtype=torch.float64)
    return arm, torch.rand(n, generator=chance, dtype=torch.float64), x


BANDITS = [
    EpsilonGreedy(ARMS, epsilon=0.3),
    UCB1(ARMS, confidence=0.5),
    Thompson(ARMS, prior=(2.0, 3.0)),
    LinUCB(D, arms=ARMS, alpha=0.5, ridge=2.0),
    LinUCB(D, alpha=0.5, ridge=2.0),
    LinTS(D, arms=ARMS, scale=0.3, ridge=2.0),
    LinTS(D, scale=0.3, ridge=2.0),
    HybridLinUCB(D - 1, 1, arms=ARMS, alpha=0.5, ridge=2.0),
]
EACH = pytest.mark.parametrize("bandit", BANDITS, ids=lambda b: f"{type(b).__name__}-{b.arms}")


def copy(bandit):
    return type(bandit).from_piece(bandit.to_piece())


def context(bandit, n=5, seed=1):
    x = rows(n * ARMS, seed=seed)[2].reshape(n, ARMS, D)
    return x if bandit.arms is None else x[:, 0]


@EACH
def test_rows_may_come_in_any_number_and_order_and_what_is_missing_teaches_nothing(bandit):
    arm, reward, x = rows()
    at_once, one_by_one, lists = copy(bandit), copy(bandit), copy(bandit)
    at_once.update(arm, reward, x)
    for i in reversed(range(40)):
        one_by_one.update(arm[i : i + 1], reward[i : i + 1], x[i : i + 1])
    more = reward.reshape(8, 5).clone()
    missing = torch.cat([more, torch.full((1, 5), torch.nan), torch.ones(1, 5)])
    where = torch.ones(10, 5, dtype=torch.bool)
    where[9] = False
    arms = torch.cat([arm, arm[:10]]).reshape(10, 5)
    lists.update(arms, missing, torch.cat([x, x[:10]]).reshape(10, 5, D), where=where)
    for other in (one_by_one, lists):
        for name, value in at_once.state.items():
            torch.testing.assert_close(other.state[name], value)


@EACH
def test_a_bandit_is_remembered(bandit, tmp_path):
    bandit = copy(bandit).update(*rows())
    again = bandits.load(bandit.save(tmp_path / "b"))
    assert again.options == bandit.options
    x = context(bandit)
    a, b = (one.scores(x, generator=torch.Generator().manual_seed(3)) for one in (bandit, again))
    assert torch.equal(a, b)
    assert not [p for p in (tmp_path / "b").rglob("*") if p.suffix in (".pkl", ".pt")]


@EACH
def test_chances_add_up_over_what_is_allowed(bandit):
    bandit, x = copy(bandit).update(*rows()), context(bandit)
    where = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    chance = bandit.probabilities(x, where=where, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(chance.sum(1), torch.ones(5, dtype=torch.float64))
    assert (chance[~where] == 0).all()
    arm, odds = bandit.choose(x, where=where, generator=torch.Generator().manual_seed(0))
    assert where[torch.arange(5), arm].all()
    assert ((odds > 0) & (odds <= 1)).all()


@given(st.integers(0, 30), st.integers(0, 10**6), st.sampled_from([None, ARMS]))
@settings(max_examples=10, deadline=None)
def test_sherman_morrison_is_the_full_inverse(n, seed, arms):
    bandit = LinUCB(D, arms=arms, ridge=0.5)
    for part in range(3):
        bandit.update(*rows(n, seed=seed + part))
    torch.testing.assert_close(bandit.state["inverse"], torch.linalg.inv(bandit.state["A"]))
    torch.testing.assert_close(bandit.refresh().theta, torch.linalg.solve(bandit.state["A"], bandit.state["b"]))


@pytest.mark.parametrize("arms", [None, ARMS])
def test_linucb_is_its_equation(arms):
    bandit, (arm, reward, x) = LinUCB(D, arms=arms, alpha=0.7, ridge=2.0), rows()
    bandit.update(arm, reward, x)
    new = context(bandit)
    for a in range(ARMS):
        own = slice(None) if arms is None else arm == a
        square = 2 * np.eye(D) + x[own].numpy().T @ x[own].numpy()
        theta = np.linalg.solve(square, x[own].numpy().T @ reward[own].numpy())
        for r in range(5):
            v = (new[r, a] if arms is None else new[r]).numpy()
            expected = theta @ v + 0.7 * math.sqrt(v @ np.linalg.solve(square, v))
            assert float(bandit.scores(new)[r, a]) == pytest.approx(expected)


def test_hybrid_linucb_is_the_papers_algorithm_row_by_row():
    bandit = HybridLinUCB(D, S, arms=ARMS, alpha=0.7)
    arm, reward, xz = rows(30, D + S)
    bandit.update(arm, reward, xz)
    A0, b0 = np.eye(S), np.zeros(S)
    A, B, b = (
        [np.eye(D) for _ in range(ARMS)],
        [np.zeros((D, S)) for _ in range(ARMS)],
        [np.zeros(D) for _ in range(ARMS)],
    )
    inv = np.linalg.inv
    for a, r, row in zip(arm.tolist(), reward.tolist(), xz.numpy(), strict=True):
        x, z = row[:D], row[D:]
        A0 += B[a].T @ inv(A[a]) @ B[a]
        b0 += B[a].T @ inv(A[a]) @ b[a]
        A[a] += np.outer(x, x)
        B[a] += np.outer(x, z)
        b[a] += r * x
        A0 += np.outer(z, z) - B[a].T @ inv(A[a]) @ B[a]
        b0 += r * z - B[a].T @ inv(A[a]) @ b[a]
    beta, new = inv(A0) @ b0, rows(5, D + S, seed=7)[2]
    scores = bandit.scores(new)
    for n, row in enumerate(new.numpy()):
        x, z = row[:D], row[D:]
        for a in range(ARMS):
            theta = inv(A[a]) @ (b[a] - B[a] @ beta)
            half = inv(A0) @ B[a].T @ inv(A[a]) @ x
            s = z @ inv(A0) @ z - 2 * z @ half + x @ inv(A[a]) @ x + x @ inv(A[a]) @ B[a] @ half
            assert float(scores[n, a]) == pytest.approx(z @ beta + x @ theta + 0.7 * math.sqrt(s))


def test_draws_of_lints_have_the_posteriors_mean_and_variance():
    bandit = LinTS(D, arms=ARMS, scale=0.5).update(*rows())
    x = rows(1)[2].expand(40_000, -1)
    drawn = bandit.scores(x, generator=torch.Generator().manual_seed(0))
    mean = bandit.theta @ x[0]
    deviation = 0.5 * torch.stack([x[0] @ i @ x[0] for i in bandit.state["inverse"]]).sqrt()
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.std(0), deviation, rtol=0.03, atol=0)


def test_thompsons_chances_are_an_integral():
    bandit = Thompson(2).update([0] * 10 + [1] * 10, [1.0] * 6 + [0.0] * 4 + [1.0] * 4 + [0.0] * 6)
    t = np.linspace(0, 1, 20001)
    first, second = t**6 * (1 - t) ** 4, np.cumsum(t**4 * (1 - t) ** 6)
    exact = (first * second).sum() / first.sum() / second[-1]
    generator = torch.Generator().manual_seed(0)
    drawn = np.mean([float(bandit.probabilities(generator=generator)[0, 0]) for _ in range(10)])
    assert drawn == pytest.approx(exact, abs=0.03)


def test_ucb1_by_hand():
    bandit = UCB1(3).update([0, 0, 1], [1.0, 0.0, 1.0])
    assert bandit.scores()[0, :2].tolist() == pytest.approx(
        [0.5 + math.sqrt(2 * math.log(3) / 2), 1 + math.sqrt(2 * math.log(3))]
    )
    assert bandit.scores()[0, 2] == math.inf


@EACH
def test_regret_grows_slower_than_by_chance(bandit):
    """Arm 2 pays most, for whatever context; playing uniformly would lose 0.3 a round."""
    bandit, chance = copy(bandit), torch.Generator().manual_seed(0)
    rate, lost = torch.tensor([0.1, 0.3, 0.7, 0.5]), 0.0
    of_arm = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    for _ in range(20):
        x = of_arm.expand(20, -1, -1) if bandit.arms is None else torch.ones(20, D)
        if isinstance(bandit, bandits.Counting):
            x, arm = None, torch.multinomial(bandit.probabilities(generator=chance)[0], 20, True, generator=chance)
        else:
            arm = bandit.scores(x, generator=chance).argmax(1)
        reward = torch.bernoulli(rate[arm], generator=chance)
        lost += float((0.7 - rate[arm]).sum())
        told = None if x is None else x[torch.arange(20), arm] if bandit.arms is None else x
        bandit.update(arm, reward, told)
    assert lost / 400 < 0.2


# -- in a page --------------------------------------------------------------------------------------------------------
def page():
    ids = torch.tensor([[1, 2, 3, 4], [4, 9, 2, 0], [0, 0, 0, 0], [9, 8, 0, 0]])
    return Candidates(ids, torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(4, 4)), PageContext(2, torch.eye(10, D))


def test_a_bandit_fills_its_places_from_what_would_come_later():
    candidates, context = page()
    bandit = UCB1(6).update([1, 2, 2, 3, 4, 4], [1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    after = Explore(bandit, places=(1, 2), seed=0)(candidates, context)
    scores = bandit.scores()[0]
    first = max([2, 3, 4], key=lambda i: float(scores[i]))
    second = max({2, 3, 4} - {first}, key=lambda i: float(scores[i]))
    assert after.ids[0].tolist() == [1, first, second, *({2, 3, 4} - {first, second})]
    assert after.ids[1].tolist() == [4, 2, 9, 0]  # 9 is newer than the bandit's arms
    assert after.ids[2:].tolist() == [[0, 0, 0, 0], [9, 8, 0, 0]]
    odds = after.source["propensity"]
    assert odds[0, 1:3].tolist() == [1.0, 1.0]
    assert odds[2:].isnan().all()


@pytest.mark.parametrize(
    ("bandit", "users"),
    [(EpsilonGreedy(10, epsilon=0.5), None), (LinUCB(D), None), (LinTS(2, arms=10), torch.ones(4, 2))],
    ids=["epsilon", "one model of all items", "users"],
)
def test_exploration_is_remembered_with_its_bandit(bandit, users, tmp_path):
    candidates, context = page()
    context = PageContext(2, context.vectors, users=users)
    rule = Explore(bandit, places=(0,), seed=5)
    bundle.write(tmp_path / "b", {"rule": rule.to_piece()})
    piece = bundle.read(tmp_path / "b").piece("rule")
    again = bundle.resolve(piece.class_path).from_piece(piece)
    a, b = rule(candidates, context), again(candidates, context)
    assert torch.equal(a.ids, b.ids)
    torch.testing.assert_close(a.source["propensity"], b.source["propensity"], equal_nan=True)
    assert torch.equal(a.ids.sort(1).values, candidates.ids.sort(1).values)


def test_what_a_bandit_cannot_take_is_named():
    with pytest.raises(ConfigError, match="at least 1 arm"):
        UCB1(0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        EpsilonGreedy(2, epsilon=2.0)
    with pytest.raises(DataError, match="from 0 to 1; got 0 to 2"):
        UCB1(2).update([0, 2], [1.0, 1.0])
    with pytest.raises(DataError, match="one reward per arm"):
        UCB1(2).update([0, 1], [1.0])
    with pytest.raises(DataError, match="contexts of 3 numbers; got none"):
        LinUCB(3, arms=2).scores()
    with pytest.raises(DataError, match="NaN or infinite"):
        LinUCB(1, arms=2).update([0], [1.0], [[math.nan]])
    with pytest.raises(DataError, match="no arm at all"):
        UCB1(2).choose(where=torch.tensor([[False, False]]))
    with pytest.raises(DataError, match="scale them"):
        Thompson(1).update([0], [7.0]).scores()
    with pytest.raises(ConfigError, match="places from 0"):
        Explore(UCB1(2), places=(-1,))
