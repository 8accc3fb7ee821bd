"""Indexes: the exact one by loops, the approximate ones against the exact one, filters that never cost places."""

from __future__ import annotations

import gzip
import sys

import numpy as np
import pytest
import torch

from recstack import bundle
from recstack.errors import BundleError, ConfigError, DataError
from recstack.index import Exact, Faiss, Rows

KINDS = {
    "exact": Exact,
    "hnsw": lambda: Faiss("hnsw", effort=200),
    "ivf": lambda: Faiss("ivf", effort=24),
    "ivf_pq": lambda: Faiss("ivf_pq", effort=32, code=6),
}


@pytest.fixture(params=KINDS)
def index(request):
    return KINDS[request.param]()


def world(items=1500, requests=30, interests=None, dim=12, seed=0):
    """Clustered item vectors of different lengths under shuffled ids, and queries near the clusters."""
    chance = torch.Generator().manual_seed(seed)
    centre = torch.randn(40, dim, generator=chance)
    vectors = centre[torch.randint(40, (items,), generator=chance)] + 0.5 * torch.randn(items, dim, generator=chance)
    vectors *= 0.5 + torch.rand(items, 1, generator=chance)
    ids = torch.randperm(3 * items, generator=chance)[:items] + 1
    shape = (requests,) if interests is None else (requests, interests)
    queries = centre[torch.randint(40, shape, generator=chance)] + 0.3 * torch.randn(*shape, dim, generator=chance)
    return vectors, ids, queries


def naive(vectors, ids, query, k, barred=(), allowed=None):
    """[(id, score)] of one request: query [D] or [K, D]."""
    score = (vectors.double() @ query.double().reshape(-1, query.shape[-1]).T).amax(1)
    found = [
        (int(item), float(s))
        for item, s in zip(ids, score, strict=True)
        if int(item) not in barred and (allowed is None or int(item) in allowed)
    ]
    return sorted(found, key=lambda pair: -pair[1])[:k]


def csr(lists):
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return offsets, np.array([item for row in lists for item in row], dtype=np.int32)


@pytest.mark.parametrize("interests", [None, 1, 3])
@pytest.mark.parametrize("share", [None, 0.7, 0.02])
def test_exact_search_is_the_loop(interests, share):
    vectors, ids, queries = world(interests=interests)
    seen = [[int(i) for i, _ in naive(vectors, ids, q, 5 * (r % 3))] + [0, 10**9] for r, q in enumerate(queries)]
    allowed = None if share is None else ids[: int(share * len(ids))]
    found, score = Exact().build(vectors, ids).search(queries, 10, exclude=csr(seen), where=allowed)
    for r, query in enumerate(queries):
        expected = naive(vectors, ids, query, 10, set(seen[r]), None if allowed is None else set(allowed.tolist()))
        assert found[r].tolist() == [item for item, _ in expected]
        assert score[r].tolist() == pytest.approx([s for _, s in expected], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf_pq"])
@pytest.mark.parametrize("interests", [None, 3])
@pytest.mark.parametrize("share", [None, 0.5, 0.15])
def test_approximate_search_is_nearly_exact(kind, interests, share):
    vectors, ids, queries = world(interests=interests)
    index = KINDS[kind]().build(vectors, ids)
    where = None if share is None else torch.rand(5000, generator=torch.Generator().manual_seed(1)) < share
    seen = csr([[int(i) for i, _ in naive(vectors, ids, q, 8)] for q in queries])
    assert index.recall(queries, 20, where=where) > 0.95
    assert index.recall(queries, 20, where=where, exclude=seen) > 0.95
    found, score = index.search(queries, 20, where=where, exclude=seen)
    for r in range(len(queries)):
        got = found[r].tolist()
        assert len(set(got)) == 20
        assert not set(got) & set(seen[1][seen[0][r] : seen[0][r + 1]].tolist())
        assert where is None or bool(where[found[r]].all())
        expected = dict(naive(vectors, ids, queries[r], len(ids)))
        assert score[r].tolist() == pytest.approx([expected[item] for item in got], rel=1e-5)
        assert score[r].tolist() == sorted(score[r].tolist(), reverse=True)


def test_filters_never_cost_places_that_could_be_filled(index):
    vectors, ids, queries = world()
    index.build(vectors, ids)
    for allowed in (4, 10, 200, 800):
        where = ids[:allowed]
        heavy = csr([where[: (r * allowed) // len(queries)].tolist() for r in range(len(queries))])
        found, score = index.search(queries, 10, where=where, exclude=heavy)
        for r in range(len(queries)):
            there = allowed - (r * allowed) // len(queries)
            assert int((found[r] > 0).sum()) == min(10, there)
            assert torch.equal(found[r] > 0, score[r] > -torch.inf)


def test_bool_and_listed_filters_are_the_same(index):
    vectors, ids, queries = world()
    index.build(vectors, ids)
    where = torch.zeros(int(ids.max()) + 1, dtype=torch.bool)
    where[ids[:600]] = True
    by_mask, by_list = index.search(queries, 10, where=where), index.search(queries, 10, where=ids[:600])
    assert torch.equal(by_mask[0], by_list[0])


def test_adding_and_removing_is_building_anew(index):
    vectors, ids, queries = world()
    index.build(vectors[:1000], ids[:1000])
    index.add(vectors[1000:], ids[1000:])
    index.add(-vectors[:50], ids[:50])  # new vectors for items that are there
    assert index.remove(torch.cat([ids[200:400], torch.tensor([999_999])])) == 200
    assert len(index) == 1300
    now = torch.cat([-vectors[:50], vectors[50:200], vectors[400:]])
    fresh = Exact().build(now, torch.cat([ids[:200], ids[400:]]))
    assert set(index.ids.tolist()) == set(fresh.ids.tolist())
    found, expected = index.search(queries, 10)[0], fresh.search(queries, 10)[0]
    assert (found == expected).float().mean() > 0.97
    assert not np.isin(found, ids[200:400]).any()
    assert index.recall(queries, 10) > 0.97


def test_removing_most_and_all(index):
    vectors, ids, queries = world()
    index.build(vectors, ids)
    index.remove(ids[5:])
    found, _ = index.search(queries, 10)
    assert all(set(row.tolist()) == {0, *ids[:5].tolist()} for row in found)
    index.remove(ids)
    assert len(index) == 0
    assert index.search(queries, 3)[0].tolist() == [[0, 0, 0]] * len(queries)
    index.add(vectors[:4], ids[:4])
    assert set(index.search(queries[:1], 4)[0][0].tolist()) == set(ids[:4].tolist())


def test_an_empty_index_finds_nothing(index):
    found, score = index.search(torch.randn(2, 5), 3)
    assert found.tolist() == [[0, 0, 0]] * 2
    assert (score == -torch.inf).all()
    assert index.build(torch.zeros(0, 5), torch.zeros(0)).search(torch.randn(2, 5), 1)[0].tolist() == [[0], [0]]


def test_no_requests(index):
    vectors, ids, queries = world()
    assert index.build(vectors, ids).search(queries[:0], 7, exclude=([0], []))[0].shape == (0, 7)


def test_more_places_than_items(index):
    vectors, ids, queries = world(items=4)
    found, score = index.build(vectors, ids).search(queries, 6)
    assert (found[:, 4:] == 0).all()
    assert (score[:, 4:] == -torch.inf).all()
    assert (found[:, :4].sort(1).values == ids.sort().values).all()


def test_requests_do_not_touch_each_other(index):
    vectors, ids, queries = world()
    index.build(vectors, ids)
    together = index.search(queries, 10)
    for r in range(3):
        alone = index.search(queries[r : r + 1], 10)
        assert torch.equal(alone[0][0], together[0][r])
        torch.testing.assert_close(alone[1][0], together[1][r])


def test_an_index_does_not_change_with_the_tensor_it_was_built_from(index):
    vectors, ids, queries = world()
    index.build(vectors, ids)
    before = index.search(queries, 10)
    vectors.zero_()
    ids.zero_()
    assert torch.equal(index.search(queries, 10)[0], before[0])


def test_saved_and_loaded_it_answers_to_the_bit(index, tmp_path):
    vectors, ids, queries = world()
    index.build(vectors, ids)
    index.remove(ids[:100])
    bundle.write(tmp_path / "b", {"index": index.to_piece()})
    piece = bundle.read(tmp_path / "b").piece("index")
    back = bundle.resolve(piece.class_path).from_piece(piece)
    assert back.config() == index.config()
    for one, other in zip(index.search(queries, 10), back.search(queries, 10), strict=True):
        assert torch.equal(one, other)
    back.add(vectors[:100], ids[:100])
    assert back.recall(queries, 10) > 0.95


def test_an_empty_index_is_saved_and_loaded(index):
    assert len(type(index).from_piece(index.to_piece())) == 0


def test_a_faiss_piece_that_does_not_fit_is_refused():
    vectors, ids, _ = world(items=100)
    piece = Faiss().build(vectors, ids).to_piece()
    with pytest.raises(BundleError, match="100 vectors for 99 items"):
        Faiss.from_piece(bundle.Piece(piece.class_path, piece.config, {**piece.tensors, "ids": ids[1:]}))


def test_wrong_vectors_are_named(index):
    vectors, ids, queries = world(items=50)
    with pytest.raises(DataError, match="differ"):
        index.build(vectors, torch.ones(50))
    with pytest.raises(DataError, match="positive"):
        index.build(vectors, torch.arange(50))
    with pytest.raises(DataError, match=r"\[50, 12\] and ids \[49\]"):
        index.build(vectors, ids[1:])
    broken = vectors.clone()
    broken[7, 3] = float("nan")
    with pytest.raises(DataError, match=f"1 items .first: id {int(ids[7])}"):
        index.build(broken, ids)
    index.build(vectors, ids)
    with pytest.raises(DataError, match="of 12 numbers; these have 3"):
        index.add(torch.randn(1, 3), torch.tensor([1000]))
    with pytest.raises(DataError, match=r"give \[R, 12\]"):
        index.search(torch.randn(2, 3), 5)
    with pytest.raises(DataError, match="NaN"):
        index.search(torch.full((2, 12), float("nan")), 5)
    with pytest.raises(DataError, match="2 offsets for 30 requests"):
        index.search(queries, 5, exclude=([0, 0], []))
    with pytest.raises(DataError, match="where covers the item ids below 3"):
        index.search(queries, 5, where=torch.ones(3, dtype=torch.bool))
    with pytest.raises(DataError, match="where is"):
        index.search(queries, 5, where=torch.ones(30, 30, dtype=torch.bool))


def test_faiss_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'recstack\[index\]'"):
        Faiss()


def test_an_unknown_kind_is_guessed():
    with pytest.raises(ConfigError, match="Did you mean 'hnsw'"):
        Faiss("hnws")


@pytest.mark.real_data
@pytest.mark.parametrize(("kind", "band"), [("hnsw", 0.98), ("ivf", 0.9)])
def test_recall_on_sift_vectors(data_dir, kind, band):
    with gzip.open(data_dir / "ann-sift-5k" / "sift-dataset-5k.tsv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter="\t")[:, :128].astype(np.float32)
    vectors = torch.nn.functional.normalize(torch.from_numpy(table), dim=1)
    index = Faiss(kind, effort=16 if kind == "ivf" else 128).build(vectors, torch.arange(1, len(vectors) + 1))
    assert index.recall(vectors[:200], 50) > band


# -- rows of fewer bits -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [5, 8, 12])
def test_rows_are_their_formulas(dim):
    vectors = torch.randn(20, dim, generator=torch.Generator().manual_seed(0))
    for kind in ("float32", "int8", "binary"):
        rows = Rows.of(vectors[:15], kind).append(vectors[15:])
        slow = torch.empty(20, dim)
        for r, x in enumerate(vectors):
            if kind == "int8":
                step = max(abs(float(v)) for v in x) / 127
                slow[r] = torch.tensor([round(float(v) / step) * step for v in x])
            elif kind == "binary":
                length = sum(abs(float(v)) for v in x) / dim
                slow[r] = torch.tensor([length if v > 0 else -length for v in x])
            else:
                slow[r] = x
        torch.testing.assert_close(rows[:], slow)
        torch.testing.assert_close(rows.products(vectors[:3]), vectors[:3] @ slow.T)
        again = Rows.from_tensors(kind, rows.select(torch.arange(4)).tensors())
        torch.testing.assert_close(again[:], slow[:4])
    assert Rows.of(vectors, "binary").codes.numel() == 20 * -(-dim // 8)


def test_the_recall_of_a_new_index_is_measured_against_the_given_vectors():
    vectors, ids, queries = world(dim=32)
    found = {kind: Exact(kind).build(vectors, ids, queries).measured for kind in ("float32", "int8", "binary")}
    assert found["float32"] is None
    assert found["int8"] > 0.95
    assert 0.2 < found["binary"] < found["int8"]
    pq = Faiss("ivf_pq", effort=32, rows="int8").build(vectors, ids, queries)
    _, score = Exact("int8").build(vectors, ids).search(queries, 10)
    assert pq.measured > 0.85
    assert pq.search(queries, 10)[1][:, 0].tolist() == pytest.approx(score[:, 0].tolist(), rel=1e-5)
    true = Exact().build(vectors, ids).search(queries, 10)[0]
    own = Exact("binary").build(vectors, ids, queries).search(queries, 10)[0]
    loop = np.mean([len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(own, true, strict=True)])
    assert found["binary"] == pytest.approx(loop, abs=1e-6)


@pytest.mark.parametrize("make", [lambda: Exact("int8"), lambda: Exact("binary"), lambda: Faiss("ivf_pq", rows="int8")])
def test_rows_of_fewer_bits_are_saved_as_they_are(make, tmp_path):
    vectors, ids, queries = world()
    index = make().build(vectors, ids)
    index.remove(ids[:100])
    expected = index.search(queries, 10)
    bundle.write(tmp_path / "index", {"index": index.to_piece()})
    piece = bundle.read(tmp_path / "index").piece("index")
    again = type(index).from_piece(piece)
    found = again.search(queries, 10)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    with pytest.raises(ConfigError, match="rows"):
        Exact("int4")
    with pytest.raises(ConfigError, match="divisor of 12"):
        Faiss("ivf_pq", code=5).build(vectors, ids)
