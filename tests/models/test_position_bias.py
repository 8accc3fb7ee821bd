"""Positions: equations by loops, curves found again, what is served without them, and weights that undo them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recstack as rs
from recstack import testing
from recstack.data.positions import click_model, examination_weights
from recstack.errors import ConfigError, DataError, SchemaError
from recstack.schema import Categorical, Task

SCHEMA = testing.schema().with_features(Categorical("place", "pair", size=7))
SIZES = {"dim": 4, "hidden": (8,), "position": ("place",)}
MODELS = [rs.ranking.PAL, rs.ranking.RegressionEM, rs.ranking.DLA]


def made(model, **options):
    torch.manual_seed(0)
    return testing.wake(model(SCHEMA, **{**SIZES, **options}))


def the_batch(seed=0):
    batch = testing.batch(SCHEMA, 6, 5, seed, mask=True, weight=True)
    batch["place"] = torch.arange(2, 7).expand(6, 5).to(batch["place"].dtype)
    return batch


# -- the equations ----------------------------------------------------------------------------------------------------
def test_pal_learns_the_product_and_serves_one_factor():
    model, batch = made(rs.ranking.PAL), the_batch()
    served = model.eval()(batch)["click"]
    without = {k: v for k, v in batch.items() if k != "place"}
    assert torch.equal(model(without)["click"], served)
    seen = model.curve("click")[batch["place"].long()]
    p = model.train()(batch)["click"].sigmoid()
    torch.testing.assert_close(p, seen * served.sigmoid())
    with pytest.raises(DataError, match="place"):
        model(without)


def test_em_takes_the_papers_expectations():
    model, batch = made(rs.ranking.RegressionEM), the_batch()
    model.theta[0] = torch.tensor([0.5, 0.5, 1.0, 0.8, 0.6, 0.4, 0.3])
    theta, gamma = model.theta[0].clone(), model.eval()(batch)["click"].sigmoid()
    label, mask, weight = batch["click@label"], batch["@mask"], batch["@weight"]
    weight = weight.unsqueeze(-1).expand(6, 5) if weight.dim() == 1 else weight.expand(6, 5)
    total, mass, seen, shown = 0.0, 0.0, dict.fromkeys(range(2, 7), 0.0), dict.fromkeys(range(2, 7), 0.0)
    for r in range(6):
        for c in range(5):
            if not mask[r, c] or label[r, c].isnan():
                continue
            k, y, g, w = int(batch["place"][r, c]), label[r, c], gamma[r, c], weight[r, c].item()
            none = 1 - theta[k] * g
            soft = y + (1 - y) * (1 - theta[k]) * g / none
            total += w * -(soft * g.log() + (1 - soft) * (1 - g).log())
            mass += w
            seen[k] += w * (y + (1 - y) * theta[k] * (1 - g) / none).item()
            shown[k] += w
    torch.testing.assert_close(model.train().losses(batch)["click"], total / mass)
    moved = {k: theta[k].item() + 2**-0.6 * (seen[k] / shown[k] - theta[k].item()) for k in shown if shown[k]}
    top = max(moved.values())
    for k, value in moved.items():
        assert model.theta[0, k].item() == pytest.approx(value / top, rel=1e-5)


def test_dla_weighs_each_side_by_the_other():
    model, batch = made(rs.ranking.DLA, clip=1.5), the_batch()
    with torch.no_grad():
        model.places[0] = torch.tensor([0.0, 0, 0.3, -0.1, 0.2, -0.9, 0.1])
    del batch["@mask"], batch["@weight"]
    f, g = model.eval()(batch)["click"], model.places[0][batch["place"].long()]
    label = batch["click@label"]
    for name, mine, other in (("click", f, g), ("click/position", g, f)):
        value = weight = 0.0
        for r in range(6):
            q = other[r].softmax(-1)
            vote = (q[0] / q).clamp(max=1.5) * label[r] / label[r].sum().clamp(min=1)
            value += (vote * -mine[r].log_softmax(-1)).sum()
            weight += vote.sum()
        torch.testing.assert_close(model.train().losses(batch)[name], value / weight)


def test_products_are_of_what_is_clicked_where_it_was_shown():
    tasks = (Task("click"), Task("order", given="click"), Task("both", product=("click", "order")))
    schema = testing.schema(tasks=tasks).with_features(Categorical("place", "pair", size=7))
    model = testing.wake(rs.ranking.PAL(schema, **SIZES)).train()
    assert model.biased == ["click"]
    out = model(testing.batch(schema, 3, 2))
    torch.testing.assert_close(out["both"].sigmoid(), out["click"].sigmoid() * out["order"].sigmoid())


# -- a truth found again ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def market():
    return rs.simulator.simulate(users=60, items=40, impressions=40_000, list_size=5, ctr=0.25, eta=1.0, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_simulators_curve_is_found_again(market, model):
    log = market.log(lists=True)
    schema = rs.Encoder(log.schema).fit(log).schema
    torch.manual_seed(0)
    fitted = model(schema, dim=8, hidden=(16,), position=("position",))
    fitted.fit(log, epochs=3, batch_size=50, lr=5e-3, optimizer="adam", seed=0, progress=False)
    found, true = fitted.examination(), market.truth.examine(np.arange(1, 6))
    assert np.corrcoef([found[k] for k in range(1, 6)], true)[0, 1] > 0.99
    assert next(iter(found)) == 1
    assert found[5] == pytest.approx(0.2, abs=0.12)


def clicks(n=60_000, seed=0):
    chance = np.random.default_rng(seed)
    theta, gamma = {k: k**-0.7 for k in range(1, 7)}, chance.uniform(0.05, 0.6, 50)
    position, item = chance.integers(1, 7, n), chance.integers(0, 50, n)
    click = chance.random(n) < np.array([theta[k] for k in position]) * gamma[item]
    return click.astype(int), position, item, theta, gamma


def test_counts_alone_find_the_curve_where_exposure_is_random_and_the_likelihood_grows():
    click, position, item, theta, gamma = clicks()
    found = click_model(click, position, item)
    assert max(abs(found.examination[k] - theta[k]) for k in theta) < 0.04
    assert np.corrcoef(list(found.relevance.values()), gamma)[0, 1] > 0.98
    assert (np.diff(found.log_likelihood) > -1e-9).all()
    with pytest.raises(DataError, match="something else than 0 and 1"):
        click_model(click + 1, position, item)
    with pytest.raises(DataError, match="give as many"):
        click_model(click, position[1:], item)


def test_weighed_clicks_are_the_clicks_of_a_user_who_looks_everywhere():
    click, position, item, theta, gamma = clicks(200_000)
    weight = examination_weights(position, theta)
    for i in range(3):
        rows = item == i
        assert (weight * click)[rows].mean() == pytest.approx(gamma[i], abs=0.04)
    only = examination_weights(position, theta, clicked=click, floor=0.5)
    assert set(only[click == 0]) == {1.0}
    assert only.max() == 2
    with pytest.raises(DataError, match="Position 7 has no chance"):
        examination_weights([1, 7], theta)
    with pytest.raises(ConfigError, match="floor"):
        examination_weights([1], theta, floor=0.0)


def test_what_reads_no_position_has_no_curve():
    model = rs.ranking.PAL(SCHEMA, dim=4, hidden=(8,))
    assert torch.isfinite(model.train()(the_batch())["click"]).all()
    with pytest.raises(SchemaError, match="reads no position"):
        model.examination()
    with pytest.raises(ConfigError, match="Did you mean 'place'"):
        rs.ranking.DLA(SCHEMA, position=("plac",))
    with pytest.raises(ConfigError, match="declare it as a Categorical"):
        rs.ranking.RegressionEM(SCHEMA, position=("price",))
    with pytest.raises(ConfigError, match="task with a position"):
        made(rs.ranking.PAL).examination("order")
