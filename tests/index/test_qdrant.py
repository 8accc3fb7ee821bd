"""Qdrant in memory against exact search: filters, several interests, items that come and go, saving."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from recstack import bundle
from recstack.errors import ConfigError
from recstack.index import Exact, Qdrant


def world(interests=None, seed=0):
    chance = torch.Generator().manual_seed(seed)
    vectors, ids = torch.randn(300, 8, generator=chance), torch.randperm(900, generator=chance)[:300] + 1
    shape = (12,) if interests is None else (12, interests)
    seen = [torch.randperm(900, generator=chance)[: 40 * (r % 3)] for r in range(12)]
    offsets = np.cumsum([0, *map(len, seen)])
    return vectors, ids, torch.randn(*shape, 8, generator=chance), (offsets, torch.cat(seen))


def same(index, exact, queries, k=10, **filters):
    (ids, score), (wanted, best) = index.search(queries, k, **filters), exact.search(queries, k, **filters)
    torch.testing.assert_close(score, best)
    assert torch.equal(ids, wanted)
    return ids


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(
        ConfigError, match=r"Qdrant needs qdrant-client; install it with: pip install 'recstack\[qdrant\]'"
    ):
        Qdrant()


@pytest.fixture
def index():
    pytest.importorskip("qdrant_client", reason="needs qdrant-client: pip install 'recstack[qdrant]'")
    return Qdrant()


@pytest.mark.parametrize("interests", [None, 3])
@pytest.mark.parametrize("share", [None, 0.7, 0.05])
def test_search_is_exact_search_and_filters_cost_no_places(index, interests, share):
    vectors, ids, queries, seen = world(interests)
    index.build(vectors, ids)
    exact = Exact().build(vectors, ids)
    where = None if share is None else torch.rand(1000, generator=torch.Generator().manual_seed(1)) < share
    same(index, exact, queries, where=where)
    found = same(index, exact, queries, where=where, exclude=seen)
    allowed = ids if where is None else ids[where[ids]]
    for row in range(12):
        barred = seen[1][seen[0][row] : seen[0][row + 1]]
        assert int((found[row] > 0).sum()) == min(10, int((~torch.isin(allowed, barred)).sum()))
    by_ids = ids[:4]
    assert same(index, exact, queries, where=by_ids).unique().tolist() == sorted([0, *by_ids.tolist()])


def test_items_come_and_go(index):
    vectors, ids, queries, _ = world()
    index.build(vectors[:200], ids[:200])
    exact = Exact().build(vectors[:200], ids[:200])
    for each in (index, exact):
        each.add(vectors[200:], ids[200:])
        assert each.remove(torch.cat([ids[:180], torch.tensor([10**6])])) == 180
        each.add(-vectors[190:200], ids[190:200])  # replaced
    same(index, exact, queries)
    assert len(index) == 120
    assert index._client.count("items").count == 120


def test_a_bundle_fills_a_collection_again(index, tmp_path):
    vectors, ids, queries, _ = world()
    index.build(vectors, ids)
    index.remove(ids[:20])
    bundle.write(tmp_path / "b", {"index": index.to_piece()})
    again = Qdrant.from_piece(bundle.read(tmp_path / "b").piece("index"))
    same(again, index, queries)
    assert "url" not in index.to_piece().config  # a file never says where to connect to
