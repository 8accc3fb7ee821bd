"""What rules are told of items, whichever stages there are."""

import pytest
import torch

import recstack as rs


@pytest.fixture(scope="module")
def world():
    train, _, _ = rs.split.by_time(rs.simulator.small(items=80))
    return train, rs.Encoder(train.schema).fit(train)


def fitted(world, **stages) -> rs.Cascade:
    """Stages that are called fitted keep their first weights."""
    for model in stages.values():
        model.fitted = True
        model.eval()
    return rs.Cascade([rs.retrieval.Popularity()], rules=[rs.rules.MMR(0.5)], **stages).fit(world[0])


def test_without_a_learned_retriever_items_have_the_vectors_of_the_ranker(world):
    schema = world[1].schema
    ranker = rs.ranking.DIN(schema, dim=4, hidden=(8,))
    cascade = fitted(world, ranker=ranker, pre_ranker=rs.pre_ranking.COLD(schema, dim=6))
    size = world[1].catalog.size
    ids = torch.arange(size)
    table = ranker.inputs.tables.weight(schema.feature(schema.item).table_name)
    by_hand = torch.stack([table[i - 1] / table[i - 1].norm() for i in range(1, size)])
    found = cascade.context(5).vectors_of(ids)
    assert not found[0].any()
    torch.testing.assert_close(found[1:], by_hand)
    with torch.no_grad():
        table.mul_(-1)  # later training is seen
    torch.testing.assert_close(cascade.context(5).vectors_of(ids)[1:], -by_hand)
    assert len(cascade.recommend(world[0].events["user_id"][0], k=5)) == 5


def test_a_learned_retriever_goes_first(world):
    schema = world[1].schema
    tower = rs.retrieval.DSSM(schema, dim=4, hidden=(8, 3)).fit(world[0], epochs=1, progress=False)
    ranker = rs.ranking.DIN(schema, dim=4, hidden=(8,))
    ranker.fitted = True
    cascade = rs.Cascade([rs.retrieval.Popularity(), tower], ranker=ranker.eval()).fit(world[0])
    assert torch.equal(cascade.context(5).vectors, tower.catalog_vectors())


def test_with_no_vectors_at_all_the_rule_says_so(world):
    for stages in ({}, {"ranker": rs.ranking.LR(world[1].schema)}):
        cascade = fitted(world, **stages)
        with pytest.raises(rs.ConfigError, match="This rule compares item vectors, and the page has none"):
            cascade.recommend(world[0].events["user_id"][0])


def test_rules_are_told_what_users_met(world):
    train, encoder = world
    cascade = fitted(world)
    cascade.rules = [rs.rules.Calibrated(0.01, "category"), rs.rules.Personalised(likeness=0.0)]
    users = train.events["user_id"].unique().sort().head(3).to_list()
    requests = cascade.requests([*users, -5])
    history = cascade.context(5, requests).history
    for row, user in zip(history, users, strict=False):
        met = train.events.filter(train.events["user_id"] == user)["item_id"].unique().to_list()
        assert row[row > 0].tolist() == sorted(encoder.encode_values("item_id", met).tolist())
    assert not history[3].any()
    assert [len(page) for page in cascade.recommend(users, k=5)] == [5, 5, 5]


def test_rules_tell_what_they_moved_and_cost(world):
    train, _ = world
    cascade = fitted(world)
    cascade.rules = [rs.rules.CategoryCap("category", 1), rs.rules.CategoryCap("category", 9)]
    told = cascade.explain(train.events["user_id"][0], k=4)["stages"]
    assert [stage["cost"] for stage in told if stage["name"] == "CategoryCap"][1] == 0  # the second one does nothing
    told = [
        stage for n, stage in enumerate(told) if stage["name"] != "CategoryCap" or told[n - 1]["name"] != "CategoryCap"
    ]
    stages = {stage["name"]: stage for stage in told}
    rule, before = stages["CategoryCap"], stages["merged"]["items"]
    assert [before[place]["item"] for place in rule["moved"]] == [row["item"] for row in rule["items"]]
    assert rule["moved"][:4] != [0, 1, 2, 3]
    assert 0 < rule["cost"] < 1
    assert "cost" not in stages["merged"]
