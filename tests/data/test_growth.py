"""An encoder that grows: old ids stay, new values follow, statistics stay, the catalog knows both."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.data import Encoder, Log
from recstack.errors import DataError, SchemaError
from recstack.schema import Categorical, Numeric, Schema, Task

SCHEMA = Schema(
    [
        Categorical("user", "user", min_count=2),
        Categorical("item", "item"),
        Categorical("genre", "item", multi=True),
        Numeric("price", "item", transform="standard", fill=0.0),
        Categorical("brand", "item", buckets=9),
        Numeric("age", "user", transform="bucketize", bins=3, fill=0.0),
    ],
    [Task("click")],
)
ROW = st.fixed_dictionaries(
    {
        "user": st.one_of(st.none(), st.sampled_from(["a", "b", "c", "é", ""])),
        "item": st.one_of(st.none(), st.integers(0, 8), st.sampled_from([-(2**63), 2**63 - 1])),
        "genre": st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
        "price": st.floats(0, 100),
        "brand": st.sampled_from(["p", "q"]),
        "age": st.floats(0, 90),
        "click": st.integers(0, 1),
    }
)
TYPES = {"user": pl.String, "item": pl.Int64, "genre": pl.List(pl.String), "price": pl.Float64, "brand": pl.String}
TYPES |= {"age": pl.Float64, "click": pl.Int64}


def log(rows) -> Log:
    return Log(pl.DataFrame(rows, schema=TYPES), SCHEMA)


def values(rows, name):
    """{value: how often}, nulls aside."""
    flat = [v for r in rows for v in (r[name] if isinstance(r[name], list) else [r[name]]) if v is not None]
    return {v: flat.count(v) for v in flat}


@given(*[st.lists(ROW, min_size=1, max_size=10)] * 3)
@settings(max_examples=50, deadline=None)
def test_old_ids_stay_and_new_values_follow_ascending(first, second, third):
    encoder = Encoder(SCHEMA).fit(log(first))
    due = {
        f: sorted(v for v, n in values(first, f).items() if n >= (2 if f == "user" else 1))
        for f in ("user", "item", "genre")
    }
    statistics = encoder._numbers
    for rows in (second, third):
        grown = encoder.grown(log(rows))
        for name, known in due.items():
            least = 2 if name == "user" else 1
            known += sorted(v for v, n in values(rows, name).items() if n >= least and v not in known)
            ids = np.arange(2, len(known) + 2)
            assert grown.decode(name, ids).tolist() == known
            assert grown.encode_values(name, known).tolist() == ids.tolist()
            assert grown.schema.feature(name).size == len(known) + 2
        assert grown._numbers is statistics
        loaded = Encoder.from_piece(grown.to_piece())
        assert loaded == grown
        table = Log(pl.DataFrame(first + rows, schema=TYPES), SCHEMA)
        a, b = (e.encode(table).batch(slice(None), padded=True) for e in (grown, loaded))
        assert all(torch.equal(a[k], b[k]) for k in a)
        before, after = (e.encode(log(first)).batch(slice(None), padded=True) for e in (encoder, grown))
        for name, tensor in before.items():
            known_before = tensor != 1 if tensor.dtype == torch.int32 else torch.ones_like(tensor, dtype=torch.bool)
            assert torch.equal(tensor[known_before], after[name][known_before]), name
        encoder = grown


@given(*[st.lists(ROW, min_size=1, max_size=10)] * 2)
@settings(max_examples=40, deadline=None)
def test_the_catalog_shows_each_item_as_it_was_last_seen(first, second):
    encoder = Encoder(SCHEMA).fit(log(first))
    grown = encoder.grown(log(second))
    last = {r["item"]: (grown if i >= len(first) else encoder, r) for i, r in enumerate(first + second)}
    last.pop(None, None)
    assert grown.catalog.ids.tolist() == list(range(2, len(last) + 2))
    for value, (by, row) in last.items():
        (number,) = grown.encode_values("item", [value])
        found, due = grown.catalog.batch([number]), by.items([row])
        assert found["price"].tolist() == due["price"].tolist()
        assert found["brand"].tolist() == due["brand"].tolist()
        assert [g for g in found["genre"][0].tolist() if g] == [g for g in due["genre"][0].tolist() if g]


def test_a_grown_encoder_reads_the_items_frame_and_remembers_items_that_left_it():
    schema = Schema([Categorical("item", "item"), Categorical("genre", "item", buckets=50)], [Task("click")])
    first = Log({"item": [1, 2], "click": [0, 1]}, schema, items={"item": [1, 2], "genre": ["x", "y"]})
    second = Log({"item": [3, 2], "click": [0, 1]}, schema, items={"item": [2, 3], "genre": ["w", "z"]})
    grown = Encoder(schema).fit(first).grown(second)
    genre = grown.catalog.batch(grown.encode_values("item", [1, 2, 3]))["genre"].tolist()
    assert genre == grown.encode_values("genre", ["x", "w", "z"]).tolist()


def test_hashed_items_of_both_times_can_be_decoded():
    schema = Schema([Categorical("item", "item", buckets=1000)], [Task("click")])
    first = Encoder(schema).fit(Log({"item": ["a", "b"], "click": [0, 1]}, schema))
    grown = first.grown(Log({"item": ["c", "b"], "click": [0, 1]}, schema))
    assert sorted(grown.decode("item", grown.catalog.ids)) == ["a", "b", "c"]
    assert grown.schema == first.schema


def test_a_saved_vocabulary_that_has_not_grown_is_stored_as_before():
    piece = (
        Encoder(SCHEMA)
        .fit(log([{"user": "a", "item": 5, "genre": [], "price": 1.0, "brand": "p", "age": 1.0, "click": 1}] * 2))
        .to_piece()
    )
    assert {n for n in piece.tensors if n.startswith("table1")} == {"table1"}  # values alone, ascending


def test_rows_of_another_kind_or_none_are_errors():
    schema = Schema([Categorical("item", "item")], [Task("click")])
    encoder = Encoder(schema).fit(Log({"item": [1, 2], "click": [0, 1]}, schema))
    with pytest.raises(SchemaError, match="Table 'item' holds whole numbers, and the new rows hold text; cast them"):
        encoder.grown(Log({"item": ["1"], "click": [1]}, schema))
    with pytest.raises(DataError, match="has no rows to learn from"):
        encoder.grown(Log({"item": [1], "click": [1]}, schema).select([False]))
    with pytest.raises(SchemaError, match="Unknown column for item feature 'item'"):
        encoder.grown(Log({"click": [1]}, schema))
