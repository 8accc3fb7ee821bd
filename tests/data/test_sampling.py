"""Which rows teach, how much, and what is drawn against them: each scheme by another road, and on planted positives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import recstack as rs
from recstack import sampling
from recstack.errors import ConfigError, DataError
from recstack.features import tasks
from recstack.kernels.topk import Sparse


def encoded(events, *more, implicit=False, task=None, request=None):
    features = [rs.Categorical("user", role="user"), rs.Categorical("item", role="item"), *more]
    schema = rs.Schema(features, task or [rs.Task("click")], user="user", item="item", time="at")
    log = rs.Log(events, schema, implicit=implicit, request=request)
    return rs.Encoder(schema).fit(log).encode(log)


def impressions(n=4000, users=60, items=40, seed=0):
    rng = np.random.default_rng(seed)
    item = np.minimum(rng.zipf(1.6, n), items) - 1
    click = (rng.random(n) < 0.2).astype(int)
    return encoded({"user": rng.integers(0, users, n), "item": item, "click": click, "at": np.arange(n)})


# -- what is drawn ----------------------------------------------------------------------------------------------------
def test_rare_items_are_drawn_alike_and_the_others_by_frequency():
    columns = impressions()
    chances = sampling.weighted_negatives(columns, least=20, power=0.75)
    count = {int(i): int((columns.item_ids == i).sum()) for i in columns.catalog.ids}
    low = [i for i, n in count.items() if n < 20]
    assert 5 < len(low) < len(count) - 5
    total = sum(n**0.75 for i, n in count.items() if i not in low)
    for i, n in count.items():
        rest = (1 - len(low) / len(count)) * n**0.75 / total
        assert chances[i] == pytest.approx(1 / len(count) if i in low else rest)
    assert chances.sum() == pytest.approx(1)
    assert chances[:2].tolist() == [0, 0]
    assert sampling.weighted_negatives(columns, least=10**6)[2:] == pytest.approx(1 / len(count))


def test_a_loader_draws_by_the_proposal_and_tells_it():
    rng = np.random.default_rng(1)
    columns = encoded(
        {"user": np.arange(3000), "item": rng.integers(0, 12, 3000), "click": [1] * 3000, "at": [0] * 3000}
    )
    chances = np.zeros(columns.catalog.size)
    chances[2:] = rng.random(12) + 0.05  # they need not sum to 1
    drawn, told = [], []
    for batch in rs.Loader(columns, 500, negatives=8, proposal=chances, prefetch=0):
        drawn.append(batch["item"])
        told.append(batch["@log_q"])
    ids, log_q = torch.cat(drawn), torch.cat(told)
    share = chances / chances.sum()
    assert log_q.exp().numpy() == pytest.approx(share[ids.numpy()], rel=1e-5)
    for own in range(2, 14):  # what is drawn for those who have this item: the others, in proportion
        others = ids[ids[:, 0] == own, 1:].flatten().bincount(minlength=14).numpy() / (
            8 * int((ids[:, 0] == own).sum())
        )
        expected = np.where(np.arange(14) == own, 0, share) / (1 - share[own])
        assert np.abs(others - expected).max() < 0.05
    with pytest.raises(ConfigError, match=r"proposal= is a positive chance of each item, \[14\]"):
        rs.Loader(columns, 500, negatives=8, proposal=chances[:5])


def test_nce_learns_by_the_proposal():
    columns = impressions(600)
    schema = columns.schema.replace(tasks=(rs.Task("click", loss="nce"),))
    loader = rs.Loader(columns, 64, negatives=5, proposal=sampling.weighted_negatives(columns), prefetch=0)
    model = rs.ranking.FM(schema, dim=4)
    batch = next(iter(loader))
    score = model(batch)["click"].detach().double()
    log_kq = batch["@log_q"].double() + math.log(5)
    of_data = (score - log_kq).sigmoid()
    by_hand = -(of_data[:, 0].log() + (1 - of_data[:, 1:]).log().sum(1)).mean()
    value = tasks.losses(model(batch), batch, schema)["click"].item()
    assert value == pytest.approx(float(by_hand), rel=1e-5)
    result = rs.Trainer(model, epochs=3, progress=False).fit(loader)
    assert result.epochs[-1]["loss"] < result.epochs[0]["loss"]


# -- which rows are kept ----------------------------------------------------------------------------------------------
def test_frequent_real_negatives_are_thinned_out():
    columns = impressions()
    negative = columns.labels["click"] == 0
    kept = np.mean([sampling.subsampled_negatives(columns, t=0.01, seed=s) for s in range(200)], axis=0)
    assert (kept[~negative] == 1).all()
    for item in np.unique(columns.item_ids):
        rows = negative & (columns.item_ids == item)
        f = rows.sum() / negative.sum()
        if rows.any():
            assert kept[rows].mean() == pytest.approx(min(1, math.sqrt(0.01 / f) + 0.01 / f), abs=0.04)


def planted(n=6000, noticed=0.5, seed=0):
    """Rows that are positive by nature where x is high; only half of these were noticed. Also: which are positive by nature."""
    rng = np.random.default_rng(seed)
    good = rng.random(n) < 0.3
    x = rng.standard_normal(n) + 3.0 * good
    click = good & (rng.random(n) < noticed)
    events = {"user": rng.integers(0, 50, n), "item": rng.integers(0, 30, n), "click": click.astype(int), "x": x}
    return encoded(events | {"at": np.arange(n)}, rs.Numeric("x", role="context")), good


def by_means(columns):
    """Scores along x, from the side of those labelled 1: a learner that heeds labels and weights."""
    x, label = columns.batch(slice(None))["x"].numpy().ravel().astype(float), columns.labels["click"]
    weight = np.ones(len(x)) if columns.weights is None else columns.weights
    mean = [np.average(x[label == y], weights=weight[label == y]) for y in (0, 1)]
    return (x - (mean[0] + mean[1]) / 2) * (mean[1] - mean[0])


@pytest.mark.parametrize("scheme", ["spy", "two_step"])
def test_planted_positives_stay_out_of_the_reliable_negatives(scheme):
    columns, good = planted()
    clicked = columns.labels["click"] == 1
    keep = getattr(sampling, scheme)(columns, by_means)
    assert keep[clicked].all()
    hidden, negative = good & ~clicked, ~good
    assert hidden.sum() > 500
    assert keep[hidden].mean() < 0.08  # 5 % are expected
    assert keep[negative].mean() > 0.85
    assert (columns.labels["click"] == 1).sum() == clicked.sum()  # the columns are as they were


def test_hardly_a_spy_lies_below_the_threshold():
    columns, _ = planted(1500, seed=3)
    met = []

    def learn(hiding):
        spies = (columns.labels["click"] == 1) & (hiding.labels["click"] == 0)
        met.append(spies)
        return by_means(hiding)

    keep = sampling.spy(columns, learn, share=0.2, lost=0.1, seed=5)
    (spies,) = met
    assert spies.sum() == round(0.2 * (columns.labels["click"] == 1).sum())
    score = by_means(sampling._relabelled(columns, None, np.flatnonzero(spies)))
    highest = score[keep & (columns.labels["click"] == 0)].max()
    assert (score[spies] <= highest).mean() <= 0.1
    assert (sampling.spy(columns, learn, share=0.2, lost=0.1, seed=5) == keep).all()
    assert (sampling.spy(columns, learn, share=0.2, lost=0.1, seed=6) != keep).any()


def test_too_few_spies_are_told():
    columns, _ = planted(100)
    with pytest.raises(DataError, match=r"\d+ positive rows make \d spies, and a threshold at 0.05 of them needs 20"):
        sampling.spy(columns, by_means)
    with pytest.raises(DataError, match="one finite score for each of the 100 rows"):
        sampling.two_step(columns, lambda c: np.zeros(3))


def test_a_real_model_can_be_the_learner():
    columns, good = planted(3000)

    def learn(hiding):
        torch.manual_seed(0)
        model = rs.ranking.LR(hiding.schema).fit(hiding, epochs=3, batch_size=256, lr=0.05, progress=False)
        return model.score(hiding)["click"]

    keep = sampling.spy(columns, learn)
    hidden = good & (columns.labels["click"] == 0)
    assert keep[hidden].mean() < 0.15 < 0.8 < keep[~good].mean()


def test_what_lies_below_the_last_click_is_left_out():
    rng = np.random.default_rng(0)
    request, clicked, position = rng.integers(0, 40, 300), rng.random(300) < 0.15, rng.permutation(300)
    for given in (position, None):
        keep = sampling.skip_above(clicked, request, given)
        place = np.arange(300) if given is None else given
        for row in range(300):
            below = [r for r in range(300) if request[r] == request[row] and clicked[r] and place[r] >= place[row]]
            assert keep[row] == bool(below)
    assert clicked[~keep].sum() == 0


# -- rows that are added ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("soft", [True, False])
def test_fuzzy_positives_are_the_loop(soft):
    columns = impressions(300, users=20, items=40, seed=4)
    rng = np.random.default_rng(4)
    size = columns.catalog.size
    dense = np.where(rng.random((size, size)) < 0.3, rng.integers(1, 99, (size, size)) / 8, 0)
    dense[:2], dense[:, :2] = 0, 0
    row, column = np.nonzero(dense)
    offsets = np.searchsorted(row, np.arange(size + 1))
    similar = Sparse(offsets, column.astype(np.int32), size, dense[row, column].astype(np.float32))
    more = sampling.fuzzy_positives(columns, similar, weight=0.4, per_user=3, soft_labels=soft)
    user, item, click = columns.user_ids, columns.item_ids, columns.labels["click"] == 1
    expected = []
    for u in np.unique(user[click]):
        score = dense[item[(user == u) & click]].sum(0)
        score[item[user == u]] = 0
        best = sorted(np.flatnonzero(score), key=lambda j: (-score[j], j))[:3]
        newest = int(np.flatnonzero((user == u) & click)[-1])
        expected += [(int(u), int(j), newest, 0.4 * score[j] / score[best[0]]) for j in best]
    n = columns.n_rows
    assert more.n_rows == n + len(expected) > n + 20
    batch, old = more.batch(np.arange(more.n_rows)), columns.batch(np.arange(n))
    assert torch.equal(batch["item"][:n], old["item"])
    assert torch.equal(batch["click@label"][:n], old["click@label"])
    assert batch["user"][n:].tolist() == [u for u, _, _, _ in expected]
    assert batch["item"][n:, 0].tolist() == [j for _, j, _, _ in expected]
    assert more.times[n:].tolist() == [int(columns.times[row]) for _, _, row, _ in expected]
    faint = [y for *_, y in expected]
    assert batch["click@label"][n:, 0].tolist() == pytest.approx(faint if soft else [1.0] * len(faint))
    assert batch["@weight"][n:, 0].tolist() == pytest.approx([1.0] * len(faint) if soft else faint)
    assert (batch["@weight"][:n] == 1).all()
    assert more.digest != columns.digest


def test_pair_features_and_lists_cannot_be_added_to():
    events = {"user": [1, 1], "item": [1, 2], "click": [1, 0], "at": [1, 2], "place": [1, 2]}
    nothing = Sparse(np.zeros(5, np.int64), np.zeros(0, np.int32), 4, np.zeros(0, np.float32))
    with pytest.raises(ConfigError, match="pair feature 'place'"):
        sampling.fuzzy_positives(encoded(events, rs.Categorical("place", role="pair")), nothing)
    with pytest.raises(DataError, match="hold lists"):
        sampling.fuzzy_positives(encoded(events, request="at"), nothing)


# -- how much each counts ---------------------------------------------------------------------------------------------
def funnel(n=500, seed=0):
    rng = np.random.default_rng(seed)
    click = rng.random(n) < 0.5
    order = click & (rng.random(n) < 0.2)
    events = {"user": np.minimum(rng.zipf(1.7, n), 15), "item": rng.integers(0, 9, n), "at": np.arange(n)}
    events |= {"click": click.astype(int), "order": order.astype(int)}
    return encoded(events, task=[rs.Task("click"), rs.Task("order", given="click")]), click, order


def test_purchases_count_more_and_every_user_the_same():
    columns, click, order = funnel()
    weight = sampling.event_weights(columns, {"click": 1.5, "order": 8.0}, clip=5.0)
    assert weight.tolist() == np.where(order, 5.0, np.where(click, 1.5, 1.0)).tolist()
    even = sampling.event_weights(columns, {"click": 1.5, "order": 8.0}, clip=5.0, per_user=True)
    totals = [even[click & (columns.user_ids == u)].sum() for u in np.unique(columns.user_ids[click])]
    assert totals == pytest.approx([weight[click].sum() / len(totals)] * len(totals), rel=1e-5)
    assert (even[~click] == 1).all()
    with pytest.raises(ConfigError, match="Unknown label 'buy'"):
        sampling.event_weights(columns, {"buy": 2.0})


def test_copies_are_weights_on_average():
    weights = np.array([0.0, 0.3, 1.0, 2.5, 4.0])
    times = np.mean([np.bincount(sampling.replicated(weights, seed=s), minlength=5) for s in range(3000)], axis=0)
    assert times == pytest.approx(weights, abs=0.04)
    assert times[[0, 2, 4]].tolist() == [0, 1, 4]


def test_a_weight_of_nothing_is_a_row_left_out():
    columns, click, _ = funnel()
    keep = np.random.default_rng(1).random(500) < 0.6
    model = rs.ranking.FM(columns.schema, dim=4)
    every = slice(None)
    out = sampling.reweighted(columns, keep).batch(every)
    some = columns.select(keep).batch(every)
    for name, value in model.losses(some).items():
        assert model.losses(out)[name].item() == pytest.approx(value.item(), rel=1e-5)
    twice = sampling.reweighted(sampling.reweighted(columns, keep), 2 * click)
    assert twice.weights.tolist() == (2.0 * (keep & click)).tolist()
    with pytest.raises(DataError, match="at least 0 for each of the 500 rows"):
        sampling.reweighted(columns, -np.ones(500))
