"""Losses by hand, by published golden values and by slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from recstack import losses
from recstack.errors import ConfigError

S, Y = torch.tensor([[2.2, -1.3, 5.4]]), torch.tensor([[1.0, 0.0, 0.0]])


def test_golden_values_of_rax():
    assert_close(losses.pairwise_hinge(S, Y), torch.tensor(2.1))
    assert_close(losses.softmax(S, Y), torch.tensor(3.24113534))


def test_pointwise_by_hand():
    score, label = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1.0, 0.0, 0.25])
    p = score.double().sigmoid()
    y = label.double()
    assert_close(losses.bce(score, label).double(), -(y * p.log() + (1 - y) * (1 - p).log()).mean(), rtol=1e-6, atol=0)
    assert_close(losses.mse(score, label), torch.tensor((0.25 + 4 + 2.75**2) / 3))
    assert_close(losses.mae(score, label), torch.tensor((0.5 + 2 + 2.75) / 3))
    assert_close(losses.huber(score, label, delta=1.0), torch.tensor((0.125 + 1.5 + 2.25) / 3))


def test_cross_entropy_of_two_classes_is_bce():
    score, label = torch.randn(7), (torch.rand(7) < 0.5).float()
    both = torch.stack([torch.zeros(7), score], -1)
    assert_close(losses.cross_entropy(both, label), losses.bce(score, label))


def test_pairs_by_a_slow_loop():
    score, label = torch.randn(4, 5), torch.randint(3, (4, 5)).float()
    terms = [
        [F.softplus(s[j] - s[i]) for i in range(5) for j in range(5) if y[i] > y[j]]
        for s, y in zip(score, label, strict=True)
    ]
    assert_close(losses.bpr(score, label), torch.stack([t for of_list in terms for t in of_list]).mean())
    means = [torch.stack(of_list).mean() for of_list in terms if of_list]
    assert_close(losses.pairwise_logistic(score, label), torch.stack(means).mean())


def test_a_pair_weighs_as_its_better_candidate():
    score, label = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    weight = torch.tensor([[1.0, 3.0, 100.0]])
    by_hand = (math.log1p(math.exp(-1)) + 3 * math.log1p(math.exp(-2))) / 4
    assert_close(losses.bpr(score, label, weight=weight), torch.tensor(by_hand))


def test_softmax_splits_one_vote_among_the_positives():
    score, label = torch.randn(1, 4), torch.tensor([[3.0, 0.0, 1.0, 0.0]])
    log_p = score.log_softmax(-1)[0]
    assert_close(losses.softmax(score, label), -(0.75 * log_p[0] + 0.25 * log_p[2]))


def test_lists_without_a_positive_count_nothing():
    blank = torch.zeros(2, 3)
    for loss in (losses.softmax, losses.bpr, losses.pairwise_logistic, losses.pairwise_hinge):
        assert_close(loss(torch.cat([S, torch.randn(2, 3)]), torch.cat([Y, blank])), loss(S, Y))


def test_listnet_is_least_where_the_score_is_the_label():
    label = torch.tensor([[2.0, 0.0, 1.0]])
    score = label.clone().requires_grad_()
    losses.listnet(score, label).backward()
    assert_close(score.grad, torch.zeros(1, 3), atol=1e-7, rtol=0)


def test_gbce_is_beta_on_positives():
    score, label = torch.randn(3, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(3, 4)
    alpha, t = 3 / 99, 0.75
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)  # as the paper prints it
    slow = -(beta * F.logsigmoid(score[:, 0]) + F.logsigmoid(-score[:, 1:]).sum(-1)).mean() / 4
    assert_close(losses.gbce(score, label, n_items=100, t=t), slow)


def test_log_q_undoes_how_often_an_item_is_drawn():
    """Each item drawn n times and divided by n: the sum over the draws is the sum over the catalog."""
    score, times = torch.randn(50), torch.randint(1, 6, (50,))
    times[7] = 1
    drawn = torch.arange(50).repeat_interleave(times)
    label = (drawn == 7).float()
    value = losses.sampled_softmax(score[drawn], label, log_q=times.float().log()[drawn])
    assert_close(value, -score.log_softmax(-1)[7])


@pytest.mark.parametrize("size", [1.0, 30.0, 200.0])
def test_a_product_has_a_logit(size):
    random = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 2000, generator=random) * 2 - 1) * size

    def gradients(a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        z = losses.product_logit(a, b)
        return z.detach(), *torch.autograd.grad(z.sum(), (a, b))

    z, slope_a, slope_b = gradients(a, b)
    a, b = a.double(), b.double()
    exact = -torch.log(torch.expm1(F.softplus(-a) + F.softplus(-b)))  # (1 - p) / p = 1/p - 1
    assert_close(z.double(), exact, rtol=1e-5, atol=1e-5)
    # dz/da = σ(-a) / (1 - p)
    complement = -torch.expm1(F.logsigmoid(a) + F.logsigmoid(b))
    assert_close(slope_a.double(), a.neg().sigmoid() / complement, rtol=0, atol=2e-6)
    assert_close(slope_b.double(), b.neg().sigmoid() / complement, rtol=0, atol=2e-6)


def test_a_product_of_three_is_a_fold():
    a, b, c = torch.randn(3, 10, dtype=torch.float64)
    p = losses.product_logit(losses.product_logit(a, b), c).sigmoid()
    assert_close(p, a.sigmoid() * b.sigmoid() * c.sigmoid())


def test_product_under_autocast_is_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert losses.product_logit(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)).dtype == torch.float32


def test_the_logit_of_a_rate():
    """p = 1 - exp(-y), from rates that vanish to rates at which it is sure; finite in value and gradient."""
    y = torch.tensor([1e-38, 1e-6, 0.3, 1.0, 20.0, 1e4], requires_grad=True)
    z = losses.rate_logit(y)
    assert_close(z[1:4].double().sigmoid(), 1 - (-y[1:4].double()).exp(), rtol=1e-5, atol=0)
    assert_close(z[4:], y[4:])
    (slope,) = torch.autograd.grad(z.sum(), y)
    assert z.isfinite().all()
    assert slope.isfinite().all()


def test_a_name_finds_its_loss():
    assert all(losses.get(name) is loss for name, loss in losses.LOSSES.items())
    assert losses.get(losses.gbce) is losses.gbce
    with pytest.raises(ConfigError, match="Did you mean 'softmax'"):
        losses.get("softmx")
