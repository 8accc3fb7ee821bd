"""`recstack prepare`: the store is what Python encodes, a schema can be guessed, and no store is lost."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import yaml

import recstack as rs
from recstack.cli import sources
from recstack.cli.suggest import suggest
from recstack.errors import DataError


@pytest.fixture
def asked(market):
    """The options that name the market's files."""
    folder = market.folder
    files = {"data": "events.parquet", "schema": "schema.yaml", "users": "users.csv", "items": "items.csv"}
    return [x for name, file in files.items() for x in (f"--{name}", folder / file)]


def test_the_store_holds_what_python_encodes(invoke, market, asked, tmp_path):
    result = invoke("prepare", *asked, "--out", tmp_path / "store", "--json")
    assert result.exit_code == 0, result.stderr
    train, valid, test = rs.split.by_time(market.log)
    encoder = rs.Encoder(market.log.schema).fit(train)
    source = sources.open_store(tmp_path / "store")
    assert source.encoder == encoder
    for part, log in (("train", train), ("valid", valid), ("test", test)):
        saved, due = source.part(part).batch(slice(None)), encoder.encode(log).batch(slice(None))
        assert saved.keys() == due.keys()
        assert all(np.array_equal(saved[n], due[n], equal_nan=True) for n in due)
    said = json.loads(result.stdout)
    assert {n: p["rows"] for n, p in said["rows"].items()} == {"train": 2400, "valid": 300, "test": 300}
    assert said["rows"]["train"]["labels"]["click"] == pytest.approx(train.events["click"].mean())
    vocabulary = {c["name"]: c["vocabulary"] for c in said["columns"]}
    assert vocabulary["item_id"] == train.events["item_id"].n_unique()
    assert vocabulary["price"] is None
    assert said["bytes"] > 0


def test_a_split_by_counts_and_the_table_for_people(invoke, asked, tmp_path):
    options = ["--split", "last_per_user", "--test", "3", "--valid", "0", "--out", tmp_path / "store"]
    result = invoke("prepare", *asked, *options)
    assert result.exit_code == 0, result.stderr
    assert "mean click" in result.stdout
    source = sources.open_store(tmp_path / "store")
    assert (source.protocol, source.valid) == ({"by": "last_per_user", "valid": 0, "test": 3}, None)
    with pytest.raises(DataError, match="The valid part of this data has no rows"):
        source.part("valid")


def test_a_second_call_finds_nothing_to_do_until_something_changes(invoke, market, asked, tmp_path):
    import shutil

    data = tmp_path / "events.parquet"
    shutil.copy(market.folder / "events.parquet", data)
    call = ["prepare", *asked[2:], "--data", data, "--out", tmp_path / "store", "--json"]
    first = json.loads(invoke(*call).stdout)
    again = invoke(*call)
    assert "Nothing to do" in again.stderr
    assert json.loads(again.stdout) == first | {"fresh": False}
    assert json.loads(invoke(*call, "--split", "random").stdout)["fresh"]
    assert json.loads(invoke(*call).stdout)["fresh"]  # the folder now held another split
    pl.read_parquet(data).head(2000).write_parquet(data)
    fewer = json.loads(invoke(*call).stdout)
    assert (fewer["fresh"], fewer["rows"]["train"]["rows"]) == (True, 1600)
    (file,) = (tmp_path / "store" / "train").glob("arrays-*/user.i32.npy")
    file.unlink()
    assert json.loads(invoke(*call).stdout)["fresh"]  # a store that is not whole is made again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.parquet", "store"]


def test_without_a_split_files_are_encoded_in_parts(invoke, market, asked, tmp_path):
    done = invoke("prepare", *asked, "--split", "none", "--out", tmp_path / "store", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["rows"].keys() == {"train"}
    source = sources.open_store(tmp_path / "store")
    encoder = rs.Encoder(market.log.schema).fit(market.log)
    assert source.encoder == encoder
    saved, due = source.train.batch(slice(None)), encoder.encode(market.log).batch(slice(None))
    assert saved.keys() == due.keys()
    assert all(np.array_equal(saved[n], due[n], equal_nan=True) for n in due)
    assert "Nothing to do" in invoke("prepare", *asked, "--split", "none", "--out", tmp_path / "store").stderr


def test_nulls_are_counted(invoke, market, tmp_path):
    events = pl.read_parquet(market.folder / "events.parquet")
    events = events.with_columns(shelf=pl.when(pl.col("position") > 3).then(None).otherwise(1))
    events.write_parquet(tmp_path / "events.parquet")
    schema = rs.Schema([rs.Categorical("user_id", "user"), rs.Categorical("item_id", "item"), rs.Categorical("shelf")])
    schema.replace(time="time").save(tmp_path / "s.json")
    result = invoke(
        "prepare", "--data", tmp_path / "events.parquet", "--schema", tmp_path / "s.json",
        "--out", tmp_path / "store", "--json",
    )  # fmt: skip
    nulls = {c["name"]: c["nulls"] for c in json.loads(result.stdout)["columns"]}
    assert nulls == {"user_id": 0, "item_id": 0, "shelf": 2 * 3000 // 5}


def test_a_folder_that_is_no_store_is_never_replaced(invoke, asked, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("dear")
    result = invoke("prepare", *asked, "--out", tmp_path / "photos")
    assert result.exit_code == 2
    assert "exists and is no store" in result.stderr
    assert (tmp_path / "photos" / "one.jpg").read_text() == "dear"


def test_a_failing_prepare_keeps_the_store_before_it(invoke, asked, tmp_path, monkeypatch):
    assert invoke("prepare", *asked, "--out", tmp_path / "store").exit_code == 0
    before = sources.open_store(tmp_path / "store").encoder.fingerprint

    def full(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rs.Encoder, "save", full)
    result = invoke("prepare", *asked, "--split", "random", "--out", tmp_path / "store")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert sources.open_store(tmp_path / "store").encoder.fingerprint == before
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    monkeypatch.undo()
    assert invoke("prepare", *asked, "--split", "random", "--out", tmp_path / "store").exit_code == 0
    assert sources.open_store(tmp_path / "store").protocol == {"by": "random"}
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_store_names_its_parts(invoke, asked, retriever, tmp_path):
    invoke("prepare", *asked, "--out", tmp_path / "store")
    result = invoke("evaluate", retriever, "--data", tmp_path / "store")
    assert result.exit_code == 3
    assert "is a store; name its part" in result.stderr
    by_columns = json.loads(invoke("evaluate", retriever, "--data", tmp_path / "store" / "test", "--json").stdout)
    direct = rs.Cascade([rs.load(retriever)])
    direct.profiles = direct.retrievers[0].profiles
    due = direct.evaluate(sources.open_store(tmp_path / "store").test).stages[-1]
    assert by_columns["metrics"] == {"recall@10": due["recall@k"], "ndcg@10": due["ndcg@k"]}


def test_missing_options_and_a_split_without_time(invoke, market, asked, tmp_path):
    assert "Missing --schema" in invoke("prepare", "--data", "x.csv").stderr
    assert "Missing --out" in invoke("prepare", *asked).stderr
    schema = rs.Schema.load(market.folder / "schema.yaml").without("clicked").replace(time=None)
    schema.save(tmp_path / "schema.yaml")
    result = invoke("prepare", *asked, "--schema", tmp_path / "schema.yaml", "--out", tmp_path / "store")
    assert result.exit_code == 2
    assert "A split by_time needs time: in the schema" in result.stderr


# -- a schema to start from -------------------------------------------------------------------------------------------
def test_the_guessed_schema_can_be_used_at_once(invoke, market, tmp_path):
    files = {n: market.folder / f for n, f in (("--data", "events.parquet"), ("--users", "users.csv"))}
    files["--items"] = market.folder / "items.csv"
    asked = [x for pair in files.items() for x in pair]
    result = invoke("prepare", *asked, "--suggest-schema")
    assert result.exit_code == 0, result.stderr
    (tmp_path / "schema.yaml").write_text(result.stdout)
    schema = rs.Schema.load(tmp_path / "schema.yaml")
    assert (schema.user, schema.item, schema.time) == ("user_id", "item_id", "time")
    assert [t.name for t in schema.tasks] == ["click"]
    roles = {f.name: f.role for f in schema.features}
    assert (roles["age"], roles["category"], roles["position"]) == ("user", "item", "pair")
    done = invoke("prepare", *asked, "--schema", tmp_path / "schema.yaml", "--out", tmp_path / "store")
    assert done.exit_code == 0, done.stderr


def test_what_a_guess_rests_on():
    n = 60
    user, item = [i % 12 for i in range(n)], [(i * 7) % 15 for i in range(n)]
    events = pl.DataFrame(
        {
            "user_id": user,
            "movie_id": item,
            "ts": list(range(n)),
            "liked": [i % 3 == 0 for i in range(n)],
            "country": [f"c{u % 4}" for u in user],  # one value for each user
            "genre": [["a", "b"][: 1 + i % 2] for i in item],
            "title": [f"the long title of {i}" for i in item],
            "price": [None if i == 3 else 1.5 * i for i in item],
            "hour": [i % 11 for i in range(n)],
            "device": [f"d{i % 7}" for i in range(n)],
            "image": [[0.5, float(i)] for i in item],
            "event_id": list(range(n)),
            "order_time": list(range(n)),
            "empty": [None] * n,
            "same": [1] * n,
            "yes": [i % 7 for i in range(n)],  # a name that YAML would read as true
        }
    )
    text = suggest(events)
    data = yaml.safe_load(text)
    found = {f["name"]: f for f in data["features"]}
    assert {n: (f["kind"], f["role"]) for n, f in found.items() if "role" in f} == {
        "user_id": ("categorical", "user"),
        "movie_id": ("categorical", "item"),
        "country": ("categorical", "user"),
        "genre": ("categorical", "item"),
        "title": ("text", "item"),
        "price": ("numeric", "item"),
        "hour": ("categorical", "context"),
        "device": ("categorical", "context"),
        "image": ("vector", "item"),
        "yes": ("categorical", "context"),
    }
    assert found["genre"]["multi"] is True
    assert found["image"]["size"] == 2
    assert found["price"]["fill"] == events["price"].drop_nulls().median()
    assert found["history"] == {
        "kind": "history", "name": "history", "of": ["movie_id", "genre"], "max_len": 50, "where": "liked",
    }  # fmt: skip
    assert data["tasks"] == [{"name": "liked"}]
    left = text.splitlines()[1]
    assert all(f"{name} (" in left for name in ("event_id", "order_time", "empty", "same"))
    rs.Encoder(rs.Schema.from_dict(data)).fit(rs.Log(events, rs.Schema.from_dict(data)))


def test_without_a_label_rows_are_positives():
    events = pl.DataFrame({"uid": ["a", "b"], "sku": ["x", "y"]})
    text = suggest(events)
    assert "--implicit" in text
    schema = rs.Schema.from_dict(yaml.safe_load(text))
    assert (schema.user, schema.item, schema.time, schema.histories) == ("uid", "sku", None, ())
    with pytest.raises(DataError, match="No column looks like the item's key, such as 'item_id'; there are uid, x"):
        suggest(events.rename({"sku": "x"}))
