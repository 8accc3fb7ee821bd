"""An order without a click is reported with its rows; what is missing breaks nothing."""

from __future__ import annotations

import warnings

import polars as pl
import pytest

import recstack as rs

TASKS = [rs.Task("click"), rs.Task("order", given="click"), rs.Task("ordered", product=("click", "order"))]


def log(click, order, tasks=TASKS, **options) -> rs.Log:
    schema = rs.Schema([rs.Categorical("user", "user"), rs.Categorical("item", "item")], tasks)
    events = {"user": [1] * len(click), "item": list(range(len(click))), "click": click, "order": order}
    return rs.Log(events, schema, **options)


def test_an_order_without_a_click_is_reported_with_its_rows():
    data = log([1, 0, 0, 1, None, 0], [1, 1, 0, None, 1, 1])
    (broken,) = rs.check_labels(data)
    assert (broken.task, broken.given, broken.rows.tolist()) == ("order", "click", [1, 5])
    with pytest.warns(
        UserWarning, match=r"'order' is 1 in 2 rows where that of 'click', which it is given, is 0 \(rows 1, 5\)"
    ):
        batch = rs.Encoder(data.schema).fit(data).encode(data).batch(range(6))
    from recstack.features import tasks

    assert tasks.target(batch, data.schema, "order").where[:, 0].tolist() == [True, False, False, False, False, False]


def test_rows_are_those_of_the_log_though_lists_are_sorted():
    data = log([0, 0, 1, 1], [0, 1, 0, 1])
    data = rs.Log(data.events.with_columns(request=pl.Series([2, 1, 2, 1])), data.schema, request="request")
    with pytest.warns(UserWarning, match=r"\(rows 1\)"):
        rs.Encoder(data.schema).fit(data).encode(data)


def test_labels_that_keep_their_promise_are_silent():
    regression = [rs.Task("click"), rs.Task("order", kind="regression", given="click")]
    free = [rs.Task("click"), rs.Task("order")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (log([1, 0, 1], [1, 0, 0]), log([0, 0], [1, 1], regression), log([0, 0], [1, 1], free)):
            rs.Encoder(data.schema).fit(data).encode(data)
            assert rs.check_labels(data) == []
        market = rs.simulator.small(tasks="funnel")
        rs.Encoder(market.schema).fit(market).encode(market)
