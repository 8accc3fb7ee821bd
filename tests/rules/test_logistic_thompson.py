"""LogisticTS against scikit-learn's ridge, its own equations, and a world whose best arm is known."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from recstack.errors import DataError
from recstack.rules import bandits
from recstack.rules.bandits import LogisticTS

CHANCE = torch.Generator()


def rows(n=200, seed=0, arms=3, scale=1.0):
    CHANCE.manual_seed(seed)
    arm = torch.randint(0, arms, (n,), generator=CHANCE)
    x = scale * torch.randn(n, 3, generator=CHANCE, dtype=torch.float64)
    return arm, torch.bernoulli((x[:, 0] - x[:, 1]).sigmoid(), generator=CHANCE), x


@pytest.mark.parametrize("arms", [None, 3])
def test_one_batch_is_the_ridge_of_scikit_learn(arms):
    arm, reward, x = rows(scale=5.0)  # nearly separable: a whole Newton step goes too far
    bandit = LogisticTS(3, arms=arms, ridge=0.5).update(arm, reward, x)
    for a in range(arms or 1):
        of = arm == a if arms else slice(None)
        known = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=1000).fit(x[of], reward[of])
        mean = bandit.state["mean"][a]
        assert mean.tolist() == pytest.approx(known.coef_[0].tolist(), abs=1e-4)
        p = (x[of] @ mean).sigmoid()
        expected = 0.5 + (x[of].square() * (p * (1 - p)).unsqueeze(1)).sum(0)
        torch.testing.assert_close(bandit.state["precision"][a], expected)


def test_what_was_learned_is_the_next_batchs_prior():
    bandit = LogisticTS(3, ridge=2.0)
    for seed in range(3):
        before = {n: v.clone() for n, v in bandit.state.items()}
        arm, reward, x = rows(50, seed)
        bandit.update(arm, reward, x)
        mean = bandit.state["mean"][0]
        slope = before["precision"][0] * (mean - before["mean"][0]) + x.T @ ((x @ mean).sigmoid() - reward)
        assert slope.abs().max() < 1e-8
        assert (bandit.state["precision"] > before["precision"]).all()


def test_draws_have_the_posteriors_mean_and_spread_and_are_remembered(tmp_path):
    bandit = LogisticTS(3, arms=3, scale=0.5).update(*rows())
    x = torch.tensor([[1.0, -1.0, 2.0]]).double()
    drawn = bandit.scores(x.expand(40_000, 3), generator=CHANCE.manual_seed(0))
    spread = 0.5 * (x.square() / bandit.state["precision"]).sum(1).sqrt()
    torch.testing.assert_close(drawn.mean(0), bandit.state["mean"] @ x[0], atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.std(0), spread, rtol=0.02, atol=0)
    again = bandits.load(bandit.save(tmp_path / "b"))
    one, other = (b.scores(x, generator=CHANCE.manual_seed(1)) for b in (bandit, again))
    assert torch.equal(one, other)


def test_it_finds_the_better_arm_and_names_what_it_cannot_learn():
    bandit, x, wins = LogisticTS(1, arms=2), torch.ones(1, 1), 0
    generator = CHANCE.manual_seed(0)
    for _ in range(60):
        arm = bandit._best(bandit.scores(x, generator=generator), None).argmax(1)
        reward = torch.bernoulli(torch.tensor([0.2, 0.7])[arm], generator=generator)
        bandit.update(arm, reward, x)
        wins += int(arm)
    assert wins > 40
    with pytest.raises(DataError, match="rewards from 0 to 1"):
        bandit.update([0], [3.0], [[1.0]])
    with pytest.raises(DataError, match="contexts of 1 numbers"):
        bandit.update([0], [1.0], [[1.0, 2.0]])
