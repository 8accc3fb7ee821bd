"""Poolings of bags against loops over their instances, and the instance that decides."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.nn.instances import GatedAttention, hardest, log_mean_exp, noisy_or

MASK = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])


def test_bags_are_loops_over_their_instances():
    torch.manual_seed(0)
    logit = torch.randn(4, 5, dtype=torch.float64)
    for row, n in ((0, 5), (1, 3), (2, 1)):
        z = logit[row, :n]
        p = 1 - torch.stack([1 - x.sigmoid() for x in z]).prod()
        wanted = {
            noisy_or: (p / (1 - p)).log(),
            hardest: max(z),
            log_mean_exp: torch.stack([x.exp() for x in z]).mean().log(),
        }
        for pooled, slow in wanted.items():
            assert_close(pooled(logit, MASK)[row], slow.float())
            if n == 1:
                assert_close(pooled(logit, MASK)[row], z[0].float())
    block, h = GatedAttention(3, 4), torch.randn(4, 5, 3)
    for row, n in ((0, 5), (1, 3), (2, 1)):
        score = [block.score((block.content(x)).tanh() * block.gate(x).sigmoid()) for x in h[row, :n]]
        assert_close(block(None, h, MASK)[row], torch.cat(score).softmax(0) @ h[row, :n])
    assert not block(None, h, MASK)[3].any()


def test_no_chance_rounds_away_and_an_empty_bag_has_no_gradient():
    logit = torch.tensor([[-60.0, -60.0, 0.0], [60.0, 60.0, 0.0], [7.0, 7.0, 7.0]]).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    bag = noisy_or(logit, mask)
    assert_close(bag[:2], torch.tensor([-60 + torch.tensor(2.0).log(), 120.0]))
    for pooled in (noisy_or, hardest, log_mean_exp):
        value = pooled(logit, mask)
        (slope,) = torch.autograd.grad(losses.bce(value, torch.ones(3), where=mask.any(-1)), logit)
        assert slope.isfinite().all()
        assert not slope[~mask].any()
        assert slope[mask].any()
        assert value[2] < -80


def test_attention_finds_the_planted_instance():
    """A bag is positive if one of its instances has a certain mark; nobody says which."""
    torch.manual_seed(0)
    h, label = torch.randn(512, 6, 8), torch.arange(512) % 2
    planted = torch.randint(6, (512,))
    h[torch.arange(512), planted, 0] += 4.0 * label
    block, head, mask = GatedAttention(8), torch.nn.Linear(8, 1), torch.ones(512, 6).bool()
    optimizer = torch.optim.Adam([*block.parameters(), *head.parameters()], 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(head(block(None, h, mask)).squeeze(-1), label.float()).backward()
        optimizer.step()
    found = block.attention(h, mask).argmax(-1) == planted
    assert found[label == 1].float().mean() > 0.9


def test_a_bag_of_items_is_a_history():
    schema = testing.schema()
    torch.manual_seed(0)
    model = testing.wake(rs.retrieval.DSSM(schema, dim=4, hidden=(8, 4), history=GatedAttention)).eval()
    padded = testing.batch(schema, 3, 2)
    jagged = testing.batches.to_jagged(padded, schema)
    assert_close(model(jagged)["click"], model(padded)["click"])
