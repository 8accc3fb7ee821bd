"""Columns: batches against plain lookups, lists and masks, labels, files."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from recstack.data import Columns, Encoder, Log
from recstack.errors import DataError, SchemaError
from recstack.schema import Categorical, History, Numeric, Schema, Task, Text, Vector

SCHEMA = Schema(
    [
        Categorical("user", "user"),
        Numeric("age", "user", fill=0.0),
        Categorical("tags", "user", multi=True),
        Categorical("item", "item"),
        Categorical("genre", "item", multi=True),
        Numeric("price", "item", fill=0.0),
        Text("title", "item", buckets=100),
        Vector("image", "item", size=2),
        Categorical("hour", "context"),
        Numeric("rank", "pair", transform="bucketize", bins=3),
        History("past", of=("item", "genre", "price"), max_len=3),
    ],
    [Task("click"), Task("rating", kind="regression", label="stars")],
    time="at",
)
N = 60


def make(request=None, frames=True) -> Log:
    chance = np.random.default_rng(1)
    visit = np.sort(chance.integers(0, 20, N))
    user = chance.integers(0, 6, 20)[visit]
    item = chance.integers(0, 9, N)
    genres = [["g1"], ["g2", "g1"], [], ["g3"], None, ["g1"], ["g4", "g2", "g1"], ["g1"], ["g9"]]
    titles = ["A b", "c d", None, "e", "", "x y z", "é", "b", "q"]
    users = {
        "user": list(range(6)),
        "age": [1.0, None, 3.0, 4.0, 5.0, 6.0],
        "tags": [["x"], [], None, ["y", "x"], ["z"], []],
    }
    items = {"item": list(range(9)), "genre": genres, "price": [float(i) for i in range(9)], "title": titles}
    items["image"] = [[float(i), 1.0] for i in range(9)]
    events = pl.DataFrame(
        {
            "visit": visit,
            "user": user,
            "item": item,
            "hour": visit % 24,
            "at": visit * 10,
            "rank": chance.integers(0, 9, N),
            "click": chance.integers(0, 2, N).astype(float),
            "stars": [None if i % 3 else float(i) for i in range(N)],
        }
    )
    if not frames:
        events = events.join(pl.DataFrame(users), "user", maintain_order="left")
        events = events.join(pl.DataFrame(items), "item", maintain_order="left")
        return Log(events, SCHEMA, request=request)
    return Log(events, SCHEMA, users=users, items=items, request=request)


@pytest.fixture(scope="module")
def log():
    return make()


@pytest.fixture(scope="module")
def encoder(log):
    return Encoder(SCHEMA).fit(log)


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=True, msg=name)


def padded(batch):
    """The padded spelling of a jagged batch, by a plain loop."""
    out = dict(batch)
    for key in [k for k in batch if k.endswith("@offsets")]:
        name, bounds = key.removesuffix("@offsets"), batch[key].tolist()
        for flat in [k for k in batch if k == name or k.endswith(f"@{name}")]:
            rows = [batch[flat][a:b] for a, b in pairwise(bounds)]
            width = max(1, *map(len, rows))
            tensor = torch.zeros((len(rows), width, *batch[flat].shape[1:]), dtype=batch[flat].dtype)
            for i, row in enumerate(rows):
                tensor[i, : len(row)] = row
            of_items = flat == name and SCHEMA.feature(name).role == "item"
            out[flat] = tensor.unflatten(0, batch["item"].shape) if of_items else tensor
        del out[key]
    return out


def test_ids_are_int32_numbers_float32_and_shapes_are_as_promised(log, encoder):
    batch = encoder.encode(log).batch(np.array([5, 3, 40, 41]), times=True)
    shapes = {k: tuple(v.shape) for k, v in batch.items() if "@" not in k}
    assert shapes["user"] == shapes["hour"] == shapes["age"] == (4,)
    assert shapes["item"] == shapes["price"] == shapes["rank"] == (4, 1)
    assert shapes["image"] == (4, 1, 2)
    assert batch["click@label"].shape == (4, 1)
    assert batch["stars@label"].isnan().any()
    assert (batch["item"].dtype, batch["price"].dtype, batch["past@offsets"].dtype, batch["@time"].dtype) == (
        torch.int32,
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert "@mask" not in batch
    assert len(batch["genre@offsets"]) == len(batch["tags@offsets"]) == 5
    assert len(batch["@time@past"]) == len(batch["item@past"]) == len(batch["price@past"]) == len(batch["genre@past"])


def test_a_batch_is_what_each_row_says(log, encoder):
    columns = encoder.encode(log)
    index = np.array([7, 0, 59, 7, 33])
    batch = columns.batch(index, padded=True)
    items = {r["item"]: r for r in log.items.to_dicts()}
    users = {r["user"]: r for r in log.users.to_dicts()}
    for i, row in enumerate(log.events[index].iter_rows(named=True)):
        assert encoder.decode("user", batch["user"][i]) == row["user"]
        assert encoder.decode("item", batch["item"][i, 0]) == row["item"]
        assert batch["age"][i].item() == (users[row["user"]]["age"] or 0.0)
        assert batch["price"][i, 0].item() == items[row["item"]]["price"]
        assert batch["image"][i, 0].tolist() == items[row["item"]]["image"]
        genres = [g for g in encoder.decode("genre", batch["genre"][i, 0].numpy()) if g is not None]
        assert genres == (items[row["item"]]["genre"] or [])
        assert batch["click@label"][i, 0].item() == row["click"]
        at, user = row["at"], row["user"]
        before = log.events.filter((pl.col("user") == user) & (pl.col("at") < at))["item"].to_list()[-3:]
        past = [x for x in encoder.decode("item", batch["item@past"][i].numpy()) if x is not None]
        assert past == before
        prices = batch["price@past"][i].tolist()
        assert prices[: len(before)] == [items[b]["price"] for b in before]
        assert not any(prices[len(before) :])


def test_frames_pointed_at_equal_frames_joined(log, encoder):
    joined = make(frames=False)
    everything = np.arange(N)
    a = encoder.encode(log).batch(everything, times=True)
    same(a, Encoder(SCHEMA).fit(joined).encode(joined).batch(everything, times=True))


@pytest.mark.parametrize("request_column", [None, "visit"])
def test_both_spellings_and_slices_agree(encoder, request_column):
    columns = encoder.encode(make(request_column))
    index = np.arange(3, 11)
    jagged = columns.batch(index, times=True)
    same(jagged, columns.batch(slice(3, 11), times=True))
    both = columns.batch(index, times=True, padded=True)
    expected = padded(jagged)
    # A multi-valued feature inside a history is padded one level further: by the widest of the batch.
    same(expected, both)


def test_lists_hold_their_rows_and_padding_is_zero(encoder):
    log = make("visit")
    columns = encoder.encode(log)
    groups = log.events.group_by("visit", maintain_order=True)
    rows = [frame for _, frame in groups]
    assert columns.n_requests == len(columns) == len(rows)
    assert columns.n_rows == N
    batch = columns.batch(np.arange(len(rows)), padded=True)
    longest = max(map(len, rows))
    assert batch["item"].shape == batch["@mask"].shape == batch["click@label"].shape == (len(rows), longest)
    for i, frame in enumerate(rows):
        live = batch["@mask"][i]
        assert int(live.sum()) == len(frame)
        assert encoder.decode("item", batch["item"][i][live].numpy()).tolist() == frame["item"].to_list()
        assert batch["click@label"][i][live].tolist() == frame["click"].to_list()
        for name in ("item", "price", "image", "genre", "title", "rank"):
            assert not batch[name][i][~live].any(), name
        assert batch["click@label"][i][~live].isnan().all()
    shortest = [i for i, f in enumerate(rows) if len(f) == longest]
    assert "@mask" not in columns.batch(np.array(shortest))


def test_rows_of_a_request_need_not_stand_together(encoder):
    log = make("visit")
    shuffled = log.select(np.random.default_rng(0).permutation(N))
    a, b = encoder.encode(log), encoder.encode(shuffled)
    assert a.n_requests == b.n_requests
    assert sorted(np.diff(a.lists)) == sorted(np.diff(b.lists))


def test_a_request_has_one_user(encoder):
    log = make("visit")
    events = log.events.with_columns(user=pl.Series(np.arange(N) % 6))
    with pytest.raises(DataError, match="rows have another 'user' than their request 'visit'"):
        encoder.encode(Log(events, SCHEMA, users=log.users, items=log.items, request="visit"))
    events = log.events.with_columns(visit=pl.Series([None] + [1] * (N - 1)))
    with pytest.raises(DataError, match="'visit' holds 1 nulls"):
        encoder.encode(Log(events, SCHEMA, users=log.users, items=log.items, request="visit"))


@pytest.mark.parametrize("request_column", [None, "visit"])
def test_selected_columns_give_the_batches_of_those_requests(encoder, request_column):
    columns = encoder.encode(make(request_column))
    index = np.array([9, 2, 2, 14])
    some = columns.select(index)
    same(some.batch(np.array([0, 3])), columns.batch(index[[0, 3]]))
    mask = np.zeros(len(columns), bool)
    mask[[1, 4]] = True
    same(columns.select(mask).batch(slice(None)), columns.batch(np.array([1, 4])))
    assert some.user_ids.tolist() == columns.user_ids[index].tolist()


@pytest.mark.parametrize("request_column", [None, "visit"])
def test_files_give_the_same_batches(encoder, request_column, tmp_path):
    columns = encoder.encode(make(request_column))
    columns.save(tmp_path / "columns")
    loaded = Columns.load(tmp_path / "columns")
    assert loaded.schema == columns.schema
    assert repr(loaded) == repr(columns)
    for index in (np.array([5, 1, 8]), slice(2, 9)):
        same(loaded.batch(index, times=True), columns.batch(index, times=True))
    assert loaded.batch(slice(0, 2))["user"].add_(1) is not None  # a batch is not the file
    same(loaded.batch(slice(0, 2)), columns.batch(slice(0, 2)))
    again = Columns.load(tmp_path / "columns", encoder)
    assert again.schema.encoder is encoder


def test_a_damaged_folder_is_named(encoder, log, tmp_path):
    with pytest.raises(DataError, match="There are no saved columns at"):
        Columns.load(tmp_path)
    encoder.encode(log).save(tmp_path)
    (file,) = tmp_path.glob("arrays-*/item.i32.npy")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"item\.i32\.npy' has \d+ bytes in place of \d+; it was truncated"):
        Columns.load(tmp_path)
    file.write_bytes(b"x" * len(content))
    with pytest.raises(DataError, match=r"item\.i32\.npy' is not an array"):
        Columns.load(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"item\.i32\.npy' is missing"):
        Columns.load(tmp_path)
    (tmp_path / "columns.json").write_text("{}")
    with pytest.raises(DataError, match="is not of format 2 but None; encode the data again"):
        Columns.load(tmp_path)
    (tmp_path / "columns.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Columns.load(tmp_path)


def test_saving_again_replaces_what_was_there(encoder, log, tmp_path):
    encoder.encode(log).save(tmp_path)
    encoder.encode(log.select([1, 2])).save(tmp_path)
    assert Columns.load(tmp_path).n_rows == 2


def test_seen_is_every_item_of_the_user(encoder, log):
    columns = encoder.encode(log)
    ids = np.array([3, 1, 2, 999])
    offsets, items = columns.seen(ids)
    pairs = set(zip(columns.user_ids.tolist(), columns.item_ids.tolist(), strict=True))
    for i, user in enumerate(ids):
        expected = sorted(item for u, item in pairs if u == user and user >= 2)
        assert items[offsets[i] : offsets[i + 1]].tolist() == expected


def test_labels_of_one_class_cannot_be_trained_on(encoder, log):
    ones = log.select(log.events["click"] == 1)
    with pytest.raises(DataError, match=rf'Label "click" is 1 on all {len(ones)} rows; training needs some of 0'):
        encoder.encode(ones).check_labels()
    nulls = Log(log.events.with_columns(click=pl.lit(None)), SCHEMA, users=log.users, items=log.items)
    with pytest.raises(DataError, match=rf'Label "click" is missing on all {N} rows'):
        encoder.encode(nulls).check_labels()
    encoder.encode(log).check_labels()
    events = log.events.drop("click", "stars")
    schema = encoder.schema.replace(tasks=[Task("click")])
    implicit = Log(events, schema, users=log.users, items=log.items, implicit=True)
    Encoder(schema).fit(implicit).encode(implicit).check_labels()


def test_positives(encoder, log):
    columns = encoder.encode(log)
    assert columns.positives().tolist() == (log.events["click"] == 1).to_list()
    assert columns.positives("rating").tolist() == (log.events["stars"] == 1).fill_null(False).to_list()


def test_weights_come_with_the_batch(encoder, log):
    events = log.events.with_columns(w=pl.Series(np.arange(N) / 2))
    weighted = Log(events, SCHEMA, users=log.users, items=log.items, weight="w")
    assert encoder.encode(weighted).batch(np.array([3, 4]))["@weight"].tolist() == [[1.5], [2.0]]
    bad = Log(events.with_columns(w=-pl.col("w")), SCHEMA, users=log.users, items=log.items, weight="w")
    with pytest.raises(DataError, match="Weight 'w' holds negative"):
        encoder.encode(bad)


def test_keys_that_the_schema_lacks_are_named():
    schema = Schema([Numeric("x")], [Task("y")])
    log = Log({"x": [1.0, 2.0], "y": [0, 1]}, schema)
    columns = Encoder(schema).fit(log).encode(log)
    assert columns.batch(slice(None))["x"].tolist() == [1.0, 2.0]
    assert columns.batch(slice(None))["y@label"].shape == (2, 1)
    with pytest.raises(SchemaError, match="The schema has no user key"):
        columns.user_ids  # noqa: B018
