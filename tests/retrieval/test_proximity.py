"""RPG: the graph leads everywhere, a walk that keeps everything is brute force, and linear attention is its quadratic form."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack.errors import ConfigError
from recstack.kernels.proximity import proximity_graph
from recstack.nn.sequence.linear_attention import LinearAttention


@pytest.fixture(scope="module")
def market():
    log = rs.simulator.simulate(users=150, items=200, impressions=6_000, seed=0).log()
    return rs.split.by_time(log)[0]


@pytest.fixture(scope="module")
def ranker(market):
    """Of awake weights, which differ more than those of a short training."""
    torch.manual_seed(0)
    model = rs.ranking.DIN(rs.Encoder(market.schema).fit(market).schema, dim=4, hidden=(8,), history="linear_attention")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model.eval()


def test_linear_attention_is_the_quadratic_form_of_its_kernel():
    torch.manual_seed(0)
    block, query, steps = LinearAttention(4), torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    q, k, v = F.elu(block.query(query)) + 1, F.elu(block.key(steps)) + 1, block.value(steps)
    weight = (q @ k.mT) * mask.unsqueeze(1)
    assert_close(block(query, steps, mask), weight / weight.sum(-1, keepdim=True) @ v)
    assert not block(query, steps, torch.zeros_like(mask)).any()


def test_a_graph_of_far_clusters_leads_everywhere():
    g = torch.Generator().manual_seed(0)
    cluster = torch.arange(300) % 3
    x = 100 * torch.eye(3)[cluster] + torch.randn(300, 3, generator=g)
    graph = proximity_graph(x, 4, torch.tensor([0]))
    assert graph.counts.max() <= 2 * 4 + 2
    assert not (graph.rows == graph.columns).any()
    between = cluster[graph.rows] != cluster[graph.columns]
    assert between.sum() == 4  # two links that had to be, both ways
    todo, met = [0], {0}
    while todo:
        node = todo.pop()
        new = set(graph.columns[graph.offsets[node] : graph.offsets[node + 1]].tolist()) - met
        met |= new
        todo += new
    assert len(met) == 300


def test_a_ranker_walks_and_a_walk_that_keeps_everything_is_brute_force(market, ranker, tmp_path):
    wide = rs.retrieval.RPG(effort=500, probes=30).fit(market, over=ranker)
    users = market.events["user_id"].unique(maintain_order=True)[:40].to_list()
    assert wide.measure(users, 5) == {"recall": 1.0, "share": pytest.approx(1.0)}
    found = wide.recommend(users, 5)
    assert_close(wide.pair_scores(wide.requests(users), found.ids), found.scores)
    narrow = rs.retrieval.RPG(effort=12, probes=30, step=2).fit(market, over=ranker)
    measured = narrow.measure(users, 5)
    assert measured["share"] < 0.6
    assert measured["recall"] > 0.9
    again = rs.load(narrow.save(tmp_path / "graph"))
    found, again = narrow.recommend(users, 5), again.recommend(users, 5)
    assert torch.equal(found.ids, again.ids)
    assert_close(found.scores, again.scores)


def test_filters_are_walked_over_and_never_leave_too_few(market, ranker):
    model = rs.retrieval.RPG(effort=8, probes=20).fit(market, over=ranker)
    allowed = torch.zeros(model.catalog.size, dtype=torch.bool)
    allowed[4::9] = True
    found = model.recommend(market.events["user_id"][:6].to_list(), 7, exclude_seen=False, where=allowed)
    assert found.mask.all()
    assert allowed[found.ids].all()


def test_a_walk_through_what_may_not_be_shown_goes_on(market, ranker):
    """Where the best are not allowed, it walks on to those that are, and does not end in scoring everything."""
    model = rs.retrieval.RPG(effort=8, probes=30, step=2).fit(market, over=ranker)
    requests = model.requests(market.events["user_id"].unique(maintain_order=True)[:30].to_list())
    allowed = torch.ones(model.catalog.size, dtype=torch.bool)
    allowed[:2] = False
    allowed[model.every_score(requests).mean(0).topk(30).indices] = False
    ids, scores, counted = model.counted_search(requests, 5, False, allowed)
    assert allowed[ids].all()
    assert counted.max() < 0.8 * allowed.sum()
    exact = model.every_score(requests).masked_fill(~allowed, -torch.inf).topk(5).values
    assert (scores >= exact[:, -1:] - 1e-5).float().mean() > 0.9


def test_says_what_it_lacks(market):
    with pytest.raises(ConfigError, match="needs a scorer"):
        rs.retrieval.RPG().fit(market)
