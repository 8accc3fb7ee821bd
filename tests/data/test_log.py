"""The log: where columns are, and histories that never see the present."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.data import Log, Raw
from recstack.errors import DataError, SchemaError
from recstack.schema import Categorical, History, Numeric, Schema, Task

SCHEMA = Schema(
    [
        Categorical("user", "user"),
        Numeric("age", "user"),
        Categorical("item", "item"),
        History("watched", of=("item",), max_len=3),
        History("clicked", of=("item",), max_len=2, where="click"),
    ],
    [Task("click")],
    time="at",
)

EVENTS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 3)),
        st.sampled_from("abcd"),
        st.integers(-5, 5),
        st.sampled_from([0.0, 1.0, None]),
    ),
    min_size=1,
    max_size=40,
)


def events(rows) -> pl.DataFrame:
    types = {"user": pl.Int64, "item": pl.String, "at": pl.Int64, "click": pl.Float64}
    return pl.DataFrame(rows, schema=types, orient="row")


@given(EVENTS)
@settings(max_examples=150, deadline=None)
def test_a_history_is_what_a_slow_look_back_finds_and_nothing_of_the_present(rows):
    log = Log(events(rows), SCHEMA).with_histories()
    for name, keep, needs_click in (("watched", 3, False), ("clicked", 2, True)):
        line = log.timelines[name]
        items = line.items
        for row, (user, _, at, _) in enumerate(rows):
            begin, end = log.events[f"{name}@begin"][row], log.events[f"{name}@end"][row]
            # The slow road: look at every event, sorted by (time, row), and keep the last `keep` that came before.
            before = sorted(
                (t, j, i)
                for j, (u, i, t, c) in enumerate(rows)
                if u == user and user is not None and t < at and (c == 1 or not needs_click)
            )
            assert list(items[begin:end]) == [i for _, _, i in before][-keep:]
            assert (line.times[begin:end] < at).all()


def test_a_split_keeps_pointers_and_shares_the_timeline():
    log = Log(events([(1, "a", 1, 1), (1, "b", 2, 0), (1, "c", 3, 1)]), SCHEMA).with_histories()
    late = log.select(np.array([False, False, True]))
    assert late.timelines["watched"] is log.timelines["watched"]
    assert (late.events["watched@begin"][0], late.events["watched@end"][0]) == (0, 2)
    assert log.select([2, 0]).events["at"].to_list() == [3, 1]
    assert late.with_histories() is late


def test_a_history_column_in_the_events_is_taken_as_it_is():
    frame = events([(1, "a", 1, 1)]).with_columns(watched=pl.Series([["b", "c"]]), clicked=pl.Series([["b"]]))
    log = Log(frame, SCHEMA)
    assert log.with_histories() is log


@pytest.mark.parametrize("unit", ["int", "datetime", "date", "float"])
def test_times_of_any_kind_keep_their_order(unit):
    days = [5, 1, 9]
    column = {
        "int": days,
        "float": [float(d) for d in days],
        "date": [datetime.date(2020, 1, d) for d in days],
        "datetime": [datetime.datetime(2020, 1, d) for d in days],
    }[unit]
    log = Log(pl.DataFrame({"user": [1, 1, 1], "item": ["a", "b", "c"], "at": column, "click": [1, 1, 1]}), SCHEMA)
    assert np.argsort(log.times).tolist() == [1, 0, 2]
    assert log.with_histories().timelines["watched"].items.tolist() == ["b", "a", "c"]


def test_columns_are_found_in_events_first_then_in_the_frame_of_their_role():
    users = pl.DataFrame({"user": [2, 1], "age": [30, 20]})
    log = Log(events([(1, "a", 1, 1), (3, "a", 1, 1), (2, "a", 1, 1)]), SCHEMA, users=users)
    assert (log.place("age"), log.place("item"), log.place("watched")) == ("users", "events", None)
    assert log.rows_of("users").tolist() == [1, -1, 0]
    assert Log(events([(1, "a", 1, 1)]).with_columns(age=1), SCHEMA, users=users).place("age") == "events"


@pytest.mark.parametrize("library", ["pandas", "arrow", "lazy", "dict", "stream"])
def test_frames_of_every_library(library):
    data = {"user": [1, 2], "item": ["a", "b"], "at": [1, 2], "click": [1.0, 0.0]}

    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table(data).__arrow_c_stream__(requested_schema)

    frame = {
        "pandas": lambda: pd.DataFrame(data),
        "arrow": lambda: pa.table(data),
        "lazy": lambda: pl.DataFrame(data).lazy(),
        "dict": lambda: data,
        "stream": Stream,
    }[library]()
    assert Log.from_frame(frame, SCHEMA).events.to_dict(as_series=False) == data


def test_what_cannot_be_used_is_said_in_a_sentence():
    frame = events([(1, "a", 1, 1), (1, "b", 2, None)])
    with pytest.raises(DataError, match="events is a int"):
        Log(3, SCHEMA)
    with pytest.raises(DataError, match="2 rows for item 'a'; one row per key"):
        Log(frame, SCHEMA, items={"item": ["a", "a", "b"]})
    with pytest.raises(SchemaError, match=r"Unknown column of users for its key 'user'. Did you mean 'users'"):
        Log(frame, SCHEMA, users={"users": [1]})
    with pytest.raises(DataError, match="'user' of the users frame holds 1 nulls"):
        Log(frame, SCHEMA, users={"user": [1, None]})
    with pytest.raises(SchemaError, match="Unknown column of events for request= 'rid'"):
        Log(frame, SCHEMA, request="rid")
    with pytest.raises(SchemaError, match="cannot be built from them without a time column"):
        Log(frame, SCHEMA.replace(time=None)).with_histories()
    with pytest.raises(SchemaError, match="Unknown column of events for time= 'at'"):
        Log(frame.drop("at"), SCHEMA).with_histories()
    with pytest.raises(DataError, match="'at' holds 1 nulls"):
        Log(frame.with_columns(at=pl.Series([1, None])), SCHEMA).with_histories()
    with pytest.raises(DataError, match="'at' holds fractions"):
        Log(frame.with_columns(at=pl.Series([1.5, 2.0])), SCHEMA).with_histories()
    with pytest.raises(DataError, match="'at' holds String"):
        Log(frame.with_columns(at=pl.Series(["1", "2"])), SCHEMA).with_histories()
    with pytest.raises(SchemaError, match=r"Unknown column in where= of History 'clicked' 'click'"):
        Log(frame.drop("click"), SCHEMA).with_histories()
    with pytest.raises(SchemaError, match="'user' is Int64 in events and String in users"):
        Log(frame, SCHEMA, users={"user": ["1"], "age": [3]}).rows_of("users")


def test_rows_of_an_implicit_log_are_clicks():
    log = Log(events([(1, "a", 1, None), (1, "b", 2, None)]).drop("click"), SCHEMA, implicit=True).with_histories()
    assert log.timelines["clicked"].items.tolist() == ["a", "b"]


def test_raw_columns_of_mixed_kinds_are_refused():
    with pytest.raises(SchemaError, match="mixes text and whole numbers"):
        Raw.of([1, "a"], "c")
    with pytest.raises(SchemaError, match=r"'c' holds {}"):
        Raw.of([{}], "c")
    with pytest.raises(SchemaError, match="beyond 64 bits"):
        Raw.of([2**70], "c")
    assert Raw.of([None]).kind == "null"
    assert Raw.of(np.array([2**64 - 1], np.uint64)).values.tolist() == [-1]
