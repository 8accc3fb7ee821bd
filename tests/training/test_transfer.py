"""A model begins with what another learned: what is taken, what is not, and that it is said."""

from functools import partial

import pytest
import torch

import recstack as rs
from recstack.errors import ConfigError

ONE, BOTH = (rs.Task("click"),), (rs.Task("click"), rs.Task("cart"))


@pytest.fixture(scope="module")
def logs():
    log = rs.simulator.small(users=60, items=40, tasks=list(BOTH))
    first, second, _ = rs.split.by_time(log)
    return first, second


@pytest.fixture(scope="module")
def schema(logs):
    return rs.Encoder(logs[0].schema).fit(logs[0]).schema


def bottom(schema, tasks=BOTH, **options):
    return rs.multitask.SharedBottom(schema.replace(tasks=tasks), dim=4, hidden=(8,), towers=(4,), **options)


def test_a_model_of_two_tasks_starts_from_a_model_of_one(schema):
    single, both = bottom(schema, ONE), bottom(schema)
    before = {n: v.clone() for n, v in both.state_dict().items()}
    done = rs.transfer(single, both)
    old, new = single.state_dict(), both.state_dict()
    tables = [n for n in new if ".tables." in n]
    assert len(tables) > 3
    wanted = {
        *tables,
        "bottom.first.weight",
        "bottom.first.bias",
        "heads.layers.click.weight",
        "heads.layers.click.bias",
    }
    assert set(done.taken) == wanted
    assert all(torch.equal(new[n], old[n]) for n in wanted)
    assert all(torch.equal(new[n], before[n]) for n in new.keys() - wanted)
    assert set(done.left) == new.keys() - wanted
    told = str(done)
    assert "Taken: trunk.inputs.tables" in told
    assert "Not taken, of another shape in the source: towers.networks.first.weight, towers.networks.first.bias" in told
    assert "Not taken, the source has nothing of this name: heads.layers.cart.weight" in told
    assert "Not used of the source: towers.networks.first.weight" in told


def test_a_model_inside_another_is_found_by_the_end_of_its_names(schema):
    deep = rs.ranking.DeepFM(schema.replace(tasks=ONE), dim=4, hidden=(8,))
    mixture = rs.multitask.MMoE(schema, experts=2, hidden=(6,), trunk=partial(rs.ranking.DeepFM, dim=4, hidden=(8,)))
    done = rs.transfer(deep, mixture)
    assert done.taken["trunk.model.mlp.first.weight"] == "mlp.first.weight"
    assert torch.equal(mixture.trunk.model.mlp.first.weight, deep.mlp.first.weight)
    assert not any(n.startswith(("experts", "gates")) for n in done.taken)


def test_towers_of_other_tasks_are_left_though_they_have_the_shape(schema):
    swapped = (BOTH[1], BOTH[0])
    done = rs.transfer(bottom(schema, swapped), bottom(schema))
    assert done.left["towers.networks.first.weight"] == "the tasks are others"
    assert "heads.layers.cart.weight" in done.taken  # heads are found by their task's name
    assert "towers.networks.first.weight" in rs.transfer(bottom(schema), bottom(schema)).taken


def test_other_features_share_their_tables_only_and_grown_tables_keep_new_rows(logs, schema):
    fewer = bottom(schema.without("position"))
    done = rs.transfer(fewer, bottom(schema))
    assert done.left["bottom.first.weight"] == "the models read other features"
    assert all(".tables." in n for n in done.taken)

    grown = schema.encoder.grown(logs[1]).schema
    small, large = bottom(schema), bottom(grown)
    fresh = {n: v.clone() for n, v in large.state_dict().items()}
    done = rs.transfer(small, large)
    (name,) = (n for n in done.taken if n.endswith(".item_id"))
    old, new = small.state_dict()[name], large.state_dict()[name]
    assert torch.equal(new[: len(old)], old)
    assert torch.equal(new[len(old) :], fresh[name][len(old) :])


def test_strangers_are_refused(logs, schema):
    other = rs.Encoder(logs[1].schema).fit(logs[1]).schema
    with pytest.raises(ConfigError, match="mean other values in the two models"):
        rs.transfer(bottom(other), bottom(schema))
    with pytest.raises(ConfigError, match="no table or layer of one name and size"):
        rs.transfer(
            rs.ranking.LR(schema.replace(tasks=(rs.Task("like", label="cart"),))), bottom(schema.without("position"))
        )
