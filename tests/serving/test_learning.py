"""Bandits that learn from the service's events."""

from __future__ import annotations

import pytest

import recstack as rs
from recstack.errors import ConfigError, DataError
from recstack.rules.bandits import LinTS, LinUCB, Thompson
from recstack.serving.events import EventLog
from recstack.serving.learning import learn
from recstack.serving.messages import Event


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
