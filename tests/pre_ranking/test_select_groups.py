"""Which feature groups a pre-ranker reads: the knapsack, COLD under a budget, FSCD's chances."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch

import recstack as rs
from recstack import testing
from recstack.errors import ConfigError
from recstack.models.feature_groups import knapsack
from recstack.models.pre_ranking import COLD, FSCD
from recstack.models.pre_ranking.fscd import _GroupDropout
from recstack.schema import Categorical, History, Numeric, Schema, Task


def world() -> Schema:
    names = ("strong", "good", "weak", "useless")
    return Schema([Categorical("item", "item", size=12), *(Numeric(n, "item") for n in names)], [Task("click")])


COST = {"item": 1.0, "strong": 2.0, "good": 2.0, "weak": 5.0, "useless": 0.0}


def planted(schema: Schema, seed: int):
    some = testing.batch(schema, 256, 1, seed)
    signal = 2 * some["strong"] + 1.5 * some["good"] + 0.3 * some["weak"]
    some["click@label"] = (signal > 0).float()
    return some


def trained(model, steps: int = 200):
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(steps):
        optimizer.zero_grad()
        sum(model.losses(planted(model.schema, step)).values()).backward()
        optimizer.step()
    return model.eval()


class Rows:
    def __init__(self, batch):
        self.all, self.n_requests = batch, len(batch["item"])

    def batch(self, index, padded=False):
        return {k: v[torch.as_tensor(index)] for k, v in self.all.items()}


def test_knapsack_is_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    for _ in range(20):
        names = [f"g{i}" for i in range(8)]
        value = dict(zip(names, rng.normal(1, 1, 8), strict=True))
        cost = dict(zip(names, rng.integers(0, 6, 8).astype(float), strict=True))
        found = knapsack(value, cost, 9.0)
        every = chain.from_iterable(combinations(names, n) for n in range(9))
        best = max(sum(value[n] for n in some) for some in every if sum(cost[n] for n in some) <= 9)
        assert sum(cost[n] for n in found) <= 9
        assert sum(value[n] for n in found) == pytest.approx(best)
    assert knapsack({"a": 1.0, "b": 1.0}, {"a": 0.1, "b": 0.2}, 0.3) == ("a", "b")  # 0.1 + 0.2 is above 0.3


@pytest.mark.slow
def test_cold_pays_for_what_is_strong_and_not_for_what_is_free_or_dear():
    torch.manual_seed(0)
    schema = world()
    scout = trained(COLD(schema, dim=2, hidden=(8,), norm=None))
    rows = Rows(planted(schema, 999))
    gates = scout.select(rows, cost=COST, budget=5.0)
    assert {"strong", "good"} <= set(gates)
    assert "weak" not in gates
    assert sum(COST[n] for n in gates) <= 5
    drops = rs.permutation_importance(scout, rows, "auc", repeats=2)
    worth = {name: drop.mean if drop.mean > 0.01 else 0.0 for name, drop in drops.items()}
    chosen = scout.select(rows, cost=COST, budget=5.0, value=worth)
    assert set(chosen) == {"strong", "good"}  # free, and of no use
    assert set(scout.reduced(chosen).names) == {"strong", "good"}
    torch.manual_seed(0)
    again = trained(COLD(schema, dim=2, hidden=(8,), norm=None, keep=chosen, gates=False))
    truth = rows.all["click@label"]
    full, lean = (rs.metrics.auc(model(rows.all)["click"], truth) for model in (scout, again))
    assert lean >= 0.99 * full


def test_a_budget_pays_for_the_items_first():
    schema = Schema([*world().fields, Numeric("age", "user")], [Task("click")])
    scout = COLD(schema, dim=2, hidden=(4,))
    cost, worth = {**COST, "age": 1.0}, {"age": 9.0, "item": 0.1, "weak": 3.0}
    assert scout.select(None, cost=cost, budget=1.0, value=worth) == ("item",)
    assert set(scout.select(None, cost=cost, budget=2.0, value=worth)) == {"item", "age"}
    with pytest.raises(ConfigError, match="pays for no feature group of the items"):
        scout.select(None, cost=cost, budget=0.5, value=worth)
    with pytest.raises(ConfigError, match="got None for 'age'"):
        scout.select(None, cost=COST, budget=2.0, value=worth)
    with pytest.raises(ConfigError, match="or what a budget pays for"):
        scout.select(None, 2, cost=cost, budget=2.0)


@pytest.mark.parametrize("kind", [COLD, FSCD])
def test_a_sum_tells_how_long_a_history_is_and_a_mean_does_not(kind):
    items = Categorical("item", "item", size=12)
    schema = Schema([items, History("seen", of="item", max_len=4)], [Task("click")])
    once = {"item": torch.tensor([[5]]), "item@seen": torch.tensor([[7, 0, 0]])}
    thrice = {"item": once["item"], "item@seen": torch.tensor([[7, 7, 7]])}
    for history, alike in (("mean", True), ("sum", False)):
        torch.manual_seed(0)
        model = testing.wake(kind(schema, dim=3, hidden=(4,), history=history)).eval()
        assert torch.allclose(model(once)["click"], model(thrice)["click"]) is alike


def test_fscd_by_the_equations():
    schema = world()
    model = testing.wake(FSCD(schema, dim=3, hidden=(4,), cost=COST, strength=0.1))
    batch = planted(schema, 0)
    chance = model.gate.logit.sigmoid()
    own = super(FSCD, model).losses(batch)["click"]
    theta = 1 - torch.sigmoid(torch.tensor([COST[n] for n in model.groups]))
    wanted = 0.1 * (((1 - theta) / theta).log() * chance).sum()
    found = model.eval().losses(batch)
    torch.testing.assert_close(found["cost"], wanted)
    assert found["click"].shape == own.shape
    x = model._columns(batch)
    gates = torch.cat([chance[:1].expand(3), chance[1:]])  # the item's three columns, then a number each
    logit = model.heads(model.mlp(x * gates))["click"]
    torch.testing.assert_close(model(batch)["click"], logit)


def test_relaxed_gates_are_open_as_often_as_their_chance_says():
    torch.manual_seed(0)
    gate = _GroupDropout(3, 0.05)
    with torch.no_grad():
        gate.logit.copy_(torch.tensor([0.1, 0.5, 0.9]).logit())
    drawn = gate(torch.zeros(20_000, 7))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.1, 0.5, 0.9]), atol=0.02, rtol=0)
    assert ((drawn < 0.1) | (drawn > 0.9)).float().mean() > 0.8


@pytest.mark.slow
def test_fscd_drops_what_is_dear_for_what_it_says():
    torch.manual_seed(0)
    scout = trained(FSCD(world(), dim=2, hidden=(8,), norm=None, cost=COST, strength=0.02))
    assert set(scout.select(2)) == {"strong", "good"}
    assert scout.chances()["weak"] < 0.3
    with pytest.raises(ConfigError, match=r"got -1\.0 for 'strong'"):
        FSCD(world(), cost={**COST, "strong": -1.0})
