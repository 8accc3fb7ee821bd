"""CrossTowers by hand, with crosses and hits, and as a stage of a cascade."""

from __future__ import annotations

import torch
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.cascade import scored_features
from recstack.models.pre_ranking import CrossTowers


def test_a_product_of_towers_and_what_only_the_pair_tells():
    schema = testing.schema()
    model = testing.wake(CrossTowers(schema, dim=3, hidden=(6, 4), cross=(5,))).eval()
    batch = testing.batch(schema, 3, 2)
    own = model.heads.layers["click"]
    user, item = (model.inputs(batch, *roles).flat() for roles in (("user", "context", "domain", "history"), ("item",)))
    pair = model.inputs(batch, "pair").flat()
    u, v, z = model.user_out(model.user_tower(user)), model.item_out(model.item_tower(item)), model.cross(pair)
    for r in range(3):
        for c in range(2):
            expected = own.weight[0, :4] @ (u[r] * v[r, c]) + own.weight[0, 4:] @ z[r, c] + own.bias
            assert_close(model(batch)["click"][r, c], expected.squeeze())
    without = schema.without(*[f.name for f in schema.fields if f.role == "pair"])
    assert CrossTowers(without, dim=3, hidden=(6, 4)).cross is None


def test_made_of_columns_it_pre_ranks_in_a_cascade():
    train, _, _ = rs.split.by_time(rs.simulator.small(items=60))
    schema = train.schema.with_features(
        rs.Crossed("gender_x_category", of=("gender", "category"), buckets=50),
        rs.Hits("met", target="category", history="clicked", last=(5,)),
    ).without("position")
    encoder = rs.Encoder(schema).fit(train)
    popular = rs.retrieval.Popularity()
    model = CrossTowers(scored_features(encoder.schema, [popular.name]), dim=4, hidden=(8, 4), cross=())
    cascade = rs.Cascade([popular], pre_ranker=model, keep_pre_ranked=9).fit(train)
    page = cascade.recommend(cascade.profiles.users[0], k=3)
    assert all(row["score"] == row["sources"]["pre_ranker"] for row in page)
    assert (
        model.inputs.width("pair") == 4 + len(encoder.schema.feature("met").statistics) + 1
    )  # a cross, hits, a retriever's score
    assert torch.isfinite(torch.tensor([row["score"] for row in page])).all()
