"""A ranker that looks back in time is asked with the moment of the request."""

import pytest
import torch

import recstack as rs
from recstack.errors import DataError, RequestError
from recstack.serving.service import Service


@pytest.fixture(scope="module")
def service():
    log = rs.simulator.simulate(users=20, items=60, impressions=1500, seed=3).log()
    history = log.schema.histories[0].name
    span = int(log.events[log.schema.time].max() - log.events[log.schema.time].min()) // 4
    log.schema = log.schema.with_features(rs.Hits("again", target=log.schema.item, history=history, within=(span,)))
    schema = rs.Encoder(log.schema).fit(log).schema
    torch.manual_seed(0)
    ranker = rs.testing.wake(rs.ranking.LR(schema)).eval()
    ranker.fitted = True
    cascade = rs.Cascade([rs.retrieval.Popularity()], ranker=ranker, candidates=40).fit(log)
    return Service(cascade), int(log.events[log.schema.time].max()) + 1, span


def test_the_moment_decides_what_lies_within_the_window(service):
    service, now, span = service
    user = service.profiles.users[0]
    items = service.profiles.history(user)[-3:].tolist()
    scores = [[row["score"] for row in service.rank(user, items, time=t)["items"]] for t in (now, now + 10 * span)]
    assert scores[0] != scores[1]
    assert service.recommend(user, 3, time=now)["items"]
    told, own = service.explain(user, 3, now), service.cascade.explain(user, 3, time=now)
    assert [row["score"] for row in told["page"]] == [row["score"] for row in own["page"]]
    assert service.user(user)["histories"]


def test_without_a_moment_one_sentence_says_so(service):
    service, *_ = service
    user = service.profiles.users[0]
    with pytest.raises(RequestError, match="looks back in time; give the moment"):
        service.recommend(user, 3)
    with pytest.raises(DataError, match="looks back in time"):
        service.cascade.recommend(user, 3)
