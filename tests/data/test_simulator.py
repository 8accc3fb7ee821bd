"""Laws of the simulated market: the log is what the truth says, and the truth is what the equations say."""

import itertools

import numpy as np
import polars as pl
import pytest

from recstack.data import simulator
from recstack.data.simulator import MarketConfig, planted, simulate, small
from recstack.errors import ConfigError
from recstack.schema import Task


@pytest.fixture(scope="module")
def market():
    return simulate(users=400, items=300, impressions=80_000, domains=2, seed=3)


def column(market, name):
    return market.events[name].to_numpy()


def z_score(happened, p):
    """How many deviations a count of independent events lies from its expectation."""
    return (happened.sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())


def test_same_seed_same_market_and_another_seed_another():
    a, b, c = (simulate(users=60, items=50, impressions=2000, queries=True, ads=0.2, seed=s) for s in (5, 5, 6))
    assert a.events.equals(b.events)
    assert a.users.equals(b.users)
    assert a.items.equals(b.items)
    for name, p in a.truth.shown.items():
        np.testing.assert_array_equal(p, b.truth.shown[name])
    assert not a.events.equals(c.events)


def test_click_is_examination_and_appeal(market):
    """By hand, from the latents."""
    t, c = market.truth, market.config
    x = t.latents
    interest = np.linspace(-1, 1, 8)
    for user, item, domain in ((0, 0, 0), (17, 5, 1), (399, 299, 1)):
        z = float(t.base["click"][domain])
        for a, b, h in zip(x["taste"][domain, user], x["item"][item], interest, strict=True):
            z += c.taste * a * b + c.drift * h * b
        price = np.log(market.items["price"].to_numpy())
        r = (price[item] - price.mean()) / price.std()
        z += c.quality * x["quality"][item] - c.price * x["sensitivity"][user] * r
        np.testing.assert_allclose(t.click(user, item, domain, interest=interest), 1 / (1 + np.exp(-z)), rtol=2e-3)
    np.testing.assert_allclose(t.examine([1, 4, 9]), [1, 1 / 2, 1 / 3], rtol=1e-6)


def test_what_was_shown_has_the_probabilities_of_its_pair_in_its_state(market):
    t, e = market.truth, market.events
    user, item, domain = (column(market, n) for n in ("user_id", "item_id", "domain"))
    interest = t.interest[column(market, "request")]
    np.testing.assert_allclose(t.shown["click"], t.click(user, item, domain, interest=interest), atol=1e-6)
    np.testing.assert_allclose(t.shown["convert"], t.convert(user, item, domain), atol=1e-6)
    np.testing.assert_allclose(t.shown["examine"], t.examine(e["position"].to_numpy()), atol=1e-7)
    row = e["request"] * market.config.list_size + e["position"] - 1
    assert row.to_list() == list(range(e.height))


def test_interest_follows_the_clicks(market):
    """A slow loop over each user's requests."""
    t, e = market.truth, market.events
    for user in (1, 50, 200):
        h, session = np.zeros(8), None
        mine = e.filter(pl.col("user_id") == user)
        for (request,), rows in mine.group_by("request", maintain_order=True):
            if rows["session"][0] != session:
                h, session = 0.7 * h, rows["session"][0]
            np.testing.assert_allclose(t.interest[request], h, atol=1e-5)
            clicked = rows.filter(pl.col("click") == 1)["item_id"].to_list()
            if clicked:
                h = 0.3 * h + 0.7 * t.latents["item"][clicked].mean(0)
        np.testing.assert_allclose(t.last_interest[user], h, atol=1e-5)


def test_observed_clicks_match_the_truth_at_every_position(market):
    click, position = column(market, "click"), column(market, "position")
    p = market.truth.shown["click"] * market.truth.shown["examine"]
    assert abs(z_score(click, p)) < 4
    for k in range(1, market.config.list_size + 1):
        assert abs(z_score(click[position == k], p[position == k])) < 4
    for part in np.array_split(np.argsort(p), 10):  # calibrated, and not only on average
        assert abs(z_score(click[part], p[part])) < 4


def test_observed_conversions_match_the_truth(market):
    click, cart, order = (column(market, n) == 1 for n in ("click", "cart", "order"))
    shown = market.truth.shown
    for happened, given, p in ((cart, click, "cart"), (order, cart, "order"), (order, click, "convert")):
        assert abs(z_score(happened[given], shown[p][given])) < 4
        low = shown[p] < np.median(shown[p][given])
        assert abs(z_score(happened[given & low], shown[p][given & low])) < 4
    # The converted are no fair sample: what is clicked converts more often than what is shown.
    assert shown["convert"][click].mean() > 1.1 * shown["convert"].mean()


def test_order_implies_cart_implies_click_each_after_the_other(market):
    e = market.events
    assert e.filter((pl.col("order") > pl.col("cart")) | (pl.col("cart") > pl.col("click"))).height == 0
    assert e.filter(pl.col("cart_time").is_not_null() != (pl.col("cart") == 1)).height == 0
    assert e.filter(pl.col("order_time").is_not_null() != (pl.col("order") == 1)).height == 0
    carts, orders = e.filter(pl.col("cart") == 1), e.filter(pl.col("order") == 1)
    assert (carts["cart_time"] > carts["time"]).all()
    assert (orders["order_time"] > orders["cart_time"]).all()
    delay = (carts["cart_time"] - carts["time"]).mean()
    assert 600 * 0.85 < delay < 600 * 1.15
    delay = (orders["order_time"] - orders["cart_time"]).mean() / 86_400
    assert 0.5 * 0.8 < delay < 0.5 * 1.2


def test_base_rates_are_near_those_asked_for():
    market = simulate(users=1500, items=400, impressions=60_000, ctr=0.08, cart_rate=0.4, order_rate=0.3, seed=1)
    click, cart, order = (column(market, n).sum() for n in ("click", "cart", "order"))
    assert 0.065 < click / 60_000 < 0.095
    assert 0.34 < cart / click < 0.46
    assert 0.22 < order / cart < 0.38


def test_labels_that_are_not_mature_are_missing():
    final, early = (simulate(users=200, items=100, impressions=40_000, mature_days=d, seed=4).events for d in (0, 1))
    assert final["order"].is_nan().sum() == 0
    end = early["time"].max()
    young = early["time"] > end - 86_400
    for label, when in (("cart", "cart_time"), ("order", "order_time")):
        missing = early[label].is_nan()
        assert missing.any()
        assert (early["click"].filter(missing) == 1).all()
        assert young.filter(missing).all()
        seen = (final[when] <= end).fill_null(False)
        assert ((early[label] == 1) == seen).all()  # what is seen so far, and nothing of the future
        assert not (missing & seen).any()
        assert (missing == (young & (early["click"] == 1) & ~seen)).all()


def test_orders_wait_as_long_as_they_are_told_to():
    market = simulate(users=300, items=100, impressions=40_000, order_delay=3.0, ctr=0.3, seed=5)
    wait = market.events.filter(pl.col("order") == 1).select((pl.col("order_time") - pl.col("cart_time")).mean()).item()
    assert wait / 86_400 == pytest.approx(3, rel=0.15)


def test_domains_that_do_not_differ():
    alike, other = (
        simulate(users=200, items=60, impressions=60_000, domains=3, shift=s, last_rate=r)
        for s, r in ((0, 1), (0, 0.5))
    )
    p = [alike.truth.click(np.arange(200)[:, None], np.arange(60)[None], d) for d in range(3)]
    assert np.allclose(alike.truth.taste[0], alike.truth.taste[2], atol=1e-6)
    assert np.abs(p[0] - p[2]).mean() < 0.02  # base rates are set on a sample
    rates = other.events.group_by("domain").agg(pl.col("click").mean()).sort("domain")["click"]
    assert rates[2] / rates[0] == pytest.approx(0.5, abs=0.1)


def test_best_page_is_the_best_of_all_pages():
    """Against every ordered page of a tiny catalogue."""
    market = simulate(users=5, items=6, impressions=60, list_size=3, categories=2, cold=0.0, seed=2)
    users = np.arange(5)
    interest = market.truth.last_interest
    for by in ("click", "order"):
        pages = np.array(list(itertools.permutations(range(6), 3)))
        value = np.stack([market.truth.value(users, np.tile(p, (5, 1)), interest=interest, by=by) for p in pages], 1)
        best = market.truth.best_page(users, 3, interest=interest, by=by)
        np.testing.assert_array_equal(best, pages[value.argmax(1)])
        np.testing.assert_allclose(market.truth.value(users, best, interest=interest, by=by), value.max(1), rtol=1e-6)


def test_value_is_the_expected_clicks_of_a_page(market):
    t = market.truth
    slow = sum(t.click(7, item, 1) * k**-0.5 for k, item in enumerate((4, 9, 30), 1))
    np.testing.assert_allclose(t.value([7], [[4, 9, 30]], 1), [slow], rtol=1e-6)
    np.testing.assert_allclose(t.value([7], [[4, -1, 30]], 1), [slow - t.click(7, 9, 1) * 2**-0.5], rtol=1e-5)


def test_best_page_beats_the_logging_policy_which_beats_chance(market):
    t, L = market.truth, market.config.list_size
    first = market.events.filter(pl.col("position") == 1)
    users, domain = first["user_id"].to_numpy(), first["domain"].to_numpy()
    shown = column(market, "item_id").reshape(-1, L)
    chance = np.random.default_rng(0).integers(0, market.config.items, shown.shape)
    regret = t.regret(users, shown, domain, interest=t.interest)
    assert regret.min() > -1e-5
    values = [t.value(users, page, domain, interest=t.interest).mean() for page in (chance, shown)]
    best = t.value(users, t.best_page(users, L, domain, interest=t.interest), domain, interest=t.interest).mean()
    assert values[0] * 1.3 < values[1] < 0.6 * best
    np.testing.assert_allclose(best - values[1], regret.mean(), rtol=1e-4)


def test_excluded_items_are_on_no_page(market):
    exclude = np.ones((2, market.config.items), bool)
    exclude[:, [5, 9, 11]] = False
    page = market.truth.best_page([0, 1], 4, exclude=exclude)
    assert all(set(row[:3]) == {5, 9, 11} and row[3] == -1 for row in page)


def test_domains_have_their_own_taste_and_rate(market):
    t = market.truth
    user, item = np.arange(400)[:, None], np.arange(300)
    z = [t.logit("click", user, item, d).ravel() for d in (0, 1)]
    assert 0.2 < np.corrcoef(*z)[0, 1] < 0.9
    rate = [column(market, "click")[column(market, "domain") == d].mean() for d in (0, 1)]
    assert rate[1] < 0.7 * rate[0]
    same = simulate(users=50, items=50, impressions=1000, domains=2, shift=0.0, seed=3).truth
    np.testing.assert_allclose(same.taste[0], same.taste[1], atol=1e-6)


def near_and_far(market):
    """Click rate where the item is of the category clicked last, and elsewhere."""
    category = market.truth.latents["category"]
    e = market.events.with_columns(
        pl.Series("category", category[column(market, "item_id")]),
        pl.when(pl.col("click") == 1).then(pl.Series(category[column(market, "item_id")])).alias("clicked"),
    )
    last = e.group_by("user_id", "request", maintain_order=True).agg(pl.col("clicked").drop_nulls().last())
    last = last.with_columns(last=pl.col("clicked").forward_fill().shift().over("user_id")).drop("clicked")
    e = e.join(last, on=["user_id", "request"], how="left").filter(pl.col("last").is_not_null())
    near = e["category"] == e["last"]
    return e["click"].filter(near).mean(), e["click"].filter(~near).mean()


def test_the_next_click_is_near_the_last_one():
    near, far = near_and_far(planted("sequence", seed=1))
    assert near > 1.5 * far
    near, far = near_and_far(planted("sequence", seed=1, drift=0.0))
    assert 0.93 < near / far < 1.07


@pytest.mark.parametrize(
    ("signal", "user", "item", "position"),
    [
        ("taste", True, True, False),
        ("popularity", False, True, False),
        ("price", True, True, False),
        ("sequence", False, False, False),
        ("position", False, False, True),
        ("domain", True, True, False),
    ],
)
def test_a_planted_world_has_one_signal(signal, user, item, position):
    t = planted(signal, impressions=2000).truth
    p = t.click(np.arange(100)[:, None], np.arange(60))
    assert (np.ptp(p, axis=0).max() > 1e-5) == user
    assert (np.ptp(p, axis=1).max() > 1e-5) == item
    assert (t.examine(3) < 1) == position


def test_lists_hold_different_items_that_are_released(market):
    lists = column(market, "item_id").reshape(-1, market.config.list_size)
    assert (np.diff(np.sort(lists, 1), axis=1) > 0).all()
    released = market.items["released"].to_numpy()
    assert (released[column(market, "item_id")] <= column(market, "time")).all()
    assert (released > 0).sum() == 30


def test_what_was_clicked_is_not_shown_again(market):
    pairs = market.events.filter(pl.col("click") == 1).select("user_id", "item_id")
    counts = pairs.group_by("user_id").len().filter(pl.col("len") <= 64)  # further back, the policy forgets
    pairs = pairs.join(counts, on="user_id", how="semi")
    assert pairs.height > 1000
    assert pairs.is_unique().mean() > 0.999


def test_a_random_policy_shows_all_items_alike():
    market = planted("popularity", seed=2)
    count = np.bincount(column(market, "item_id"), minlength=60)
    assert count.min() > 0.7 * count.mean()
    assert count.max() < 1.3 * count.mean()
    biased = simulate(users=100, items=300, impressions=30_000, cold=0.0, seed=2)
    assert np.bincount(column(biased, "item_id"), minlength=300).max() > 3 * 100


def test_attributes_hint_at_the_latents(market):
    x = market.truth.latents
    item, taste = x["item"], x["taste"][0]
    within = [item[x["category"] == k].var(0).sum() for k in np.unique(x["category"])]
    assert np.mean(within) < 0.7 * item.var(0).sum()
    young = (market.users["age"] == "18-24").to_numpy()
    old = (market.users["age"] == "65+").to_numpy()
    assert x["sensitivity"][young].mean() > 2 * x["sensitivity"][old].mean()
    for name in ("age", "country", "gender"):
        groups = market.users[name].to_numpy()
        within = np.average([taste[groups == g].var(0).sum() for g in np.unique(groups)])
        assert within < taste.var(0).sum()


def test_time_runs_over_the_days_and_some_come_late(market):
    time = column(market, "time")
    assert (np.diff(time) >= 0).all()
    assert time.min() >= 0
    assert 13 * 86_400 < time.max() < 15 * 86_400
    first = market.events.group_by("user_id").agg(pl.col("time").min())["time"].to_numpy() / 86_400
    assert (first > 0.8 * 14).sum() >= 5
    count = np.bincount(column(market, "user_id"), minlength=400)
    assert count.max() > 4 * count.mean()  # a few do much


def test_an_ad_without_budget_is_not_shown():
    market = simulate(users=300, items=60, impressions=60_000, ads=0.3, ctr=0.15, seed=7)
    budget, bid = (market.items[n].to_numpy() for n in ("budget", "bid"))
    item, cost, request = (column(market, n) for n in ("item_id", "cost", "request"))
    np.testing.assert_allclose(cost, np.where(column(market, "click") == 1, bid[item], 0))
    ended = 0
    for ad in np.flatnonzero(market.items["ad"].to_numpy()):
        mine = item == ad
        spent = np.cumsum(cost[mine])
        over = np.flatnonzero(spent >= budget[ad])
        if len(over):
            ended += 1
            assert request[mine][-1] <= request[mine][over[0]] + 1024
    assert ended > 5
    assert np.unique(request[~market.items["ad"].to_numpy()[item]])[-1] == request[-1]


def test_a_query_asks_for_its_category():
    market = simulate(users=200, items=100, impressions=30_000, queries=True, seed=8)
    e = market.events.join(market.items.select("item_id", "category"), on="item_id", how="left", maintain_order="left")
    match = e["query"] == e["category"]
    assert e["click"].filter(match).mean() > 1.5 * e["click"].filter(~match).mean()
    query = e["query"].str.strip_prefix("category_").cast(pl.Int64).to_numpy()
    user, item = (column(market, n) for n in ("user_id", "item_id"))
    interest = market.truth.interest[column(market, "request")]
    p = market.truth.click(user, item, interest=interest, query=query)
    np.testing.assert_allclose(p, market.truth.shown["click"], atol=1e-6)
    assert abs(z_score(column(market, "click"), p * market.truth.shown["examine"])) < 4


def test_the_log_knows_its_columns(market):
    log = market.log("funnel")
    assert len(log) == 80_000
    assert (log.schema.user, log.schema.item, log.schema.time) == ("user_id", "item_id", "time")
    assert [t.name for t in log.schema.tasks] == ["click", "cart", "order", "carted", "ordered"]
    assert log.schema.feature("domain").role == "domain"
    for feature in log.schema.features:
        assert feature.role == "history" or log.place(feature.name) is not None
    assert market.log(lists=True).request == "request"
    own = (Task("order", weight=0.5),)
    assert market.log(own).schema.tasks == own


def test_histories_of_the_log_are_the_clicks_before(market):
    log = market.log().with_histories()
    line = log.timelines["clicked"]
    for row in (40_000, 79_999):
        event = log.events.row(row, named=True)
        past = market.events.filter(
            (pl.col("user_id") == event["user_id"]) & (pl.col("time") < event["time"]) & (pl.col("click") == 1)
        )
        assert line.items[event["clicked@begin"] : event["clicked@end"]].tolist() == past["item_id"].to_list()[-50:]


def test_small_is_for_examples():
    log = small(1, tasks="funnel", lists=True, domains=2, items=30)
    assert len(log) == 3000
    assert log.request == "request"
    assert log.schema.feature("domain").role == "domain"
    assert log.items.height == 30


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"user": 3}, "Did you mean 'users'"),
        ({"items": 5}, "needs 10"),
        ({"ads": 1.0}, "neither cold nor ads"),
        ({"ctr": 0.0}, "ctr lies between 0 and 1; got 0.0"),
        ({"ctr": 0.6, "eta": 1.0}, "examined"),
        ({"shift": 1.5}, "shift is a share"),
        ({"eta": -1.0}, "eta is not negative"),
        ({"days": 0}, "days must be positive"),
        ({"users": 0}, "users of at least 1"),
        ({"impressions": 9}, "do not fill one list"),
    ],
)
def test_a_market_that_cannot_be_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        simulate(**options)


def test_questions_about_nobody_are_refused(market):
    for ask in (lambda t: t.click(400, 0), lambda t: t.convert(0, -1), lambda t: t.best_page([0], domain=2)):
        with pytest.raises(ConfigError, match="This market has"):
            ask(market.truth)
    with pytest.raises(ConfigError, match="Positions count from 1"):
        market.truth.examine(0)
    with pytest.raises(ConfigError, match="Did you mean 'click'"):
        market.truth.best_page([0], by="clicks")
    with pytest.raises(ConfigError, match="Did you mean 'funnel'"):
        market.log("funel")
    with pytest.raises(ConfigError, match="Did you mean 'sequence'"):
        planted("sequnce")


def test_markets_at_the_edges():
    one = simulate(users=1, items=1, impressions=3, list_size=1, categories=1, cold=0.0)
    assert one.events["item_id"].to_list() == [0, 0, 0]
    short = simulate(MarketConfig(users=3, items=12, impressions=25, list_size=10, cold=0.0, days=0.01))
    assert short.events.height == 20
    assert simulator.planted("taste", impressions=5).events.height == 5
