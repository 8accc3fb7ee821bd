"""Skip-gram against a pair-by-pair loop with automatic gradients; what is made of it; GF-CF against its dense formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import recstack as rs
from recstack.kernels.cooccurrence import transitions
from recstack.kernels.skip_gram import noise, skip_gram, thinned
from recstack.kernels.topk import Sparse, offsets_of
from recstack.models.item_vectors import together, weights
from recstack.models.retrieval.airbnb import AirbnbEmbeddings


def sparse(rows, width):
    counts = [len(r) for r in rows]
    return Sparse(offsets_of(np.array(counts)), np.array([x for r in rows for x in r], np.int32), width)


class Draws:
    """The generator of the kernel, in Python."""

    def __init__(self, seed):
        self.state = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 32) * n >> 32


def slowly(sequences, parts, table, out, attention, drawn, window, negatives, lr, seed, goals, market, local):
    """One step of gradient descent on each term of the loss of each pair, the item's own parts last."""
    w, z, a = (torch.tensor(x, dtype=torch.float64) for x in (table, out, attention))
    rng, place, total = Draws(seed), 0, len(sequences.columns)
    for s in range(sequences.height):
        items = sequences.columns[sequences.offsets[s] : sequences.offsets[s + 1]].tolist()
        for p, i in enumerate(items):
            step = lr[0] + (lr[1] - lr[0]) * place / total
            place += 1
            beside = [items[o] for o in range(max(0, p - window), min(len(items), p + window + 1)) if o != p]
            for j in ([goals[s]] if goals[s] >= 0 else []) + beside:
                w.requires_grad_(), a.requires_grad_()
                entries = range(parts.offsets[i], parts.offsets[i + 1])
                fields = sorted({int(parts.fields[e]) for e in entries})
                alpha = dict(zip(fields, a[i, fields].softmax(0), strict=True))
                h = sum(alpha[int(parts.fields[e])] * float(parts.shares[e]) * w[int(parts.rows[e])] for e in entries)
                targets = [(j, 1)] + [(int(drawn[rng.below(len(drawn))]), 0) for _ in range(negatives)]
                group = market[0][i]
                near = market[1].columns[market[1].offsets[group] : market[1].offsets[group + 1]]
                targets += [(int(near[rng.below(len(near))]), 0) for _ in range(local)]
                slope = torch.zeros_like(h)
                for t, label in targets:
                    if label == 0 and t == j:
                        continue
                    own, row = h.detach().requires_grad_(), z[t].clone().requires_grad_()
                    F.softplus((-1) ** label * (own @ row)).backward()
                    slope += own.grad
                    z[t] -= step * row.grad
                h.backward(slope)
                with torch.no_grad():
                    w, a = w - step * w.grad, a - step * (0 if a.grad is None else a.grad)
    return w, z, a


def test_skip_gram_is_gradient_descent_pair_by_pair():
    rng = np.random.default_rng(0)
    sequences = sparse([[0, 3, 1, 3], [2], [], [4, 2, 0, 1, 2]], 5)
    side = Sparse(np.array([0, 2, 3, 3, 4, 5]), np.array([0, 2, 1, 1, 2], np.int32), 3, np.array([1, 3, 1, 1, 1.0]))
    parts = together(5, [side])
    table, out, attention = (rng.normal(size=s).astype(np.float32) for s in ((8, 4), (5, 4), (5, 2)))
    goals = np.array([2, -1, -1, 3], np.int32)
    market = np.array([0, 1, 0, 1, 0]), sparse([[0, 2, 4], [1, 3]], 5)
    drawn, lr = noise(np.array([1, 2, 3, 2, 1]), size=64), (0.3, 0.1)
    slow = slowly(sequences, parts, table, out, attention, drawn, 2, 3, lr, 7, goals, market, 2)
    options = {"window": 2, "negatives": 3, "lr": lr, "seed": 7, "attend": True, "goals": goals}
    before = attention.copy()
    skip_gram(sequences, parts, table, out, attention, drawn, **options, local=market, local_negatives=2)
    for found, wanted in zip((table, out, attention), slow, strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(attention - before).max() > 1e-3


def test_frequent_items_are_left_out_and_sets_are_shuffled():
    sets = sparse([list(range(10)) * 50, [7] * 5], 10)
    kept = np.ones(10)
    kept[7] = 0
    found = thinned(sets, kept, 0, shuffle=True)
    assert found.counts.tolist() == [450, 0]
    assert sorted(found.columns) == sorted([i for i in range(10) if i != 7] * 50)
    assert not np.array_equal(found.columns, thinned(sets, kept, 0, shuffle=False).columns)


def test_an_item_is_what_its_parts_weigh():
    side = Sparse(np.array([0, 2, 2]), np.array([0, 2], np.int32), 3, np.array([1.0, 3.0]))
    parts = together(2, [side])
    assert parts.rows.tolist() == [0, 2, 4, 1]
    found = weights(parts, np.array([[0.0, np.log(3)], [5.0, 5.0]]))
    np.testing.assert_allclose(found, [0.25, 0.75 * 0.25, 0.75 * 0.75, 1.0], rtol=1e-6)


def test_transitions_are_counted_within_a_session():
    found = transitions(sparse([[3, 1, 1, 3, 1], [3, 2]], 4))
    pairs = dict(zip(zip(found.rows.tolist(), found.columns.tolist(), strict=True), found.values.tolist(), strict=True))
    assert pairs == {(3, 1): 2.0, (1, 3): 1.0, (3, 2): 1.0}


def shops(n=400):
    """Users of two camps; items of a camp share their shop; nobody has met item 99, which has only its shop."""
    rng = np.random.default_rng(0)
    user = rng.integers(40, size=n)
    item = np.append(rng.integers(8, size=n - 1) * 2 + user[:-1] % 2, 99)
    click = np.append(np.ones(n - 1, int), 0)
    book = (np.arange(n) % 9 == 0) * click
    events = {"user": user, "item": item, "time": np.arange(n), "click": click, "book": book}
    features = [rs.Categorical("user", "user"), rs.Categorical("item", "item"), rs.Categorical("shop", "item")]
    schema = rs.Schema(features, [rs.Task("click"), rs.Task("book")], time="time")
    items = {"item": np.append(np.arange(16), 99), "shop": np.append(np.arange(16) % 2, 1)}
    return rs.Log(events, schema, items=items)


@pytest.mark.parametrize("model", [rs.retrieval.GES, rs.retrieval.EGES])
def test_cold_items_are_answered_from_their_side_information(model):
    model = model(dim=8, walks=10, lr=0.1).fit(shops())
    cold = int(model.schema.encoder.encode_values("item", [99])[0])
    assert cold > 1
    near = (model.vectors @ model.vectors[cold]).argsort()[::-1]
    raw = [int(x) for x in model.schema.encoder.decode("item", near[1:6])]
    assert all(r % 2 == 1 for r in raw), raw
    alone = rs.retrieval.BGE(dim=8, walks=1).fit(shops())
    assert not alone.vectors[cold].any()
    assert cold not in alone.recommend([0], 20, exclude_seen=False).ids[0]


def test_side_information_is_asked_for():
    log = shops()
    bare = rs.Log(log.events, log.schema.without("shop"))
    with pytest.raises(rs.SchemaError, match="EGES needs side information"):
        rs.retrieval.EGES().fit(bare)


def test_a_booking_stands_beside_every_click_of_its_session():
    log = shops(30)
    encoder = rs.Encoder(log.schema).fit(log)
    columns = encoder.encode(log)
    model = AirbnbEmbeddings(booking="book", market="shop", epochs=1)
    model.fit(columns)
    from recstack.models.counting import sessions

    visits, entries = sessions(columns, None, None, "")
    goals = model._booked(columns, visits, entries)
    for s in range(visits.height):
        rows = entries[visits.offsets[s] : visits.offsets[s + 1]]
        booked = [r for r in rows if columns.labels["book"][r] == 1]
        assert goals[s] == (columns.item_ids[booked[-1]] if booked else -1)
    of_item, markets = model._markets()
    for group in range(markets.height):
        assert (
            markets.columns[markets.offsets[group] : markets.offsets[group + 1]].tolist()
            == np.flatnonzero(of_item == group).tolist()
        )


@pytest.mark.parametrize("rank", [4, 100])
def test_gf_cf_is_its_dense_formula(rank):
    log = shops(120)
    model = rs.retrieval.GFCF(rank=rank, alpha=0.4, task="click").fit(log)
    columns = model.schema.encoder.encode(log)
    r = torch.zeros(model.schema.feature("user").size, model.catalog.size, dtype=torch.float64)
    kept = columns.labels["click"] == 1
    r[columns.user_ids[kept].tolist(), columns.item_ids[kept].tolist()] = 1
    du, di = r.sum(1).clamp(min=1), r.sum(0)
    normal = du.rsqrt()[:, None] * r * di.clamp(min=1).rsqrt()
    _, size, vt = torch.linalg.svd(normal, full_matrices=False)
    v = vt[:rank][size[:rank] > 1e-4]
    whole = normal.T @ normal + 0.4 * di.clamp(min=1).rsqrt()[:, None] * (v.T @ v) * di.sqrt()
    requests = model.requests(sorted(set(log.events["user"].to_list()))[:10])
    offsets, seen = requests.seen
    for n in range(10):
        row = torch.zeros(model.catalog.size, dtype=torch.float64)
        row[seen[offsets[n] : offsets[n + 1]]] = 1
        row *= di > 0
        torch.testing.assert_close(model.scores(requests)[n].double(), row @ whole, rtol=1e-3, atol=1e-4)


def test_an_empty_hash_bucket_is_no_candidate():
    log = rs.simulator.small()
    hashed = [replace(f, buckets=5000) if f.name == "item_id" else f for f in log.schema.features]
    log = rs.Log(log.events, log.schema.replace(features=hashed), users=log.users, items=log.items)
    encoder = rs.Encoder(log.schema).fit(log)
    for model in (rs.retrieval.Popularity(), rs.retrieval.DSSM(encoder.schema)):
        model = model.fit(log, epochs=1, progress=False) if isinstance(model, rs.retrieval.DSSM) else model.fit(log)
        found = model.recommend([1, 2], k=encoder.catalog.size, exclude_seen=False)
        assert set(found.ids[found.mask].tolist()) <= set(encoder.catalog.ids.tolist())
        assert None not in encoder.decode("item_id", found.ids[found.mask].numpy())
        few = model.recommend([1], k=3, where=torch.ones(encoder.catalog.size, dtype=torch.bool))
        assert set(few.ids[few.mask].tolist()) <= set(encoder.catalog.ids.tolist())
