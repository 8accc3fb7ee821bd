"""The inner loop of MAML against autograd, request by request."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from recstack.nn.local import LocalMLP


@pytest.mark.parametrize("second_order", [True, False])
def test_local_steps_are_those_of_autograd(second_order):
    torch.manual_seed(0)
    block = LocalMLP(3, (5, 4), steps=2, lr=0.7, second_order=second_order)
    plain = nn.Sequential(block.layers[0], nn.ReLU(), block.layers[1], nn.ReLU(), block.layers[2])
    x, y, target = torch.randn(4, 6, 3), torch.randn(4, 2, 3), torch.randn(4, 2)
    label, mask = torch.rand(4, 6).round(), torch.rand(4, 6) < 0.6
    mask[1] = False  # nothing to learn from: the common weights
    scores = []
    for r in range(4):
        weights = dict(plain.named_parameters())
        for _ in range(2 if mask[r].any() else 0):
            logit = functional_call(plain, weights, x[r, mask[r]]).squeeze(-1)
            loss = nn.functional.binary_cross_entropy_with_logits(logit, label[r, mask[r]])
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order)
            weights = {n: w - 0.7 * s for (n, w), s in zip(weights.items(), slopes, strict=True)}
        scores.append(functional_call(plain, weights, y[r]).squeeze(-1))
    expected = torch.stack(scores)
    found = block(block.adapt(x, label, mask), y)
    torch.testing.assert_close(found, expected)
    parameters = list(block.parameters())
    wanted = torch.autograd.grad((expected * target).sum(), parameters)
    for slope, own in zip(torch.autograd.grad((found * target).sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(slope, own)
