"""Watch next: the position is learned from and never served; and DUPN's user, read by several tasks."""

from functools import partial

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError, DataError
from recstack.models.multitask import DUPN, MMoE, WatchNext
from recstack.schema import Categorical, Numeric, Schema, Task

TASKS = (Task("click"), Task("watch", kind="regression"), Task("like"))
SCHEMA = testing.schema(tasks=TASKS).with_features(Categorical("position", "pair", size=12))
SIZES = {"dim": 4, "shared": (7,), "experts": 3, "hidden": (6,), "towers": (4,)}


def made(**options):
    return testing.wake(WatchNext(SCHEMA, **{**SIZES, "position": ("position",), "gate_dropout": 0.0, **options}))


def test_the_position_adds_to_named_logits_in_training_only():
    model = made(position_tasks=("like",), position_dropout=0.0)
    batch = testing.batch(SCHEMA, 4, 3)
    shift = model.train()(batch)["like"] - (calm := model.eval()(batch))["like"]
    layer, weights = model.shallow.layer.first, model.shallow.inputs.tables.by_id("position")
    of_id = (weights @ layer.weight.T + layer.bias).relu() @ model.shallow.out.weight[0]
    slow = of_id[batch["position"].long()] - of_id[1]
    torch.testing.assert_close(shift, slow)
    assert shift.abs().max() > 1e-2
    for name in ("click", "watch"):
        torch.testing.assert_close(model.train()(batch)[name], calm[name])


def test_serving_needs_no_position_and_training_does():
    model, batch = made(), testing.batch(SCHEMA, 4, 3)
    without = {k: v for k, v in batch.items() if k != "position"}
    for name, logit in model(batch).items():
        torch.testing.assert_close(model(without)[name], logit, rtol=0, atol=0)
    with pytest.raises(DataError, match="position"):
        model.train()(without)
    assert "position" not in model.trunk.inputs.widths  # and nothing else reads it


def test_a_tenth_of_the_positions_is_unknown_in_training():
    model = made(position_dropout=0.1).train()
    seen = []
    model.shallow.inputs.register_forward_pre_hook(lambda module, args: seen.append(args[0]["position"]))
    batch = testing.batch(SCHEMA, 200, 50)
    batch["position"] = torch.full_like(batch["position"], 5)
    model(batch)
    assert float((seen[0] == 1).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert set(seen[0].unique().tolist()) == {1, 5}


@pytest.mark.slow
def test_an_exported_graph_has_no_position_in_it():
    model, batch = made(), {k: v for k, v in testing.batch(SCHEMA, 3, 2).items() if not k.endswith("@label")}
    del batch["position"]
    graph = torch.export.export(model, (batch,)).module()
    torch.testing.assert_close(graph(batch)["click"], model(batch)["click"])


def test_tasks_of_both_kinds_have_their_own_loss():
    losses = made().losses(testing.batch(SCHEMA, 4, 3))
    assert list(losses) == ["click", "watch", "like"]


def test_what_is_no_position_is_said():
    with pytest.raises(ConfigError, match="Unknown position feature 'postion'"):
        WatchNext(SCHEMA, position=("postion",))
    with pytest.raises(ConfigError, match="'price' is a Numeric without an id"):
        WatchNext(SCHEMA, position=("price",))
    with pytest.raises(ConfigError, match="position_tasks"):
        WatchNext(SCHEMA, position=("position",), position_tasks=("clik",))


def test_watch_nexts_parameters():
    schema = Schema([Numeric(f"x{i}", "item") for i in range(100)], TASKS)
    count = sum(p.numel() for p in WatchNext(schema).parameters())
    bottom, experts, gates = 100 * 256 + 256, 8 * (256 * 128 + 128), 3 * 8 * 256
    assert count == bottom + experts + gates + 3 * (128 * 64 + 64 + 64 + 1)


# -- DUPN -------------------------------------------------------------------------------------------------------------
def test_dupn_by_the_equation():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(DUPN(schema, dim=4, properties=("genre",), hidden=6, attention=3, towers=(5,)))
    batch = testing.batch(schema, 3, 2)
    slots, encoder = model.trunk.inputs(batch), model.encoders[0]
    steps, live = slots.sequence("watched")
    user = slots.flat("user", "context")
    states = encoder.lstm(steps[..., :4], steps[..., 4:])
    for r in range(3):
        score = [
            encoder.last(encoder.first(torch.cat([states[r, t], steps[r, t, 4:], user[r]])).tanh())
            for t in range(int(live[r].sum()))
        ]
        read = sum(a * states[r, t] for t, a in enumerate(torch.stack(score).softmax(0))) if score else torch.zeros(6)
        for l in range(2):
            x = torch.cat([read, user[r], slots.flat("item", "pair")[r, l]])
            h = (x @ model.towers.networks.stacked()[0][1] + model.towers.networks.stacked_biases()[0][1]).relu()
            torch.testing.assert_close(model(batch)["watch"][r, l], model.heads.layers["watch"](h).squeeze(-1))


def test_dupns_representation_is_a_trunk_of_experts():
    schema = testing.schema(tasks=TASKS)
    model = MMoE(schema, trunk=partial(DUPN, hidden=6, towers=()))
    assert not model.trunk.each
    assert model(testing.batch(schema, 3, 2))["like"].shape == (3, 2)
    with pytest.raises(ConfigError, match="DUPN has one for each"):
        MMoE(schema, trunk=DUPN)


def test_a_property_that_no_history_reads_is_said():
    with pytest.raises(ConfigError, match="Unknown property of a history 'genres'"):
        DUPN(testing.schema(tasks=TASKS), properties=("genres",))
