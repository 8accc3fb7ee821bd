"""Bandits that learn from the service's events."""

from __future__ import annotations

import pytest
import torch

import recstack as rs
from recstack.candidates import Candidates
from recstack.cascade.lists import stage_batch
from recstack.errors import ConfigError, DataError
from recstack.rules.bandits import LinTS, LinUCB, Thompson
from recstack.serving.events import EventLog
from recstack.serving.learning import learn
from recstack.serving.messages import Event

SUMS = {"gram", "cross", "square", "seen"}


@pytest.fixture
def cascade():
    train, _, _ = rs.split.by_time(rs.simulator.small(items=40))
    cascade = rs.Cascade([rs.retrieval.Popularity()]).fit(train)
    cascade.rules = [rs.rules.Explore(Thompson(cascade.encoder.catalog.size), places=(2,))]
    return cascade


def test_events_are_learned_once_and_a_line_in_the_making_waits(cascade, tmp_path):
    item = cascade.encoder.decode("item_id", [5])[0].item()
    log = EventLog(tmp_path / "events.jsonl")  # stays open, as a service's does
    log.append([Event(1, item, labels={"click": float(i < 3)}) for i in range(10)])
    log.append([Event(1, item, labels={"order": 1.0}), Event(1, item), Event(1, 10**9, labels={"click": 1.0})])
    at = learn(cascade, tmp_path / "events.jsonl", "click")
    state = cascade.rules[0].bandit.state
    assert (float(state["plays"][5]), float(state["rewards"][5]), float(state["plays"].sum())) == (10, 3, 10)
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"user_id": 1, "item_id": ')
    assert learn(cascade, tmp_path / "events.jsonl", "click", begin=at) == at
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(str(item).encode() + b', "labels": {"click": 1.0}}\nnothing\n')
    with pytest.raises(DataError, match="begins no event"):
        learn(cascade, tmp_path / "events.jsonl", "click", begin=at)
    log.close()
    assert len(cascade.recommend(1, k=5)) == 5


@pytest.fixture(scope="module")
def exploring():
    train, valid, _ = rs.split.by_time(rs.simulator.small(items=200))
    schema = rs.Encoder(train.schema).fit(train).schema.without("position")
    popular = rs.retrieval.Popularity()
    ranker = rs.ranking.NeuralLinear(rs.cascade.scored_features(schema, ["popularity"]), dim=4, hidden=(8, 3))
    return rs.Cascade([popular], ranker=ranker, explore="draw").fit(train, valid, negatives=5)


def test_a_ranker_explores_and_observes_the_events_of_each_moment(exploring, tmp_path):
    ranker, user = exploring.ranker, exploring.profiles.users[0]
    assert ranker.seen[0] > 100  # the lists that it was trained on
    before = {n: v.clone() for n, v in ranker.state_dict().items()}
    item = [i.item() for i in exploring.encoder.decode("item_id", [5, 6])]
    log = EventLog(tmp_path / "e")
    log.append([Event(user, item[0], 10**6, {"click": 1.0}), Event(user, item[1], 2 * 10**6, {"click": 0.0})])
    log.append([Event(user, 10**9, labels={"click": 1.0}), Event(user, item[0], labels={"order": 1.0})])
    at = learn(exploring, tmp_path / "e", "click")
    assert (float(ranker.seen[0] - before["seen"][0]), float(ranker.square[0] - before["square"][0])) == (2, 1)
    assert all(torch.equal(v, before[n]) for n, v in ranker.state_dict().items() if n not in SUMS)
    # By hand: z of the first event, its history as it was then.
    requests = exploring.profiles.requests([user], time=10**6)
    found = Candidates(torch.tensor([[5]]), torch.zeros(1, 1))
    known = exploring.scaled(exploring.known_of(found.ids, requests, "ranker"))
    z = ranker._vectors(stage_batch(ranker.schema, requests.batch, found, exploring.encoder.catalog, known))[0, 0]
    torch.testing.assert_close(ranker.cross[0] - before["cross"][0], z)
    assert learn(exploring, tmp_path / "e", "click", begin=at) == at
    log.close()


def test_draws_order_the_ranked_and_the_logit_stays_beside_them(exploring, tmp_path):
    user = exploring.profiles.users[0]
    pages = [exploring.recommend(user, 20) for _ in range(5)]
    assert len({tuple(row["item"] for row in page) for page in pages}) > 1
    assert all(row["score"] == pytest.approx(row["sources"]["explored"]) for row in pages[0])
    again = rs.load(exploring.save(tmp_path / "page"))
    assert again.explore == "draw"
    for cascade in (exploring, again):
        cascade.explore = "bounds"
    assert again.recommend(user, 5) == exploring.recommend(user, 5)
    exploring.explore = None
    page = exploring.recommend(user, 5)
    assert [row["score"] for row in page] == [row["sources"]["ranker"] for row in page]
    logit = {row["item"]: row["sources"]["ranker"] for row in pages[0]}
    assert all(logit.get(row["item"], row["score"]) == pytest.approx(row["score"], abs=1e-5) for row in page)
    exploring.fusion = "click * 2"
    with pytest.raises(ConfigError, match="without a fusion"):
        exploring.explore = "draw"
    exploring.fusion = None
    with pytest.raises(ConfigError, match="Unknown way to explore"):
        exploring.explore = "guess"
    with pytest.raises(ConfigError, match="NeuralLinear as the ranker"):
        rs.Cascade([rs.retrieval.Popularity()], explore="draw")


def test_what_cannot_learn_from_events_is_told(cascade, tmp_path):
    (tmp_path / "e").touch()
    cascade.rules = [rs.rules.Explore(LinUCB(3, arms=9), places=(0,))]
    with pytest.raises(ConfigError, match="contexts of users"):
        learn(cascade, tmp_path / "e", "click")
    cascade.rules = [rs.rules.Explore(LinTS(3), places=(0,))]
    assert learn(cascade, tmp_path / "e", "click") == 0
    cascade.rules = []
    with pytest.raises(ConfigError, match="no rule Explore"):
        learn(cascade, tmp_path / "e", "click")
