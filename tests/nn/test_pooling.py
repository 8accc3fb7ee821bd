"""Poolings of a history against loops over its live steps."""

from functools import partial

import pytest
import torch
from torch import nn

from recstack.errors import ConfigError
from recstack.nn.sequence import POOLINGS, Pooling, pooling
from recstack.nn.sequence.target_attention import TargetAttention

SLOW = {
    "mean": lambda steps: steps.mean(0),
    "sum": lambda steps: steps.sum(0),
    "max": lambda steps: steps.amax(0),
    "last": lambda steps: steps[-1],
}


@pytest.mark.parametrize("name", SLOW)
def test_pooling_is_a_loop_over_live_steps(name):
    sequence = torch.randn(4, 5, 3) - 2  # all negative in places, so that a padded zero would win a maximum
    lengths = torch.tensor([0, 1, 3, 5])
    mask = torch.arange(5) < lengths.unsqueeze(-1)
    fast = pooling(name, 3)(None, sequence, mask)
    for r, n in enumerate(lengths.tolist()):
        slow = SLOW[name](sequence[r, :n]) if n else torch.zeros(3)
        torch.testing.assert_close(fast[r], slow)


def test_every_pooling_gives_zeros_for_an_empty_history_and_zero_gradients():
    for name in POOLINGS:
        block = pooling(name, 3).eval()
        sequence = torch.randn(2, 4, 3, requires_grad=True)
        query = torch.randn(2, 1, 3)
        out = block(query if block.targeted else None, sequence, torch.zeros(2, 4, dtype=torch.bool))
        out.sum().backward()
        assert not out.any(), name
        assert not sequence.grad.any(), name


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "prelu"])
def test_target_attention_is_an_mlp_of_four_vectors(softmax, activation):
    block = TargetAttention(3, (5, 4), activation, softmax)
    query, sequence = torch.randn(2, 3, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    fast = block(query, sequence, mask)
    for r in range(2):
        for l in range(3):
            steps = sequence[r, mask[r]]
            q = query[r, l].expand_as(steps)
            score = block.score(block.first(torch.cat([q, steps, q - steps, q * steps], -1))).squeeze(-1)
            weight = score.softmax(-1) if softmax else score
            torch.testing.assert_close(fast[r, l], weight @ steps)


def test_attention_weights_are_not_normalised_so_a_longer_history_of_the_same_says_more():
    block = TargetAttention(3, (4,), "sigmoid")
    query, step = torch.randn(1, 1, 3), torch.randn(1, 1, 3)
    one = block(query, step, torch.ones(1, 1, dtype=torch.bool))
    four = block(query, step.expand(1, 4, 3), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(four, 4 * one)


def test_dice_in_attention_counts_live_pairs_only():
    query, sequence = torch.randn(2, 2, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    torch.manual_seed(0)
    a = TargetAttention(3, (4,), "dice").train()
    torch.manual_seed(0)
    b = TargetAttention(3, (4,), "dice").train()
    rubbish = torch.where(mask.unsqueeze(-1), sequence, torch.tensor(100.0))
    torch.testing.assert_close(a(query, rubbish, mask), b(query, sequence, mask))
    candidates = torch.tensor([[True, False], [True, True]])  # the same of queries: padded candidates count in nothing
    rubbish = torch.where(candidates.unsqueeze(-1), query, torch.tensor(100.0))
    one, other = a(rubbish, sequence, mask, candidates), b(query, sequence, mask, candidates)
    torch.testing.assert_close(one[candidates], other[candidates])
    torch.testing.assert_close(dict(a.named_buffers()), dict(b.named_buffers()))


class Middle(Pooling):
    """A user's own."""

    def forward(self, query, sequence, mask):
        return sequence[:, 1]


def test_a_choice_is_a_name_a_class_or_a_partial():
    assert isinstance(pooling("attention", 4), TargetAttention)
    assert isinstance(pooling(Middle, 4), Middle)
    assert pooling(partial(TargetAttention, softmax=True), 4).softmax


def test_a_built_module_or_a_wrong_name_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'attention'"):
        pooling("atention", 4)
    with pytest.raises(ConfigError, match="takes a name or a class"):
        pooling(nn.Identity(), 4)
