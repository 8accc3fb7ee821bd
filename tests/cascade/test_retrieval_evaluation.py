"""Full ranking of one and several retrievers, against loops."""

import itertools

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.cascade.retrieval import spread
from recstack.data.truth import Truth
from recstack.errors import ConfigError, DataError

K = 10


@pytest.fixture(scope="module")
def world():
    train, _, test = rs.split.by_time(rs.simulator.simulate(users=150, items=300, impressions=9000, seed=5).log())
    encoder = rs.Encoder(train.schema).fit(train)
    train.schema = encoder.schema
    sources = [rs.retrieval.Swing(), rs.retrieval.ItemCF(), rs.retrieval.Popularity()]
    return [s.fit(train) for s in sources], train, test, encoder


def wanted(test, encoder) -> dict[int, set[int]]:
    """What each known user clicked in the test."""
    out: dict[int, set[int]] = {}
    events = test.events.filter(test.events["click"] == 1)
    users = encoder.encode_values("user_id", events["user_id"].to_list())
    items = encoder.encode_values("item_id", events["item_id"].to_list())
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        if user >= 2:
            out.setdefault(user, set()).add(item)
    return out


def test_means_are_those_of_a_loop_over_users(world):
    (swing, *_), _, test, encoder = world
    report = rs.evaluate_retrieval(swing, test, k=K)
    truth, columns = wanted(test, encoder), encoder.encode(test)
    found = {name: [] for name in ("recall", "precision", "hit", "ndcg", "map", "mrr", "f1")}
    for user, items in sorted(truth.items()):
        first = int(np.flatnonzero(columns.user_ids == user)[columns.times[columns.user_ids == user].argmin()])
        requests = rs.Requests.of(columns, np.array([first]))
        seen = swing.profiles.requests(np.array([user]), encoded=True).seen
        page = swing.recommend(rs.Requests(requests.batch, requests.users, seen), K).ids[0].tolist()
        hits = [item in items and item > 0 for item in page]
        recall, precision = sum(hits) / len(items), sum(hits) / K
        found["recall"].append(recall)
        found["precision"].append(precision)
        found["f1"].append(2 * recall * precision / (recall + precision) if recall else 0.0)
        found["hit"].append(float(any(hits)))
        gain = [1 / np.log2(i + 2) for i in range(K)]
        found["ndcg"].append(sum(g for g, h in zip(gain, hits, strict=True) if h) / sum(gain[: len(items)]))
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(K) if hits[i]]
        found["map"].append(sum(precisions) / min(K, len(items)))
        found["mrr"].append(1 / (hits.index(True) + 1) if any(hits) else 0.0)
    assert report.requests == len(truth)
    for name, values in found.items():
        assert report.row("swing")[f"{name}@{K}"] == pytest.approx(np.mean(values), abs=1e-9), name
    assert report.row("swing")[f"recall@{K}"] > 0


def test_several_sources_are_merged_and_told_apart(world):
    sources, _, test, encoder = world
    report = rs.evaluate_retrieval(sources, test, k=(5, K))
    names = ["swing", "itemcf", "popularity"]
    assert [row["name"] for row in report.rows] == [*names, "merged"]
    assert sum(row["share"] for row in report.rows[:-1]) == pytest.approx(1)
    columns, truth = encoder.encode(test), wanted(test, encoder)
    order = np.lexsort((columns.times, columns.user_ids))
    first = order[np.flatnonzero(np.diff(columns.user_ids[order], prepend=-1))]
    rows = [int(i) for i in first if int(columns.user_ids[i]) in truth]
    alone, together, overlap, without = np.zeros(3), 0, {p: [] for p in itertools.combinations(range(3), 2)}, []
    for row in rows:
        asked = rs.Requests.of(columns, np.array([row]))
        asked = rs.Requests(asked.batch, asked.users, sources[0].profiles.requests(asked.users, encoded=True).seen)
        parts = [source.recommend(asked, K) for source in sources]
        lists = [{i for i in part.ids[0].tolist() if i} for part in parts]
        good = truth[int(columns.user_ids[row])]
        together += len(good & set.union(*lists))
        for i in range(3):
            alone[i] += len((lists[i] - set.union(*(lists[j] for j in range(3) if j != i))) & good)
        for i, j in overlap:
            overlap[i, j].append(len(lists[i] & lists[j]) / max(len(lists[i] | lists[j]), 1))
        rest = set(rs.Candidates.merge(parts[1:], K).ids[0].tolist()) & good
        every = set(rs.Candidates.merge(parts, K).ids[0].tolist()) & good
        without.append((len(every) - len(rest)) / len(good))
    for i, row in enumerate(report.rows[:-1]):
        assert row["alone"] == pytest.approx(alone[i] / together)
    assert report.rows[0]["marginal"] == pytest.approx(np.mean(without), abs=1e-9)
    for (i, j), values in overlap.items():
        assert report.overlap[names[i], names[j]] == pytest.approx(np.mean(values), abs=1e-6)
    text = str(report)
    assert "Full ranking over" in text
    assert "swing and itemcf" in text
    assert report.values["merged"]["recall@5"].shape == (report.requests,)


def test_worth_weighs_what_is_found(world):
    (swing, *_), _, test, _ = world
    same = rs.evaluate_retrieval(swing, test, k=K, worth=np.ones(len(test)))
    found = same.values["swing"]  # an item clicked twice is worth two: nearly the recall
    assert found[f"worth@{K}"].mean() == pytest.approx(found[f"recall@{K}"].mean(), abs=0.02)
    assert found[f"worth@{K}"].max() <= 1
    truth = Truth(
        np.array([0, 0, 1]), np.array([5, 7, 5]), 2, np.array([0, 1]), np.array([3.0, 1.0, 2.0]), np.array([0.0, 6.0])
    )
    assert truth.worths(torch.tensor([[5, 9], [5, 7]])).tolist() == [[3.0, 0.0], [2.0, 0.0]]
    assert truth.total.tolist() == [4.0, 8.0]
    assert truth.select(np.array([1])).total.tolist() == [8.0]
    with pytest.raises(DataError, match="one finite number of at least 0 for each of the"):
        rs.evaluate_retrieval(swing, test, worth=np.ones(3))
    with pytest.raises(DataError, match="no event column 'bid'"):
        rs.evaluate_retrieval(swing, test, worth="bid")


def test_each_request_can_be_asked_for_its_own(world):
    (swing, *_), _, test, encoder = world
    report = rs.evaluate_retrieval(swing, test, k=K, per="request", max_requests=50)
    assert report.requests == 50
    columns = encoder.encode(test)
    assert rs.evaluate_retrieval(swing, columns, k=K, per="request").requests == int(columns.positives().sum())
    with pytest.raises(ConfigError, match="told apart by name"):
        rs.evaluate_retrieval([swing, swing], test)
    with pytest.raises(ConfigError, match="per"):
        rs.evaluate_retrieval(swing, test, per="day")


def test_spread_is_by_hand():
    popularity = np.array([0, 0, 8.0, 4.0, 4.0, 0.0])
    found = spread(np.array([0, 0, 2.0, 0.0, 0.0, 2.0]), popularity)
    assert found["coverage"] == 0.5
    shown = [2.0, 0.0, 0.0, 2.0]
    differences = sum(abs(a - b) for a in shown for b in shown)
    assert found["gini"] == pytest.approx(differences / (2 * 4 * sum(shown)))
    assert found["novelty"] == pytest.approx(-(np.log2(8 / 16) + np.log2(0.5 / 16)) / 2)
    assert found["popularity"] == pytest.approx((1.0 + 0.25) / 2)


def test_similar_items_are_the_neighbours(world):
    (swing, _, popular), train, test, encoder = world
    some = train.events["item_id"].unique().to_list()[:4]
    found = rs.similar_items(swing, some, k=5)
    for r, item in enumerate(encoder.encode_values("item_id", some).tolist()):
        begin, end = swing.offsets[item : item + 2]
        best = swing.columns[begin:end][np.argsort(-swing.values[begin:end], kind="stable")][:5]
        assert set(found.ids[r].tolist()) - {0} == set(best.tolist())
    tower = rs.retrieval.DSSM(encoder.schema, dim=4, hidden=(8, 4))
    vectors = torch.nn.functional.normalize(tower.catalog_vectors(), dim=1)
    ids = torch.from_numpy(encoder.encode_values("item_id", some).astype(np.int64))
    near = rs.similar_items(tower, some, k=3)
    for r, item in enumerate(ids.tolist()):
        score = vectors @ vectors[item]
        score[[0, 1, item]] = -2
        torch.testing.assert_close(near.scores[r], score.topk(3).values)
    assert 0 <= rs.item_hit_rate(swing, test, k=20) <= 1
    with pytest.raises(ConfigError, match="neither neighbour lists nor item vectors"):
        rs.similar_items(popular, some)
    with pytest.raises(DataError, match="lacks item -5"):
        rs.similar_items(swing, [-5])


def test_the_item_hit_rate_is_a_loop(world):
    (swing, *_), _, test, encoder = world
    columns = encoder.encode(test)
    hits, asked = 0, 0
    for user in np.unique(columns.user_ids):
        rows = np.flatnonzero((columns.user_ids == user) & columns.positives())
        if not len(rows):
            continue
        row = rows[columns.times[rows].argmin()]
        steps = columns.request_batch(np.array([row]), padded=True)[f"item_id@{encoder.schema.histories[0].name}"][0]
        steps = steps[steps > 0]
        if user >= 2 and len(steps) and steps[-1] > 1:
            raw = encoder.decode("item_id", steps[-1:].numpy()).tolist()
            near = set(rs.similar_items(swing, raw, 20).ids[0].tolist())
            asked += 1
            hits += int(columns.item_ids[row]) in near
    assert rs.item_hit_rate(swing, test, k=20) == pytest.approx(hits / asked)


def test_sampled_metrics_say_so_and_count_ties_against_the_item(world):
    (swing, _, popular), _, test, _ = world
    found = rs.evaluate_sampled(swing, test, 30, k=5, seed=1)
    assert list(found) == ["hit@5 of 31", "ndcg@5 of 31", "mrr of 31"]
    assert found == rs.evaluate_sampled(swing, test, 30, k=5, seed=1)
    full = rs.evaluate_retrieval(swing, test, k=5).row("swing")["hit@5"]
    assert found["hit@5 of 31"] > full / 5
    constant = rs.retrieval.Popularity()
    constant.schema, constant.profiles, constant.counts = popular.schema, popular.profiles, np.ones_like(popular.counts)
    assert rs.evaluate_sampled(constant, test, 30, k=30)["hit@30 of 31"] == 0
    with pytest.raises(DataError, match="items never met"):
        rs.evaluate_sampled(swing, test, 10_000)


def test_drawn_negatives_are_new_distinct_and_as_likely_as_asked():
    from recstack.cascade.sampled import _drawn

    weight = np.array([0, 0, 1.0, 2.0, 3.0, 4.0, 0.0])
    seen = np.array([0, 1]), np.array([5])
    cumulated = np.cumsum(weight) / weight.sum()
    chance = np.random.default_rng(0)
    one = np.concatenate([_drawn(chance, cumulated, seen, np.array([4]), 1) for _ in range(3000)])[:, 0]
    assert set(one.tolist()) == {2, 3}
    assert np.mean(one == 3) == pytest.approx(2 / 3, abs=0.04)
    assert set(_drawn(chance, cumulated, seen, np.array([4]), 2)[0].tolist()) == {2, 3}
