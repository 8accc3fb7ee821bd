"""COLD: gates by hand, and the choice of feature groups."""

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.pre_ranking import COLD
from recstack.models.pre_ranking.cold import linear_log
from recstack.nn.mlp import flat
from recstack.schema import Categorical, Crossed, History, Hits, Numeric, Schema, Task, Vector


class Rows:
    """Encoded rows, as far as COLD asks."""

    def __init__(self, batch):
        self.all, self.n_requests = batch, next(iter(batch.values())).shape[0]

    def batch(self, index):
        return {k: v[torch.as_tensor(index)] for k, v in self.all.items()}


def small() -> Schema:
    return Schema(
        [
            Categorical("user", "user", size=6, group="who"),
            Numeric("age", "user", group="who"),
            Categorical("item", "item", size=9),
            Numeric("price", "item"),
            Vector("image", "item", size=2),
            History("seen", of=("item",)),
        ],
        [Task("click")],
    )


def test_linear_log_by_hand():
    x = torch.tensor([-100.0, -1.0, -0.5, 0.0, 0.5, 1.0, 100.0], requires_grad=True)
    wanted = torch.tensor([-5.6051702, -1.0, -0.5, 0.0, 0.5, 1.0, 5.6051702])
    torch.testing.assert_close(linear_log(x), wanted)
    linear_log(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.01, 1.0, 1.0, 1.0, 1.0, 1.0, 0.01]))


def test_one_gate_for_each_group_by_the_equation():
    schema = small()
    model = testing.wake(COLD(schema, dim=3, hidden=(4,), norm=None))
    batch = testing.batch(schema, 4, 2)
    batch["price"] *= 50
    slots = model.inputs(batch)
    assert model.groups == ("who", "item", "price", "image", "seen")
    wide = {n: v.unsqueeze(1).expand(4, 2, -1) for n, v in slots.request.items()} | dict(slots.candidate)
    for name in ("age", "price", "image"):
        wide[name] = linear_log(wide[name])
    order = ["user", "age", "seen", "item", "price", "image"]  # what a request has once stands first
    gates = model.gate(torch.cat([wide[n] for n in order], -1)).sigmoid()
    group = {"user": 0, "age": 0, "item": 1, "price": 2, "image": 3, "seen": 4}
    x = torch.cat([wide[n] * gates[..., group[n], None] for n in order], -1)
    torch.testing.assert_close(model(batch)["click"], model.heads.layers["click"](model.mlp(x)).squeeze(-1))


def test_importance_is_the_mean_gate_over_live_rows():
    schema = small()
    model = testing.wake(COLD(schema, dim=3, hidden=(4,)))
    batch = testing.batch(schema, 50, 3, mask=True)
    gates = model.gate(flat(model._columns(batch))).sigmoid()[batch["@mask"]].mean(0)
    found = model.train().importance(Rows(batch), batch_size=7)
    assert model.training
    assert list(found.values()) == sorted(found.values(), reverse=True)
    for name, value in zip(model.groups, gates.tolist(), strict=True):
        assert found[name] == pytest.approx(value, abs=1e-6)


def test_what_decides_is_important_and_noise_is_not():
    torch.manual_seed(0)
    schema = Schema(
        [Categorical("item", "item", size=12), *(Numeric(f"noise{i}", "item") for i in range(4)), Numeric("x", "item")],
        [Task("click")],
    )

    def batch(seed):
        some = testing.batch(schema, 256, 1, seed)
        some["click@label"] = (some["x"] > 0).float()
        return some

    model = COLD(schema, dim=2, hidden=(8,), norm=None)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(150):
        optimizer.zero_grad()
        sum(model.losses(batch(step)).values()).backward()
        optimizer.step()
    assert model.select(Rows(batch(999)), 1) == ("x",)


def test_what_is_not_kept_is_not_read_and_costs_nothing():
    schema = small()
    served = COLD(schema, dim=3, hidden=(4,), keep=("price", "seen"), gates=False)
    batch = testing.batch(schema, 3, 2)
    for name in ("user", "age", "image"):
        del batch[name]
    assert served(batch)["click"].shape == (3, 2)
    assert set(served.inputs.tables.home) == {"item"}  # the history reads it
    assert served.mlp.first.in_features == 3 + 1
    assert served.schema == schema


def test_selection_never_leaves_the_items_out():
    schema = small()
    model = testing.wake(COLD(schema, dim=3, hidden=(4,)))
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.copy_(torch.tensor([3.0, -3.0, -2.0, -4.0, 2.0]))  # who, item, price, image, seen
    rows = Rows(testing.batch(schema, 5, 2))
    assert model.select(rows, 3) == ("who", "seen", "price")
    assert model.select(rows, 2) == ("who", "price")
    COLD(schema, keep=model.select(rows, 1), gates=False)


def test_a_choice_that_cannot_rank_is_refused():
    schema = small()
    with pytest.raises(ConfigError, match="needs a feature group of the items"):
        COLD(schema, keep=("who",))
    with pytest.raises(ConfigError, match="Did you mean 'price'"):
        COLD(schema, keep=("prise",))
    with pytest.raises(ConfigError, match="weighs no group"):
        COLD(schema, gates=False).importance(Rows(testing.batch(schema, 2, 2)))


def test_features_without_candidates_are_their_own_candidate():
    schema = small().without("item", "price", "image", "seen")
    model = COLD(schema, dim=3, hidden=(4,))
    assert model(testing.batch(schema, 3))["click"].shape == (3, 1)


def test_gates_are_readable_row_by_row_and_of_features_that_have_no_column():
    made = Crossed("user_x_item", of=("user", "item"), buckets=20), Hits("met", target="item", history="seen", last=2)
    schema = small().with_features(*made)
    model = testing.wake(COLD(schema, dim=3, hidden=(4,)))
    batch = testing.batch(schema, 6, 1)
    weights = model.weights(batch)
    assert list(weights) == ["who", "item", "price", "image", "seen", "user_x_item", "met"]
    mean = model.importance(Rows(batch))
    for name, weight in weights.items():
        assert weight.shape == (6, 1)
        assert mean[name] == pytest.approx(float(weight.mean()), rel=1e-5)
        assert weight.std() > 0
    lean = COLD(schema, dim=3, hidden=(4,), keep=("user_x_item", "met"), gates=False)
    assert set(lean.widths) == {"user_x_item", "met"}
    lean(batch)["click"].sum().backward()
    with pytest.raises(ConfigError, match="gates=False"):
        lean.weights(batch)
