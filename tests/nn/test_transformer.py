"""A stack of layers over sequences of different lengths."""

import pytest
import torch

from recstack.nn.sequence.lengths import GROUPS, places
from recstack.nn.sequence.transformer import Transformer, TransformerLayer


def one_by_one(stack, x, mask, causal):
    """The layers over all sequences together."""
    for layer in stack:
        x = layer(x, mask, causal)
    return x


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_sequences_of_like_length_go_through_together_and_nothing_changes(causal, before):
    torch.manual_seed(0)
    stack = Transformer(TransformerLayer(6, 2, before=before) for _ in range(2))
    rows, steps = 3 * GROUPS, 64
    x = torch.randn(rows, steps, 6, requires_grad=True)
    lengths = torch.randint(0, steps + 1, (rows,))
    lengths[0] = 0
    mask = (torch.arange(steps) < lengths[:, None]) & (torch.rand(rows, steps) < 0.8)  # holes too
    taken = []
    handle = stack[0].register_forward_hook(lambda layer, given, out: taken.append(tuple(out.shape[:2])))
    grouped = stack(x, mask, causal)
    assert len(taken) == GROUPS
    assert sum(r * t for r, t in taken) < rows * steps
    handle.remove()
    whole = one_by_one(stack, x, mask, causal)
    torch.testing.assert_close(grouped, whole)
    slope = torch.randn_like(whole)
    given = (x, *stack.parameters())
    for a, b in zip(*(torch.autograd.grad(y, given, slope) for y in (grouped, whole)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("rows", [3, 3 * GROUPS])  # together, and in groups
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_what_is_read_at_some_places_is_what_stands_there(causal, before, rows, layers):
    torch.manual_seed(0)
    stack = Transformer(TransformerLayer(6, 2, before=before) for _ in range(layers))
    steps = 48
    x = torch.randn(rows, steps, 6, requires_grad=True)
    lengths = torch.randint(1, steps + 1, (rows,))
    lengths[0] = 0
    mask = torch.arange(steps) < lengths[:, None]
    where = mask & (torch.rand(rows, steps) < 0.4)
    where[1] = False
    at = places(where)
    some, whole = stack(x, mask, causal, at), one_by_one(stack, x, mask, causal)
    assert some.shape == (rows, int(where.sum(1).max()), 6)
    assert not some[at < 0].any()
    torch.testing.assert_close(some[at >= 0], whole[where])
    slope = torch.randn_like(some[at >= 0])
    given = (x, *stack.parameters())
    for a, b in zip(
        torch.autograd.grad(some[at >= 0], given, slope), torch.autograd.grad(whole[where], given, slope), strict=True
    ):
        torch.testing.assert_close(a, b)
