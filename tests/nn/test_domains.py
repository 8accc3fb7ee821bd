"""Rows met by their domain's matrices, and normalised by its statistics."""

import pytest
import torch

from recstack.nn.domains import DomainNetworks, PartitionedNorm, StarLinear, by_domain


def every_way(layer, x, domain):
    """Grouped by domain, and the form of an exported graph: a matrix for each request."""
    return by_domain(layer, x, domain), layer([x], [domain])[0]


def test_rows_in_any_order_of_domains_are_one_domain_at_a_time():
    layer = StarLinear(3, 2, 4)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x, domain = torch.randn(6, 2, 3), torch.tensor([3, 0, 1, 3, 4, 1])
    for found in every_way(layer, x, domain):
        for r, p in enumerate(domain.tolist()):
            own = (layer.weight[p - 1], layer.bias[p - 1]) if p else (1.0, 0.0)
            slow = x[r] @ (layer.shared.weight * own[0]).T + layer.shared.bias + own[1]
            torch.testing.assert_close(found[r], slow)


@pytest.mark.parametrize("each", [False, True])
def test_networks_of_a_domain_by_loops(each):
    layer = DomainNetworks(3, (4, 2), 2, 3, each=each)
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    x, domain = torch.randn(5, 2, 6 if each else 3), torch.tensor([3, 0, 1, 3, 1])
    for found in every_way(layer, x, domain):
        for r, p in enumerate(domain.tolist()):
            for k in range(2):
                h = x[r].view(2, 2, 3)[:, k] if each else x[r]
                for weight, bias in zip(layer.weights, layer.biases, strict=True):
                    own = (weight[p - 1, k], bias[p - 1, k]) if p else (weight[:, k].mean(0), bias[:, k].mean(0))
                    h = (h @ own[0] + own[1]).relu()
                torch.testing.assert_close(found[r].view(2, 2, 2)[:, k], h)


def test_a_domain_for_each_candidate():
    layer = StarLinear(3, 2, 4)
    torch.nn.init.normal_(layer.weight)
    x, domain = torch.randn(3, 4, 3), torch.randint(0, 5, (3, 4))
    found = by_domain(layer, x, domain)
    flat = by_domain(layer, x.view(12, 1, 3), domain.flatten())
    torch.testing.assert_close(found, flat.view(3, 4, 2))


def test_dead_rows_are_zeros_and_go_nowhere():
    seen = []

    def network(parts, domains):
        seen.append(([part.shape[0] for part in parts], domains))
        return [part * 2 for part in parts]

    x, domain = torch.randn(3, 2, 4), torch.tensor([2, 1, 2])
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    y = by_domain(network, x, domain, mask)
    assert seen == [([3], [2])]
    torch.testing.assert_close(y, 2 * x * mask.unsqueeze(-1))
    assert not by_domain(network, x, domain, torch.zeros_like(mask)).any()


def test_each_domain_is_normalised_by_its_own_batch():
    norm = PartitionedNorm(3, 2).train()
    a, b = torch.randn(25, 2, 3) * 4 + 7, torch.randn(15, 2, 3) - 2
    x, domain = torch.cat([a, b]), torch.tensor([1] * 25 + [2] * 15)
    order = torch.randperm(40)
    y = torch.empty_like(x)
    y[order] = by_domain(norm, x[order], domain[order])
    for part in (y[:25], y[25:]):
        torch.testing.assert_close(part.mean((0, 1)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.flatten(0, 1).var(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.mean[1], a.mean((0, 1)))  # the first batch sets them
    torch.testing.assert_close(norm.var[2], b.flatten(0, 1).var(0))
    by_domain(norm, a + 1, domain[:25])
    torch.testing.assert_close(norm.mean[1], a.mean((0, 1)) + 0.1)  # the next moves them by a tenth
    torch.testing.assert_close(norm.mean[2], b.mean((0, 1)))  # and leaves the domain that is not there


def test_dead_candidates_have_no_share_in_the_statistics():
    norm = PartitionedNorm(3, 2).train()
    x, mask = torch.randn(8, 4, 3), torch.arange(4).expand(8, 4) < 3
    y = by_domain(norm, torch.where(mask.unsqueeze(-1), x, 1e4), torch.ones(8, dtype=torch.long), mask)
    other = PartitionedNorm(3, 2).train()
    torch.testing.assert_close(y[:, :3], by_domain(other, x[:, :3], torch.ones(8, dtype=torch.long)))
    torch.testing.assert_close(norm.mean, other.mean)


def test_a_single_row_of_a_domain_moves_nothing():
    norm = PartitionedNorm(3, 2).train()
    a = torch.randn(50, 1, 3)
    by_domain(norm, a, torch.ones(50, dtype=torch.long))
    before = {n: v.clone() for n, v in norm.named_buffers()}
    row = torch.randn(1, 1, 3)
    y = by_domain(norm, row, torch.tensor([1]))
    torch.testing.assert_close(y, (row - a.mean(0)) / (a.var(0) + norm.eps).sqrt())
    assert all(torch.equal(v, before[n]) for n, v in norm.named_buffers())


def test_a_domain_not_met_in_training_has_the_statistics_of_all_rows():
    norm = PartitionedNorm(2, 3).train()
    a, b = torch.randn(400, 1, 2) * 2 + 5, torch.randn(100, 1, 2) - 1
    by_domain(norm, torch.cat([a, b]), torch.tensor([1] * 400 + [3] * 100))
    mean, var = norm.eval().statistics(torch.tensor([2, 1]))
    every = torch.cat([a, b]).squeeze(1)
    torch.testing.assert_close(mean, torch.stack([every.mean(0), a.squeeze(1).mean(0)]))
    torch.testing.assert_close(var[0], every.var(0), rtol=0.01, atol=0)
