"""Look-ups of ids: compiled and plain forms agree, at the edges of int64 too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.data.vocabulary import Vocabulary
from recstack.kernels import lookup

EDGE = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9), st.sampled_from([-(2**63), 2**63 - 1]))


@given(st.lists(EDGE, min_size=1, max_size=30, unique=True), st.lists(EDGE, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_hash_table_finds_what_a_dict_finds(keys, asked):
    ids = np.arange(2, len(keys) + 2, dtype=np.int32)
    table = lookup.build(np.array(keys, np.int64), ids)
    due = dict(zip(keys, ids.tolist(), strict=True))
    values = np.array(keys + asked, np.int64)
    assert lookup.hashed(values, *table, 1).tolist() == [due.get(v, 1) for v in values.tolist()]


def test_many_keys_with_one_hash_are_still_found():
    keys = np.arange(4000, dtype=np.int64) << 40
    table = lookup.build(keys, np.arange(1, 4001, dtype=np.int32))
    assert np.array_equal(lookup.hashed(keys, *table, 0), np.arange(1, 4001))
    assert not lookup.hashed(keys + 1, *table, 0).any()


@pytest.mark.parametrize("low", [-(2**63), -5, 2**63 - 40])
def test_the_compiled_table_is_the_plain_one(low):
    table = np.arange(2, 42, dtype=np.int32)
    chance = np.random.default_rng(0)
    values = np.concatenate([chance.integers(-(2**63), 2**63 - 1, lookup.SMALL), low + np.arange(40), [2**63 - 1]])
    found = lookup.dense(values, low, table, 1)
    assert np.array_equal(found, lookup.dense_plain(values, low, table, 1))
    assert np.array_equal(found[-41:-1], table)


def test_a_vocabulary_gives_the_same_ids_for_few_values_and_for_many():
    chance = np.random.default_rng(0)
    values = np.unique(chance.integers(-(2**62), 2**62, 5000))
    for words in (Vocabulary(values), Vocabulary(values[:4000]).grown(chance.permutation(values))):
        asked = np.concatenate([words.values, chance.integers(-(2**62), 2**62, 20_000)])
        many = words.ids(asked)
        assert np.array_equal(many[: len(values)], np.arange(2, len(values) + 2))
        assert np.array_equal(many, np.concatenate([words.ids(part) for part in np.array_split(asked, 10)]))
