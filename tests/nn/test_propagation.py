"""Propagation by sparse products, against the dense normalised adjacency matrix of the whole graph."""

import pytest
import torch

from recstack.nn.graph.propagation import Propagation

U, N, D = 9, 13, 4


def graph(seed=0):
    """A random bipartite graph; its last user and last item have no edges."""
    r = torch.rand(U, N, generator=torch.Generator().manual_seed(seed)) < 0.3
    r[-1], r[:, -1] = False, False
    return r


def connected(r, layers, dtype=torch.float64):
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), r.sum(1).cumsum(0)])
    return Propagation(U, N, layers).connect(offsets, r.nonzero()[:, 1])


def dense_average(r, users, items, layers):
    """(E⁰ + ... + E^L) / (L + 1) with E^l = D^-1/2 A D^-1/2 E^(l-1), as the paper writes it."""
    a = torch.zeros(U + N, U + N, dtype=users.dtype)
    a[:U, U:], a[U:, :U] = r.to(users.dtype), r.T.to(users.dtype)
    d = a.sum(1)
    scale = torch.where(d > 0, d.clamp(min=1) ** -0.5, 0)
    a = scale[:, None] * a * scale
    e = torch.cat([users, items])
    layer, total = e, e
    for _ in range(layers):
        layer = a @ layer
        total = total + layer
    total = total / (layers + 1)
    return total[:U], total[U:]


@pytest.mark.parametrize("layers", [0, 1, 2, 4])
def test_propagation_is_the_dense_product_in_value_and_gradient(layers):
    r = graph()
    e = [torch.randn(n, D, dtype=torch.float64, requires_grad=True) for n in (U, N)]
    ours, theirs = connected(r, layers)(*e), dense_average(r, *e, layers)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # edge weights are float32
    direction = [torch.randn_like(x) for x in ours]
    gradients = [torch.autograd.grad(out, e, direction, retain_graph=True) for out in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_node_without_edges_keeps_its_share_of_itself():
    users, items = torch.randn(U, D), torch.randn(N, D)
    out = connected(graph(), 3)(users, items)
    torch.testing.assert_close(out[0][-1], users[-1] / 4)
    torch.testing.assert_close(out[1][-1], items[-1] / 4)


def test_without_edges_every_node_keeps_its_share_of_itself():
    users, items = torch.randn(U, D, requires_grad=True), torch.randn(N, D)
    out = Propagation(U, N, 2)(users, items)
    torch.testing.assert_close(out[0], users / 3)
    out[0].sum().backward()
    torch.testing.assert_close(users.grad, torch.full((U, D), 1 / 3))


def test_new_edges_replace_the_old_ones():
    users, items = torch.randn(U, D), torch.randn(N, D)
    block = connected(graph(0), 2)
    block(users, items)
    r = graph(1)
    block.connect(torch.cat([torch.zeros(1, dtype=torch.long), r.sum(1).cumsum(0)]), r.nonzero()[:, 1])
    torch.testing.assert_close(block(users, items), connected(r, 2)(users, items), rtol=0, atol=0)


def test_the_edges_are_part_of_the_state():
    users, items = torch.randn(U, D), torch.randn(N, D)
    block, other = connected(graph(), 2), connected(graph(3), 2)
    other(users, items)
    other.load_state_dict(block.state_dict())
    torch.testing.assert_close(other(users, items), block(users, items), rtol=0, atol=0)


def test_second_derivatives_go_through():
    r = graph()
    e = [torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (U, N)]
    assert torch.autograd.gradgradcheck(lambda a, b: connected(r, 2)(a, b)[0].square().sum(), e)


@pytest.mark.parametrize("average", [True, False])
def test_autocast_reads_short_vectors_and_keeps_float32_sums_and_gradients(average):
    graph_ = connected(graph(), 3)
    e = [torch.randn(n, D, requires_grad=True) for n in (U, N)]
    run = graph_ if average else graph_.hop
    whole = run(*e)
    with torch.autocast("cpu", torch.bfloat16):
        short = run(*e)
    direction = [torch.randn_like(x) for x in whole]
    gradients = [torch.autograd.grad(out, e, direction) for out in (whole, short)]
    for a, b in zip((*whole, *gradients[0]), (*short, *gradients[1]), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    assert not torch.equal(whole[0], short[0])
