"""Similarities counted from histories, against loops that a reader can check."""

from itertools import combinations

import numpy as np
import pytest
import torch

from recstack.errors import ConfigError
from recstack.kernels.cooccurrence import active, co_counts, interactions, normalise_rows, sample, swing, transpose
from recstack.kernels.topk import Sparse


def world(seed=0, users=40, items=25, events=300):
    rng = np.random.default_rng(seed)
    return interactions(rng.integers(users, size=events), rng.integers(items, size=events) ** 2 // items, users, items)


def sets(matrix: Sparse) -> list[set[int]]:
    return [set(matrix.columns[a:b].tolist()) for a, b in zip(matrix.offsets[:-1], matrix.offsets[1:], strict=True)]


def dense(matrix: Sparse) -> np.ndarray:
    table = np.zeros((matrix.height, matrix.width))
    table[matrix.rows, matrix.columns] = 1 if matrix.values is None else matrix.values
    return table


def slow_swing(users: Sparse, weight, alpha):
    """The formula, pair of users by pair of users, written symmetrically."""
    items = sets(users)
    table = np.zeros((users.width, users.width))
    for u, v in combinations(range(users.height), 2):
        common = items[u] & items[v]
        for i in common:
            for j in common - {i}:
                table[i, j] += weight[u] * weight[v] / (alpha + len(common))
    return table


def best_per_row(table, k):
    """The k largest of each row, smaller ids first among equals; nothing else survives."""
    kept = np.zeros_like(table)
    for i, row in enumerate(table):
        best = sorted(np.flatnonzero(row), key=lambda j: (-np.float32(row[j]), j))[:k]
        kept[i, best] = row[best]
    return kept


@pytest.mark.parametrize(("alpha", "k"), [(1.0, 100), (0.0, 3), (5.0, 1)])
def test_swing_is_the_sum_over_pairs_of_users(alpha, k):
    users = world()
    weight = (2 + users.counts) ** -0.7
    found = swing(users, weight, alpha=alpha, k=k)
    np.testing.assert_allclose(dense(found), best_per_row(slow_swing(users, weight, alpha), k), rtol=1e-6)


def test_swing_by_hand():
    users = interactions(np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 0, 1, 0, 2]), 3, 3)
    one_pair = 1 / (1 + 2)  # users 0 and 1 share {0, 1}, users 0 and 2 share {0, 2}, users 1 and 2 share only {0}
    np.testing.assert_allclose(
        dense(swing(users, np.ones(3))), [[0, one_pair, one_pair], [one_pair, 0, 0], [one_pair, 0, 0]], rtol=1e-6
    )


def test_swing_does_not_depend_on_the_names_of_users_or_on_threads():
    users = world(1, users=300, items=200, events=4000)
    weight = users.counts.clip(1) ** -0.5
    first = swing(users, weight, k=7)
    shuffled = np.random.default_rng(0).permutation(users.height)
    again = swing(users.take(shuffled), weight[shuffled], k=7)
    np.testing.assert_allclose(dense(first), dense(again), rtol=1e-6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for a, b in zip(first, swing(users, weight, k=7), strict=True):
            np.testing.assert_array_equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_swing_of_a_capped_item_is_the_sum_over_its_sample():
    users = world(2)
    found = swing(users, np.ones(users.height), max_users=4, seed=3)
    again = swing(users, np.ones(users.height), max_users=4, seed=3)
    np.testing.assert_array_equal(dense(found), dense(again))
    full = slow_swing(users, np.ones(users.height), 1.0)
    few = transpose(users).counts <= 4
    np.testing.assert_allclose(dense(found)[few], full[few], rtol=1e-6)
    assert (dense(found) <= full * (1 + 1e-6)).all()
    assert 0 < dense(found).sum() < full.sum()


@pytest.mark.parametrize("exponent", [0.0, 0.2, 0.5, 1.0])
def test_cosine_is_a_product_of_matrices(exponent):
    users = world()
    weight = users.counts.clip(1) ** -0.5
    r = dense(users)
    n = np.maximum(r.sum(0), 1)
    full = (r * weight[:, None]).T @ r / (n[:, None] ** (1 - exponent) * n**exponent)
    np.fill_diagonal(full, 0)
    for k in (1, 4, 100):
        found = co_counts(users, weight, exponent=exponent, k=k)
        np.testing.assert_allclose(dense(found), best_per_row(full, k), rtol=1e-6)


def test_jaccard_is_intersection_over_union_of_users():
    users = world(3)
    who = sets(transpose(users))
    full = np.array([[len(a & b) / max(len(a | b), 1) for b in who] for a in who])
    np.fill_diagonal(full, 0)
    np.testing.assert_allclose(dense(co_counts(users, np.ones(40), similarity="jaccard")), full, rtol=1e-6)


def test_an_unknown_similarity_is_named():
    with pytest.raises(ConfigError, match=r"'cosin'. Did you mean 'cosine'"):
        co_counts(world(), np.ones(40), similarity="cosin")
    with pytest.raises(ConfigError, match="Unknown normalisation of rows 'mean'"):
        normalise_rows(co_counts(world(), np.ones(40)), "mean")


def test_rows_are_best_first_and_hold_neither_themselves_nor_a_neighbour_twice():
    for found in (swing(world(), np.ones(40), k=9), co_counts(world(), np.ones(40), k=9)):
        for i, (a, b) in enumerate(zip(found.offsets[:-1], found.offsets[1:], strict=True)):
            assert found.values is not None
            ids, values = found.columns[a:b], found.values[a:b]
            assert i not in ids
            assert len(set(ids.tolist())) == len(ids) <= 9
            assert (np.diff(values) <= 0).all()
            assert (np.diff(ids)[np.diff(values) == 0] > 0).all()


def test_normalised_rows_sum_or_peak_at_one():
    found = swing(world(), np.ones(40))
    full = found.counts > 0
    assert not full.all()  # an empty row stays empty
    np.testing.assert_allclose(dense(normalise_rows(found, "sum")).sum(1), full, rtol=1e-5)
    np.testing.assert_allclose(dense(normalise_rows(found, "max")).max(1), full, rtol=1e-6)
    assert normalise_rows(found, None) is found


def test_interactions_keep_each_pair_once_in_the_order_of_time():
    rng = np.random.default_rng(5)
    row, column, time = rng.integers(6, size=200), rng.integers(9, size=200), rng.integers(50, size=200)
    plain, ordered = interactions(row, column, 6, 9), interactions(row, column, 6, 9, time)
    for r in range(6):
        last = {}
        for t, c in sorted((t, c) for q, c, t in zip(row, column, time, strict=True) if q == r):
            last[c] = t
        mine = ordered.columns[ordered.offsets[r] : ordered.offsets[r + 1]]
        assert sorted(mine) == sorted(last) == plain.columns[plain.offsets[r] : plain.offsets[r + 1]].tolist()
        assert (np.diff([last[c] for c in mine]) >= 0).all()


def test_transposing_twice_gives_the_rows_back():
    users = world()
    assert (dense(transpose(users)) == dense(users).T).all()
    np.testing.assert_array_equal(transpose(transpose(users)).columns, users.columns)


def test_a_sample_is_a_part_of_each_long_row_and_all_of_each_short_one():
    users = world()
    drawn = sample(users, 5, seed=1)
    np.testing.assert_array_equal(drawn.counts, users.counts.clip(max=5))
    assert all(a <= b for a, b in zip(sets(drawn), sets(users), strict=True))
    assert sets(drawn) != sets(sample(users, 5, seed=2))


def test_a_sample_is_uniform():
    row = interactions(np.zeros(10, int), np.arange(10), 1, 10)
    times = np.sum([dense(sample(row, 4, seed))[0] for seed in range(2000)], axis=0)
    assert np.abs(times - 800).max() < 5 * np.sqrt(2000 * 0.4 * 0.6)


def test_inactive_and_overactive_users_fall_silent():
    users = world()
    heard = active(users, 3, 8)
    for mine, all_mine in zip(sets(heard), sets(users), strict=True):
        assert mine == (all_mine if 3 <= len(all_mine) <= 8 else set())
    assert active(users, 0, None).columns.tolist() == users.columns.tolist()


def test_no_interactions_give_no_neighbours():
    none = interactions(np.zeros(0, int), np.zeros(0, int), 3, 4)
    for found in (swing(none, np.ones(3)), co_counts(none, np.ones(3)), normalise_rows(swing(none, np.ones(3)), "sum")):
        assert found.counts.tolist() == [0] * 4
