"""Random walks on graphs in sparse rows: walks of fixed length, and the items that walks with restart visit most.

Every walk draws from a counter of its own (splitmix64), started from the seed and the walk's number, so results depend
neither on the number of threads nor on what else is asked in the same call. Second-order walks draw a neighbour and
reject it (Yang et al., SOSP 2019): no table for each edge is ever made.
"""

from __future__ import annotations

import numpy as np

from recstack.errors import ConfigError, DataError
from recstack.kernels.topk import Sparse, _sink, compiled, in_blocks, keep_best

_GOLDEN, _FIRST, _SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_27, _30, _31, _11 = (np.uint64(x) for x in (27, 30, 31, 11))


def walks(
    graph: Sparse, starts: np.ndarray, length: int, seed: int = 0, *, p: float = 1.0, q: float = 1.0
) -> np.ndarray:
    r"""Random walks of `length` nodes, the next one drawn by the weight of its edge.

    With p or q other than 1 the walk remembers the node it came from (node2vec, https://arxiv.org/abs/1607.00653): from
    t to v, the weight of x is divided by p where x is t, stays where x is a neighbour of t, and is divided by q else.

    Args:
        graph: [nodes, nodes], edges with weights or without; for p or q the columns of a row ascend.
        starts: int [walks], the first node of each.
        length: nodes of a walk, the first included.
        seed: of the draws; equal seeds give equal walks, whatever the number of threads.
        p: above 1, fewer steps lead straight back.
        q: above 1, walks stay near; below 1, they go far.

    Returns:
        int32 [walks, length]; -1 behind the end of a walk that came to a node without edges.

    Raises:
        ConfigError: length, p or q that are not positive.
        DataError: a start that is no node, or a weight that is negative or not finite.

    >>> ring = Sparse(np.arange(5), np.array([1, 2, 3, 0], np.int32), 4)
    >>> walks(ring, np.array([2, 0]), length=4)
    array([[2, 3, 0, 1],
           [0, 1, 2, 3]], dtype=int32)
    """
    if length < 1 or p <= 0 or q <= 0:
        raise ConfigError(f"length is at least 1, p and q are positive; got {length}, {p:g}, {q:g}.")
    starts = np.ascontiguousarray(starts, np.int64)
    if len(starts) and (starts.min() < 0 or starts.max() >= graph.height):
        raise DataError(f"Walks start from nodes 0 to {graph.height - 1}; got {starts.min()} to {starts.max()}.")
    if graph.values is None:
        total = np.zeros(0)
    else:
        if not np.isfinite(graph.values).all() or (graph.values < 0).any():
            raise DataError("Weights of edges must be finite and not negative.")
        total = np.concatenate(([0.0], np.cumsum(graph.values, dtype=np.float64)))
    out = np.full((len(starts), length), -1, np.int32)
    given = (graph.offsets, graph.columns, total, starts, _seeded(seed), 1 / p, 1 / q, p != 1 or q != 1)
    kernel = compiled(_walk, _step, _mix, _unit, _holds)
    in_blocks(lambda begin, end: kernel(begin, end, *given, out), len(starts))
    return out


def most_visited(
    queries: Sparse,
    forth: Sparse,
    back: Sparse,
    k: int,
    *,
    seed: int = 0,
    restart: float = 0.5,
    enough: tuple[int, int] | None = None,
    seen: Sparse | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""The k items that random walks from each request's query items visit most (Pixie).

    .. math:: V(j) = \Big( \sum_{i \in \mathrm{queries}} \sqrt{V_i(j)} \Big)^2

    where a step goes from an item over a common neighbour to an item, which is then visited, and the walk begins again at
    the query with probability `restart`.

    Args:
        queries: [R, N], its values the steps of each query item.
        forth: [N, M], from an item to its users (boards, baskets).
        back: [M, N], from there to items.
        restart: probability, after each step.
        enough: (items, visits): the walk of a query ends once so many items were visited so often.
        seen, allowed: what a request must not get, what may be proposed at all; as in `recommend_from_rows`.

    Returns:
        ids int32 [R, k], scores float32 [R, k], found int64 [R], as `recommend_from_rows` does.

    >>> forth = Sparse(np.array([0, 1, 2, 2]), np.array([0, 0], np.int32), 1)  # items 0 and 1 share a user, 2 has none
    >>> back = Sparse(np.array([0, 2]), np.array([0, 1], np.int32), 3)
    >>> asked = Sparse(np.array([0, 1]), np.array([0], np.int32), 3, np.array([100.0]))
    >>> ids, scores, found = most_visited(asked, forth, back, k=3)
    >>> sorted(ids[0, : found[0]].tolist()), float(scores.sum())
    ([0, 1], 100.0)
    """
    R = queries.height
    if seen is None:
        seen = Sparse(np.zeros(R + 1, np.int64), np.zeros(0, np.int32), forth.height)
    closed = np.zeros(forth.height, np.uint8) if allowed is None else np.where(allowed, 0, 2).astype(np.uint8)
    ids, scores, found = np.zeros((R, k), np.int32), np.zeros((R, k), np.float32), np.zeros(R, np.int64)
    given = (*_walkers(queries, forth, back, seed, restart, enough), seen.offsets, seen.columns, closed)
    kernel = compiled(_most_visited, _visit, _mix, _unit, _sink, keep_best)
    in_blocks(lambda begin, end: kernel(begin, end, *given, ids, scores, found), R, smallest=1)
    return ids, scores, found


def visits(
    queries: Sparse,
    forth: Sparse,
    back: Sparse,
    ids: np.ndarray,
    *,
    seed: int = 0,
    restart: float = 0.5,
    enough: tuple[int, int] | None = None,
) -> np.ndarray:
    """The score that `most_visited` gives to named items: ids int [R, K] to float32 [R, K], 0 where no walk came."""
    ids = np.ascontiguousarray(ids, np.int64)
    scores = np.zeros(ids.shape, np.float32)
    given = _walkers(queries, forth, back, seed, restart, enough)
    kernel = compiled(_visits, _visit, _mix, _unit)
    in_blocks(lambda begin, end: kernel(begin, end, *given, ids, scores), queries.height, smallest=1)
    return scores


def _walkers(queries: Sparse, forth: Sparse, back: Sparse, seed: int, restart: float, enough: tuple[int, int] | None):
    assert queries.values is not None
    steps = np.ceil(queries.values).astype(np.int64)
    n_items, n_visits = enough or (np.iinfo(np.int64).max, 1)
    graph = (forth.offsets, forth.columns, back.offsets, back.columns)
    return (queries.offsets, queries.columns, steps, *graph, _seeded(seed), float(restart), n_items, n_visits)


def _seeded(seed: int) -> np.uint64:
    return np.uint64(seed % 2**64)


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _mix(x):
    """64 random bits from a counter."""
    x = (x ^ (x >> _30)) * _FIRST
    x = (x ^ (x >> _27)) * _SECOND
    return x ^ (x >> _31)


def _unit(x):
    """From 64 bits to [0, 1)."""
    return np.float64(x >> _11) * (1.0 / 9007199254740992.0)


def _holds(columns, low, high, value):
    """Whether the ascending columns[low:high] hold the value."""
    end = high
    while low < high:
        middle = (low + high) // 2
        if columns[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < end and columns[low] == value


def _walk(begin, end, at, to, total, starts, seed, back, away, second, out):
    # Walks go side by side, 64 at a time: while one waits for memory the others compute.
    for first in range(begin, end, 64):
        last = min(first + 64, end)
        states = np.empty(64, np.uint64)
        for w in range(first, last):
            states[w - first] = _mix(_mix(seed + _GOLDEN) + np.uint64(w) * _GOLDEN)
            out[w, 0] = starts[w]
        for t in range(1, out.shape[1]):
            for w in range(first, last):
                here = np.int64(out[w, t - 1])
                if here >= 0 and at[here] < at[here + 1]:
                    before = np.int64(out[w, t - 2]) if second and t > 1 else np.int64(-1)
                    out[w, t], states[w - first] = _step(at, to, total, here, before, states[w - first], back, away)


def _step(at, to, total, here, before, state, back, away):
    """The node after `here`, -1 if no edge has a weight, and the counter behind the draws."""
    low, high = at[here], at[here + 1]
    most, least = max(1.0, back, away), min(1.0, away)
    while True:
        state += _GOLDEN
        u = _unit(_mix(state))
        if len(total) == 0:
            there = np.int64(to[low + np.int64(u * (high - low))])
        else:
            if total[high] <= total[low]:
                return np.int64(-1), state
            aim = total[low] + u * (total[high] - total[low])
            a, b = low, high - 1  # the first edge whose running total lies above the aim
            while a < b:
                middle = (a + b) // 2
                if total[middle + 1] > aim:
                    b = middle
                else:
                    a = middle + 1
            there = np.int64(to[a])
        if before < 0:
            return there, state
        state += _GOLDEN
        u = _unit(_mix(state)) * most
        if there == before:
            share = back
        elif u < least:
            share = least  # accepted, whether a neighbour of `before` or not
        else:
            share = 1.0 if _holds(to, at[before], at[before + 1], there) else away
        if u < share:
            return there, state


def _visit(
    r, q_at, q_items, q_steps, f_at, forth, b_at, back, seed, restart, enough, often, count, touched, total, met
):
    """Walk for request r; write what was met and its totals, return how many there are."""
    n = 0
    for p in range(q_at[r], q_at[r + 1]):
        query = np.int64(q_items[p])
        if f_at[query] == f_at[query + 1]:
            continue
        state = _mix(_mix(seed + _GOLDEN) + np.uint64(query) * _GOLDEN)
        here, m, high = query, 0, 0
        for _ in range(q_steps[p]):
            state += _GOLDEN
            begin, end = f_at[here], f_at[here + 1]
            user = forth[begin + np.int64(_unit(_mix(state)) * (end - begin))]
            state += _GOLDEN
            begin, end = b_at[user], b_at[user + 1]
            here = np.int64(back[begin + np.int64(_unit(_mix(state)) * (end - begin))])
            if count[here] == 0:
                touched[m] = here
                m += 1
            count[here] += 1
            if count[here] == often:
                high += 1
                if high >= enough:
                    break
            state += _GOLDEN
            if _unit(_mix(state)) < restart:
                here = query
        for c in range(m):
            item = touched[c]
            if total[item] == 0:
                met[n] = item
                n += 1
            total[item] += np.sqrt(count[item])
            count[item] = 0
    for c in range(n):
        total[met[c]] *= total[met[c]]
    return n


def _most_visited(
    begin,
    end,
    q_at,
    q_items,
    q_steps,
    f_at,
    forth,
    b_at,
    back,
    seed,
    restart,
    enough,
    often,
    seen_at,
    seen,
    closed,
    ids,
    scores,
    found,
):
    n_items = len(closed)
    count, touched = np.zeros(n_items, np.int64), np.empty(n_items, np.int32)
    total, met, kept = np.zeros(n_items), np.empty(n_items, np.int32), np.empty(n_items, np.int32)
    state = closed.copy()
    for r in range(begin, end):
        n = _visit(
            r, q_at, q_items, q_steps, f_at, forth, b_at, back, seed, restart, enough, often, count, touched, total, met
        )
        for p in range(seen_at[r], seen_at[r + 1]):
            state[seen[p]] |= 4
        m = 0
        for c in range(n):
            if state[met[c]] == 0:
                kept[m] = met[c]
                m += 1
        found[r] = keep_best(kept, m, total, ids[r], scores[r])
        for c in range(n):
            total[met[c]] = 0.0
        for p in range(seen_at[r], seen_at[r + 1]):
            state[seen[p]] &= 3


def _visits(begin, end, q_at, q_items, q_steps, f_at, forth, b_at, back, seed, restart, enough, often, ids, scores):
    n_items = len(f_at) - 1
    count, touched = np.zeros(n_items, np.int64), np.empty(n_items, np.int32)
    total, met = np.zeros(n_items), np.empty(n_items, np.int32)
    for r in range(begin, end):
        n = _visit(
            r, q_at, q_items, q_steps, f_at, forth, b_at, back, seed, restart, enough, often, count, touched, total, met
        )
        for c in range(ids.shape[1]):
            scores[r, c] = total[ids[r, c]]
        for c in range(n):
            total[met[c]] = 0.0
