"""Splits: disjoint, complete, in order, and requests stay whole."""

import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.data import Log, splits
from recstack.errors import ConfigError, DataError, SchemaError
from recstack.schema import Categorical, History, Schema

SCHEMA = Schema(
    [Categorical("user", "user"), Categorical("item", "item"), History("past", of="item", max_len=4)], time="at"
)
ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=4, max_size=40)


def log_of(rows, request=None):
    types = {"user": pl.Int64, "at": pl.Int64}
    frame = pl.DataFrame(rows, schema=types, orient="row").with_columns(
        row=pl.arange(len(rows)), item=pl.arange(len(rows))
    )
    return Log(frame.with_columns(visit=pl.col("user") * 100 + pl.col("at")), SCHEMA, request=request)


SPLITS = {
    "time": lambda log: splits.by_time(log, 0.2, 0.2),
    "last": lambda log: splits.last_per_user(log, test=2, valid=1),
    "leave": splits.leave_last_out,
    "user": lambda log: splits.by_user(log, 0.2, 0.2, seed=3),
    "random": lambda log: splits.random(log, 0.2, 0.2, seed=3),
}


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("request_column", [None, "visit"])
@given(rows=ROWS)
@settings(max_examples=25, deadline=None)
def test_parts_are_disjoint_complete_and_know_only_what_came_before(name, request_column, rows):
    log = log_of(rows, request_column)
    try:
        parts = SPLITS[name](log)
    except DataError:  # tiny logs whose ties leave nothing to train on
        assert name in ("time", "user")
        return
    seen = [r for p in parts for r in p.events["row"].to_list()]
    assert sorted(seen) == list(range(len(rows)))
    for part in parts:
        line = part.timelines["past"]
        for at, begin, end in part.events.select("at", "past@begin", "past@end").iter_rows():
            assert (line.times[begin:end] < at).all()
    if request_column:
        visits = [set(p.events["visit"]) for p in parts]
        assert not visits[0] & visits[1]
        assert not (visits[0] | visits[1]) & visits[2]
    train, valid, test = (p.events for p in parts)
    if name == "time":
        for early, late in ((train, valid), (train, test), (valid, test)):
            if len(early) and len(late):
                assert early["at"].max() < late["at"].min()
    if name == "user":
        users = [set(p["user"]) for p in (train, valid, test)]
        assert not users[0] & users[1]
        assert not (users[0] | users[1]) & users[2]


@given(ROWS, st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_last_per_user_by_a_slow_road(rows, n_test, n_valid):
    log = log_of(rows)
    expected = {}
    for user in {u for u, _ in rows}:
        own = sorted((at, i) for i, (u, at) in enumerate(rows) if u == user)
        own = [i for _, i in own]
        if len(own) <= n_test + n_valid:
            expected |= dict.fromkeys(own, 0)
            continue
        for back, i in enumerate(reversed(own)):
            expected[i] = 2 if back < n_test else 1 if back < n_test + n_valid else 0
    parts = splits.last_per_user(log, test=n_test, valid=n_valid)
    for j, part in enumerate(parts):
        assert part.events["row"].to_list() == [i for i in range(len(rows)) if expected[i] == j]


def test_fractions_of_time_are_met():
    log = log_of([(i % 5, i) for i in range(100)])
    assert [len(p) for p in splits.by_time(log, 0.1, 0.25)] == [65, 10, 25]
    assert [len(p) for p in splits.by_time(log, 0, 0.25)] == [75, 0, 25]
    assert [len(p) for p in splits.by_time(log, 0.25, 0)] == [75, 25, 0]
    assert [len(p) for p in splits.random(log, 0.1, 0.25)] == [65, 10, 25]


def test_cut_points_are_given_as_the_time_column_is():
    days = [datetime.datetime(2020, 1, d) for d in (1, 2, 3, 4)]
    log = Log({"user": [1] * 4, "item": [1] * 4, "at": days}, SCHEMA)
    parts = splits.by_time(log, datetime.datetime(2020, 1, 3), datetime.datetime(2020, 1, 4))
    assert [p.events["at"].to_list() for p in parts] == [days[:2], days[2:3], days[3:]]
    with pytest.raises(ConfigError, match="Validation begins at"):
        splits.by_time(log, days[3], days[1])
    with pytest.raises(ConfigError, match="Cut point 'noon' is not a"):
        splits.by_time(log, "noon", days[1])


def test_seeds_decide_and_the_order_of_rows_does_not_move_users():
    log = log_of([(i % 20, i) for i in range(200)])
    users = [set(p.events["user"]) for p in splits.by_user(log, seed=1)]
    shuffled = log.select(np.random.default_rng(0).permutation(200))
    assert users == [set(p.events["user"]) for p in splits.by_user(shuffled, seed=1)]
    assert users != [set(p.events["user"]) for p in splits.by_user(log, seed=2)]
    assert not splits.random(log, seed=1)[2].events.equals(splits.random(log, seed=2)[2].events)


def test_rows_without_a_user_stay_in_training():
    log = log_of([(None, 9), (1, 1), (1, 2), (1, 3), (2, 1)])
    assert splits.last_per_user(log)[0].events["row"].to_list() == [0, 1, 4]
    assert 0 in splits.by_user(log, 0.3, 0.3)[0].events["row"]


def test_what_cannot_be_split_is_said():
    log = log_of([(1, 1), (2, 1)])
    with pytest.raises(ConfigError, match=r"got 0\.5 and 0\.5"):
        splits.random(log, 0.5, 0.5)
    with pytest.raises(ConfigError, match=r"leave some rows for training; got 0\.9 and 0\.1"):
        splits.by_time(log, 0.9, 0.1)
    with pytest.raises(DataError, match="leaves none of 2 rows for training"):
        splits.by_time(log, 0, 0.5)
    with pytest.raises(ConfigError, match="count requests per user; got -1"):
        splits.last_per_user(log, test=-1)
    with pytest.raises(SchemaError, match="needs a user key"):
        splits.by_user(Log({"item": [1]}, Schema([Categorical("item", "item")])))
