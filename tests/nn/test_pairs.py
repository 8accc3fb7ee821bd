"""Weighted pairs and products of several fields against sums written out."""

import itertools

import pytest
import torch

from recstack.nn.interaction.anova import anova
from recstack.nn.interaction.pairs import PairMatrices, PairWeights, by_pair, pair_products

PAIRS = list(itertools.combinations(range(4), 2))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    for p in module.parameters():
        torch.nn.init.normal_(p)
    return module


@pytest.mark.parametrize("width", [1, 3])
def test_pair_weights_weigh_each_pair(width):
    pairs, v = randomised(PairWeights(4, width)), torch.randn(2, 5, 4, 3)
    slow = sum((w * v[..., i, :] * v[..., j, :]).sum(-1) for w, (i, j) in zip(pairs.weight, PAIRS, strict=True))
    torch.testing.assert_close(pairs(v), slow)


def test_pair_matrices_of_several_widths_meet_each_pair():
    widths = (3, 1, 4, 2)
    pairs, x = randomised(PairMatrices(widths)), torch.randn(2, 5, 10)
    v = x.split(widths, -1)
    slow = 0
    for (i, j), matrix in zip(PAIRS, pairs.matrices(), strict=True):
        assert matrix.shape == (widths[i], widths[j])
        slow = slow + torch.einsum("...a,ab,...b->...", v[i], matrix, v[j])
    torch.testing.assert_close(pairs(x), slow)
    assert pairs.weight.numel() == 3 * (1 + 4 + 2) + 1 * (4 + 2) + 4 * 2


def test_symmetric_pair_matrices_are_sums_with_their_transposes_one_by_one_or_together():
    pairs, v = randomised(PairMatrices((3,) * 4, symmetric=True)), torch.randn(2, 5, 4, 3)
    half = pairs.weight.view(6, 3, 3)
    found = zip(half, PAIRS, strict=True)
    slow = torch.stack([((v[..., i, :] @ (u + u.T)) * v[..., j, :]).sum(-1) for u, (i, j) in found], -1)
    torch.testing.assert_close(pairs.each(v), slow)
    torch.testing.assert_close(pairs(v.flatten(-2)), slow.sum(-1))


@pytest.mark.parametrize("fields", [1, 2, 5])
def test_pairs_are_sums_of_inner_products_at_first_and_nothing_of_one_field(fields):
    v = torch.randn(3, fields, 2)
    slow = sum(((v[:, i] * v[:, j]).sum(-1) for i, j in itertools.combinations(range(fields), 2)), torch.zeros(3))
    for pairs in (PairWeights(fields), PairWeights(fields, 2)):
        torch.testing.assert_close(pairs(v), slow)
    for symmetric in (False, True):
        torch.testing.assert_close(PairMatrices((2,) * fields, symmetric)(v.flatten(-2)), slow)
        torch.testing.assert_close(PairMatrices((2,) * fields, symmetric).each(v).sum(-1), slow)
    torch.testing.assert_close(pair_products(v).sum((-2, -1)), slow)


def test_pair_products_come_in_the_order_of_the_pairs():
    v = torch.randn(2, 5, 4, 3)
    slow = torch.stack([v[..., i, :] * v[..., j, :] for i, j in PAIRS], -2)
    torch.testing.assert_close(pair_products(v), slow)
    assert pair_products(v.bfloat16()).dtype == torch.float32
    assert list(by_pair("abcd", torch.zeros(6))) == list(itertools.combinations("abcd", 2))


@pytest.mark.parametrize("fields", [1, 2, 3, 5, 8])
def test_anova_kernels_are_sums_over_all_choices_of_fields(fields):
    v = torch.randn(3, 2, fields, 4)
    kernels = anova(v, 4)
    assert len(kernels) == 4
    for order, kernel in enumerate(kernels, 1):
        slow = torch.zeros(3, 2, 4)
        for chosen in itertools.combinations(range(fields), order):
            slow = slow + v[..., list(chosen), :].prod(-2)
        torch.testing.assert_close(kernel, slow)


def test_anova_is_the_papers_recurrence_and_has_its_gradient():
    v = torch.randn(6, 3, requires_grad=True)
    a = [torch.ones(3)] + [torch.zeros(3)] * 3
    for field in v:
        a = [a[0]] + [a[t] + field * a[t - 1] for t in range(1, 4)]
    kernels = anova(v, 3)
    torch.testing.assert_close(torch.stack(kernels), torch.stack(a[1:]))
    (own,) = torch.autograd.grad(torch.stack(kernels).square().sum(), v)
    (slow,) = torch.autograd.grad(torch.stack(a[1:]).square().sum(), v)
    torch.testing.assert_close(own, slow)
