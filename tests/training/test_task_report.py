"""The grid of task by domain: each number over exactly the rows that count, and who pays for whose gain."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs
from recstack import metrics
from recstack.errors import ConfigError, SchemaError
from recstack.training.report import gain, grid, seesaw


@pytest.fixture(scope="module")
def world():
    train, _, test = rs.split.by_time(rs.simulator.small(tasks="funnel", domains=2))
    schema = rs.Encoder(train.schema).fit(train).schema
    torch.manual_seed(0)
    return rs.multitask.MMoE(schema, experts=2), test


@torch.no_grad()
def scores(model, test) -> dict[str, torch.Tensor]:
    """Logits of all rows at once: probabilities of float32 have ties that logits have not."""
    batch = model.schema.encoder.encode(test).batch(np.arange(len(test)))
    return {name: logit.squeeze(-1) for name, logit in model.eval()(batch).items()}


def test_a_conversion_is_measured_on_clicked_rows_only(world):
    """TorchEasyRec measures a tower of conversions on all impressions, with the label of the product."""
    model, test = world
    frame = rs.evaluate_tasks(model, test).frame.filter(domain="all")
    click, cart = (torch.from_numpy(test.events[c].to_numpy().copy()).float() for c in ("click", "cart"))
    value, clicked = scores(model, test)["cart"], click == 1
    row = frame.filter(task="cart").row(0, named=True)
    assert (row["rows"], row["positives"]) == (int(clicked.sum()), int(cart.sum()))
    right, wrong = metrics.auc(value[clicked], cart[clicked]).item(), metrics.auc(value, cart).item()
    assert row["auc"] == pytest.approx(right, abs=1e-12)
    assert abs(right - wrong) > 1e-3
    product = frame.filter(task="carted").row(0, named=True)  # lives on the entire space
    assert (product["rows"], product["positives"]) == (len(test), int(cart.sum()))


def test_a_domains_numbers_are_of_its_own_rows(world):
    model, test = world
    frame, value = rs.evaluate_tasks(model, test, batch_size=64).frame, scores(model, test)["click"]
    label = torch.from_numpy(test.events["click"].to_numpy().copy()).float()
    user = torch.from_numpy(test.events["user_id"].to_numpy().copy())
    domains = test.events["domain"].to_numpy()
    assert frame.filter(task="click")["domain"].to_list() == ["all", "0", "1"]
    for name, live in (("all", domains >= 0), ("0", domains == 0), ("1", domains == 1)):
        row, own = frame.filter(task="click", domain=name).row(0, named=True), torch.from_numpy(live)
        assert row["rows"] == int(own.sum())
        assert row["auc"] == pytest.approx(metrics.auc(value[own], label[own]).item(), abs=1e-12)
        assert row["gauc"] == pytest.approx(metrics.gauc(value[own], label[own], group=user[own]).item(), abs=1e-12)
        assert row["logloss"] == pytest.approx(metrics.logloss(value[own], label[own]).item(), rel=1e-9)


def test_users_are_told_apart_though_the_model_does_not_know_them(world):
    _, test = world
    few = test.select(test.events["user_id"] == test.events["user_id"][0])
    schema = rs.Encoder(test.schema).fit(few).schema  # all other users are one unknown id
    torch.manual_seed(0)
    for model in (rs.multitask.MMoE(schema, experts=2), rs.multitask.MMoE(schema.without("user_id"), experts=2)):
        label, value = torch.from_numpy(test.events["click"].to_numpy().copy()).float(), scores(model, test)["click"]
        user = torch.from_numpy(test.events["user_id"].to_numpy().copy())
        assert grid(model, test)["click", "all"]["gauc"] == pytest.approx(metrics.gauc(value, label, group=user).item())


def test_lists_and_another_column_as_domain():
    lists = rs.simulator.small(tasks="funnel", domains=2, lists=True)
    assert lists.items is not None
    model = rs.multitask.MMoE(rs.Encoder(lists.schema).fit(lists).schema, experts=2)
    frame = rs.evaluate_tasks(model, lists, by="category").frame.filter(task="click")
    counts = lists.events.join(lists.items, on="item_id")["category"].value_counts()
    assert dict(frame.filter(pl.col("domain") != "all").select("domain", "rows").iter_rows()) == dict(
        counts.iter_rows()
    )
    with pytest.raises(SchemaError, match="single-valued Categorical"):
        rs.evaluate_tasks(model, lists, by="price")
    with pytest.raises(ConfigError, match="No model"):
        rs.evaluate_tasks([], lists)


def test_runs_have_a_spread_and_a_gain_over_models_of_one_task(world):
    model, test = world
    schema = model.schema
    alone = rs.multitask.SharedBottom(schema.replace(tasks=[rs.Task("click")]), hidden=(4,))
    other = rs.multitask.MMoE(schema, experts=2)
    report = rs.evaluate_tasks([model, other], test, baseline={"click": alone})
    row = report.frame.filter(task="click", domain="all").row(0, named=True)
    each = [grid(m, test)["click", "all"]["auc"] for m in (model, other, alone)]
    assert row["auc"] == pytest.approx(np.mean(each[:2]))
    assert row["auc_std"] == pytest.approx(np.std(each[:2], ddof=1)) == row["noise"]
    assert row["gain"] == pytest.approx(np.mean(each[:2]) - each[2])
    assert report.frame.filter(task="cart")["gain"].null_count() == 3  # no baseline was given
    assert f"{row['auc']:.4f} ± {row['auc_std']:.4f}" in str(report)


def test_a_regression_has_its_own_metrics():
    tasks = [rs.Task("click"), rs.Task("price_paid", kind="regression", given="click")]
    log = rs.simulator.small(tasks=[rs.Task("click")])
    events = log.events.with_columns(price_paid=pl.col("item_id") / 10)
    log = rs.Log(events, log.schema.replace(tasks=tasks), users=log.users, items=log.items)
    model = rs.multitask.MMoE(rs.Encoder(log.schema).fit(log).schema, experts=2)
    row = rs.evaluate_tasks(model, log).frame.filter(task="price_paid").row(0, named=True)
    clicked = log.events["click"].to_numpy() == 1
    away = np.abs(model.score(log)["price_paid"] - events["price_paid"].to_numpy())[clicked]
    assert (row["rows"], row["positives"], row["auc"]) == (clicked.sum(), None, None)
    assert row["mae"] == pytest.approx(away.mean(), rel=1e-5)


def test_seesaw_is_said_only_beyond_the_noise():
    rows = {"click": gain([0.70, 0.71], [0.60, 0.61]), "like": gain([0.50, 0.51], [0.60, 0.61])}
    assert seesaw(rows, "3") == "Seesaw in domain 3: like -0.1000 lost while click +0.1000 won."
    rows["like"] = gain([0.50, 0.70], [0.60, 0.64])  # the seeds differ more than the models
    assert rows["like"]["verdict"] == "noise"
    assert seesaw(rows) is None
    assert gain([0.5], [0.4], higher=False)["verdict"] == "lost"
    assert gain([float("nan")], [0.4]) == {"gain": None, "noise": None, "verdict": None}
