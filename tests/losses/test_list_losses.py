"""Losses of learning to rank against slow loops and their limits; ties, grades, masks and cuts."""

import math
from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

from recstack import losses, metrics
from recstack.errors import ConfigError

NEW = ("approx_ndcg", "lambdaloss", "lambdarank", "listmle", "neural_ndcg", "p_listmle", "softrank")
CUT = (*NEW, "softmax", "listnet", "pairwise_logistic", "pairwise_hinge", "bpr")


def graded(seed=0, lists=4, length=6):
    random = torch.Generator().manual_seed(seed)
    score = torch.randn(lists, length, generator=random, dtype=torch.float64)
    return score, torch.randint(0, 4, (lists, length), generator=random).double()


def ndcg(score, label, k):
    return metrics.ndcg(score, label, k=k, reduction="none")


@pytest.mark.parametrize("k", [None, 3])
def test_lambdarank_weighs_a_pair_by_what_a_swap_does_to_ndcg(k):
    score, label = graded(1)
    due = []
    for s, y in zip(score, label, strict=True):
        total = 0.0
        for i in range(len(s)):
            for j in range(len(s)):
                if y[i] > y[j]:
                    swapped = s.clone()
                    swapped[i], swapped[j] = s[j], s[i]
                    change = (ndcg(swapped, y, k) - ndcg(s, y, k)).abs()
                    total = total + change * math.log1p(math.exp(s[j] - s[i]))
        due.append(total)
    assert_close(losses.lambdarank(score, label, k=k), torch.stack(due).mean())


def test_lambdaloss_by_a_slow_loop_and_it_bounds_what_ndcg_misses():
    score, label = graded(2)
    for scheme in ("ndcg1", "ndcg2", "ndcg2++"):
        due = 0.0
        for s, y in zip(score, label, strict=True):
            rank = (s.argsort(descending=True).argsort() + 1).tolist()
            d = lambda r: 1 / math.log2(1 + r)  # noqa: E731
            g = (y.exp2() - 1).tolist()
            best = sum(x * d(r + 1) for r, x in enumerate(sorted(g, reverse=True)))
            for i in range(len(g)):
                for j in range(len(g)):
                    apart = abs(rank[i] - rank[j])
                    if i == j or (scheme != "ndcg1" and y[i] <= y[j]):
                        continue
                    delta = d(apart) - d(apart + 1)
                    rho = {
                        "ndcg1": g[i] * d(rank[i]),
                        "ndcg2": abs(g[i] - g[j]) * delta,
                        "ndcg2++": abs(g[i] - g[j]) * (abs(d(rank[i]) - d(rank[j])) + 5 * delta),
                    }[scheme]
                    due += rho / best * math.log2(1 + math.exp(s[j] - s[i])) / len(score)
        found = losses.lambdaloss(score, label, scheme=scheme, mu=5.0)
        assert found.item() == pytest.approx(due)
        assert found >= (1 - ndcg(score, label, None)).mean()
    with pytest.raises(ConfigError, match="ndcg2"):
        losses.lambdaloss(score, label, scheme="ndcg3")


def test_a_constant_score_learns_by_lambdas():
    score = torch.zeros(1, 3, requires_grad=True)
    losses.lambdarank(score, torch.tensor([[0.0, 2.0, 1.0]])).backward()
    assert score.grad.argsort().tolist() == [[1, 2, 0]]


def test_listmle_is_the_likelihood_of_plackett_and_luce():
    score = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    total = 0.0
    for order in permutations(range(4)):
        label = torch.empty(4, dtype=torch.float64)
        label[list(order)] = torch.arange(4, 0, -1).double()
        chance = 1.0
        for i in range(4):
            chance *= score[order[i]].exp() / score[list(order[i:])].exp().sum()
        assert_close(losses.listmle(score[None], label[None]), -chance.log() / 3)  # three choices
        total += chance
    assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("k", [None, 2])
def test_p_listmle_by_a_slow_loop_with_equal_grades(k):
    score, label = torch.tensor([[0.3, -0.2, 1.0, 0.1, 0.5]]), torch.tensor([[1.0, 2.0, 1.0, 0.0, 3.0]])
    alpha = [2.0 ** (5 - i) - 1 if k is None or i <= k else 0.0 for i in range(1, 6)]
    of = {4: alpha[0], 1: alpha[1], 0: (alpha[2] + alpha[3]) / 2, 2: (alpha[2] + alpha[3]) / 2}
    s, y = score[0], label[0]
    due = sum(a * ((s[i : i + 1].exp().sum() + s[y < y[i]].exp().sum()).log() - s[i]) for i, a in of.items())
    assert_close(losses.p_listmle(score, label, k=k), due / sum(of.values()))


@pytest.mark.parametrize("k", [None, 1, 3])
def test_soft_orders_become_one_minus_ndcg(k):
    score, label = graded(4)
    due = (1 - ndcg(score, label, k)).mean()
    assert_close(losses.approx_ndcg(score, label, temperature=1e-4, k=k), due)
    assert_close(losses.neural_ndcg(score, label, temperature=1e-4, k=k), due)
    assert_close(losses.softrank(score, label, sigma=1e-4, k=k), due)


def test_equal_scores_in_neural_ndcg_are_the_mean_over_their_orders():
    score, label = torch.tensor([[1.0, 2.0, 1.0, 1.0]]).double(), torch.tensor([[3.0, 0.0, 1.0, 0.0]]).double()
    due = 1 - metrics.ndcg(score, label, ties="average")
    assert_close(losses.neural_ndcg(score, label, temperature=1e-4, iterations=0), due)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_neural_ndcg_of_a_long_list_has_a_gradient(scale):
    torch.manual_seed(0)
    score, label = (scale * torch.randn(2, 120)).requires_grad_(), torch.randint(0, 3, (2, 120)).float()
    losses.neural_ndcg(score, label, where=torch.rand(2, 120) < 0.8, k=10).backward()
    assert score.grad.isfinite().all()
    assert score.grad.abs().max() > 0


def test_softrank_is_the_expected_ndcg_of_two_drawn_scores():
    score, label = torch.tensor([[0.4, 0.0]]), torch.tensor([[0.0, 1.0]])
    below = 0.5 * (1 + math.erf(0.4 / (math.sqrt(2) * 0.7) / math.sqrt(2)))
    due = 1 - (below / math.log2(3) + (1 - below))
    assert losses.softrank(score, label, sigma=0.7).item() == pytest.approx(due, abs=1e-6)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("k", [None, 2])
def test_grades_padding_and_order_of_the_graded(name, k):
    loss = losses.LOSSES[name]
    score, label = graded(5)
    label[0] = 2.0  # nothing to order
    weight = torch.rand(4, 6, dtype=torch.float64) + 0.5
    value = loss(score, label, weight=weight, k=k)
    junk = torch.full((4, 3), torch.nan, dtype=torch.float64)
    live = torch.cat([torch.ones(4, 6), torch.zeros(4, 3)], 1).bool()
    places = torch.randperm(9)
    padded = [torch.cat([x, junk], 1)[:, places] for x in (score, label, weight)]
    assert_close(loss(*padded[:2], where=live[:, places], weight=padded[2], k=k), value)
    assert loss(score[:, :1], label[:, :1] * 0, k=k) == 0
    with pytest.raises(ConfigError, match="cut at k = 0"):
        loss(score, label, k=0)


@pytest.mark.parametrize("name", sorted(set(CUT) - {"bpr", "listnet"}))
def test_a_cut_as_long_as_the_list_cuts_nothing(name):
    score, label = graded(6)
    temperature = {"temperature": 0.01} if name == "approx_ndcg" else {}  # its cut is smooth
    whole = losses.LOSSES[name](score, label, **temperature)
    assert_close(losses.LOSSES[name](score, label, k=6, **temperature), whole)


def test_a_pair_below_the_cut_counts_nothing():
    score, label = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    value = losses.pairwise_logistic(score, label, k=1)
    assert_close(value, torch.nn.functional.softplus(torch.tensor(3.0)))
    assert losses.lambdarank(score[:, 1:], label[:, 1:].flip(-1), k=1) < losses.lambdarank(score, label, k=1)


@pytest.mark.parametrize("name", ["lambdarank", "lambdaloss", "approx_ndcg", "softrank", "neural_ndcg"])
def test_a_linear_gain_takes_values_that_two_cannot_be_raised_to(name):
    score, label = torch.tensor([[0.0, 1.0]]), torch.tensor([[500.0, 20.0]])
    assert losses.LOSSES[name](score, label, gain="linear").isfinite()
    with pytest.raises(ConfigError, match="gain"):
        losses.LOSSES[name](score, label, gain="cubic")
