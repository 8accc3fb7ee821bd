"""Experts computed together against a loop over experts; gates by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from recstack.nn.experts import Experts
from recstack.nn.gates import Gate, Gates, dropped, mixture, utilisation
from recstack.nn.mlp import MLP


def looped(block: Experts, x: torch.Tensor) -> torch.Tensor:
    """Each expert alone, as linear layers."""
    out = []
    for e in range(block.experts):
        size = block.first.out_features // block.experts
        rows = slice(e * size, (e + 1) * size)
        hidden = F.linear(x, block.first.weight[rows], block.first.bias[rows]).relu()
        for weight, bias in zip(block.weights, block.biases, strict=True):
            hidden = F.linear(hidden, weight[e].T, bias[e]).relu()
        out.append(hidden)
    return torch.stack(out, -2)


@pytest.mark.parametrize("hidden", [(4,), (5, 4), (6, 5, 4)])
def test_experts_together_are_the_loop_over_experts(hidden):
    block = Experts(7, hidden, 3)
    for bias in block.biases:
        torch.nn.init.normal_(bias)
    x = torch.randn(2, 3, 7)
    assert block(x).shape == (2, 3, 3, 4)
    torch.testing.assert_close(block(x), looped(block, x))
    request, candidate = torch.randn(2, 4), torch.randn(2, 3, 3)
    whole = torch.cat([request.unsqueeze(1).expand(2, 3, 4), candidate], -1)
    torch.testing.assert_close(block((request, candidate)), looped(block, whole))


def test_each_expert_is_initialised_as_if_it_stood_alone():
    torch.manual_seed(0)
    block = Experts(200, (100, 100), 10)
    wanted = math.sqrt(2 / 300)
    for part in block.first.weight.view(10, 100, 200):
        assert part.std().item() == pytest.approx(wanted, rel=0.05)
    for part in block.weights[0]:
        assert part.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.05)


def test_dropout_is_off_in_evaluation():
    block, x = Experts(4, (8, 8), 2, dropout=0.5), torch.randn(3, 4)
    assert not torch.equal(block.train()(x), block(x))
    torch.testing.assert_close(block.eval()(x), looped(block, x))


def test_a_gate_is_a_softmax_without_bias():
    gate = Gate(3, 4)
    x = torch.randn(5, 3)
    slow = torch.exp(x @ gate.score.weight.T)
    torch.testing.assert_close(gate(x), slow / slow.sum(-1, keepdim=True))
    assert gate.score.bias is None
    torch.testing.assert_close(gate(torch.zeros(1, 3)), torch.full((1, 4), 0.25))


def test_a_mixture_with_equal_gates_is_the_mean_and_with_one_gate_that_expert():
    experts = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(mixture(torch.full((2, 3, 4), 0.25), experts), experts.mean(-2))
    only = F.one_hot(torch.full((2, 3), 2), 4).float()
    torch.testing.assert_close(mixture(only, experts), experts[..., 2, :])


def test_utilisation_counts_live_rows():
    gate = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 1.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    share, entropy = utilisation(gate, mask)
    torch.testing.assert_close(share, torch.tensor([0.5, 0.5]))
    assert entropy.item() == pytest.approx(math.log(2) / 3)


def test_gates_together_are_gates_one_by_one_and_dropout_keeps_sums():
    gates, x = Gates(3, 4, 2, dropout=0.5), torch.randn(50, 3)
    together = gates.eval()(x)
    for k in range(2):
        torch.testing.assert_close(together[:, k], torch.softmax(x @ gates.weight[k].T, -1))
    some = gates.train()(x)
    assert (some == 0).any()
    torch.testing.assert_close(some.sum(-1), torch.ones(50, 2))
    torch.testing.assert_close(dropped(together, 1.0).amax(-1), torch.ones(50, 2))


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("each", [False, True])
def test_experts_with_inputs_and_norms_of_their_own_are_mlps(norm, each):
    block = Experts(4, (6, 5), 3, each=each, norm=norm)
    x = torch.randn(7, 3, 4) if each else torch.randn(7, 4)
    for e, found in enumerate(block(x).unbind(1)):
        one = MLP(4, (6, 5), norm=norm)
        first = one.first.weight, one.first.bias
        second = next(m for m in one.rest if isinstance(m, torch.nn.Linear))
        with torch.no_grad():
            if each:
                first[0].copy_(block.weights[0][e].T)
                second.weight.copy_(block.weights[1][e].T)
            else:
                first[0].copy_(block.first.weight.view(3, 6, 4)[e])
                second.weight.copy_(block.weights[0][e].T)
        torch.testing.assert_close(found, one(x[:, e] if each else x))
