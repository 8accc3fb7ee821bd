"""Deep Retrieval: probabilities of paths, a beam that is brute force where it is wide enough, and who gets which path."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError
from recstack.kernels.paths import assign
from recstack.kernels.topk import Sparse
from recstack.testing.worlds import communities

IDS = testing.keys_only(testing.schema(), ("history",))


@pytest.fixture(scope="module")
def world():
    return communities(users=300, items=50)


@pytest.fixture(scope="module")
def model(world):
    torch.manual_seed(0)
    encoder = rs.Encoder(world.log.schema).fit(world.log)
    model = rs.retrieval.DeepRetrieval(encoder.schema, dim=8, hidden=(16,), nodes=5, depth=2, paths=2, beam=4)
    return model.fit(world.log, epochs=6, lr=0.02, batch_size=32, progress=False)


def small(**options):
    torch.manual_seed(0)
    given = {"dim": 6, "hidden": (8,), "depth": 3, "nodes": 3, "paths": 2} | options
    return testing.wake(rs.retrieval.DeepRetrieval(IDS, **given)).eval()


@torch.no_grad()
def test_chances_of_paths_are_the_slow_product_and_sum_to_one():
    model, state = small(), torch.randn(4, 6)
    every = torch.arange(27).expand(4, -1)
    found = model.net(state, every).exp()
    assert_close(found.sum(1), torch.ones(4))
    for c in (0, 5, 26):
        digits, chance = (c // 9, c // 3 % 3, c % 3), torch.ones(4)
        for d in range(3):
            before = [model.net.nodes.weight[1 + 3 * i + digits[i]].expand(4, -1) for i in range(d)]
            hidden = model.net.layers[d](torch.cat([state, *before], 1))
            chance = chance * model.net.heads[d](hidden).softmax(-1)[:, digits[d]]
        assert_close(found[:, c], chance)


@torch.no_grad()
def test_a_wide_beam_finds_the_likeliest_paths_in_order():
    model, state = small(), torch.randn(4, 6)
    chance, order = model.net(state, torch.arange(27).expand(4, -1)).sort(1, descending=True)
    codes, found = model.net.likeliest(state, 27)
    assert torch.equal(codes, order)
    assert_close(found, chance)


def test_the_loss_of_paths_sums_over_those_of_an_item():
    model, state, ids = small(), torch.randn(5, 6), torch.tensor([2, 7, 3, 19, 2])
    alone = super(rs.retrieval.DeepRetrieval, model).item_loss(state, ids)
    slow = -model.net(state, model.paths[ids]).exp().sum(1).log().mean()
    assert_close(model.item_loss(state, ids), alone + slow)


def value(paths, score, wanted, penalty):
    """What `assign` makes as large as it can."""
    sizes = np.bincount([c for row in paths for c in row], minlength=score.shape[1])
    said = sum(n * np.log(s[list(row)].sum()) for row, s, n in zip(paths, score, wanted, strict=True))
    return said - penalty * (sizes.astype(float) ** 4 / 4).sum()


@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_coordinate_ascent_climbs_and_is_the_best_of_all_for_one_item(penalty):
    rng = np.random.default_rng(0)
    score, wanted = rng.random((9, 5)).astype(np.float32), rng.integers(1, 9, 9).astype(float)
    counts = Sparse(np.arange(10) * 5, np.tile(np.arange(5), 9), 5, score.ravel())
    given = np.tile([0, 1], (9, 1))
    found = assign(counts, wanted, given, penalty)
    assert value(found, score, wanted, penalty) > value(given, score, wanted, penalty)
    assert all(len(set(row)) == 2 for row in found.tolist())
    if not penalty:  # then items do not mind each other
        best = [max(itertools.combinations(range(5), 2), key=lambda p: s[list(p)].sum()) for s in score]
        assert [tuple(sorted(row)) for row in found.tolist()] == best
    crowds = [np.bincount(assign(counts, wanted, given, p).ravel(), minlength=5).max() for p in (0.0, 10.0)]
    assert crowds[1] == 4 <= crowds[0]  # 18 places on five paths


def test_a_beam_of_all_paths_is_brute_force_and_a_narrow_one_scores_few(world, model):
    users = [*world.users[0], *world.users[1]]
    narrow = model.measure(users, 3)
    wide = rs.retrieval.DeepRetrieval(**(model.config | {"beam": 25}))
    wide.load_state_dict(model.state_dict())
    wide.profiles = model.profiles
    assert wide.eval().measure(users, 3)["recall"] == 1.0
    assert narrow["recall"] > 0.8
    vectors, asked = wide.catalog_vectors(), wide.requests(users)
    found = wide.recommend(users, 4)
    assert_close(found.scores, (wide._users(asked) @ vectors[found.ids].mT)[:, 0])


def test_items_move_to_paths_of_their_community_and_stay_there_in_the_bundle(world, model, tmp_path):
    start = rs.retrieval.DeepRetrieval(**model.config)
    start.prepare(model.schema.encoder.encode(world.log))
    assert (start.paths != model.paths).any()
    assert (model.paths[:, 0] != model.paths[:, 1]).all()
    own = set(model.schema.encoder.encode_values("item_id", world.items[0]).tolist())
    found = model.recommend(world.users[0], 4)
    assert sum(i in own for i in found.ids.flatten().tolist()) > 0.9 * found.ids.numel()
    again = rs.load(model.save(tmp_path / "paths"))
    assert torch.equal(again.recommend(world.users[0], 4).ids, found.ids)


def test_too_many_paths_are_refused():
    with pytest.raises(ConfigError, match="10000000000 paths"):
        rs.retrieval.DeepRetrieval(IDS, nodes=100, depth=5)
