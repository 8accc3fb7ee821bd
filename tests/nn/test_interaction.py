"""Interactions of fields against sums over pairs and layers written out."""

import pytest
import torch

from recstack.nn.interaction.cross import Cross
from recstack.nn.interaction.fm import pairwise_sum


def test_pairwise_sum_is_the_sum_over_pairs():
    v = torch.randn(5, 4, 3)
    slow = sum(v[:, i] * v[:, j] for i in range(4) for j in range(i))
    torch.testing.assert_close(pairwise_sum(v), slow)


def test_pairwise_sum_has_the_gradient_of_its_definition():
    v = torch.randn(2, 3, 5, 4, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(2, 3, 4)
    slow = sum((v[..., i, :] * v[..., j, :] for i in range(5) for j in range(i)), torch.zeros(2, 3, 4))
    (own,) = torch.autograd.grad((pairwise_sum(v) * weight).sum(), v, create_graph=True)
    (by_loops,) = torch.autograd.grad((slow * weight).sum(), v, create_graph=True)
    torch.testing.assert_close(own, by_loops)
    (second,) = torch.autograd.grad(own.square().sum(), v)
    (second_by_loops,) = torch.autograd.grad(by_loops.square().sum(), v)
    torch.testing.assert_close(second, second_by_loops)


def test_pairwise_sum_of_one_field_is_zero_and_stays_in_float32():
    v = torch.randn(2, 3, 1, 4)
    torch.testing.assert_close(pairwise_sum(v), torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    assert pairwise_sum(torch.randn(2, 5, 4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_is_the_papers_recursion(rank):
    cross = Cross(4, 3, rank)
    start = torch.randn(6, 4)
    x = start
    for layer in cross.layers:
        if rank is None:
            matrix, bias = layer.weight, layer.bias
        else:
            matrix, bias = layer[1].weight @ layer[0].weight, layer[1].bias
            assert torch.linalg.matrix_rank(matrix) <= rank
        x = start * (x @ matrix.T + bias) + x
    torch.testing.assert_close(cross(start), x)


def test_cross_raises_the_degree_by_one_a_layer():
    cross = Cross(3, 2).double()
    for layer in cross.layers:
        layer.bias.data.zero_()
    x = torch.randn(3).double()
    # without biases x_2 has degrees 1 to 3: the fourth difference along a ray through 0 vanishes, the third does not
    values = torch.stack([cross(t * x) for t in torch.arange(5.0).double()])
    assert values.diff(n=4, dim=0).abs().max() < 1e-9
    assert values.diff(n=3, dim=0).abs().max() > 1e-6


def test_no_cross_layer_is_the_identity():
    x = torch.randn(2, 5)
    assert torch.equal(Cross(5, 0)(x), x)
