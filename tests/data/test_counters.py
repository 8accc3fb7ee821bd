"""Counters: a slow look back, the log and the stream agree, and the present is never counted."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.data import CounterStream, Log, WindowCounter, with_counters
from recstack.errors import SchemaError
from recstack.schema import Categorical, Schema, Task

SCHEMA = Schema([Categorical("user", "user"), Categorical("item", "item")], [Task("clicked", label="click")], time="at")
ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 2)),
        st.sampled_from("ab"),
        st.sampled_from([0.0, 1.0, None]),
        st.sampled_from([1, -1, None]),
        st.integers(-20, 60),
    ),
    min_size=1,
    max_size=40,
)
COUNTERS = [
    WindowCounter("shown", by="item"),
    WindowCounter("clicks", by="item", window=10, where="clicked"),
    WindowCounter("ignored", by=("user", "item"), where="click", equals=0),
    WindowCounter("balance", by="user", window=25, value="change"),
    WindowCounter("daily", by="item", window=14, where="clicked", grain=7),
    WindowCounter("weekly", by="user", grain=7),
]


def make(rows):
    types = {"user": pl.Int64, "item": pl.String, "click": pl.Float64, "change": pl.Int64, "at": pl.Int64}
    return Log(pl.DataFrame(rows, schema=types, orient="row"), SCHEMA)


def slow(counter, rows, i):
    names = ("user", "item", "click", "change", "at")
    table = [dict(zip(names, r, strict=True)) for r in rows]
    now = table[i]["at"] // counter.grain * counter.grain
    total = 0
    for row in table:
        if any(row[c] is None or row[c] != table[i][c] for c in counter.by) or row["at"] >= now:
            continue
        if counter.window is not None and row["at"] < now - counter.window:
            continue
        if counter.where is not None and row["click"] != counter.equals:
            continue
        total += 1 if counter.value is None else row[counter.value] or 0
    return total


@given(ROWS)
@settings(max_examples=80, deadline=None)
def test_the_log_and_the_stream_equal_a_slow_look_back(rows):
    rows = sorted(rows, key=lambda r: r[-1])
    log = with_counters(make(rows), COUNTERS)
    stream = CounterStream(COUNTERS)
    stream._tasks = {"clicked": "click"}
    live = []
    for i, event in enumerate(log.events.iter_rows(named=True)):
        live.append(stream.read(event, event["at"]))
        stream.append(event, event["at"])
        for counter in COUNTERS:
            expected = slow(counter, rows, i)
            assert log.events[counter.name][i] == expected, counter
            assert live[i][counter.name] == expected, counter


@given(ROWS, ROWS)
@settings(max_examples=40, deadline=None)
def test_a_stream_begun_with_a_log_goes_on_where_it_ends(before, after):
    before = [(*r[:-1], r[-1] - 100) for r in before]
    after = sorted(after, key=lambda r: r[-1])
    log = with_counters(make(before + after), COUNTERS)
    stream = CounterStream(COUNTERS, make(before))
    for event in log.events[len(before) :].iter_rows(named=True):
        assert stream.read(event, event["at"]) == {c.name: event[c.name] for c in COUNTERS}
        stream.append(event, event["at"])


def test_rows_in_any_order_count_the_same():
    rows = [(1, "a", 1.0, 1, t) for t in (9, 2, 5, 2, 7)]
    assert WindowCounter("n", by="item").count(make(rows)).tolist() == [4, 0, 2, 0, 3]


def test_a_stream_forgets_what_no_window_reaches():
    stream = CounterStream([WindowCounter("n", by="item", window=10), WindowCounter("all", by="item")])
    for t in range(1000):
        stream.append({"item": 1}, t)
    assert stream.read({"item": 1}, 1000) == {"n": 10, "all": 1000}
    assert sum(len(e.times) for e in stream._entities.values()) <= 12


def test_what_cannot_be_counted_is_said():
    log = make([(1, "a", 1.0, 1, 3)])
    with pytest.raises(SchemaError, match="window is a whole number of at least 1; got 0"):
        WindowCounter("n", by="item", window=0)
    with pytest.raises(SchemaError, match="needs by="):
        WindowCounter("n", by=())
    with pytest.raises(SchemaError, match=r"Unknown column of events for counter 'n' 'itm'\. Did you mean 'item'"):
        WindowCounter("n", by="itm").count(log)
    with pytest.raises(SchemaError, match="Unknown column in where= of counter 'n' 'buy'"):
        WindowCounter("n", by="item", where="buy").count(log)
    with pytest.raises(SchemaError, match="'item' is counted, and holds no numbers"):
        WindowCounter("n", by="user", value="item").count(log)
    with pytest.raises(SchemaError, match="no time column"):
        WindowCounter("n", by="item").count(Log(log.events, SCHEMA.replace(time=None)))
