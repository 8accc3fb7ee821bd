"""Pages that act: what the simulator answers, models that learn from it, and lists of several tasks."""

import itertools

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs
from contract_cases import CASES
from recstack import testing
from recstack.data.simulator import simulate
from recstack.data.transitions import Transitions
from recstack.errors import ConfigError, SchemaError
from recstack.models import reranking
from recstack.models.base import Reranker
from recstack.models.reranking.slate_q import best_slate
from recstack.schema import Categorical, History, Schema, Task
from recstack.testing import Case


def test_users_click_and_stay_as_often_as_the_truth_says():
    truth = simulate(users=30, items=60, impressions=2000, list_size=5, ads=0.3, ctr=0.2, seed=2).truth
    ads, organic = np.flatnonzero(truth.ad), np.flatnonzero(~truth.ad)
    page = np.array([organic[0], ads[0], organic[1], -1])
    users, pages = np.full(20_000, 7), np.tile(page, (20_000, 1))
    interest = np.tile(0.3 * truth.item[organic[5]], (20_000, 1))
    answer = truth.respond(users, pages, interest=interest, seed=4)

    p = truth.click(7, page[:3], interest=interest[:3])
    seen = np.array([1, 2, 3]) ** -truth.config.eta
    by_hand = np.log(3) + 0.5 * (seen[[0, 2]] * (p[[0, 2]] - 0.2)).sum() - 1.5 * seen[1] * (1 - p[1])
    stays = truth.stays(users[:1], pages[:1], interest=interest[:1])[0]
    np.testing.assert_allclose(stays, 1 / (1 + np.exp(-by_hand)), rtol=1e-5)
    for found, wanted in ((answer.click[:, :3].mean(0), seen * p), (answer.stays.mean(), stays)):
        assert (np.abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 20_000)).all()
    assert not answer.click[:, 3].any(), "an empty place"
    value = truth.value(users[:1], pages[:1], interest=interest[:1])[0]
    np.testing.assert_allclose((seen * p).sum(), value, rtol=1e-5)

    only = np.flatnonzero((answer.click == [True, False, True, False]).all(1))[0]
    moved = 0.3 * interest[0] + 0.7 * truth.item[page[[0, 2]]].mean(0)
    np.testing.assert_allclose(answer.interest[only], moved, rtol=1e-5)
    none = np.flatnonzero(~answer.click.any(1))[0]
    np.testing.assert_array_equal(answer.interest[none], interest[none].astype(np.float32))


def test_a_log_of_inserted_ads_says_what_was_done_and_what_came_of_it():
    market = simulate(users=40, items=60, impressions=6000, list_size=4, ads=0.2, seed=3)
    log, truth = market.log("insertions"), market.truth
    rows = log.events.sort("request").with_columns(decided=pl.col("earned").is_not_null())
    assert (rows["decided"] == rows["location"].is_not_null()).all()
    per = (
        rows.group_by("request")
        .agg(pl.col("decided").sum(), pl.col("item_id").n_unique(), pl.len())
        .unique(["decided", "item_id", "len"])
    )
    assert per.drop("request").rows() == [(1, 4, 4)]
    assert truth.ad[rows["item_id"].to_numpy()].all()
    assert not truth.ad[rows["page"].explode().to_numpy()].any()
    one = rows.filter("decided")
    share = one["location"].value_counts(normalize=True)["proportion"]
    assert abs(share - 1 / 6).max() < 0.04
    none = one.filter(pl.col("location") == 0)
    assert set(none["earned"].round(6)) == {0.1, -0.1}
    earned, bid = one["earned"].to_numpy(), truth.bid[one["item_id"].to_numpy()]
    possible = np.stack([0 * bid, bid]) + np.array([0.1, -0.1])[:, None, None]
    assert (np.abs(possible - earned).min((0, 1)) < 1e-6).all()
    later = one.filter(pl.col("time") % 100_000 > 0)
    assert later["ads_seen"].list.len().max() > 1
    with pytest.raises(ConfigError, match="Ads can only be inserted"):
        simulate(users=20, items=30, impressions=200, list_size=4).log("insertions")


# -- what follows a page ----------------------------------------------------------------------------------------------
def test_what_follows_is_the_same_users_next_request_of_the_session():
    features = [Categorical("user_id", role="user"), Categorical("item_id", role="item")]
    schema = Schema(features, [Task("click")], user="user_id", item="item_id", time="time")
    rows = {
        "user_id": [1, 2, 1, 1, 2],
        "item_id": [4, 5, 6, 7, 8],
        "click": [0, 1, 0, 1, 0],
        "time": [0, 5, 60, 400, 9],
    }
    log = rs.Log(rows, schema)
    columns = Transitions(rs.Encoder(schema).fit(log).encode(log), gap=100)
    some = columns.batch(np.array([0, 2, 1, 3]))
    ids = columns.item_ids
    assert some["@followed"].tolist() == [True, False, True, False]
    assert some["after/item_id"].flatten().tolist() == [ids[2], ids[2], ids[4], ids[3]]
    torch.testing.assert_close(some["after/click@label"].flatten(), torch.tensor([0.0, 0.0, 0.0, 1.0]))


# -- DEAR -------------------------------------------------------------------------------------------------------------
DECIDED = (Task("earned", kind="regression"), Task("location", kind="multiclass", classes=5))


def dear(**options):
    given = {"page": ("watched",), "dim": 6, "width": 8, "hidden": (8,), "discount": 0.5, "rate": 0.25}
    return Case(reranking.DEAR, {**given, **options}, testing.schema(tasks=DECIDED))


def test_dear_learns_towards_what_was_earned_and_the_best_that_follows():
    case = dear()
    model = case.build()
    now, then = case.batch(3, 2, seed=1), case.batch(3, 2, seed=2)
    now["earned@label"][:, 1] = torch.nan  # one ad was decided on
    both = now | {f"after/{k}": v for k, v in then.items()} | {"@followed": torch.tensor([True, True, False])}
    q, best = model(now)["location"], model.value(then)
    torch.testing.assert_close(best, model.slow(*model._read(then)).flatten(1).max(1).values)
    wanted = 0.0
    for r in range(3):
        goal = now["earned@label"][r, 0] + (0.5 * best[r] if r < 2 else 0)
        wanted += (q[r, 0, int(now["location@label"][r, 0])] - goal) ** 2 / 3
    torch.testing.assert_close(model.losses(both)["earned"], wanted)
    torch.testing.assert_close(q[:, 0, 0], q[:, 1, 0])  # no ad is no ad, whichever it would have been

    before = model.slow.network.value.weight.clone()
    model.train().losses(both)
    ahead = model.network.value.weight
    torch.testing.assert_close(model.slow.network.value.weight, before + 0.25 * (ahead - before))
    with pytest.raises(ConfigError, match="DEAR has two tasks"):
        reranking.DEAR(testing.schema(), page=("watched",))


def test_dear_chooses_the_greatest_value_and_reads_the_list_in_its_order():
    case = dear()
    model = case.build()
    some = case.batch(40, 3, seed=3, mask=True)
    with torch.no_grad():
        more = model(some)["location"] - model(some)["location"][..., :1]
        model.network.advantage.bias -= more[..., 1:].amax((1, 2)).median()  # so that half of the pages stay without
    q = model(some)["location"].masked_fill(~some["@mask"].unsqueeze(-1), -torch.inf)
    ad, location = model.choose(some)
    q[..., 0] = q[:, :1, 0]
    torch.testing.assert_close(q[torch.arange(40), ad, location], q.flatten(1).max(1).values)
    assert 0 < (location == 0).sum() < 40, "always or never"
    other = dict(some)
    for key in ("item_id@watched", "genre@watched"):
        other[key] = some[key].clone()
        other[key][-1] = some[key][-1].flip(0)  # the last list is full
    assert (model(other)["earned"][-1] - model(some)["earned"][-1]).abs().max() > 1e-4


@pytest.mark.slow
def test_dear_learns_whether_which_and_where():
    """Users below 4 pay 1 for ad 10 above the first item, and nothing elsewhere; from 4 on, any ad costs 1."""
    rng = np.random.default_rng(0)
    n = 1500
    user, ad, location = rng.integers(1, 8, n), rng.integers(10, 12, n), rng.integers(0, 4, n)
    pays = (user < 4) & (ad == 10) & (location == 1)
    earned = np.where(location == 0, 0.0, np.where(user < 4, 1.0 * pays, -1.0))
    pages = np.tile([1, 2], (n, 1)).tolist()
    features = [
        Categorical("user_id", role="user"),
        Categorical("item_id", role="item"),
        History("page", of="item_id", max_len=2),
    ]
    tasks = [Task("earned", kind="regression"), Task("location", kind="multiclass", classes=4)]
    schema = Schema(features, tasks, user="user_id", item="item_id")
    rows = {"user_id": user, "item_id": ad, "page": pages, "earned": earned, "location": location}
    log = rs.Log(pl.DataFrame(rows), schema)
    encoder = rs.Encoder(schema).fit(log)
    torch.manual_seed(0)
    model = reranking.DEAR(encoder.schema, dim=4, width=4, hidden=(16,), discount=0.0)
    model.fit(log, epochs=12, batch_size=128, optimizer="adam", lr=0.01, progress=False)
    asked = {"user_id": np.repeat(np.arange(1, 8), 2), "item_id": np.tile([11, 10], 7), "page": [[1, 2]] * 14}
    asked |= {"earned": [0.0] * 14, "location": [0] * 14, "request": np.repeat(np.arange(7), 2)}
    lists = encoder.encode(rs.Log(pl.DataFrame(asked), schema, request="request"))
    ad, location = model.choose(lists.batch(slice(0, 7)))
    assert location.tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert ad[:3].tolist() == [1, 1, 1]


# -- SlateQ -----------------------------------------------------------------------------------------------------------
def test_the_best_slate_is_the_best_of_all():
    torch.manual_seed(1)
    moved = 0
    for _ in range(30):
        z, q, null, worth = torch.randn(1, 6), torch.randn(1, 6) + 1, torch.randn(1, 1), torch.randn(1, 1)
        mask = torch.arange(6) < 5
        gain, value = best_slate(z, q, null, worth, mask[None], places=3)

        def worth_of(page, z=z, q=q, null=null, worth=worth):
            p = torch.cat([z[0, list(page)], null[0]]).softmax(0)
            return float((p * torch.cat([q[0, list(page)], worth[0]])).sum())

        pages = {page: worth_of(page) for page in itertools.combinations(range(5), 3)}
        best = max(pages, key=pages.__getitem__)
        found = gain.masked_fill(~mask, -torch.inf).topk(3).indices[0]
        assert sorted(found.tolist()) == list(best)
        assert float(value) == pytest.approx(pages[best], abs=1e-5)
        moved += set(best) != set((z.exp() * q)[0, :5].topk(3).indices.tolist())
    assert moved, "the order by v q would do"


def test_slate_q_values_what_was_chosen():
    options = {"dim": 6, "hidden": (8,), "places": 2, "history": "sum", "discount": 0.5, "rate": 0.25}
    case = Case(reranking.SlateQ, options)
    model = case.build()
    now, then = case.batch(2, 3, seed=1), case.batch(2, 3, seed=2)
    now["click@label"] = torch.tensor([[0.0, 1.0, torch.nan], [0.0, 0.0, 0.0]])
    both = now | {f"after/{k}": v for k, v in then.items()} | {"@followed": torch.tensor([True, True])}
    found = model.losses(both)
    sides, logits, _ = model._read(now)
    q, null, nothing = model.values(sides)
    z = logits["click"]
    first = -torch.cat([z[0, :2], null[0]]).log_softmax(0)[1]  # the third was not shown
    second = -torch.cat([z[1], null[1]]).log_softmax(0)[3]
    torch.testing.assert_close(found["click"], (first + second) / 2)
    ahead = 0.5 * model.value(then)
    wanted = (q[0, 1] - 1 - ahead[0]).square() + (nothing[1, 0] - ahead[1]).square()
    torch.testing.assert_close(found["value"], wanted / 2)


# -- DDPG -------------------------------------------------------------------------------------------------------------
def test_ddpg_teaches_the_critic_by_what_was_shown_and_the_actor_by_the_critic():
    options = {"dim": 6, "hidden": (8,), "history": "sum", "discount": 0.5, "rate": 0.25}
    case = Case(reranking.DDPG, options)
    model = case.build()
    now, then = case.batch(1, 3, seed=1), case.batch(1, 3, seed=2)
    now["click@label"] = torch.tensor([[torch.nan, 1.0, 1.0]])
    both = now | {f"after/{k}": v for k, v in then.items()} | {"@followed": torch.tensor([True])}
    found = model.losses(both)
    sides = model.inputs(now).sides()
    done = torch.tensor([[0.0, 1.0, 1 / np.log2(3)]])
    q = model.critic(sides, done / done.sum())
    torch.testing.assert_close(found["critic"], (q - 2 - 0.5 * model.value(then)).square().squeeze())
    torch.testing.assert_close(found["actor"], -model.critic(sides, model(now)["click"].softmax(-1)).squeeze())
    found["actor"].backward()
    assert all(p.grad is None for p in model.critic.parameters())
    assert any(p.grad.abs().sum() for p in model.actor.parameters() if p.grad is not None)


def test_agents_say_what_they_cannot_learn_from():
    with pytest.raises(ConfigError, match="discount= lies in"):
        reranking.DDPG(testing.schema(), discount=1.0)
    with pytest.raises(ConfigError, match="first task is binary"):
        reranking.SlateQ(testing.schema(tasks=[Task("stay", kind="regression")]))
    anonymous = Schema([Categorical("item_id", role="item")], [Task("click")], item="item_id")
    log = rs.Log({"item_id": [1, 2], "click": [0, 1]}, anonymous)
    with pytest.raises(SchemaError, match="no user key"):
        Transitions(rs.Encoder(anonymous).fit(log).encode(log))


# -- lists of several tasks -------------------------------------------------------------------------------------------
SEVERAL = (
    Task("click"),
    Task("order", given="click"),
    Task("ordered", product=("click", "order"), weight=0),
    Task("stay", kind="regression", weight=0.5),
)
# The others hand out places by the first task's logits.
SCORED = {getattr(reranking, n) for n in ("PRM", "DLCM", "SetRank", "GSF", "PEAR", "MIR", "DDPG")}
LISTS = [c for c in CASES if issubclass(c.model, Reranker) and c.model.gradients and c.schema is None and not c.label]


@pytest.mark.parametrize("case", LISTS, ids=str)
def test_every_list_model_predicts_several_tasks_and_any_of_them_orders(case):
    schema = testing.schema(tasks=SEVERAL)
    model = case.build(schema)
    some = testing.batch(schema, 12, 6)
    found = model.predict(some)
    assert list(found) == ["click", "order", "ordered", "stay"]
    missed = model.losses(some)
    for name in ("click", "order", "stay"):
        loss = missed.get(name)
        if loss is None:
            assert case.model is reranking.DDPG, name  # whose first task is learned as what a page earns
            continue
        grad = torch.autograd.grad(loss, list(model.inputs.parameters()), retain_graph=True, allow_unused=True)
        assert any(g is not None and g.to_dense().abs().sum() > 0 for g in grad), f"{name} teaches the list nothing"
    by_task = found["order"].argsort(-1, descending=True)
    fused = rs.Fusion("click * order ** 2 * log1p(max(stay, 0))", tasks=found)(found).argsort(-1, descending=True)
    by_click = found["click"].argsort(-1, descending=True)
    assert not torch.equal(by_task, by_click)
    assert not torch.equal(fused, by_click)
    if case.model in SCORED:
        torch.testing.assert_close(found["ordered"], found["click"] * found["order"], rtol=1e-4, atol=1e-6)


def test_a_cascade_ends_in_the_order_of_any_expression_of_the_rerankers_tasks(tmp_path):
    log = rs.simulator.small(items=60, lists=True, tasks=[Task("click"), Task("cart", given="click")])
    encoder = rs.Encoder(log.schema).fit(log)
    torch.manual_seed(0)
    model = reranking.PRM(encoder.schema.without("position"), dim=4, width=8, layers=1, hidden=8)
    model.fit(log, epochs=1, progress=False)
    cascade = rs.Cascade([rs.retrieval.Popularity()], reranker=model, final="cart", keep_ranked=20).fit(log)
    user = cascade.profiles.users[0]
    for expression in ("cart", "cart / (0.1 + click)", None):
        cascade.final = expression
        shown = [row["sources"] for row in cascade.recommend(user, k=20)]
        by = [row["reranker" if expression is None else "final"] for row in shown]
        assert by == sorted(by, reverse=True)
        assert len(set(by)) > 5
        assert ("final" in shown[0]) == (expression is not None)
    assert [row["reranker"] for row in shown] == by
    cascade.final = "cart / (0.1 + click)"
    cascade.save(tmp_path / "page")
    again = rs.load(tmp_path / "page")
    assert str(again.final) == str(cascade.final)
    assert again.recommend(user, k=5) == cascade.recommend(user, k=5)
    last = again.explain(user, k=5)["stages"][-1]
    assert [x["score"] for x in last["items"]] == sorted((x["score"] for x in last["items"]), reverse=True)
    with pytest.raises(ConfigError, match="Did you mean 'cart'"):
        cascade.final = "card"
    with pytest.raises(ConfigError, match="give reranker= too"):
        rs.Cascade([rs.retrieval.Popularity()], final="click")
