"""Edges between items and the values that they share, each against a loop over sets."""

import torch

from recstack.nn.graph.edges import ItemEdges
from recstack.nn.modes import evaluating, fixed
from recstack.nn.sequence.relations import SharedValues

SIZE = 9


def some_edges():
    pairs = torch.cartesian_prod(torch.arange(2, SIZE), torch.arange(2, SIZE))
    pairs = pairs[torch.rand(len(pairs), generator=torch.Generator().manual_seed(0)) < 0.4].flip(0)  # not in order
    return pairs, torch.arange(2.0 * len(pairs)).view(-1, 2)


def test_edges_are_found_with_their_clues():
    pairs, clues = some_edges()
    edges = ItemEdges(SIZE, 2)
    assert not edges.find(pairs[:1, :1], pairs[:1, 1:])[1].any()
    edges.connect(*pairs.T, clues)
    known = {tuple(pair): clue for pair, clue in zip(pairs.tolist(), clues, strict=True)}
    sources, targets = torch.arange(SIZE).repeat(2, 1), torch.arange(SIZE).flip(0).repeat(2, 1)
    place, there = edges.find(sources, targets)
    for r, t, i in torch.cartesian_prod(torch.arange(2), torch.arange(SIZE), torch.arange(SIZE)).tolist():
        pair = int(sources[r, t]), int(targets[r, i])
        assert bool(there[r, t, i]) == (pair in known)
        if pair in known:
            assert torch.equal(edges.clues[place[r, t, i]], known[pair])


def test_edges_lie_by_source():
    pairs, clues = some_edges()
    edges = ItemEdges(SIZE, 2)
    edges.connect(*pairs.T, clues)
    starts = edges.starts().tolist()
    assert starts[-1] == len(pairs) == len(edges.sources)
    for j in range(SIZE):
        mine = slice(starts[j], starts[j + 1])
        assert set(edges.sources[mine].tolist()) <= {j}
        assert sorted(edges.targets[mine].tolist()) == sorted(i for s, i in pairs.tolist() if s == j)


def test_edges_load_in_any_number():
    edges, other = ItemEdges(SIZE, 2), ItemEdges(SIZE, 2)
    pairs, clues = some_edges()
    edges.connect(*pairs.T, clues)
    other.load_state_dict(edges.state_dict())
    assert torch.equal(other.keys, edges.keys)
    assert torch.equal(other.clues, edges.clues)


def test_values_are_shared_and_drawn_as_sets_say():
    one = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 0], [3, 1], [0, 0]])
    other = torch.tensor([[0], [0], [1], [1], [2], [2]])
    shared = SharedValues(6, [4, 3])
    shared.read([one, other])
    own = [[{v for v in table[i].tolist() if v} for table in (one, other)] for i in range(6)]
    same = shared.same(torch.arange(6)[None], torch.arange(6)[None]).any(-1)[0]  # [target, step, kind]
    for i, j, t in torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.arange(2)).tolist():
        assert bool(same[i, j, t]) == bool(own[i][t] & own[j][t])
    first = [1, 5]
    assert shared.rows == 8
    torch.manual_seed(0)
    items, lives = torch.arange(2, 6).repeat(200), 0
    for i, values, related, others, live in zip(items.tolist(), *(x.tolist() for x in shared.draw(items)), strict=True):
        for t in range(2):
            if live[t]:
                value = values[t] - first[t]
                assert value in own[i][t] & own[related[t]][t]
                assert related[t] != i
                assert value not in own[others[t]][t]
                lives += 1
    assert lives > 200


def test_a_mode_comes_back_when_something_is_raised():
    block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    block[0].bias.requires_grad_(False)
    for mode in (evaluating, fixed):
        try:
            with mode(block):
                assert not block.training
                assert block[0].weight.requires_grad == (mode is evaluating)
                raise KeyError
        except KeyError:
            pass
        assert block.training
        assert block[1].training
        assert [p.requires_grad for p in block.parameters()] == [True, False]
