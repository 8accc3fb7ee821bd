"""CMN against its equations, pair by pair."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import recstack as rs


def chosen(users=12, items=9, share=0.4):
    """Random choices; the last item was chosen by one user alone."""
    some = np.random.default_rng(0).random((users, items)) < share
    some[np.arange(users), np.arange(users) % 8], some[:, -1] = True, np.arange(users) == 3  # everybody chose something
    user, item = np.nonzero(some)
    features = [rs.Categorical("user", "user"), rs.Categorical("item", "item")]
    return rs.Log({"user": user, "item": item}, rs.Schema(features, [rs.Task("click")]), implicit=True), some


def test_cmn_is_its_equations():
    log, some = chosen()
    encoder = rs.Encoder(log.schema).fit(log)
    torch.manual_seed(0)
    model = rs.retrieval.CMN(encoder.schema, dim=4, hops=2)
    model._remember(encoder.encode(log))
    model.prepare(encoder.encode(log))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    items = torch.arange(2, 11)
    slow = torch.zeros(12, 9)
    for u in range(12):
        for i in range(9):
            m, e = model.users.weight[u + 2], model.items.weight[i + 2]
            near = [v + 2 for v in range(12) if some[v, i] and v != u]
            z, o = m + e, torch.zeros(4)
            for hop in range(2):
                if hop:
                    z = F.relu(model.hops[0](z) + o)
                p = F.softmax(torch.stack([z @ model.users.weight[v] for v in near]), 0) if near else []
                o = sum((w * model.memory.weight[v] for w, v in zip(p, near, strict=True)), torch.zeros(4))
            slow[u, i] = model.head(F.relu(model.product(m * e) + model.reading(o)))[0]
    torch.testing.assert_close(model.pair_scores(model.requests(list(range(12))), items.expand(12, -1)), slow.detach())
    found = model.eval().recommend(list(range(12)), 2, exclude_seen=False)
    torch.testing.assert_close(found.scores, slow.topk(2).values.detach())
    with pytest.raises(rs.DataError, match="was not met in training"):
        model.recommend([99], 2)


def test_cmn_begins_with_a_gmf_and_says_what_is_missing():
    log, _ = chosen()
    schema = rs.Encoder(log.schema).fit(log).schema
    gmf = rs.retrieval.GMF(schema, dim=4)
    model = rs.retrieval.CMN(schema, dim=4, neighbours=3).pretrain(gmf)
    assert torch.equal(model.users.weight, gmf.users.weight)
    assert torch.equal(model.items.weight, gmf.items.weight)
    with pytest.raises(rs.ConfigError, match="a GMF with dim=5"):
        rs.retrieval.CMN(schema, dim=5).pretrain(gmf)
    with pytest.raises(rs.TrainingError, match="no neighbours"):
        model.losses(schema.encoder.encode(log).batch(np.arange(3)))
    model.prepare(schema.encoder.encode(log))
    assert (model.near > 0).sum(1).max() == 3
    assert (model.near[10] > 0).sum() == 1
