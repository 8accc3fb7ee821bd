"""Files to a store: what the whole log would give, at any size of the parts; cached by content; nothing half written."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recstack as rs
from recstack.data import folder as folders
from recstack.data import learning, prepare
from recstack.data.columns import Columns
from recstack.data.encoder import Encoder
from recstack.data.log import Log
from recstack.errors import DataError, SchemaError
from recstack.schema import Categorical, History, Numeric, Schema, Task, Text, Vector

SCHEMA = Schema(
    [
        Categorical("user", "user", min_count=2),
        Numeric("age", "user", fill=0.0, transform="log"),
        Categorical("tags", "user", multi=True),
        Categorical("item", "item"),
        Categorical("genre", "item", multi=True, max_len=2),
        Numeric("price", "item", fill=0.0, transform="quantile", bins=4),
        Text("title", "item", buckets=100),
        Vector("image", "item", size=2),
        Categorical("brand", "item", buckets=20),
        Categorical("hour", "context"),
        Numeric("rank", "pair", transform="bucketize", bins=3),
        Numeric("score", "pair", transform="standard"),
        History("past", of=("item", "genre", "price"), max_len=3, where="click"),
        History("given", of=("item",), max_len=2),
    ],
    [Task("click"), Task("rating", kind="regression", label="stars")],
    time="at",
)
N = 80


def events(seed=0, n=N, visits=True) -> pl.DataFrame:
    """Rows of everything that a schema can hold; rows of one visit lie next to each other."""
    chance = np.random.default_rng(seed)
    visit = np.sort(chance.integers(0, n // 3, n)) if visits else np.arange(n)
    user, item = chance.integers(0, 9, n + 1)[visit], chance.integers(0, 12, n)
    price = chance.random(n)
    return pl.DataFrame(
        {
            "visit": visit,
            "user": [None if u == 8 else f"u{u}" for u in user],
            "age": [None if u == 3 else float(u) for u in user],
            "tags": [[] if u == 2 else ["x", f"t{u}"][: 1 + u % 2] for u in user],
            "item": item,
            "genre": [None if i == 5 else [f"g{i % 3}", "g9", f"g{i}"][: i % 4] for i in item],
            "price": [None if i == 7 else p for i, p in zip(item, price, strict=True)],
            "title": [None if i == 4 else f"The {i} of {i % 5}" for i in item],
            "image": [[float(i), p] for i, p in zip(item, price, strict=True)],
            "brand": [f"b{i % 7}" for i in item],
            "hour": visit % 5,
            "at": chance.permutation(n)[visit] // 2,
            "rank": chance.integers(0, 9, n),
            "score": chance.normal(size=n),
            "click": chance.integers(0, 2, n),
            "stars": [None if i % 3 else float(i) for i in range(n)],
            "given": [list(chance.integers(0, 14, i % 4)) for i in range(n)],
            "w": chance.random(n),
        },
        schema_overrides={"given": pl.List(pl.Int64), "genre": pl.List(pl.String)},
    )


def frames(table: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The attributes in frames of their own; user u1 and item 2 are not in them, others are that no event mentions."""
    users = table.group_by("user", maintain_order=True).agg(pl.col("age", "tags").first()).drop_nulls("user")
    items = table.group_by("item", maintain_order=True).agg(pl.col("genre", "price", "title", "brand").first())
    more = pl.DataFrame({"item": [77], "genre": [["g77"]], "price": [3.0], "title": ["x"], "brand": ["b"]})
    return {
        "users": users.filter(pl.col("user") != "u1"),
        "items": pl.concat([items.filter(pl.col("item") != 2), more]),
    }


def write(table: pl.DataFrame, folder, cuts=(), ending="parquet") -> list:
    writers = {"parquet": pl.DataFrame.write_parquet, "arrow": pl.DataFrame.write_ipc, "csv": pl.DataFrame.write_csv}
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [0, *sorted(cuts), table.height]
    paths = [folder / f"{i}.{ending}" for i in range(len(bounds) - 1)]
    for path, a, b in zip(paths, bounds[:-1], bounds[1:], strict=True):
        writers[ending](table[a:b], path)
    return paths


def same(a, b):
    assert len(a) == len(b)
    x, y = (c.batch(slice(None), times=True) for c in (a, b))
    assert x.keys() == y.keys()
    for name, tensor in x.items():
        assert tensor.dtype == y[name].dtype, name
        torch.testing.assert_close(tensor, y[name], rtol=0, atol=0, equal_nan=True, msg=name)
    assert a.schema == b.schema
    assert a.schema.encoder == b.schema.encoder


@pytest.mark.slow
@given(
    rows=st.sampled_from([1, 3, 16, 1000]),
    cuts=st.lists(st.integers(0, N), max_size=2),
    options=st.sampled_from([{}, {"request": "visit"}, {"weight": "w"}, {"request": "visit", "weight": "w"}]),
    framed=st.booleans(),
    seed=st.integers(0, 3),
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_holds_what_the_whole_log_gives(tmp_path_factory, rows, cuts, options, framed, seed):
    tmp_path = tmp_path_factory.mktemp("store")
    table = events(seed)
    sides = frames(table) if framed else {}
    schema = SCHEMA
    if "request" in options:  # a visit has one time, since its history is its first row's
        table = table.with_columns(at=pl.col("visit"))
    if framed:
        table = table.drop("age", "tags", "genre", "price", "title", "brand")
    files = write(table, tmp_path / "data", cuts)
    log = Log(table, schema, **sides, **options)
    encoder = Encoder(schema).fit(log)
    stored = prepare(files, schema, cache=tmp_path / "cache", rows=rows, **sides, **options)
    same(stored, encoder.encode(log))
    later = events(seed + 10).select(table.columns)
    if "request" in options:
        later = later.with_columns(at=pl.col("visit"))
    files = write(later, tmp_path / "later")
    stored = prepare(files, schema, cache=tmp_path / "cache", encoder=encoder, rows=rows, **sides, **options)
    same(stored, encoder.encode(Log(later, schema, **sides, **options)))


@pytest.mark.parametrize("ending", ["arrow", "csv"])
def test_every_format_gives_the_same_store(tmp_path, ending):
    lists = ["tags", "genre", "image", "given"]
    schema = SCHEMA.with_features(History("past", of=("item", "price"), max_len=3)).without(*lists)
    table = events().drop(lists)
    write(table, tmp_path / "a", (30,))
    write(table, tmp_path / "b", (11,), ending)
    expected = prepare(tmp_path / "a", schema, cache=tmp_path / "cache")
    stored = prepare(str(tmp_path / "b" / f"*.{ending}"), schema, cache=tmp_path / "cache", rows=7)
    same(stored, expected)
    assert len(list((tmp_path / "cache").glob("*/columns.json"))) == 2
    assert not list((tmp_path / "cache").glob("*/.text*"))  # what text was turned into is gone


def test_hashed_items_and_implicit_rows(tmp_path):
    schema = Schema(
        [Categorical("user", "user"), Categorical("item", "item", buckets=8), Numeric("price", "item", fill=0.0)],
        [Task("buy")],
    )
    table = events().select("user", "item", "price")
    write(table, tmp_path / "a")
    log = Log(table, schema, implicit=True)
    stored = prepare(tmp_path / "a", schema, cache=tmp_path / "c", implicit=True, rows=9)
    same(stored, Encoder(schema).fit(log).encode(log))
    ids = stored.schema.encoder.encode_values("item", [3])
    assert stored.schema.encoder.decode("item", ids).tolist() == Encoder(schema).fit(log).decode("item", ids).tolist()
    assert stored.implicit


def test_quantiles_of_more_rows_than_are_kept_do_not_depend_on_the_parts(monkeypatch):
    monkeypatch.setattr(learning, "SAMPLE", 1 << 10)
    x = np.random.default_rng(0).normal(size=50_000)

    def gathered(size):
        sample = learning.Sample()
        for at in range(0, len(x), size):
            sample.add(x[at : at + size])
        return sample.values()

    whole = gathered(len(x))
    assert 512 <= len(whole) <= 1024
    assert all(np.array_equal(gathered(size), whole) for size in (37, 1000, 4096))
    assert set(whole) <= set(x)
    levels = np.linspace(0.1, 0.9, 9)
    rank = (x[:, None] <= np.quantile(whole, levels)).mean(0)
    assert np.abs(rank - levels).max() < 4 * 0.5 / np.sqrt(512)  # four deviations at the median
    few = learning.Sample()
    few.add(x[:1000])
    assert np.array_equal(few.values(), x[:1000])


def test_moments_in_parts_are_those_of_the_whole(monkeypatch):
    x = 1e9 + np.random.default_rng(0).normal(size=200_000)

    def gathered(size):
        moments = learning.Moments()
        for at in range(0, len(x), size):
            moments.add(x[at : at + size])
        return moments.result()

    whole = gathered(len(x))
    assert all(gathered(size) == whole for size in (1_000, 65_536, 99_999))
    assert whole == pytest.approx((x.mean(), x.std()), rel=1e-9)
    constant = learning.Moments()
    constant.add(np.full(100_000, 0.1))
    assert constant.result() == (0.1, 0.0)


# -- the cache --------------------------------------------------------------------------------------------------------
def test_a_second_call_reads_no_rows_and_an_altered_file_is_noticed(tmp_path, monkeypatch):
    write(events(), tmp_path / "a", (20,))
    first = prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(rs.data.preparation, "encode_files", None)  # nothing may be encoded
        patch.setattr(rs.data.preparation, "_contents", None)  # nor read to see whether it has changed
        same(prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c", rows=5), first)
    status = (tmp_path / "a" / "1.parquet").stat()
    os.utime(tmp_path / "a" / "1.parquet", ns=(0, status.st_mtime_ns + 10**9))
    with monkeypatch.context() as patch:
        patch.setattr(rs.data.preparation, "encode_files", None)  # touched, and still the same
        same(prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c"), first)
    write(events(1), tmp_path / "a", (20,))
    other = prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c")
    assert other.digest != first.digest
    same(other, Encoder(SCHEMA).fit(log := Log(events(1), SCHEMA)).encode(log))


def test_two_who_prepare_the_same_at_once_encode_it_once(tmp_path, monkeypatch):
    write(events(), tmp_path / "a")
    calls, encode = [], rs.data.preparation.encode_files

    def counted(*args, **options):
        calls.append(1)
        return encode(*args, **options)

    monkeypatch.setattr(rs.data.preparation, "encode_files", counted)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c"), range(4)))
    assert len(calls) == 1
    for other in made[1:]:
        same(other, made[0])


@pytest.mark.parametrize(
    "change",
    [{"weight": "w"}, {"labels": False}, {"encoder": True}, {"users": True}, {"schema": True}],
    ids=lambda c: next(iter(c)),
)
def test_what_a_store_depends_on_makes_another(tmp_path, change):
    table = events()
    write(table, tmp_path / "a")
    first = prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c")
    schema = SCHEMA.with_features(Categorical("user", "user")) if change.pop("schema", None) else SCHEMA
    if change.pop("encoder", None):
        change["encoder"] = Encoder(SCHEMA).fit(Log(events(3), SCHEMA))
    if change.pop("users", None):
        frames(table)["users"].write_parquet(tmp_path / "users.parquet")
        change["users"] = tmp_path / "users.parquet"
    prepare(tmp_path / "a", schema, cache=tmp_path / "c", **change)
    assert len(list((tmp_path / "c").glob("*/columns.json"))) == 2
    same(prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c"), first)


# -- bad input --------------------------------------------------------------------------------------------------------
SMALL = Schema([Categorical("user", "user"), Categorical("item", "item"), Numeric("x")], [Task("click")])
ROWS = pl.DataFrame({"user": [1, 2, 3, 4], "item": [5, 6, 5, 6], "x": [0.5, 1.5, 2.5, 3.5], "click": [0, 1, 0, 1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            pl.col("x").replace(2.5, float("nan")),
            r'1\.parquet\', rows 0 to 2: Column "x" holds 1 null; give Numeric\("x"',
        ),
        (
            pl.col("x").replace([2.5, 3.5], float("inf")),
            r'1\.parquet\', rows 0 to 2: Column "x" holds 2 infinite values; rep',
        ),
        (
            pl.col("x").cast(pl.String),
            r"Column 'x' holds String in '.*1\.parquet' and Float64 in '.*0\.parquet'; cast one",
        ),
        (pl.col("user").cast(pl.Float64), r"Column 'user' holds Float64 in '.*1\.parquet' and Int64 in '.*0\.parquet'"),
        (
            pl.col("click") + 1,
            r"1\.parquet', rows 0 to 2: Label 'click' is 2 in 1 rows; a binary label is 0, 1 or null",
        ),
    ],
    ids=["nan", "inf", "text", "float ids", "label"],
)
def test_a_bad_column_of_the_second_file_is_named_with_its_file(tmp_path, change, message):
    write(ROWS[:2], tmp_path / "a")
    ROWS[2:].with_columns(change).write_parquet(tmp_path / "a" / "1.parquet")
    with pytest.raises((DataError, SchemaError), match=message):
        prepare(tmp_path / "a", SMALL, cache=tmp_path / "c")
    assert not list((tmp_path / "c").glob("*/arrays-*"))


def test_whole_numbers_may_turn_fractional_where_numbers_are_due(tmp_path):
    write(ROWS[:2].with_columns(x=pl.Series([1, 2])), tmp_path / "a")
    ROWS[2:].write_parquet(tmp_path / "a" / "1.parquet")
    assert prepare(tmp_path / "a", SMALL, cache=tmp_path / "c").batch(slice(None))["x"].tolist() == [1, 2, 2.5, 3.5]


def test_files_that_cannot_be_used_are_named(tmp_path):
    write(ROWS, tmp_path / "a", (2,))
    ROWS[2:].drop("x").write_parquet(tmp_path / "a" / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet' lacks column 'x', which .*0\.parquet' has"):
        prepare(tmp_path / "a", SMALL, cache=tmp_path / "c")
    with pytest.raises(DataError, match="There is no file at"):
        prepare(tmp_path / "none.parquet", SMALL, cache=tmp_path / "c")
    ROWS.drop("x").write_parquet(tmp_path / "b.parquet")
    with pytest.raises(SchemaError, match="Unknown column for context feature 'x'"):
        prepare(tmp_path / "b.parquet", SMALL, cache=tmp_path / "c")
    write(ROWS, tmp_path / "a", (2,))
    content = (tmp_path / "a" / "1.parquet").read_bytes()
    (tmp_path / "a" / "1.parquet").write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"1\.parquet' cannot be read as \.parquet"):
        prepare(tmp_path / "a", SMALL, cache=tmp_path / "c")
    ROWS[:0].write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet' has no rows"):
        prepare(tmp_path / "empty.parquet", SMALL, cache=tmp_path / "c")


def test_a_shard_that_is_truncated_in_its_pages_is_named(tmp_path):
    table = pl.DataFrame(
        {
            "user": np.arange(5000),
            "item": np.arange(5000),
            "x": np.random.default_rng(0).random(5000),
            "click": [0, 1] * 2500,
        }
    )
    table.write_parquet(tmp_path / "a.parquet", compression="zstd")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[500:9000] = bytes(8500)  # the footer is whole, so that only reading rows finds it
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet' cannot be read as \.parquet"):
        prepare(tmp_path / "a.parquet", SMALL, cache=tmp_path / "c")


def test_requests_that_lie_apart_or_have_two_users_are_errors(tmp_path):
    table = ROWS.with_columns(visit=pl.Series([1, 2, 1, 2]))
    table.write_parquet(tmp_path / "a.parquet")
    for rows in (1, 3, 10):
        with pytest.raises(DataError, match="requests of column 'visit' lie apart; sort the files by it"):
            prepare(tmp_path / "a.parquet", SMALL, cache=tmp_path / "c", request="visit", rows=rows)
    table.sort("visit").write_parquet(tmp_path / "a.parquet")
    for rows in (1, 3, 10):
        with pytest.raises(DataError, match="rows have another 'user' than their request 'visit'"):
            prepare(tmp_path / "a.parquet", SMALL, cache=tmp_path / "c", request="visit", rows=rows)
    table.with_columns(visit=pl.Series([1, None, 2, 2])).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="Request column 'visit' holds 1 nulls"):
        prepare(tmp_path / "a.parquet", SMALL, cache=tmp_path / "c", request="visit")


def test_a_history_that_cannot_be_built_says_what_it_needs(tmp_path):
    write(ROWS, tmp_path / "a")
    schema = SMALL.with_features(History("past", of="item"))
    with pytest.raises(SchemaError, match=r"History 'past' is not a column of the events.*without a time column"):
        prepare(tmp_path / "a", schema, cache=tmp_path / "c")


# -- the disk ---------------------------------------------------------------------------------------------------------
class Full:
    """A disk that is full after some writes."""

    def __init__(self, monkeypatch, after):
        self.left, write = after, folders._write

        def fill(stream, data):
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            write(stream, data)

        monkeypatch.setattr(folders, "_write", fill)


def test_a_disk_that_fills_at_any_write_leaves_the_store_before_it(tmp_path, monkeypatch):
    encoder = Encoder(SCHEMA).fit(Log(events(), SCHEMA))
    old, new = encoder.encode(Log(events(), SCHEMA)), encoder.encode(Log(events(1), SCHEMA))
    old.save(tmp_path)
    failed = 0
    while True:
        with monkeypatch.context() as patch:
            disk, error = Full(patch, failed), ""
            try:
                new.save(tmp_path)
            except DataError as raised:
                error = str(raised)
            if disk.left >= 0:
                break
        assert "No space left on device" in error
        assert re.search(rf"'{tmp_path}.*(\.npy|columns\.json)' cannot be written", error)
        same(Columns.load(tmp_path, encoder), old)
        assert len(list(tmp_path.glob("arrays-*"))) == 1
        failed += 1
    assert failed > 20
    same(Columns.load(tmp_path, encoder), new)
    assert len(list(tmp_path.glob("arrays-*"))) == 1


def test_a_disk_that_fills_while_files_are_encoded_leaves_other_stores_and_no_half(tmp_path, monkeypatch):
    write(events(), tmp_path / "a")
    write(events(1), tmp_path / "b")
    first = prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c")
    for after in (0, 7, 40, 60):
        with monkeypatch.context() as patch:
            Full(patch, after)
            with pytest.raises(DataError, match="cannot be written: No space left on device"):
                prepare(tmp_path / "b", SCHEMA, cache=tmp_path / "c", rows=20)
        same(prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c"), first)
        assert len(list((tmp_path / "c").glob("*/arrays-*"))) == 1
    assert len(prepare(tmp_path / "b", SCHEMA, cache=tmp_path / "c")) == N


def test_a_store_that_was_damaged_or_is_of_another_version_is_named(tmp_path):
    write(events(), tmp_path / "a")
    prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c")
    (manifest,) = (tmp_path / "c").glob("*/columns.json")
    (file,) = manifest.parent.glob("arrays-*/user.i32.npy")
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"user\.i32\.npy' has \d+ bytes in place of \d+; it was truncated"):
        prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c")
    file.write_bytes(content)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 1}))
    with pytest.raises(DataError, match=r"columns\.json' is not of format 2 but 1; encode the data again"):
        prepare(tmp_path / "a", SCHEMA, cache=tmp_path / "c")


def test_an_id_that_the_catalog_does_not_reach_is_an_error(tmp_path):
    write(ROWS, tmp_path / "a")
    stored = prepare(tmp_path / "a", SMALL, cache=tmp_path / "c")
    with pytest.raises(DataError, match=r"Item id 4 is outside the catalog's \[0, 4\); encode raw ids first"):
        stored.catalog.batch(np.array([2, 4]))
    with pytest.raises(DataError, match="Id 9 is past the vocabulary of 'user'"):
        stored.schema.encoder.decode("user", [9])
