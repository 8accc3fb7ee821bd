"""Random walks: against the probabilities that they are defined by, whatever the number of threads."""

import numpy as np
import pytest
import torch

from recstack.errors import ConfigError, DataError
from recstack.kernels.cooccurrence import interactions, transpose
from recstack.kernels.topk import Sparse
from recstack.kernels.walks import most_visited, visits, walks


def graph(weighted=False, nodes=6, seed=0):
    """A random undirected graph, its last node without an edge."""
    rng = np.random.default_rng(seed)
    table = np.triu(rng.random((nodes, nodes)) < 0.6, 1) | np.eye(nodes, k=1, dtype=bool)
    table[:, -1] = False
    table = (table | table.T) * (rng.random((nodes, nodes)) + 0.2 if weighted else 1.0)
    row, column = np.nonzero(table)
    offsets = np.concatenate(([0], np.cumsum(np.bincount(row, minlength=nodes))))
    values = table[row, column].astype(np.float32) if weighted else None
    return Sparse(offsets, column.astype(np.int32), nodes, values), table


def shares(walk, nodes):
    """How often each node came third, by the first two."""
    out = np.zeros((nodes, nodes, nodes))
    np.add.at(out, (walk[:, 0], walk[:, 1], walk[:, 2]), 1)
    return out


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (0.5, 2.0), (4.0, 0.25)])
def test_a_step_is_drawn_by_its_edge_and_by_where_the_walk_came_from(weighted, p, q):
    edges, table = graph(weighted)
    walk = walks(edges, np.repeat(np.arange(5), 20_000), 3, seed=1, p=p, q=q)
    assert (table[walk[:, 0], walk[:, 1]] > 0).all()
    found = shares(walk, 6)
    for t in range(5):
        np.testing.assert_allclose(found[t].sum(1) / 20_000, table[t] / table[t].sum(), atol=0.02)
        for v in np.flatnonzero(table[t]):
            share = table[v].copy()
            for x in range(6):
                share[x] *= 1 / p if x == t else 1 if table[t, x] else 1 / q
            np.testing.assert_allclose(found[t, v] / found[t, v].sum(), share / share.sum(), atol=0.03)


def test_a_walk_ends_where_no_edge_leads_on():
    edges, _ = graph()
    assert walks(edges, np.array([5]), 4).tolist() == [[5, -1, -1, -1]]
    weightless = edges._replace(values=np.zeros(len(edges.columns), np.float32))
    assert walks(weightless, np.array([0]), 3).tolist() == [[0, -1, -1]]


def test_walks_depend_on_the_seed_and_not_on_threads():
    edges, _ = graph()
    starts = np.arange(500) % 5
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = walks(edges, starts, 8, seed=3, q=2.0)
        torch.set_num_threads(3)
        np.testing.assert_array_equal(walks(edges, starts, 8, seed=3, q=2.0), one)
    finally:
        torch.set_num_threads(threads)
    assert (walks(edges, starts, 8, seed=4, q=2.0) != one).any()
    assert len({tuple(w) for w in one[starts == 0].tolist()}) > 10  # walks from one node differ


def test_what_no_walk_can_be_is_refused():
    edges, _ = graph()
    with pytest.raises(DataError, match="nodes 0 to 5"):
        walks(edges, np.array([6]), 3)
    with pytest.raises(ConfigError, match="p and q are positive"):
        walks(edges, np.array([0]), 3, p=0)
    with pytest.raises(DataError, match="not negative"):
        walks(edges._replace(values=-np.ones(len(edges.columns), np.float32)), np.array([0]), 3)


def bipartite(seed=0, users=30, items=12):
    rng = np.random.default_rng(seed)
    back = interactions(rng.integers(users, size=150), rng.integers(items - 1, size=150), users, items)
    return transpose(back), back  # the last item has no users


def test_visits_follow_the_walk_with_restart():
    """Visits are the distribution of where a walk stands after each step: restart at the query with probability a."""
    forth, back = bipartite()
    n, steps, restart = 12, 100_000, 0.3
    step = np.zeros((n, n))  # item to item
    for i in range(n):
        for u in forth.columns[forth.offsets[i] : forth.offsets[i + 1]]:
            mine = back.columns[back.offsets[u] : back.offsets[u + 1]]
            step[i, mine] += 1 / forth.counts[i] / len(mine)
    start = np.zeros(n)
    start[3] = 1
    place = start.copy()  # before a step
    for _ in range(200):
        place = restart * start + (1 - restart) * place @ step
    queries = Sparse(np.array([0, 1]), np.array([3], np.int32), n, np.array([float(steps)]))
    ids, scores, found = most_visited(queries, forth, back, n, restart=restart)
    assert found[0] == n - 1
    assert scores.sum() == pytest.approx(steps)
    np.testing.assert_allclose(scores[0, : n - 1] / steps, (place @ step)[ids[0, : n - 1]], atol=0.01)


def test_queries_are_boosted_by_square_roots_filtered_and_stopped():
    forth, back = bipartite()
    both = Sparse(np.array([0, 2, 2, 3]), np.array([1, 4, 11], np.int32), 12, np.array([300.0, 200.0, 50.0]))
    apart = Sparse(np.array([0, 1, 2]), np.array([1, 4], np.int32), 12, np.array([300.0, 200.0]))
    every = np.broadcast_to(np.arange(12), (3, 12))
    alone = visits(apart, forth, back, every[:2], seed=5)
    assert alone.sum(1).tolist() == [300, 200]
    together = visits(both, forth, back, every, seed=5)
    np.testing.assert_allclose(together[0], np.sqrt(alone).sum(0) ** 2, rtol=1e-5)
    assert not together[1:].any()  # no queries, and a query without users

    seen = Sparse(np.array([0, 2, 2, 2]), np.array([1, 4], np.int32), 12)
    allowed = np.arange(12) % 2 == 0
    ids, scores, found = most_visited(both, forth, back, 12, seed=5, seen=seen, allowed=allowed)
    due = {j for j in np.flatnonzero(together[0]) if j % 2 == 0 and j != 4}
    assert set(ids[0, : found[0]].tolist()) == due
    assert found[1:].tolist() == [0, 0]
    np.testing.assert_array_equal(scores[0, : found[0]], together[0][ids[0, : found[0]]])

    stopped = visits(apart, forth, back, every[:2], seed=5, enough=(2, 4))
    assert (stopped >= 4).sum(1).tolist() == [2, 2]
    assert (stopped.max(1) < alone.max(1)).all()
