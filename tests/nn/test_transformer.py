"""A stack of layers over sequences of different lengths."""

import pytest
import torch

from recstack.nn.sequence.lengths import GROUPS
from recstack.nn.sequence.transformer import Transformer, TransformerLayer


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_sequences_of_like_length_go_through_together_and_nothing_changes(causal, before):
    torch.manual_seed(0)
    stack = Transformer(TransformerLayer(6, 2, before=before) for _ in range(2))
    rows, steps = 3 * GROUPS, 4 * GROUPS
    x = torch.randn(rows, steps, 6, requires_grad=True)
    lengths = torch.randint(0, steps + 1, (rows,))
    lengths[0] = 0
    mask = (torch.arange(steps) < lengths[:, None]) & (torch.rand(rows, steps) < 0.8)  # holes too
    taken = []
    handle = stack[0].register_forward_hook(lambda layer, given, out: taken.append(tuple(out.shape[:2])))
    grouped = stack(x, mask, causal)
    assert len(taken) == GROUPS
    assert sum(r * t for r, t in taken) < rows * steps
    whole = stack.eval()(x, mask, causal)
    assert taken[GROUPS:] == [(rows, steps)]
    handle.remove()
    torch.testing.assert_close(grouped, whole)
    slope = torch.randn_like(whole)
    given = (x, *stack.parameters())
    for a, b in zip(*(torch.autograd.grad(y, given, slope) for y in (grouped, whole)), strict=True):
        torch.testing.assert_close(a, b)
