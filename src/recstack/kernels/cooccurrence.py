"""Who was seen with whom: item-to-item similarities counted from user histories, row by row.

Gowalla has 42 million pairs of items with a common user, and 4 million neighbours worth keeping. Each thread therefore
works on one item at a time: it adds what the item's users say into one accumulator over the items, keeps the best few in
a heap and moves on; the full matrix never exists. Each row is summed by one thread in a fixed order, so the result does
not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from recstack.errors import unknown
from recstack.kernels.topk import Sparse, _sink, compiled, in_blocks, keep_best, offsets_of


def interactions(
    rows: np.ndarray, columns: np.ndarray, height: int, width: int, time: np.ndarray | None = None
) -> Sparse:
    """Pairs (row, column) as sparse rows, each pair once.

    Without `time` the columns of a row ascend. With it (any sortable array) they go from the oldest to the newest, a
    repeated pair standing where it happened last; equal times keep the order of the input.

    >>> pairs = np.array([0, 0, 1, 0]), np.array([5, 2, 2, 5])
    >>> interactions(*pairs, height=2, width=6).columns
    array([2, 5, 2], dtype=int32)
    >>> interactions(*pairs, height=2, width=6, time=np.array([3, 4, 0, 1])).columns
    array([5, 2, 2], dtype=int32)
    """
    key = np.asarray(rows, np.int64) * width + np.asarray(columns, np.int64)
    if time is None:
        key = np.unique(key)
    else:
        newest = np.argsort(time, kind="stable")[::-1]
        _, first = np.unique(key[newest], return_index=True)
        kept = newest[np.sort(first)][::-1]  # one place per pair, in the order of time
        key = key[kept][np.argsort(key[kept] // width, kind="stable")]
    row, column = np.divmod(key, width)
    return Sparse(offsets_of(np.bincount(row, minlength=height)), column.astype(np.int32), width)


def transpose(matrix: Sparse) -> Sparse:
    """Rows for columns; the columns of a new row ascend."""
    offsets = offsets_of(np.bincount(matrix.columns, minlength=matrix.width))
    if matrix.values is not None:
        order = np.argsort(matrix.columns, kind="stable")
        return Sparse(offsets, matrix.rows[order].astype(np.int32), matrix.height, matrix.values[order])
    columns = np.empty(len(matrix.columns), np.int32)
    compiled(_transpose)(matrix.offsets, matrix.columns, offsets[:-1].copy(), columns)
    return Sparse(offsets, columns, matrix.height)


def sample(matrix: Sparse, limit: int, seed: int = 0) -> Sparse:
    """At most `limit` entries of each row, drawn uniformly without replacement; their order is kept."""
    kept = np.ones(len(matrix.columns), bool)
    rng = np.random.default_rng(seed)
    for row in np.flatnonzero(matrix.counts > limit):
        begin, n = matrix.offsets[row], matrix.counts[row]
        kept[begin + rng.choice(n, n - limit, replace=False)] = False
    return matrix.where(kept)


def active(users: Sparse, least: int, most: int | None) -> Sparse:
    """The histories of users with `least` to `most` items; the others have nothing to say and become empty rows."""
    counts = users.counts
    good = (counts >= least) & (counts <= (counts.max(initial=0) if most is None else most))
    return users.where(np.repeat(good, counts))


def swing(users: Sparse, weight: np.ndarray, *, alpha: float = 1.0, k: int = 100, max_users: int = 1000, seed: int = 0):
    r"""The k items most similar to each item by Swing: pairs of users who share little else count most.

    .. math:: s_{ij} = \sum_{\{u, v\} \subseteq U_i \cap U_j} \frac{w_u w_v}{\alpha + |I_u \cap I_v|}

    The sum runs over unordered pairs: each pair of users once.

    The users of an item are visited from the busiest to the idlest: the busier of a pair marks its items, the other's
    are looked up, so that a pair costs the shorter of the two histories.

    Args:
        users: [users, N], the items of each user.
        weight: float [users], the :math:`w_u`.
        k: neighbours kept for an item.
        max_users: of an item with more users a uniform sample of this size speaks.

    Returns:
        Sparse [N, N] with positive values, best first in each row.
    """
    busiest = np.argsort(-users.counts, kind="stable")  # users renumbered, so that ascending ids mean falling activity
    users = users.take(busiest)
    items = sample(transpose(users), max_users, seed)
    weight = np.ascontiguousarray(weight, np.float64)[busiest]
    kernel = compiled(_swing, _sink, keep_best)
    given = (items.offsets, items.columns, users.offsets, users.columns, weight, float(alpha))
    return _rows(kernel, given, users.width, k)


SIMILARITIES = ("cosine", "weighted_cosine", "jaccard")


def co_counts(
    users: Sparse,
    weight: np.ndarray,
    *,
    similarity: str = "cosine",
    exponent: float = 0.5,
    shrinkage: float = 0.0,
    k: int = 100,
) -> Sparse:
    r"""The k items most similar to each item by weighted counts of common users.

    With :math:`c_{ij} = \sum_{u \in U_i \cap U_j} w_u` and :math:`n_i = |U_i|`:

    .. math:: \mathrm{cosine:}\; \frac{c_{ij}}{n_i^{1-b}\, n_j^{b}}, \qquad
        \mathrm{weighted\ cosine:}\; \frac{c_{ij}}{c_{ii}^{1-b}\, c_{jj}^{b}}, \qquad
        \mathrm{jaccard:}\; \frac{c_{ij}}{c_{ii} + c_{jj} - c_{ij}}

    Args:
        users: [users, N], the items of each user.
        weight: float [users], the :math:`w_u`.
        similarity: "cosine", "weighted_cosine" or "jaccard".
        exponent: b, how much the popularity of the *proposed* item is held against it: 0.5 is the cosine, 0 the
            conditional probability of j given i.
        shrinkage: :math:`\lambda`; the similarity is multiplied by :math:`c_{ij} / (c_{ij} + \lambda)`.

    Returns:
        Sparse [N, N] with positive values, best first in each row.
    """
    if similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)
    items = transpose(users)
    weight = np.ascontiguousarray(weight, np.float64)
    n = items.counts.astype(np.float64)
    if similarity != "cosine":
        n = np.bincount(users.columns, np.repeat(weight, users.counts), minlength=users.width)
    source = target = n
    if similarity != "jaccard":
        n = np.where(n > 0, n, 1.0)
        source, target = n ** (1 - exponent), n**exponent
    kernel = compiled(_co_counts, _sink, keep_best)
    given = (
        items.offsets,
        items.columns,
        users.offsets,
        users.columns,
        weight,
        source,
        target,
        similarity == "jaccard",
        float(shrinkage),
    )
    return _rows(kernel, given, users.width, k)


def scaled_counts(users: Sparse, source: np.ndarray, target: np.ndarray, k: int) -> Sparse:
    r"""The k items j of largest :math:`|U_i \cap U_j| / (a_i b_j)` for each item i, a being `source` and b `target`.

    Args:
        users: [users, N], the items of each user.
        source, target: float [N], positive.

    Returns:
        Sparse [N, N] with positive values, best first in each row.
    """
    items, one = transpose(users), np.ones(users.height)
    scales = (np.ascontiguousarray(x, np.float64) for x in (source, target))
    given = (items.offsets, items.columns, users.offsets, users.columns, one, *scales, False, 0.0)
    return _rows(compiled(_co_counts, _sink, keep_best), given, users.width, k)


def co_visits(
    sessions: Sparse,
    weight: np.ndarray,
    times: np.ndarray | None = None,
    *,
    window: int = 30,
    half_life: float | None = None,
    backward: float = 1.0,
    k: int = 100,
) -> Sparse:
    r"""The k items met most, and soonest, after each item (or, for less, before it) in the same session.

    .. math:: s_{ij} = \sum_{S} w_S \sum_{a, b \in S:\; i_a = i,\, i_b = j,\, 0 < |a - b| \le W}
        2^{-|t_a - t_b| / h}\, \big([a < b] + \beta\, [a > b]\big)

    Args:
        sessions: [sessions, N], the events of each in the order of time; items may come again.
        weight: float [sessions], the :math:`w_S`.
        times: [entries], needed for a half-life.
        window: W, how many events apart two may lie.
        half_life: h; None: time does not matter.
        backward: :math:`\beta`, what a pair counts for the later of its items.

    Returns:
        Sparse [N, N] with positive values, best first in each row.
    """
    at = np.argsort(sessions.columns, kind="stable")  # the events of each item
    offsets = offsets_of(np.bincount(sessions.columns, minlength=sessions.width))
    event = np.arange(len(at))
    low = np.maximum(np.repeat(sessions.offsets[:-1], sessions.counts), event - window)
    high = np.minimum(np.repeat(sessions.offsets[1:], sessions.counts), event + window + 1)
    rate = 0.0 if half_life is None else 1 / half_life
    when = np.zeros(len(at)) if times is None else np.asarray(times, np.float64)
    each = np.repeat(np.asarray(weight, np.float64), sessions.counts)
    kernel = compiled(_co_visits, _sink, keep_best)
    given = (offsets, at, sessions.columns, low, high, each, when, rate, float(backward))
    return _rows(kernel, given, sessions.width, k)


def transitions(visits: Sparse) -> Sparse:
    """How often each item came directly after each other one: ``[N, N]``, columns ascending, weights float32.

    >>> transitions(Sparse(np.array([0, 3, 5]), np.array([2, 4, 2, 2, 4], np.int32), 5)).values
    array([2., 1.], dtype=float32)
    """
    one, other = visits.columns[:-1].astype(np.int64), visits.columns[1:]
    inside = np.diff(visits.rows) == 0
    key, count = np.unique((one * visits.width + other)[inside & (one != other)], return_counts=True)
    row, column = np.divmod(key, visits.width)
    offsets = offsets_of(np.bincount(row, minlength=visits.width))
    return Sparse(offsets, column.astype(np.int32), visits.width, count.astype(np.float32))


def normalise_rows(matrix: Sparse, how: str | None) -> Sparse:
    """Values divided by the sum ("sum") or the largest ("max") of their row; None leaves them.

    An item with many neighbours would otherwise speak louder than the others in a user's history; on Gowalla division by
    the sum is worth a third of Swing's recall.
    """
    if how is None:
        return matrix
    if how not in ("sum", "max"):
        raise unknown("normalisation of rows", how, ("sum", "max", "None"))
    assert matrix.values is not None
    filled = matrix.counts > 0
    scale = np.ones(matrix.height)
    reduce = np.add.reduceat if how == "sum" else np.maximum.reduceat
    scale[filled] = reduce(matrix.values.astype(np.float64), matrix.offsets[:-1][filled])
    return matrix._replace(values=(matrix.values / np.repeat(scale, matrix.counts)).astype(np.float32))


def _rows(kernel, given: tuple, n: int, k: int) -> Sparse:
    """Run a kernel over blocks of items and put the neighbours it keeps into one sparse matrix."""

    def block(begin: int, end: int):
        ids, scores = np.zeros((end - begin, k), np.int32), np.zeros((end - begin, k), np.float32)
        found = np.zeros(end - begin, np.int64)
        kernel(begin, end, *given, ids, scores, found)
        live = np.arange(k) < found[:, None]
        return ids[live], scores[live], found

    ids, scores, found = (np.concatenate(part) for part in zip(*in_blocks(block, n), strict=True))
    return Sparse(offsets_of(found), ids, n, scores)


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _transpose(offsets, columns, at, out):
    for row in range(len(offsets) - 1):
        for p in range(offsets[row], offsets[row + 1]):
            out[at[columns[p]]] = row
            at[columns[p]] += 1


def _swing(begin, end, i_at, i_users, u_at, u_items, weight, alpha, ids, scores, found):
    n = len(i_at) - 1
    total = np.zeros(n)
    met = np.empty(n, np.int32)
    known = np.zeros(n, np.bool_)
    marked = np.zeros(n, np.uint8)  # one byte an item: tens of thousands of items fit into the first cache
    common = np.empty(n + 1, np.int32)
    for i in range(begin, end):
        m = 0
        known[i] = True  # the item itself is in every pair's overlap and not its own neighbour
        for a in range(i_at[i], i_at[i + 1]):
            u = i_users[a]
            for p in range(u_at[u], u_at[u + 1]):
                marked[u_items[p]] = 1
            for b in range(a + 1, i_at[i + 1]):
                v = i_users[b]
                c = 0
                for p in range(u_at[v], u_at[v + 1]):
                    common[c] = u_items[p]  # kept only if the next line counts it: no branch to mispredict
                    c += marked[u_items[p]]
                if c > 1:
                    s = weight[u] * weight[v] / (alpha + c)
                    for p in range(c):
                        j = common[p]
                        if not known[j]:
                            known[j] = True
                            met[m] = j
                            m += 1
                        total[j] += s
            for p in range(u_at[u], u_at[u + 1]):
                marked[u_items[p]] = 0
        found[i - begin] = keep_best(met, m, total, ids[i - begin], scores[i - begin])
        for p in range(m):
            total[met[p]] = 0.0
            known[met[p]] = False
        total[i] = 0.0
        known[i] = False


def _co_counts(begin, end, i_at, i_users, u_at, u_items, weight, source, target, jaccard, lam, ids, scores, found):
    n = len(i_at) - 1
    total = np.zeros(n)
    met = np.empty(n, np.int32)
    known = np.zeros(n, np.bool_)
    for i in range(begin, end):
        m = 0
        known[i] = True
        for a in range(i_at[i], i_at[i + 1]):
            u = i_users[a]
            for p in range(u_at[u], u_at[u + 1]):
                j = u_items[p]
                if not known[j]:
                    known[j] = True
                    met[m] = j
                    m += 1
                total[j] += weight[u]
        for p in range(m):
            j = met[p]
            c = total[j]
            total[j] = c / (source[i] + target[j] - c if jaccard else source[i] * target[j]) * (c / (c + lam))
        found[i - begin] = keep_best(met, m, total, ids[i - begin], scores[i - begin])
        for p in range(m):
            total[met[p]] = 0.0
            known[met[p]] = False
        total[i] = 0.0
        known[i] = False


def _co_visits(begin, end, i_at, events, items, low, high, weight, times, rate, backward, ids, scores, found):
    n = len(i_at) - 1
    total = np.zeros(n)
    met = np.empty(n, np.int32)
    for i in range(begin, end):
        m = 0
        for a in range(i_at[i], i_at[i + 1]):
            e = events[a]
            for f in range(low[e], high[e]):
                j = items[f]
                w = weight[e] * 2.0 ** (-abs(times[e] - times[f]) * rate)
                if f < e:
                    w *= backward
                if j != i and w > 0:
                    if total[j] == 0:
                        met[m] = j
                        m += 1
                    total[j] += w
        found[i - begin] = keep_best(met, m, total, ids[i - begin], scores[i - begin])
        for p in range(m):
            total[met[p]] = 0.0
