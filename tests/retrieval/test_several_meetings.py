"""Towers that meet more than once: layer by layer, or code by code, against slow loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError

SCHEMA = testing.schema()
IDS = testing.keys_only(SCHEMA, ("history",))


@pytest.mark.parametrize("aggregate", ["sum", "attention"])
def test_one_inner_product_is_the_sum_over_layers(aggregate):
    torch.manual_seed(0)
    model = rs.retrieval.HierarchicalTwoTower(SCHEMA, dim=4, hidden=(12, 8, 6), width=5, aggregate=aggregate)
    model, batch = testing.wake(model).eval(), testing.batch(SCHEMA, 4, 3)
    x = model.inputs(batch, "user", "context", "domain", "history").flat()
    v = model.inputs(batch, "item").flat()
    cosines, directions = [], []
    for mine, theirs, left, right in zip(
        model.user_layers.layers, model.item_layers.layers, model.user_layers.out, model.item_layers.out, strict=True
    ):
        x, v = mine(x), theirs(v)
        directions.append(F.normalize(left(x), dim=-1))
        cosines.append(F.cosine_similarity(left(x).unsqueeze(1), right(v), dim=-1))
    weight = model.weight.expand(4, -1)
    if aggregate == "attention":
        weight = weight + torch.cat(directions, -1) @ model.choice.weight.T
    slow = sum(w.unsqueeze(-1) * c for w, c in zip(weight.softmax(-1).T, cosines, strict=True)) / 0.05
    assert_close(model(batch)["click"], slow)
    items = model.item_vectors({f.name: batch[f.name].flatten(0, 1) for f in SCHEMA.by_role("item")})
    assert_close(items.norm(dim=-1), torch.full((12,), math.sqrt(3)))  # all weights are the user's


def poly(**options):
    torch.manual_seed(0)
    return testing.wake(rs.retrieval.PolyEncoder(IDS, **({"dim": 6, "codes": 4} | options))).eval()


def test_a_candidate_attends_to_what_the_codes_read():
    model, batch = poly(), testing.batch(IDS, 4, 3)
    states = {}
    model.norm.register_forward_hook(lambda module, given, out: states.update(h=out))
    found, lengths = model(batch)["click"], (batch["item_id@watched"] > 0).sum(-1)
    for r in range(4):
        h = states["h"][r, : lengths[r]]
        read = torch.stack([(h @ c).softmax(0) @ h if len(h) else torch.zeros(6) for c in model.codes])
        for l in range(3):
            e = model.item_vectors({"item_id": batch["item_id"][r, l : l + 1]})[0]
            assert_close(found[r, l], ((read @ e).softmax(0) @ read) @ e)


def test_the_nearest_code_bounds_the_exact_score():
    """0 <= max z - s <= (K - 1) / e: what an index of several vectors finds is near what is scored."""
    model, batch = poly(codes=5), testing.batch(IDS, 8, 6)
    items = model.item_vectors({"item_id": batch["item_id"].flatten()}).view(8, 6, -1)
    nearest = torch.einsum("rkd,rld->rlk", model.user_vectors(batch), items).amax(-1)
    gap = nearest - model(batch)["click"]
    assert gap.min() > -1e-5
    assert gap.max() < 4 / math.e
    assert gap.max() > 1e-3
    one = poly(codes=1)  # a bi-encoder
    assert_close(one(batch)["click"], (one.user_vectors(batch) * one.item_vectors(batch)).sum(-1))


def test_prefixes_share_the_states():
    model, batch = poly(), testing.batch(IDS, 4, 2, steps=6)
    states, mask = model.states(batch)
    for t in range(6):
        cut = {**batch, "item_id@watched": batch["item_id@watched"][:, : t + 1]}
        assert_close(model.user_vectors(cut)[mask[:, t]], states[mask[:, t], t])


@pytest.mark.slow
def test_recommended_by_the_exact_score():
    world = testing.communities()
    encoder = rs.Encoder(world.log.schema).fit(world.log)
    model = rs.retrieval.PolyEncoder(encoder.schema, dim=16, codes=3, negatives=32)
    model.fit(world.log, epochs=10, lr=0.02, progress=False)
    found = model.recommend(world.users[0], 4)
    requests = model.requests(world.users[0])
    assert_close(model.pair_scores(requests, found.ids), found.scores)
    own = set(encoder.encode_values("item_id", world.items[0]).tolist())
    hits = [i in own for i in found.ids.flatten().tolist()]
    assert sum(hits) / len(hits) > 0.9


def test_wrong_options_are_told_in_a_sentence():
    with pytest.raises(ConfigError, match=r"Unknown aggregate 'atention'\. Did you mean 'attention'"):
        rs.retrieval.HierarchicalTwoTower(SCHEMA, aggregate="atention")
