"""Mean normalisation by hand, and the choice of what to ask a newcomer."""

import math

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs


def rated(seed: int = 0, n: int = 400) -> rs.Log:
    chance = np.random.default_rng(seed)
    item = chance.integers(0, 12, n)
    stars = np.clip(np.round(3 + (item % 3 - 1) + chance.normal(size=n)), 1, 5)
    stars[chance.random(n) < 0.05] = np.nan
    schema = rs.Schema(
        [rs.Categorical("user", "user"), rs.Categorical("item", "item"), rs.Categorical("shelf", "item", multi=True)],
        [rs.Task("stars", kind="regression")],
    )
    items = pl.DataFrame({"item": range(13), "shelf": [[i % 4] if i % 5 else [i % 4, 9] for i in range(13)]})
    return rs.Log({"user": chance.integers(0, 40, n), "item": item, "stars": stars}, schema, items=items)


def test_means_by_hand_and_back():
    log = rated()
    means = rs.MeanNormalisation("stars", shrinkage=25).fit(log)
    item, stars = log.events["item"].to_numpy(), log.events["stars"].to_numpy()
    live = ~np.isnan(stars)
    mu = stars[live].mean()
    for i in range(12):
        own = stars[live & (item == i)]
        assert means.baseline([i])[0] == pytest.approx(mu + (own - mu).sum() / (len(own) + 25))
    assert means.baseline([12])[0] == pytest.approx(mu)  # never rated
    rest = means.transform(log)
    found = rest.events["stars"].fill_null(np.nan).to_numpy()
    assert np.array_equal(np.isnan(found), ~live)
    np.testing.assert_allclose(means.restore(found, item)[live], stars[live])
    assert abs(found[live].mean()) < 0.05


@pytest.mark.slow
def test_a_user_nobody_knows_gets_the_items_mean():
    log = rated(n=1000)
    train = log.select(log.events["user"].to_numpy() < 39)
    means = rs.MeanNormalisation(shrinkage=5).fit(train)
    rest = means.transform(train)
    torch.manual_seed(0)
    model = rs.ranking.FM(rs.Encoder(rest.schema).fit(rest).schema, dim=4)
    model.fit(rest, epochs=2, progress=False)
    new = rs.Log({"user": [999] * 12, "item": list(range(12)), "stars": [1.0] * 12}, log.schema, items=log.items)
    found = means.restore(model.score(new)["stars"], new.events["item"])
    np.testing.assert_allclose(found, means.baseline(list(range(12))), atol=0.25)
    assert found.min() > 1


def test_onboarding_by_a_slow_loop():
    log = rated()
    value = {}
    for i in range(12):
        own = [s for j, s in log.events.select("item", "stars").iter_rows() if j == i and not math.isnan(s)]
        shares = [own.count(s) / len(own) for s in set(own)]
        value[i] = math.log(len(own)) * -sum(p * math.log(p) for p in shares)
    order = sorted(value, key=lambda i: -value[i])
    assert rs.onboarding(log, 5) == order[:5]
    shelves = dict(log.items.iter_rows())
    wanted, taken = [], set()
    for i in order:
        if not taken & set(shelves[i]):
            wanted.append(i)
            taken |= set(shelves[i])
    assert rs.onboarding(log, 12, category="shelf") == wanted
    assert 2 < len(wanted) < 6


def test_what_cannot_be():
    log = rated(n=20)
    with pytest.raises(rs.ConfigError, match="at least 0"):
        rs.MeanNormalisation(shrinkage=-1)
    with pytest.raises(rs.ConfigError, match="call fit"):
        rs.MeanNormalisation().baseline([1])
    with pytest.raises(rs.SchemaError, match="of a regression"):
        rs.MeanNormalisation().fit(rs.Log(log.events, log.schema.replace(tasks=[rs.Task("stars")])))
    with pytest.raises(rs.DataError, match="No row has a label 'stars'"):
        rs.MeanNormalisation().fit(rs.Log(log.events.with_columns(stars=pl.lit(None, pl.Float64)), log.schema))
    with pytest.raises(rs.SchemaError, match="Did you mean 'shelf'"):
        rs.onboarding(log, category="shelv")
