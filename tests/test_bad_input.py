"""Bad input, end to end: one clear sentence that names the column and the value, the right exit code, and nothing lost.

Malformed and oversized HTTP requests are in tests/serving.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from typer.testing import CliRunner

import recstack as rs
from recstack.bundle import store
from recstack.cli.app import app
from recstack.errors import RecStackError

SCHEMA = rs.Schema(
    [
        rs.Categorical("user_id", "user"),
        rs.Categorical("item_id", "item"),
        rs.Categorical("genre", "item"),
        rs.Numeric("price", "item", transform="log"),
        rs.Categorical("hour"),
        rs.History("clicked", of=("item_id", "genre"), max_len=10, where="click"),
    ],
    [rs.Task("click")],
    time="time",
)


def events(rows: int = 200) -> pl.DataFrame:
    """A sound log of 10 users and 12 items."""
    rng = np.random.default_rng(0)
    item = rng.integers(100, 112, rows)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, 10, rows),
            "item_id": item,
            "genre": [f"g{i % 3}" for i in item],
            "price": 1.0 + item % 5,
            "hour": rng.integers(0, 24, rows),
            "click": rng.integers(0, 2, rows),
            "time": np.arange(rows),
        }
    )


def run(*args) -> SimpleNamespace:
    """A command: its exit code, and the sentence after "Error: "."""
    done = CliRunner().invoke(app, [str(a) for a in args])
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in done.stderr, done.stderr
    return SimpleNamespace(code=done.exit_code, said=said[0].removeprefix("Error: ") if said else "", done=done)


def sentence(text: str) -> bool:
    """One or two short ones, on one line."""
    return "\n" not in text and len(text) < 500


# -- tables: through Python and through the command line -----------------------------------------------------------------
def nulls(column: str, every: int):
    return lambda e: e.with_columns(pl.when(pl.col("time") % every == 0).then(None).otherwise(column).alias(column))


TABLES = {
    "a missing feature": (lambda e: e.drop("genre").with_columns(gnre=1), "item feature 'genre'. Did you mean 'gnre'?"),
    "a missing key": (lambda e: e.rename({"user_id": "user"}), "'user_id'. Did you mean 'user'?"),
    "a missing label": (lambda e: e.rename({"click": "clicks"}), "'click'. Did you mean 'clicks'?"),
    "a missing time": (lambda e: e.rename({"time": "tme"}), "'time'. Did you mean 'tme'?"),
    "text for a number": (
        lambda e: e.with_columns(price=pl.lit("cheap")),
        "Column 'price' holds text, for example 'cheap', where a number is due.",
    ),
    "fractions for ids": (lambda e: e.with_columns(pl.col("item_id") + 0.5), "Column 'item_id' holds fractional numbers"),
    "lists for ids": (
        lambda e: e.with_columns(pl.concat_list("genre")),
        'Column \'genre\' holds lists; declare Categorical(\'genre\', multi=True).',
    ),
    "a label of 2": (
        lambda e: e.with_columns(click=pl.when(pl.col("time") < 3).then(2).otherwise("click")),
        "Label 'click' is 2 in 3 rows; a binary label is 0, 1 or null.",
    ),
    "text for a time": (lambda e: e.with_columns(time=pl.lit("noon")), "'time' holds String"),
    "fractions for a time": (lambda e: e.with_columns(pl.col("time") / 7), "Time column 'time' holds fractions"),
    "nulls in a time": (nulls("time", 50), "Time column 'time' holds 4 nulls"),
    "nulls in a number": (nulls("price", 100), 'Column "price" holds 2 nulls; give Numeric("price", fill=...).'),
    "infinity": (
        lambda e: e.with_columns(price=pl.when(pl.col("time") == 7).then(float("inf")).otherwise("price")),
        'Column "price" holds 1 infinite values',
    ),
}  # fmt: skip


def encode(frame: pl.DataFrame, schema: rs.Schema = SCHEMA) -> None:
    """What `recstack prepare` does."""
    train, _, test = rs.split.by_time(rs.Log(frame, schema), 0.0, 0.01)
    encoder = rs.Encoder(schema).fit(train)
    for part in (train, test):
        encoder.encode(part)


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table_is_named_in_python_and_on_the_command_line(case, tmp_path):
    spoil, said = TABLES[case]
    spoiled = spoil(events())
    with pytest.raises((rs.SchemaError, rs.DataError)) as error:
        encode(spoiled)
    assert said in str(error.value)
    assert sentence(str(error.value))

    spoiled.write_parquet(tmp_path / "events.parquet")
    SCHEMA.save(tmp_path / "schema.yaml")
    out = tmp_path / "store"
    asked = ["--data", tmp_path / "events.parquet", "--schema", tmp_path / "schema.yaml", "--out", out]
    done = run("prepare", *asked, "--valid", "0", "--test", "0.01")
    assert (done.code, said in done.said) == (3, True), done.done.stderr
    assert not out.exists()


TEXT_LABEL = events().with_columns(click=pl.lit("yes"))


def test_text_for_a_label():
    with pytest.raises(rs.DataError, match="Label 'click' holds text where a number is due"):
        encode(TEXT_LABEL, SCHEMA.without("clicked"))


def test_text_for_a_label_that_a_history_asks_for():
    with pytest.raises(rs.DataError, match="Column 'click' holds String, and History 'clicked' takes the events where"):
        encode(TEXT_LABEL)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.csv", b"", "is empty"),
        ("head.csv", b"user_id,item_id,genre,price,hour,click,time\n", "has no rows"),
        ("cut.parquet", b"PAR1 and no more", "cannot be read as .parquet"),
        ("table.xlsx", b"x", "Unknown file format of 'table.xlsx': '.xlsx'"),
        (None, None, "There is no file at"),
    ],
)
def test_empty_and_unreadable_files(tmp_path, name, content, said):
    path = tmp_path / (name or "missing.csv")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(rs.DataError) as error:
        rs.read(path, SCHEMA)
    assert said in str(error.value)
    assert path.name in str(error.value)
    assert sentence(str(error.value))
    SCHEMA.save(tmp_path / "schema.yaml")
    done = run("prepare", "--data", path, "--schema", tmp_path / "schema.yaml", "--out", tmp_path / "store")
    assert (done.code, said in done.said) == (3, True)
    assert run("prepare", "--data", path, "--suggest-schema").code == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("features: [", "is not valid YAML"),
        ("tasks: []", "A schema is a mapping with a list called 'features'."),
        ("features: [{kind: categorcal, name: a}]", "Did you mean 'categorical'?"),
        ("features: [{kind: categorical, name: a, rol: user}]", "Did you mean 'role'?"),
        ("features: [{kind: categorical, name: a, role: usr}]", "Did you mean 'user'?"),
        ("features: [{kind: history, name: h, of: [item_id]}]", "'item_id'"),
    ],
)
def test_a_bad_schema(tmp_path, text, said):
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    with pytest.raises(rs.SchemaError) as error:
        rs.Schema.load(path)
    assert said in str(error.value)
    events().write_csv(tmp_path / "events.csv")
    done = run("prepare", "--data", tmp_path / "events.csv", "--schema", path, "--out", tmp_path / "store")
    assert (done.code, said in done.said) == (3, True)


def test_two_rows_for_an_item_and_keys_of_two_types():
    log, items = events(), pl.DataFrame({"item_id": [100, 101, 100], "size": [1, 2, 3]})
    with pytest.raises(rs.DataError, match="The items frame has 2 rows for item_id 100; one row per key"):
        rs.Log(log, SCHEMA, items=items)
    schema = SCHEMA.with_features(rs.Categorical("size", "item"))
    text = items.head(2).with_columns(pl.col("item_id").cast(pl.String))
    with pytest.raises(rs.SchemaError, match="Key 'item_id' is Int64 in events and String in items; cast one of them"):
        rs.Encoder(schema).fit(rs.Log(log, schema, items=text))


# -- what is unknown is no error -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SimpleNamespace:
    """A ranker and a retriever that learned from the sound log, and their bundles."""
    folder = tmp_path_factory.mktemp("trained")
    log = rs.Log(events(), SCHEMA)
    encoder = rs.Encoder(SCHEMA).fit(log)
    torch.manual_seed(0)
    ranker = rs.ranking.DIN(encoder.schema, hidden=(8,), dim=4).fit(log, epochs=1, progress=False)
    retriever = rs.retrieval.Popularity().fit(encoder.encode(log))
    ranker.save(folder / "din")
    retriever.save(folder / "popularity")
    return SimpleNamespace(folder=folder, log=log, encoder=encoder, ranker=ranker, retriever=retriever)


def test_unknown_ids_and_nulls_are_out_of_vocabulary(trained):
    encode = trained.encoder.encode_values
    assert encode("item_id", [100, 999, None]).tolist()[1:] == [1, 1]
    new = events(4).with_columns(
        user_id=pl.lit(77), item_id=pl.lit(999), genre=pl.lit(None, pl.String), hour=pl.lit(-1), price=pl.lit(5.0)
    )
    score = trained.ranker.score(rs.Log(new, SCHEMA))["click"]
    assert np.isfinite(score).all()
    assert run("recommend", trained.folder / "popularity", "--user", "77").code == 0


def test_an_id_of_another_kind_is_named(trained):
    with pytest.raises(rs.SchemaError, match="Column 'item_id' holds text, for example 'a', and held whole numbers"):
        trained.encoder.encode_values("item_id", ["a"])
    new = events(4).with_columns(pl.col("user_id").cast(pl.String))
    with pytest.raises(rs.SchemaError, match=r"Column 'user_id' holds text, for example '\d', and held whole"):
        trained.ranker.score(rs.Log(new, SCHEMA))
    done = run("recommend", trained.folder / "popularity", "--user", "bob")
    assert (done.code, done.said) == (3, "User 'bob' is no whole number, as 'user_id' is in this bundle.")


def test_an_empty_history_is_scored_and_a_missing_one_is_named(trained):
    row = {"user_id": 3, "hour": 5, "clicked": []}
    batch = trained.encoder.requests([row]) | {
        n: t.unsqueeze(0) for n, t in trained.encoder.items([{"item_id": 100, "genre": "g1", "price": 1.0}]).items()
    }
    assert torch.isfinite(trained.ranker.predict(batch)["click"]).all()
    with pytest.raises(rs.SchemaError, match="Column 'clicked' is missing from row 0"):
        trained.encoder.requests([{"user_id": 3, "hour": 5}])
    with pytest.raises(rs.SchemaError, match="Column 'clicked' holds whole numbers where lists are due"):
        trained.encoder.requests([row | {"clicked": 100}])


def test_ids_past_the_vocabulary_are_stopped_where_ids_come_in(trained):
    """The Encoder never makes one. Ids that a program hands over itself are checked by item store, decode and models."""
    size = trained.encoder.catalog.size
    assert trained.encoder.encode_values("item_id", [2**40, -5]).max() < size
    with pytest.raises(rs.DataError, match=rf"Item id {size} is outside the catalog's \[0, {size}\); encode raw ids"):
        trained.encoder.catalog.batch(torch.tensor([[2, size]]))
    with pytest.raises(rs.DataError, match=r"Item id -1 is outside"):
        trained.encoder.catalog.batch(torch.tensor([-1]))
    with pytest.raises(rs.DataError, match=f"Id {size + 9} is past the vocabulary of 'item_id', which has {size} ids"):
        trained.encoder.decode("item_id", np.array([2, size + 9]))
    batch = trained.encoder.encode(trained.log).batch(slice(150, 160))
    for column, ids in (("item_id", size), ("genre", -1), ("hour", 2**31 - 1), ("item_id@clicked", size + 1)):
        spoiled = torch.full_like(batch[column], ids)
        own = trained.encoder.schema.feature(column.split("@")[0]).size
        with pytest.raises(
            rs.DataError, match=f"Column '{column}' holds id {ids}, and its table has {own} ids, from 0"
        ):
            trained.ranker(batch | {column: spoiled})


def test_a_column_missing_from_a_batch_is_named(trained):
    batch = trained.encoder.encode(trained.log).batch(slice(0, 3))
    del batch["hour"]
    with pytest.raises(RecStackError, match="'hour'"):
        trained.ranker(batch)
    batch = trained.encoder.encode(trained.log).batch(slice(0, 3))
    del batch["click@label"]
    with pytest.raises(rs.DataError, match="The batch has no label 'click', which task 'click' learns from"):
        trained.ranker.losses(batch)


# -- training: nothing that was saved is lost ----------------------------------------------------------------------------
@pytest.fixture
def configured(tmp_path):
    """Writes events and a configuration that trains LR on them."""

    def write(frame: pl.DataFrame, **trainer) -> Path:
        frame.write_parquet(tmp_path / "events.parquet")
        config = {
            "data": {"events": str(tmp_path / "events.parquet")},
            "schema": SCHEMA.to_dict(),
            "model": {"name": "LR"},
            "trainer": {"epochs": 1, **trainer},
            "out": str(tmp_path / "out"),
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "config.yaml"

    return write


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a bundle, checkpoints of a later run left out."""
    found = (p for p in folder.rglob("*") if p.is_file() and "checkpoints" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, 'Label "click" is 0 on all 160 rows; training needs some of 1, or Log(implicit=True)'),
        (1, 'Label "click" is 1 on all 160 rows; training needs some of 0'),
        (None, 'Label "click" is missing on all 160 rows.'),
    ],
)
def test_a_label_of_one_class(configured, tmp_path, value, said):
    frame = events().with_columns(click=pl.lit(value, pl.Float64))
    train, _, _ = rs.split.by_time(rs.Log(frame, SCHEMA))
    model = rs.ranking.LR(rs.Encoder(SCHEMA).fit(train).schema)
    with pytest.raises(rs.DataError) as error:
        model.fit(train, epochs=1, progress=False)
    assert said in str(error.value)

    assert run("train", configured(events())).code == 0
    before = files_of(tmp_path / "out")
    done = run("train", configured(frame))
    assert (done.code, said in done.said) == (3, True)
    assert files_of(tmp_path / "out") == before
    rs.load(tmp_path / "out")


def test_a_loss_that_is_not_finite_keeps_the_bundle_before_it(configured, tmp_path):
    assert run("train", configured(events())).code == 0
    before = files_of(tmp_path / "out")
    wild = events().with_columns(price=pl.when(pl.col("time") == 5).then(1e300).otherwise("price"))
    done = run("train", configured(wild, lr=1e38, epochs=3, batch_size=16))
    assert done.code == 5, done.done.stderr
    assert "Loss 'click' is " in done.said
    assert files_of(tmp_path / "out") == before


def test_a_save_that_fails_keeps_the_bundle_before_it(configured, tmp_path, monkeypatch):
    assert run("train", configured(events())).code == 0
    before = files_of(tmp_path / "out")
    plain = store._write_file

    def full(file, blocks):
        if file.name == "encoder.safetensors":
            raise OSError(28, "No space left on device")
        return plain(file, blocks)

    monkeypatch.setattr(store, "_write_file", full)
    done = run("train", configured(events(), lr=0.5))
    assert (done.code, "No space left on device" in done.said) == (1, True)
    assert files_of(tmp_path / "out") == before
    rs.load(tmp_path / "out")
    monkeypatch.undo()
    assert run("train", configured(events(), lr=0.5), "--resume").code == 0  # the training itself was not lost either
    assert files_of(tmp_path / "out") != before


# -- bundles -------------------------------------------------------------------------------------------------------------
def weights_of(path: Path) -> Path:
    return next(path.glob("files-*/model.safetensors"))


def cut(path: Path) -> None:
    weights_of(path).write_bytes(weights_of(path).read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(weights_of(path).read_bytes())
    content[-1] ^= 1
    weights_of(path).write_bytes(content)


def edit(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("Popularity", "Popularitx"))


def later(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


def half(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text()[:200])


BUNDLES = {
    "truncated weights": (cut, "model.safetensors' has "),
    "altered weights": (flip, "model.safetensors' was altered: its checksum does not match."),
    "missing weights": (lambda p: weights_of(p).unlink(), "model.safetensors' is missing from the bundle."),
    "an altered manifest": (edit, "was altered: its checksum does not match."),
    "a truncated manifest": (half, "is not JSON"),
    "a missing manifest": (lambda p: (p / "manifest.json").unlink(), "it has no manifest.json."),
    "another format": (later, "has format 99, and RecStack"),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_a_truncated_or_altered_bundle(trained, tmp_path, case):
    spoil, said = BUNDLES[case]
    path = tmp_path / "bundle"
    shutil.copytree(trained.folder / "popularity", path)
    spoil(path)
    with pytest.raises(rs.BundleError) as error:
        rs.load(path)
    assert said in str(error.value)
    assert sentence(str(error.value))
    events().write_parquet(tmp_path / "events.parquet")
    commands = (
        ["recommend", path, "--user", "3"],
        ["evaluate", path, "--data", tmp_path / "events.parquet"],
        ["serve", path, "--port", "0"],
    )
    for command in commands:
        done = run(*command)
        assert (done.code, said in done.said) == (4, True), done.done.stderr


def test_a_truncated_store(tmp_path):
    events().write_parquet(tmp_path / "events.parquet")
    SCHEMA.save(tmp_path / "schema.yaml")
    asked = ["--data", tmp_path / "events.parquet", "--schema", tmp_path / "schema.yaml"]
    assert run("prepare", *asked, "--out", tmp_path / "store").code == 0
    (array,) = (tmp_path / "store" / "train").glob("arrays-*/user.i32.npy")
    array.write_bytes(array.read_bytes()[:-4])
    with pytest.raises(rs.DataError, match=r"user\.i32\.npy' has \d+ bytes in place of \d+; it was truncated"):
        rs.Columns.load(tmp_path / "store" / "train")
    config = {"data": {"store": str(tmp_path / "store")}, "model": {"name": "LR"}, "out": str(tmp_path / "out")}
    (tmp_path / "c.json").write_text(json.dumps(config))
    done = run("train", tmp_path / "c.json")
    assert (done.code, "it was truncated or altered" in done.said) == (3, True)
