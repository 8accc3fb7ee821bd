"""Merging by quota, by score and by learned weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.cascade.merging import _fitted, weights_of_lists
from recstack.data.truth import next_events
from recstack.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def world():
    train, valid, test = rs.split.by_time(rs.simulator.small(users=150, items=200, impressions=15_000, seed=3))
    train.schema = rs.Encoder(train.schema).fit(train).schema
    swing, popular = rs.retrieval.Swing().fit(train), rs.retrieval.Popularity().fit(train)
    noise = rs.retrieval.Popularity().fit(train)
    noise.counts = np.random.default_rng(0).random(len(noise.counts)).astype(np.float32)  # the same items, of no use
    noise.name = "noise"
    return [swing, popular, noise], valid, test


def test_weights_scale_what_each_part_gives():
    a = rs.Candidates(torch.tensor([[3, 4]]), torch.tensor([[1.0, 0.0]]), source={"a": torch.tensor([[1.0, 0.0]])})
    b = rs.Candidates(torch.tensor([[5, 4]]), torch.tensor([[9.0, 7.0]]), source={"b": torch.tensor([[9.0, 7.0]])})
    merged = rs.Candidates.merge([a, b], weights={"b": 3.0})
    by_hand = {3: 1 / 61, 4: 1 / 62 + 3 / 62, 5: 3 / 61}
    assert merged.ids.tolist() == [sorted(by_hand, key=by_hand.get, reverse=True)]
    assert merged.scores[0].tolist() == pytest.approx(sorted(by_hand.values(), reverse=True))
    assert rs.Candidates.merge([a, b], rule="sum", weights={"a": 0.5}).ids.tolist() == [[5, 3, 4]]
    equal = rs.Candidates.merge([a, b], weights={"a": 1.0, "b": 1.0})
    assert torch.equal(equal.scores, rs.Candidates.merge([a, b]).scores)
    with pytest.raises(ConfigError, match="Unknown weight for a source 'c'"):
        rs.Candidates.merge([a, b], weights={"c": 1.0})
    with pytest.raises(ConfigError, match="'a' is a finite number of at least 0; got -1"):
        rs.Candidates.merge([a, b], weights={"a": -1.0})


def test_learned_weights_find_more_than_equal_ones_and_each_source_alone(world):
    sources, valid, test = world
    equal = rs.evaluate_retrieval(sources, valid, k=20)
    weights = rs.merge_weights(sources, valid, k=20)
    learned = rs.evaluate_retrieval(sources, valid, k=20, merge={"weights": weights}).row("merged")["recall@20"]
    best = max(row["recall@20"] for row in equal.rows)
    assert learned >= best
    assert weights["noise"] < 0.6 < max(weights.values())
    held_out = [
        rs.evaluate_retrieval(sources, test, k=20, merge=merge).row("merged")["recall@20"]
        for merge in (None, {"weights": weights})
    ]
    assert held_out[1] > held_out[0]  # what was learned holds on other days


def test_planted_weights_are_found_again():
    """Choices drawn by a softmax over what three sources say, one of them nothing, have these very weights."""
    random = torch.Generator().manual_seed(2)
    proposed = torch.rand(4000, 30, 3, generator=random) < 0.6
    shares = torch.rand(4000, 30, 3, generator=random) * proposed
    planted = torch.tensor([1.0, 4.0, 0.2])
    score = (shares @ planted).masked_fill(~proposed.any(2), -torch.inf)
    chosen = score.softmax(1).multinomial(1, generator=random)
    gain = torch.zeros(4000, 30).scatter_(1, chosen, 0.5)  # half of what they chose: the rest no source proposed
    found = _fitted(list(shares.split(1500)), list(gain.split(1500)), 3)
    assert found.tolist() == pytest.approx((planted * 3 / planted.sum()).tolist(), abs=0.1)
    assert _fitted([10 * shares], [gain], 3).tolist() == pytest.approx(
        found.tolist(), abs=0.02
    )  # the unit does not matter


def test_nobody_who_was_found_teaches_nothing():
    assert _fitted([torch.rand(5, 4, 2)], [torch.zeros(5, 4)], 2).tolist() == [1, 1]


def test_a_quota_keeps_the_best_of_each_source(world):
    sources, valid, _ = world
    columns = sources[0].schema.encoder.encode(valid)
    requests = rs.Requests.of(columns, np.arange(40))
    parts = [source.recommend(requests, 30) for source in sources]
    quota = {"swing": 6, "popularity": 3, "noise": 1}
    page = rs.Candidates.merge(parts, 10, quota=quota)
    for part, (name, n) in zip(parts, quota.items(), strict=True):
        for row in range(40):
            own = [i for i in part.ids[row, :n].tolist() if i]
            assert set(own) <= set(page.ids[row].tolist())  # quotas that fit the page are places for sure
            assert int((~page.source[name][row].isnan()).sum()) == len(own)


def test_a_cascade_merges_as_it_is_told_and_remembers(world, tmp_path):
    sources, valid, _ = world
    merge = {"weights": {"noise": 0.0, "swing": 2.0}, "quota": {"noise": 2}}
    cascade = rs.Cascade(sources, candidates=20, merge=merge)
    cascade.remember(valid)
    requests = rs.Requests.of(sources[0].schema.encoder.encode(valid), np.arange(20))
    expected = rs.Candidates.merge([s.recommend(requests, 20) for s in sources], **merge)
    assert torch.equal(cascade.retrieve(requests).ids, expected.ids)
    again = rs.load(cascade.save(tmp_path / "cascade"))
    assert again.merge == merge


def test_a_cascade_learns_its_weights_on_held_out_events(tmp_path):
    train, valid, _ = rs.split.by_time(rs.simulator.small())
    fresh = lambda: [rs.retrieval.Swing(), rs.retrieval.Popularity()]  # noqa: E731
    cascade = rs.Cascade(fresh(), candidates=20, merge={"weights": "learned"}).fit(train, valid)
    schema = cascade.encoder.schema
    train.schema = valid.schema = schema
    alone = [retriever.fit(train) for retriever in fresh()]
    assert cascade.merge["weights"] == rs.merge_weights(alone, valid, train, width=20)
    assert rs.load(cascade.save(tmp_path / "cascade")).merge == cascade.merge
    with pytest.raises(ConfigError, match=r"Cascade\.fit\(train, valid=\.\.\.\)"):
        rs.Cascade(fresh(), merge={"weights": "learned"}).fit(train)


def test_lists_that_are_there_teach_the_same_as_their_sources(world):
    sources, valid, _ = world
    columns = sources[0].schema.encoder.encode(valid)
    rows, truth = next_events(columns)
    requests = rs.Requests.of(columns, rows)
    requests = rs.Requests(
        requests.batch, requests.users, sources[0].profiles.requests(requests.users, encoded=True).seen
    )
    parts = [source.recommend(requests, 20) for source in sources]
    offsets = np.searchsorted(truth.keys >> 32, np.arange(len(rows) + 1))
    weights = weights_of_lists(parts, (offsets, truth.keys & 0xFFFFFFFF), k=20)
    assert weights == pytest.approx(rs.merge_weights(sources, valid, k=20), rel=0.05)  # but for items unheard of
    with pytest.raises(DataError, match="chosen has 3 offsets"):
        weights_of_lists(parts, ([0, 1, 2], [5, 6]))


def test_what_cannot_be_learned_is_said(world):
    sources, valid, _ = world
    with pytest.raises(ConfigError, match="two retrievers or more"):
        rs.merge_weights(sources[:1], valid)
    with pytest.raises(ConfigError, match="got 'max'"):
        rs.merge_weights(sources, valid, rule="max")
