"""Stochastic gradient descent over factors, one example after the other: what batches of tensors only approximate.

A step touches three short rows, so that one thread of plain loops does millions in a second; the order of the examples
and what is drawn follow the seed and nothing else.
"""

from __future__ import annotations

import numpy as np

from recstack.kernels.als import fast
from recstack.kernels.topk import Sparse


def rating_epoch(
    ratings: Sparse,
    order: np.ndarray,
    mean: float,
    biases: tuple[np.ndarray, np.ndarray],
    factors: tuple[np.ndarray, np.ndarray],
    feedback: np.ndarray | None,
    lr: float,
    l2: float,
) -> None:
    r"""One epoch of biased matrix factorisation, or of SVD++ where `feedback` is given; everything in place.

    .. math:: e = r - \mu - b_u - b_i - q_i^\top z, \quad z = p_u + |N_u|^{-1/2} \sum_{j \in N_u} y_j, \quad
        \theta \leftarrow \theta + \gamma\, (e\, \partial \hat r / \partial \theta - \lambda \theta)

    The ratings of a user follow each other. All :math:`y_j` of a user move alike, by a factor and a sum that are kept aside
    until the user's last rating: a step of SVD++ costs the dimension, not the dimension times the history, and comes to the
    same. N_u: the items of the row.

    Args:
        ratings: [U, N], with values.
        order: the rows, in the order in which they are visited.
        biases: float32 [U] and [N].
        factors: float32 [U, D] and [N, D].
        feedback: float32 [N, D], the y; or None.
    """
    assert ratings.values is not None
    y = np.zeros((0, factors[0].shape[1]), np.float32) if feedback is None else feedback
    given = (order, ratings.offsets, ratings.columns, ratings.values, mean, *biases, *factors, y)
    fast(_rating_epoch)(*given, np.float32(lr), np.float32(l2))


def bpr_epoch(
    rows: Sparse,
    users: np.ndarray,
    by_user: bool,
    seed: int,
    factors: tuple[np.ndarray, np.ndarray],
    lr: float,
    l2: float,
    drawn: int = 1,
) -> float:
    r"""As many steps of BPR as there are interactions, in place; gives the mean loss without the penalty.

    .. math:: \theta \leftarrow \theta + \gamma\, \Big(\sigma(-x)\, \frac{\partial x}{\partial \theta} - \lambda \theta\Big),
        \qquad x = p_u^\top (q_i - q_j)

    Args:
        rows: [U, N], the items of each user, ascending.
        users: int32 [entries], the row of each entry.
        by_user: draw a user uniformly, then one of their items; otherwise one of all interactions.
        seed: of the draws; j is uniform over the items from 2 on that the user has not.
        factors: float32 [U, D] and [N, D].
        drawn: how many items, of which the one with the highest score that the user has not is j.
    """
    live = np.flatnonzero(rows.counts).astype(np.int32)
    given = (rows.offsets, rows.columns, users, live, by_user, np.uint64(seed), rows.width, *factors)
    return float(fast(_bpr_epoch)(*given, np.float32(lr), np.float32(l2), drawn))


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------


def _rating_epoch(order, at, items, values, mean, user_bias, item_bias, p, q, y, lr, l2):
    d = p.shape[1]
    one = np.float32(1)
    z, total, moved = np.zeros(d, np.float32), np.zeros(d, np.float32), np.zeros(d, np.float32)
    feedback = len(y) > 0
    keep = one - lr * l2
    for o in range(len(order)):
        u = order[o]
        n = at[u + 1] - at[u]
        if n == 0:
            continue
        norm = np.float32(1 / np.sqrt(n)) if feedback else np.float32(0)
        scale = one  # y_j is scale * y_j + moved, and total is the sum of these
        total[:] = 0
        moved[:] = 0
        if feedback:
            for a in range(at[u], at[u + 1]):
                yj = y[items[a]]
                for k in range(d):
                    total[k] += yj[k]
        pu = p[u]
        for a in range(at[u], at[u + 1]):
            i = items[a]
            qi = q[i]
            s = np.float32(0)
            for k in range(d):
                z[k] = pu[k] + norm * total[k]
                s += qi[k] * z[k]
            e = np.float32(values[a] - (mean + user_bias[u] + item_bias[i] + s))
            user_bias[u] += lr * (e - l2 * user_bias[u])
            item_bias[i] += lr * (e - l2 * item_bias[i])
            push = lr * e * norm
            for k in range(d):
                before = qi[k]
                qi[k] += lr * (e * z[k] - l2 * before)
                pu[k] += lr * (e * before - l2 * pu[k])
                total[k] = keep * total[k] + n * push * before
                moved[k] = keep * moved[k] + push * before
            scale *= keep
        if feedback:
            for a in range(at[u], at[u + 1]):
                yj = y[items[a]]
                for k in range(d):
                    yj[k] = scale * yj[k] + moved[k]


def _bpr_epoch(at, items, users, live, by_user, seed, width, p, q, lr, l2, drawn):
    d = p.shape[1]
    state = seed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    a, c, high, half = np.uint64(6364136223846793005), np.uint64(1442695040888963407), np.uint64(32), np.uint64(32)
    total = 0.0
    steps = 0
    for _ in range(len(items)):
        state = state * a + c  # the upper half of a linear congruence, as fractions of the range
        if by_user:
            u = live[((state >> high) * np.uint64(len(live))) >> half]
            state = state * a + c
            i = items[at[u] + np.int64(((state >> high) * np.uint64(at[u + 1] - at[u])) >> half)]
        else:
            e = ((state >> high) * np.uint64(len(items))) >> half
            u, i = users[e], items[e]
        begin, end = at[u], at[u + 1]
        if end - begin >= width - 2:
            continue  # has every item
        pu, qi, j, most = p[u], q[i], np.int32(0), np.float32(-np.inf)
        left = drawn
        while left:
            state = state * a + c
            other = np.int32(2 + np.int64(((state >> high) * np.uint64(width - 2)) >> half))
            score = np.float32(0)
            if drawn > 1:
                qj = q[other]
                for k in range(d):
                    score += pu[k] * qj[k]
                if (
                    j and not score > most
                ):  # is not j, whether it is the user's or not: most draws are never searched for
                    left -= 1
                    continue
            low, top = begin, end
            while low < top:
                middle = (low + top) >> 1
                if items[middle] < other:
                    low = middle + 1
                else:
                    top = middle
            if low < end and items[low] == other:
                continue
            left -= 1
            j, most = (
                other,
                score,
            )  # the first whatever its score: those that are not finite must not move the padding row
        qj = q[j]
        x = np.float32(0)
        for k in range(d):
            x += pu[k] * (qi[k] - qj[k])
        wrong = np.exp(-abs(x))
        total += np.log1p(wrong) + max(-x, np.float32(0))
        steps += 1
        g = np.float32((wrong if x > 0 else np.float32(1)) / (np.float32(1) + wrong))
        for k in range(d):
            before = pu[k]
            gap = qi[k] - qj[k]
            pu[k] += lr * (g * gap - l2 * before)
            qi[k] += lr * (g * before - l2 * qi[k])
            qj[k] += lr * (-g * before - l2 * qj[k])
    return total / max(steps, 1)
