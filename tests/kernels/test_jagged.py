"""Jagged kernels against plain loops, compiled and not."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.kernels import jagged

ROWS = st.lists(st.lists(st.integers(1, 50), max_size=6), max_size=12)


@pytest.fixture(params=["numpy", "compiled"], autouse=True)
def road(request, monkeypatch):
    """Both roads answer every test."""
    monkeypatch.setattr(jagged, "SMALL", 1 << 40 if request.param == "numpy" else 0)
    return request.param


def packed(rows):
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    return np.array([x for r in rows for x in r], np.int32), offsets


@given(ROWS, st.randoms())
@settings(max_examples=60, deadline=None)
def test_gather_is_the_lists_one_after_another(rows, random):
    values, offsets = packed(rows)
    index = np.array([random.randrange(len(rows)) for _ in range(7)] if rows else [], np.int64)
    flat, bounds = jagged.gather(values, offsets[:-1][index], offsets[1:][index])
    assert [flat[a:b].tolist() for a, b in pairwise(bounds)] == [rows[i] for i in index]
    assert flat.dtype == np.int32


@given(ROWS, st.one_of(st.none(), st.integers(0, 8)))
@settings(max_examples=60, deadline=None)
def test_pad_is_the_lists_filled_with_zeros(rows, width):
    out = jagged.pad(*packed(rows), width)
    width = max(map(len, rows), default=0) if width is None else width
    assert out.tolist() == [(r + [0] * width)[:width] for r in rows]


def test_pad_of_a_part_of_a_larger_array():
    assert jagged.pad(np.arange(10), np.array([3, 5, 6])).tolist() == [[3, 4], [5, 0]]


@given(st.lists(st.sets(st.integers(1, 20), max_size=8), min_size=1, max_size=8), st.randoms())
@settings(max_examples=60, deadline=None)
def test_contains_is_membership(rows, random):
    members, offsets = packed([sorted(r) for r in rows])
    which = np.array([random.randrange(len(rows)) for _ in range(5)])
    values = np.array([[random.randint(1, 20) for _ in range(4)] for _ in range(5)], np.int32)
    found = jagged.contains(which, values, offsets, members)
    assert found.tolist() == [[v in rows[w] for v in line] for w, line in zip(which, values.tolist(), strict=True)]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
@settings(max_examples=60, deadline=None)
def test_distinct_is_the_set_in_order(values):
    assert jagged.distinct(np.array(values, np.int64)).tolist() == sorted(set(values))
