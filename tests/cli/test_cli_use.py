"""`recstack evaluate`, `recommend`, `serve` and `demo`: what a bundle answers here is what it answers in Python."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import polars as pl
import pytest

import recstack as rs
from recstack.data import Encoder
from recstack.models.base import Model


# -- recommend --------------------------------------------------------------------------------------------------------
def test_the_page_of_a_user_is_what_the_bundle_recommends(invoke, retriever):
    said = json.loads(invoke("recommend", retriever, "--user", "5", "--k", "4", "--json").stdout)
    model = rs.load(retriever)
    found = model.recommend([5], k=4)
    assert (said["user"], said["known"]) == (5, True)
    items = model.schema.encoder.decode("item_id", found.ids[0].numpy()).tolist()
    assert [row["item"] for row in said["items"]] == items
    assert [row["sources"]["popularity"] for row in said["items"]] == found.scores[0].tolist()
    table = invoke("recommend", retriever, "--user", "5", "--k", "4").stdout
    assert [line.split()[1] for line in table.splitlines() if line.strip()[:1].isdigit()] == list(map(str, items))


def test_a_user_never_met_gets_the_page_of_a_new_one(invoke, retriever):
    result = invoke("recommend", retriever, "--user", "99999", "--k", "3", "--json")
    assert result.exit_code == 0
    assert "User 99999 was never met" in result.stderr
    said = json.loads(result.stdout)
    assert (said["known"], len(said["items"])) == (False, 3)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_all_users_of_a_file_as_a_file(invoke, retriever, user_file, tmp_path, ending):
    out = tmp_path / f"pages.{ending}"
    result = invoke("recommend", retriever, "--users", user_file, "--k", "3", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "1 of 3 users were never met" in result.stderr
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}[ending]
    rows = read(out)
    assert rows.columns == ["user", "rank", "item", "score"]
    for user in (5, 7, 99999):
        page = json.loads(invoke("recommend", retriever, "--user", user, "--k", "3", "--json").stdout)["items"]
        assert rows.filter(pl.col("user") == user)["item"].to_list() == [row["item"] for row in page]


def test_all_users_of_a_file_as_json_lines(invoke, retriever, user_file):
    lines = [
        json.loads(x) for x in invoke("recommend", retriever, "--users", user_file, "--k", "2").stdout.splitlines()
    ]
    assert [(x["user"], x["rank"]) for x in lines] == [(u, r) for u in (5, 7, 99999) for r in (1, 2)]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--user", "abc"], 3, "User 'abc' is no whole number, as 'user_id' is in this bundle."),
        (["--user", "5", "--k", "0"], 2, "--k must be at least 1; got 0."),
        ([], 2, "Give either --user (one id) or --users"),
        (["--user", "5", "--out", "x.csv"], 2, "--out goes with --users"),
        (["--users", "FILE", "--out", "x.xlsx"], 2, "Unknown ending of --out: '.xlsx'."),
        (["--users", "OTHER"], 3, "for the users 'user_id'. Did you mean 'user'?"),
    ],
)
def test_wrong_questions_are_told_so(invoke, retriever, user_file, tmp_path, args, code, said):
    other = tmp_path / "other.csv"
    pl.DataFrame({"user": [1]}).write_csv(other)
    names = {"FILE": user_file, "OTHER": other}
    result = invoke("recommend", retriever, *(names.get(a, a) for a in args))
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


# -- evaluate ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def ranker(market, tmp_path):
    train, _, _ = rs.split.by_time(market.log)
    path = tmp_path / "ranker"
    Model.save(rs.ranking.DIN(Encoder(train.schema).fit(train).schema, hidden=(8,), dim=4), path)
    return path


def files_of(market, folder) -> list:
    """The events cut in two, and the options that name them."""
    cut = rs.split.by_time(market.log)[2].events["time"].min()
    events = pl.read_parquet(market.folder / "events.parquet")
    events.filter(pl.col("time") < cut).write_parquet(folder / "past.parquet")
    events.filter(pl.col("time") >= cut).write_parquet(folder / "test.parquet")
    options = {"--users": market.folder / "users.csv", "--items": market.folder / "items.csv"}
    return [x for pair in options.items() for x in pair]


def test_past_events_continue_the_histories(invoke, market, ranker, tmp_path):
    """Test rows with the events before them are the test rows of one log; without them, histories are shorter."""
    more = files_of(market, tmp_path)
    due = rs.Trainer(rs.load(ranker), progress=False).evaluate(rs.split.by_time(market.log)[2])
    data = ["--data", tmp_path / "test.parquet", *more, "--json"]
    whole = invoke("evaluate", ranker, *data, "--past", tmp_path / "past.parquet")
    assert json.loads(whole.stdout)["metrics"] == due
    alone = invoke("evaluate", ranker, *data)
    assert "History 'clicked' is built from these rows alone; --past" in alone.stderr
    assert json.loads(alone.stdout)["metrics"] != due


def test_a_funnel_as_table_json_and_picture(invoke, market, retriever, tmp_path):
    more = ["--data", market.folder / "events.parquet", "--users", market.folder / "users.csv"]
    more += ["--items", market.folder / "items.csv", "--k", "5", "--max-requests", "20"]
    picture = tmp_path / "funnel.svg"
    table = invoke("evaluate", retriever, *more, "--figure", picture)
    assert table.exit_code == 0, table.stderr
    assert "popularity" in table.stdout
    assert picture.read_text().lstrip().startswith("<?xml")
    said = json.loads(invoke("evaluate", retriever, *more, "--json").stdout)
    assert (said["requests"], said["k"], said["stages"][0]["name"]) == (20, 5, "popularity")


def test_a_cascade_is_measured_and_asked_like_in_python(invoke, market, tmp_path):
    train, _, test = rs.split.by_time(market.log)
    cascade = rs.Cascade([rs.retrieval.Popularity()], rules=[rs.rules.CategoryCap("category", 2)]).fit(train)
    cascade.save(tmp_path / "page")
    said = json.loads(invoke("recommend", tmp_path / "page", "--user", "5", "--k", "4", "--json").stdout)
    assert [row["item"] for row in said["items"]] == [row["item"] for row in cascade.recommend(5, k=4)]
    more = files_of(market, tmp_path)
    asked = ["--data", tmp_path / "test.parquet", "--past", tmp_path / "past.parquet", *more]
    found = json.loads(invoke("evaluate", tmp_path / "page", *asked, "--json").stdout)
    due = cascade.evaluate(test).stages
    assert [(r["name"], r["recall"], r["ndcg@k"]) for r in found["stages"]] == [
        (r["name"], r["recall"], r["ndcg@k"]) for r in due
    ]


def test_what_cannot_be_measured_or_asked_is_told(invoke, market, ranker, retriever, tmp_path):
    assert "Give either --data" in invoke("evaluate", retriever).stderr
    result = invoke("recommend", ranker, "--user", "5")
    assert result.exit_code == 2
    assert "holds DIN, which scores candidates and proposes none" in result.stderr
    more = files_of(market, tmp_path)
    result = invoke("evaluate", ranker, "--data", tmp_path / "test.parquet", *more, "--figure", tmp_path / "f.png")
    assert "DIN has no funnel to draw" in result.stderr


def test_a_store_of_another_encoder_is_refused(invoke, market, retriever, tmp_path):
    options = ["--users", market.folder / "users.csv", "--items", market.folder / "items.csv"]
    asked = ["--data", market.folder / "events.parquet", "--schema", market.folder / "schema.yaml", *options]
    invoke("prepare", *asked, "--split", "by_user", "--out", tmp_path / "store")
    result = invoke("evaluate", retriever, "--data", tmp_path / "store" / "test")
    assert result.exit_code == 3
    assert "was encoded by another encoder than the bundle's" in result.stderr


# -- serve and demo ---------------------------------------------------------------------------------------------------
def test_serve_hands_on_its_options(invoke, monkeypatch, tmp_path):
    from recstack import serving

    calls = []
    monkeypatch.setattr(serving, "serve", lambda path, **options: calls.append((path, options)))
    monkeypatch.setenv("PAGE_KEY", "secret")
    result = invoke("serve", tmp_path, "--port", "9000", "--api-key-env", "PAGE_KEY", "--host", "0.0.0.0")
    assert result.exit_code == 0, result.stderr
    (path, options) = calls[0]
    assert (path, options["port"], options["api_key"], options["host"]) == (tmp_path, 9000, "secret", "0.0.0.0")
    assert "secret" not in result.stdout + result.stderr
    result = invoke("serve", tmp_path, "--api-key-env", "NO_SUCH_KEY")
    assert result.exit_code == 2
    assert "the environment variable 'NO_SUCH_KEY' is not set" in result.stderr
    assert len(calls) == 1


def test_serve_refuses_what_is_no_bundle_and_an_open_door(invoke, tmp_path):
    assert invoke("serve", tmp_path / "nothing").exit_code == 4
    result = invoke("serve", tmp_path / "nothing", "--host", "0.0.0.0")
    assert result.exit_code == 2
    assert "0.0.0.0" in result.stderr


def test_demo_hands_on_its_options(invoke, monkeypatch, tmp_path):
    made, calls = ModuleType("recstack.cli.demo"), []
    made.run = lambda **options: calls.append(options)
    monkeypatch.setitem(sys.modules, "recstack.cli.demo", made)
    args = ["--data", "kuairand-pure", "--data-dir", tmp_path, "--out", tmp_path / "o", "--no-serve", "--seed", "7"]
    assert invoke("demo", *args).exit_code == 0
    assert calls == [{"data": "kuairand-pure", "data_dir": tmp_path, "out": tmp_path / "o", "serve": False, "seed": 7}]
