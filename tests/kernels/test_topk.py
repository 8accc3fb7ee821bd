"""Exact top-k over sparse rows, and what it is worth, against dense matrices and a sort."""

import math
import subprocess
import sys
import threading

import numpy as np
import pytest

from recstack.kernels.topk import Sparse, evaluate_topk, offsets_of, recommend_from_rows, score_from_rows


def random_rows(rng, height, width, density, values=True):
    table = (
        (rng.random((height, width)) < density) * rng.integers(1, 6, (height, width)) / 4
    )  # sums are exact: ties too
    rows, columns = np.nonzero(table)
    kept = table[rows, columns].astype(np.float32) if values else None
    return Sparse(offsets_of((table > 0).sum(1)), columns.astype(np.int32), width, kept), table


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    return random_rows(rng, 30, 20, 0.2), random_rows(rng, 20, 20, 0.3), random_rows(rng, 30, 20, 0.2, values=False)


@pytest.mark.parametrize("k", [1, 5, 20, 50])
@pytest.mark.parametrize("filters", [False, True])
def test_the_recommended_are_the_best_of_the_dense_product(world, k, filters):
    (history, h), (similar, s), (seen, seen_table) = world
    allowed = np.arange(20) % 3 > 0
    options = {"seen": seen, "allowed": allowed} if filters else {}
    ids, scores, found = recommend_from_rows(history, similar, k, **options)
    full = h @ s
    if filters:
        full *= (seen_table == 0) & allowed
    for r in range(30):
        best = sorted(np.flatnonzero(full[r]), key=lambda j: (-full[r, j], j))[:k]
        assert ids[r].tolist() == best + [0] * (k - len(best))
        np.testing.assert_array_equal(scores[r, : len(best)], full[r, best].astype(np.float32))
        assert found[r] == len(best)
        assert not scores[r, len(best) :].any()


def test_no_weights_are_weights_of_one(world):
    (history, _), (similar, _), _ = world
    plain = history._replace(values=None)
    ones = history._replace(values=np.ones_like(history.values))
    for a, b in zip(recommend_from_rows(plain, similar, 5), recommend_from_rows(ones, similar, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_named_candidates_get_the_scores_of_the_dense_product(world):
    (history, h), (similar, s), _ = world
    ids = np.random.default_rng(1).integers(20, size=(30, 7))
    expected = np.take_along_axis(h @ s, ids, 1).astype(np.float32)
    np.testing.assert_array_equal(score_from_rows(history, similar, ids), expected)


def test_threads_of_a_service_may_ask_at_once(world):
    (history, _), (similar, _), (seen, _) = world
    expected = recommend_from_rows(history, similar, 5, seen=seen)[0]
    answers = []

    def ask():
        answers.extend(recommend_from_rows(history, similar, 5, seen=seen)[0] for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert all((answer == expected).all() for answer in answers)


@pytest.mark.slow
def test_compiled_kernels_are_found_again_on_disk():
    """A kernel whose key on disk changes from process to process is compiled anew each time and never cleaned up."""
    program = (
        "from recstack.kernels import cooccurrence as c, topk as t; import numpy as np\n"
        "users = c.interactions(np.array([0, 0]), np.array([0, 1]), 2, 2); s = c.swing(users, np.ones(2))\n"
        "t.recommend_from_rows(users, s, 1)\n"
        "kernels = (c._swing, c._sink, c.keep_best), (t._recommend, t._sink, t.keep_best)\n"
        "print(sum(sum(t.compiled(*k).stats.cache_misses.values()) for k in kernels))"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert runs[1].stdout.strip() == "0", runs[1].stderr


def test_rows_are_taken_in_the_order_asked(world):
    (history, h), _, _ = world
    part = history.take(np.array([7, 2, 7]))
    table = np.zeros((3, 20))
    table[part.rows, part.columns] = part.values
    np.testing.assert_array_equal(table, h[[7, 2, 7]])


def test_the_last_of_a_row_are_its_newest():
    rows = Sparse(np.array([0, 3, 3, 5]), np.array([4, 1, 3, 2, 0], np.int32), 5)
    newest = rows.last(2)
    assert newest.offsets.tolist() == [0, 2, 2, 4]
    assert newest.columns.tolist() == [1, 3, 2, 0]
    assert rows.last(9).columns.tolist() == rows.columns.tolist()


def test_recall_and_ndcg_by_hand():
    truth = Sparse(np.array([0, 2, 5, 5, 6]), np.array([3, 1, 4, 0, 2, 9], np.int32), 10)
    ids = np.array([[1, 5, 3], [4, 0, 2], [1, 2, 3], [9, 9, 9]])
    recall, ndcg = evaluate_topk(ids, truth, found=np.array([3, 2, 3, 0]))
    a, b, c = 1, 1 / math.log2(3), 1 / 2
    np.testing.assert_allclose(recall, [1, 2 / 3, math.nan, 0])
    np.testing.assert_allclose(ndcg, [(a + c) / (a + b), (a + b) / (a + b + c), math.nan, 0])


def test_the_ideal_list_is_no_longer_than_the_list():
    truth = Sparse(np.array([0, 4]), np.array([0, 1, 2, 3], np.int32), 5)
    recall, ndcg = evaluate_topk(np.array([[3, 0]]), truth)
    assert (recall[0], ndcg[0]) == (0.5, 1.0)
    nothing = Sparse(np.array([0, 0]), np.zeros(0, np.int32), 5)
    assert np.isnan(evaluate_topk(np.array([[3, 0]]), nothing)).all()
