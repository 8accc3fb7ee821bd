"""Loaders of public sets: each format from files written here, and the published counts where the real files are."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib
import io
import itertools
import json
import pkgutil
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recstack.data import datasets as ds
from recstack.data.datasets import about, census, files
from recstack.data.datasets import kuairand as kuairand_file
from recstack.errors import ConfigError, DataError
from recstack.schema import Schema


def put(folder: Path, name: str, text: str | bytes) -> None:
    """A file, gzipped if its name says so; latin-1 where the text is not ASCII, as in the originals."""
    folder.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode("latin-1")
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


# -- where ------------------------------------------------------------------------------------------------------------
def test_the_argument_beats_the_environment_beats_the_neighbour_beats_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECSTACK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert ds.resolve_data_dir() == tmp_path / "cache" / "recstack" / "data"
    (tmp_path / "here").mkdir()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert ds.resolve_data_dir().resolve() == tmp_path / "shared" / "data"
    monkeypatch.setenv("RECSTACK_DATA", str(tmp_path / "named"))
    assert ds.resolve_data_dir() == tmp_path / "named"
    assert ds.resolve_data_dir(tmp_path / "given") == tmp_path / "given"


LOADERS = {
    "movielens_1m": "ml-1m",
    "movielens_100k": "ml-100k",
    "kuairand_pure": "kuairand-pure",
    "lightgcn": "lightgcn-gowalla",
    "sasrec": "sasrec",
    "s3rec": "s3rec",
    "frappe": "frappe-afn",
    "census_income": "census-income-kdd",
    "letor": "ltr-mq2008",
    "coat": "coat",
    "xmrec": "xmrec-wsdm22",
    "trivago": "trivago-100k",
    "movielens_1m_by_age": "ml-1m",
}


@pytest.mark.parametrize(("loader", "folder"), LOADERS.items())
def test_a_missing_set_says_where_it_looked_and_how_to_get_it(loader, folder, tmp_path):
    with pytest.raises(DataError) as e:
        getattr(ds, loader)(data_dir=tmp_path)
    assert str(tmp_path / folder) in str(e.value)
    assert "RECSTACK_DATA" in str(e.value)
    assert "rs.datasets.download(" in str(e.value) or "put " in str(e.value)


def test_an_empty_folder_is_not_a_set(tmp_path):
    (tmp_path / "ml-1m").mkdir()
    with pytest.raises(DataError, match=r"no movies\.dat"):
        ds.movielens_1m(data_dir=tmp_path)


def test_describe_lists_every_set_with_its_terms_and_a_call_that_exists():
    table = ds.describe()
    declared = {
        a.name
        for m in pkgutil.iter_modules(ds.__path__)
        for a in getattr(importlib.import_module(f"{ds.__name__}.{m.name}"), "ABOUT", ())
    }
    assert set(table["name"]) == declared
    assert table["terms"].str.len_chars().min() > 0
    for call in table["loader"]:
        assert callable(getattr(ds, call.split("(")[0]))


def test_every_remote_file_is_one_that_its_loader_reads():
    for this in about.all_sets().values():
        if this.remotes:
            assert set(this.needs) & {name for remote in this.remotes for name in remote.names}, this.name
        else:
            assert this.get, this.name


# -- text -------------------------------------------------------------------------------------------------------------
def test_numbers_are_those_of_a_plain_loop():
    text = b"1 2  3\n\n 4\t5 \r\n6"
    values, offsets = files.read_numbers(text, "x", np.int64)
    slow = [[int(w) for w in line.split()] for line in text.split(b"\n")]
    assert values.tolist() == [x for line in slow for x in line]
    assert np.diff(offsets).tolist() == [len(line) for line in slow]


def test_a_bad_number_is_named_with_its_line():
    with pytest.raises(DataError, match=r"'x', line 2: 'four' is not a number"):
        files.read_numbers(b"1 2\n3 four\n", "x", np.int64)
    with pytest.raises(DataError, match=r"line 1: '1.5'"):
        files.read_numbers(b"1.5 2\n", "x", np.int64)


def test_a_gzip_file_cut_short_is_refused(tmp_path):
    whole = gzip.compress(b"0 1 2\n" * 1000)
    (tmp_path / "a.txt.gz").write_bytes(whole[:-10])
    with pytest.raises(DataError, match="damaged or cut short"):
        ds.read_adjacency(tmp_path / "a.txt.gz")


def test_adjacency_is_a_row_per_pair_and_a_lonely_user_gives_none(tmp_path):
    put(tmp_path, "a.txt", "3 7 5\n4\n\n9 7 \n")
    assert ds.read_adjacency(tmp_path / "a.txt").rows() == [(3, 7), (3, 5), (9, 7)]
    put(tmp_path, "b.txt", "\n")
    with pytest.raises(DataError, match="empty"):
        ds.read_adjacency(tmp_path / "b.txt")


def test_libsvm_sparse_and_by_fields(tmp_path):
    put(tmp_path, "a.libsvm.gz", "1 0:1 12:1 # a comment\n-1 13:1\n0.5 2:1 10:1\n")
    sparse = ds.read_libsvm(tmp_path / "a.libsvm.gz")
    assert sparse.rows() == [(1.0, [0, 12], [1.0, 1.0]), (-1.0, [13], [1.0]), (0.5, [2, 10], [1.0, 1.0])]
    fields = ds.read_libsvm(tmp_path / "a.libsvm.gz", {"item": 10, "user": 0}, label="y")
    assert fields.columns == ["y", "item", "user"]
    assert fields.rows() == [(1.0, 2, 0), (-1.0, 3, None), (0.5, 0, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0:1 5\n", "line 1: 'label index:value"),
        ("1 0:1\n1 0:2\n", "line 2: index 0 has value 2"),
        ("1 0:1 1:1\n", "line 1: field 'user' is set twice"),
        ("1 0.5:1\n", "0.5 as an index"),
        ("1 a:1\n", "'a' is not a number"),
        ("", "is empty"),
    ],
)
def test_libsvm_refuses_what_does_not_fit(text, message, tmp_path):
    put(tmp_path, "a.txt", text)
    with pytest.raises(DataError, match=message):
        ds.read_libsvm(tmp_path / "a.txt", {"user": 0, "item": 10})


def test_an_index_before_the_first_field_is_refused(tmp_path):
    put(tmp_path, "a.txt", "1 3:1\n")
    with pytest.raises(DataError, match="index 3 is before the first field, 'user'"):
        ds.read_libsvm(tmp_path / "a.txt", {"user": 5})


def test_letor_is_the_same_as_by_hand(tmp_path):
    put(
        tmp_path, "a.txt", "2 qid:7 1:0.5 3:1 #docid = D-1 inc = 1\n0 qid:7 2:0.25 #docid = D-2\n1 qid:9 #docid = D-3\n"
    )
    table = ds.read_letor(tmp_path / "a.txt")
    assert table["query"].to_list() == [7, 7, 9]
    assert table["relevance"].to_list() == [2, 0, 1]
    assert table["doc"].to_list() == ["D-1", "D-2", "D-3"]
    assert table["features"].to_numpy().tolist() == [[0.5, 0, 1], [0, 0.25, 0], [0, 0, 0]]
    put(tmp_path, "b.txt", "2 1:0.5\n")
    with pytest.raises(DataError, match="no 'qid:'"):
        ds.read_letor(tmp_path / "b.txt")


# -- each set, from files written here ----------------------------------------------------------------------------------
@pytest.fixture
def ml_1m(tmp_path) -> Path:
    folder = tmp_path / "ml-1m"
    put(folder, "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    put(folder, "movies.dat", "1::Toy: Story (1995)::Animation|Comedy\n6::Misérables, Les (1998)::Drama\n")
    put(folder, "ratings.csv.gz", "user_id,movie_id,rating,seq,timestamp\n1,6,4,1,\n1,1,3,0,978300760\n2,1,5,0,\n")
    return tmp_path


def test_movielens_1m_reads_titles_genres_and_order(ml_1m):
    log = ds.movielens_1m(data_dir=ml_1m)
    assert log.implicit
    assert log.schema.time == "seq"
    assert log.items["title"].to_list() == ["Toy: Story (1995)", "Misérables, Les (1998)"]
    assert log.items["genres"].to_list() == [["Animation", "Comedy"], ["Drama"]]
    assert log.items["year"].to_list() == [1995, 1998]
    log = log.with_histories()
    history = log.timelines["history"]
    begin, end = log.events["history@begin"], log.events["history@end"]
    assert [history.items[b:e].tolist() for b, e in zip(begin, end, strict=True)] == [[1], [], []]


def test_movielens_tasks(ml_1m):
    liked = ds.movielens_1m("liked", data_dir=ml_1m)
    assert not liked.implicit
    assert liked.events["liked"].to_list() == [1, 0, 1]
    rating = ds.movielens_1m("rating", data_dir=ml_1m)
    assert rating.schema.task("rating").kind == "regression"
    with pytest.raises(ConfigError, match="Did you mean 'liked'"):
        ds.movielens_1m("likd", data_dir=ml_1m)


def test_movielens_1m_prefers_the_original_ratings_with_their_times(ml_1m):
    put(ml_1m / "ml-1m", "ratings.dat", "1::6::4::978300762\n1::1::3::978300760\n2::1::5::978300700\n")
    log = ds.movielens_1m(data_dir=ml_1m)
    assert log.schema.time == "timestamp"
    assert log.events["timestamp"].to_list() == [978300762, 978300760, 978300700]
    assert log.events.select("user_id", "item_id", "rating").rows() == [(1, 6, 4), (1, 1, 3), (2, 1, 5)]


def test_a_table_that_is_not_one_is_named(ml_1m):
    put(ml_1m / "ml-1m", "users.dat", "1::F::one::10::48067\n")
    with pytest.raises(DataError, match=r"users.dat' does not hold the columns user_id, gender, age"):
        ds.movielens_1m(data_dir=ml_1m)
    put(ml_1m / "ml-1m", "users.dat", "")
    with pytest.raises(DataError, match=r"users\.dat. is empty"):
        ds.movielens_1m(data_dir=ml_1m)
    put(ml_1m / "ml-1m", "users.dat", "1::F::1::10::48067\n")
    put(ml_1m / "ml-1m", "ratings.csv.gz", "user_id,rating,seq,timestamp\n1,4,1,\n")
    with pytest.raises(DataError, match="no column 'movie_id'"):
        ds.movielens_1m(data_dir=ml_1m)


def test_movielens_100k(tmp_path):
    folder = tmp_path / "ml-100k"
    put(folder, "u.data.gz", "196\t242\t3\t881250949\n186\t302\t5\t891717742\n")
    put(folder, "u.user", "186|39|F|executive|00000\n196|49|M|writer|55105\n")
    put(folder, "u.genre", "unknown|0\nAction|1\nChildren's|2\n\n")
    put(folder, "u.item", "242|Kolya (1996)|24-Jan-1997||http://x/(1996)|0|1|1\n302|unknown||||1|0|0\n")
    log = ds.movielens_100k("liked", data_dir=tmp_path)
    assert log.schema.time == "timestamp"
    assert log.events["liked"].to_list() == [0, 1]
    assert log.items["genres"].to_list() == [["Action", "Children's"], ["unknown"]]
    assert log.items["year"].to_list() == [1997, None]
    assert log.users["age"].to_list() == [39, 49]


LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)


@pytest.fixture
def kuairand(tmp_path) -> Path:
    folder = tmp_path / "kuairand-pure-part"
    put(
        folder,
        "log_val.csv.gz",
        LOG_HEADER
        + "1,10,20220425,1300,1000,1,0,0,0,0,0,1,61500,49866,0,0,0,0,1\n"
        + "1,11,20220426,0,2000,0,1,0,0,0,0,0,0,49866,0,0,0,0,1\n",
    )
    put(
        folder,
        "log_test.csv.gz",
        LOG_HEADER
        + "1,12,20220501,2300,3000,1,0,0,0,0,0,1,500,49866,0,0,0,0,4\n"
        + "2,10,20220502,2300,50,1,0,0,0,0,0,1,500,49866,0,0,0,0,1\n",
    )
    header = ["user_id", *kuairand_file._USER]
    rows = [["1", *["full"] * 7, *["1"] * 18], ["2", *["full"] * 7, *["1.0"] * 12, *[""] * 6]]
    put(folder, "user_features_pure.csv.gz", "\n".join(",".join(r) for r in [header, *rows]) + "\n")
    put(
        folder,
        "video_features_basic_pure.csv.gz",
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
        'music_id,music_type,tag\n10,5,NORMAL,2022-04-10,Kmovie,0.0,2500.0,1,1,3,9.0,"3,5"\n'
        "11,5,AD,2022-04-10,Kmovie,0.0,,1,1,3,,\n12,5,AD,2022-04-10,Kmovie,0.0,1000,1,1,3,4.0,7\n",
    )
    earlier = [{"user_id": 1, "last_time_ms": 900, "watch": [12, 11, 10], "like": [], "long_watch": [12, 11]}]
    # This one's last exposure is later, by time_ms, than an event of the log: that event must not see it.
    earlier += [{"user_id": 2, "last_time_ms": 60, "watch": [11], "like": [], "long_watch": [11]}]
    put(folder, "user_history_before_20220425.jsonl.gz", "\n".join(map(json.dumps, earlier)))
    return tmp_path


def test_kuairand_columns(kuairand):
    log = ds.kuairand_pure(pool_tabs=2, data_dir=kuairand)
    assert log.events["split"].to_list() == ["val", "val", "test", "test"]
    assert log.events["tab"].to_list() == ["1", "1", "other", "1"]
    assert log.events["hour"].to_list() == [13, 0, 23, 23]
    assert log.events["watch_time"].to_list() == [61.5, 0, 0.5, 0.5]
    assert log.events["click"].to_list() == [1, 0, 1, 1]
    assert log.items["tag"].to_list() == [[3, 5], [], [7]]
    assert log.items["duration"].to_list() == [2.5, None, 1.0]
    assert log.users["onehot_feat17"].to_list() == [1, None]
    assert {t.name for t in log.schema.tasks} >= {"click", "like", "long_view", "watch_time"}
    assert [t.name for t in ds.kuairand_pure(["like", "click"], data_dir=kuairand).schema.tasks] == ["like", "click"]
    with pytest.raises(ConfigError, match="Did you mean 'click'"):
        ds.kuairand_pure(["clik"], data_dir=kuairand)


def test_kuairand_histories_begin_before_the_log_and_hold_nothing_at_or_after_an_event(kuairand):
    log = ds.kuairand_pure(data_dir=kuairand)
    assert len(log) == 4  # the earlier views are no rows
    timeline = log.timelines["watched"]
    pointers = zip(log.events["watched@begin"], log.events["watched@end"], strict=True)
    found = [timeline.items[b:e].tolist() for b, e in pointers]
    assert found == [[12, 11], [12, 11, 10], [12, 11, 10], []]
    assert log.catalog().tolist() == [10, 11, 12]


def test_kuairand_reads_the_original_files_and_cuts_them_by_date(kuairand, tmp_path):
    folder = tmp_path / "KuaiRand-Pure" / "data"
    part = kuairand / "kuairand-pure-part"
    for name in ("user_features_pure.csv", "video_features_basic_pure.csv"):
        put(folder, name, gzip.decompress((part / f"{name}.gz").read_bytes()))
    row = "1,10,{},1300,{},1,0,0,0,0,0,1,61500,49866,0,0,0,0,1\n"
    put(folder, "log_standard_4_08_to_4_21_pure.csv", LOG_HEADER + row.format(20220421, 1))
    rest = [row.format(date, i) for i, date in enumerate((20220424, 20220425, 20220430, 20220501), 2)]
    put(folder, "log_standard_4_22_to_5_08_pure.csv", LOG_HEADER + "".join(rest))
    log = ds.kuairand_pure(data_dir=tmp_path)
    assert log.events["split"].to_list() == ["train", "train", "val", "val", "test"]


def test_lightgcn_and_a_folder_of_ones_own(tmp_path):
    for folder in ("lightgcn-gowalla", "mine"):
        put(tmp_path / folder, "train.txt.gz", "0 1 2\n1 0\n")
        put(tmp_path / folder, "test.txt", "0 0\n")
    for name in ("gowalla", "mine"):
        train, test = ds.lightgcn(name, data_dir=tmp_path)
        assert train.events.rows() == [(0, 1), (0, 2), (1, 0)]
        assert test.events.rows() == [(0, 0)]
        assert train.implicit
        assert train.schema == test.schema
    put(tmp_path / "lightgcn-lastfm", "data1.txt", "4\t7\t3.2466e+05\n5\t7\t1\n")
    put(tmp_path / "lightgcn-lastfm", "test1.txt", "4\t8\t2\n")
    train, _ = ds.lightgcn("lastfm", data_dir=tmp_path)
    assert train.events.rows() == [(4, 7, 324660.0), (5, 7, 1.0)]
    put(tmp_path / "lightgcn-lastfm", "test1.txt", "4\t8\n")
    with pytest.raises(DataError, match="line 1: 2 numbers where 3 are due"):
        ds.lightgcn("lastfm", data_dir=tmp_path)


def test_sasrec_counts_each_users_places_even_when_users_alternate(tmp_path):
    put(tmp_path / "sasrec", "Video.txt.gz", "1 5\n2 5\n1 6\n1 5\n2 7\n")
    log = ds.sasrec("Video", max_len=3, data_dir=tmp_path)
    assert log.events["seq"].to_list() == [0, 0, 1, 2, 1]
    assert log.schema.histories[0].max_len == 3
    with pytest.raises(DataError, match=r"no ml-1m\.txt"):
        ds.sasrec("ml-1m", data_dir=tmp_path)


def test_s3rec_attributes_lose_their_repetitions(tmp_path):
    put(tmp_path / "s3rec", "Beauty.txt.gz", "1 5 6\n2 6 5 6\n")
    put(tmp_path / "s3rec", "Beauty_item2attributes.json.gz", '{"6": [3, 1, 3], "5": [2]}')
    log = ds.s3rec("Beauty", data_dir=tmp_path)
    assert log.events["seq"].to_list() == [0, 1, 0, 1, 2]
    assert dict(log.items.rows()) == {6: [3, 1], 5: [2]}
    for bad in ("[1]", '{"6": 3}', '{"x": [3]}', "{"):
        put(tmp_path / "s3rec", "Beauty_item2attributes.json.gz", bad)
        with pytest.raises(DataError, match="not a JSON object of lists"):
            ds.s3rec("Beauty", data_dir=tmp_path)


def test_frappe_decodes_to_the_original_values(tmp_path):
    fields = importlib.import_module("recstack.data.datasets.frappe").FIELDS
    folder = tmp_path / "frappe-afn"
    row = "{} 1:1 959:1 5040:1 5046:1 5053:1 5055:1 5059:1 5060:1 5069:1 5149:1\n"
    for name in ("train_resampled", "valid", "test"):
        put(folder, f"{name}.libsvm.gz", row.format(1))
    train, _, _ = ds.frappe(data_dir=tmp_path)
    assert train.events.row(0) == (1, 1, 2, 1, 0, 0, 0, 1, 0, 0, 0)
    lines, starts = ["feature_index,field,value"], [*fields.items(), ("", 5382)]
    for (field, first), (_, end) in itertools.pairwise(starts):
        name = field.removesuffix("_id")
        lines += [f"{i},{name},{i * 2 if name in ('user', 'item') else f'{name} {i}'}" for i in range(first, end)]
    put(folder, "feature_map.csv.gz", "\n".join(lines) + "\n")
    train, _, _ = ds.frappe(data_dir=tmp_path)
    assert train.events.row(0)[:4] == (1, 2, 1918, "daytime 5040")
    assert train.schema.user == "user_id"
    put(folder, "train.libsvm", row.format(0))  # AFN's own train file, where someone has it
    assert ds.frappe(data_dir=tmp_path)[0].events["click"].to_list() == [0]
    with pytest.raises(ConfigError, match="Unknown train part"):
        ds.frappe("all", data_dir=tmp_path)


def test_movielens_by_age_cuts_each_user_in_time(ml_1m):
    parts = ds.movielens_1m_by_age(data_dir=ml_1m)
    every = pl.concat([p.events for p in parts])
    assert every.height == len(ds.movielens_1m(data_dir=ml_1m))
    assert set(every["age_group"]) <= {"under 25", "25 to 34", "35 and more"}
    time = parts[0].schema.time
    ends = [
        p.events.group_by("user_id").agg(pl.col(time).min().alias("first"), pl.col(time).max().alias("last"))
        for p in parts
    ]
    for before, after in itertools.pairwise(ends):
        both = before.join(after, on="user_id", suffix="_after")
        assert (both["last"] < both["first_after"]).all()
    assert [f.name for f in parts[0].schema.by_role("domain")] == ["age_group"]
    assert parts[0].schema.without("age_group").names[-1] == "first_genre"


@pytest.fixture
def xmrec_dir(tmp_path) -> Path:
    """Two markets of 6 users and 9 items; each user bought three, and one more in the test file."""
    for market in ("s1", "t1"):
        line = f"{market}U{{}}\tP{{}}\t{{}}\n".format
        bought = [(u, (u + k) % 9) for u in range(6) for k in range(4)]
        core = [line(u, i, 1.0) for n, (u, i) in enumerate(bought) if n % 4 < 3]
        put(
            tmp_path / f"xmrec-wsdm22/{market}",
            "train_5core.tsv.gz",
            "userId\titemId\trating\n" + "".join([*core, core[0]]),
        )
        test = [line(u, i, 1) for n, (u, i) in enumerate(bought) if n % 4 == 3]
        put(tmp_path / f"xmrec-wsdm22/{market}", "valid_qrel.tsv", "userId\titemId\trating\n" + "".join(test))
    runs = [f"t1U{u}\t" + ",".join(f"P{(u + k) % 9}" for k in (3, 5, 7)) + "\n" for u in range(6)]
    put(tmp_path / "xmrec-wsdm22/t1", "valid_run.tsv.gz", "".join(runs))
    return tmp_path


def test_xmrec_negatives_are_what_the_user_never_bought(xmrec_dir):
    train, valid, test = ds.xmrec(("s1", "t1"), negatives=2, sampled=4, data_dir=xmrec_dir)
    events = pl.concat([p.events for p in (train, valid, test)])
    bought = events.filter(pl.col("bought") == 1).select("user_id", "item_id")
    assert bought.height == bought.unique().height == 2 * 6 * 4  # the row that came twice counts once
    assert not events.filter(pl.col("bought") == 0).join(bought, on=["user_id", "item_id"], how="semi").height
    assert [p.events["bought"].sum() for p in (train, valid, test)] == [24, 12, 12]
    assert [len(p) for p in (train, valid)] == [24 * 3, 12 * 5]
    lists = test.events.group_by("market", "user_id").agg(pl.len(), pl.col("item_id").n_unique().alias("items"))
    assert (lists["len"] == lists["items"]).all()
    assert lists.sort("market")["len"].to_list() == [5] * 6 + [3] * 6  # t1's are the cup's own
    again = ds.xmrec(("t1",), negatives=2, sampled=4, data_dir=xmrec_dir)[0].events
    assert again.equals(train.events.filter(market="t1"))  # a market's draws do not depend on the others
    with pytest.raises(ConfigError, match="market of XMRec"):
        ds.xmrec(("s9",), data_dir=xmrec_dir)


def test_xmrec_a_user_of_everything_has_no_negatives():
    bought = np.array([[True, True], [True, False]])
    file = importlib.import_module("recstack.data.datasets.xmrec")
    for draw in (file._any, file._different):
        out = draw(bought, np.array([0, 1]), 2, np.random.default_rng(0))
        assert (out[0] == -1).all()
        assert set(out[1].tolist()) <= {1, -1}
        assert 1 in out[1]


@pytest.fixture
def coat_dir(tmp_path) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path / "coat"
    matrix = lambda x: "\n".join(" ".join(map(str, row)) for row in x.tolist()) + "\n"  # noqa: E731
    for name, chance in (("train", 0.1), ("test", 0.05)):
        put(folder, f"{name}.ascii.gz", matrix(rng.integers(1, 6, (290, 300)) * (rng.random((290, 300)) < chance)))
    put(folder, "propensities.ascii", matrix(rng.uniform(0.1, 0.9, (290, 300)).round(3)))
    maps = {
        "user": ["gender:men", "gender:women", "age:20-30", "location:urban", "fashioninterest:very"],
        "item": ["gender:men", "gender:women", "jackettype:bomber", "color:red", "onfrontpage:yes", "onfrontpage:no"],
    }
    for side, rows in (("user", 290), ("item", 300)):
        put(folder, f"{side}_features_map.txt", "\n".join(maps[side]))
        flags = np.ones((rows, len(maps[side])), int)
        flags[:, 1], flags[0, :2] = 0, 0  # all men, and the first says nothing
        put(folder, f"{side}_features.ascii", matrix(flags))
    return tmp_path


def test_coat_every_pair_or_the_rated_ones(coat_dir):
    train, test = ds.coat(data_dir=coat_dir)
    every, _ = ds.coat(every=True, data_dir=coat_dir)
    rated = every.events.filter(rated=1)
    assert len(every) == 290 * 300
    assert rated.equals(train.events)
    assert every.events.filter(rated=0).select("liked", "rating").null_count().row(0) == (len(every) - len(train),) * 2
    assert (train.events["liked"] == (train.events["rating"] >= 3)).all()
    assert np.allclose(train.events["inverse_propensity"] * train.events["propensity"], 1)
    assert (test.events["rated"] == 1).all()
    assert train.users["gender"].to_list() == [None, *["men"] * 289]
    assert train.items["front_page"].to_list() == ["yes"] * 300
    assert schema_is_whole(train.schema)
    put(coat_dir / "coat", "user_features_map.txt", "height:tall\n")
    with pytest.raises(DataError, match="other lines than 'group:value'"):
        ds.coat(data_dir=coat_dir)


@pytest.fixture
def census_dir(tmp_path) -> Path:
    def row(education: str, marital: str, income: str) -> str:
        values = dict.fromkeys(census.COLUMNS, "?") | dict.fromkeys(census.NUMERIC, "3")
        values |= {"education": education, "marital_stat": marital, "instance_weight": "12.5", "hispanic_origin": "NA"}
        return ", ".join([*list(values.values())[:-1], income]) + "\n"

    rows = row("Children", "Never married", "- 50000.") + row("Bachelors degree(BA AB BS)", "Divorced", "50000+.")
    for name in ("census-income.data.gz", "census-income.test"):
        put(tmp_path / "census-income-kdd", name, rows)
    return tmp_path


def test_census_labels_leave_the_features(census_dir):
    train, valid, test = ds.census_income(data_dir=census_dir)
    assert (len(train), len(valid), len(test)) == (2, 1, 1)
    assert train.events["income"].to_list() == [0, 1]
    assert train.events["marital"].to_list() == [1, 0]
    names = set(train.schema.names)
    assert len(names) == 38
    assert not names & {"marital_stat", "education", "income_over_50k", "instance_weight", "income", "marital"}
    assert train.events["class_of_worker"].to_list() == ["?", "?"]
    assert train.events["hispanic_origin"].to_list() == ["NA", "NA"]
    assert train.weight is None
    assert (train.schema.user, train.schema.item) == (None, None)


def test_census_education_and_weights(census_dir):
    train = ds.census_income(("education", "marital"), weighted=True, data_dir=census_dir)[0]
    assert train.events["education"].to_list() == [0, 1]
    assert len(train.schema.names) == 38
    assert train.weight == "instance_weight"
    assert train.events["instance_weight"].to_list() == [12.5, 12.5]
    for bad in ("income", ()):
        with pytest.raises(ConfigError, match="tasks= is a list"):
            ds.census_income(bad, data_dir=census_dir)
    one, kept = (ds.census_income(["income"], keep_education=k, data_dir=census_dir)[0] for k in (False, True))
    assert set(kept.schema.names) - set(one.schema.names) == {"education"}  # a task alone reads what two read
    assert not {"marital_stat", "instance_weight"} & set(kept.schema.names)
    coded = ds.census_income(categories=True, data_dir=census_dir)[0]
    assert {f.kind for f in coded.schema.features} == {"categorical"}
    assert coded.events["age"].to_list() == [3, 3]
    with pytest.raises(ConfigError, match="a feature of itself"):
        ds.census_income(("education", "marital"), keep_education=True, data_dir=census_dir)


def test_census_refuses_another_income_and_text_for_numbers(census_dir):
    good = gzip.decompress((census_dir / "census-income-kdd" / "census-income.data.gz").read_bytes()).decode()
    for old, new, message in [
        ("50000+", "40000", "income '40000'"),
        ("3, ", "three, ", "a text where a number is due"),
    ]:
        put(census_dir / "census-income-kdd", "census-income.data.gz", good.replace(old, new))
        with pytest.raises(DataError, match=message):
            ds.census_income(data_dir=census_dir)


def test_letor_folds_turn(tmp_path):
    for i in range(1, 6):
        put(tmp_path / "ltr-mq2008", f"S{i}.txt.gz", f"1 qid:{i} {i}:0.5\n0 qid:{i} 1:1\n")
    train, valid, test = ds.letor("mq2008", fold=4, data_dir=tmp_path)
    assert train.events["query"].unique(maintain_order=True).to_list() == [4, 5, 1]  # F4: S4 S5 S1; S2; S3
    assert valid.events["query"].unique().to_list() == [2]
    assert test.events["query"].unique().to_list() == [3]
    assert train.request == "query"
    assert train.schema.feature("features").size == 5
    assert test.events["features"].to_numpy()[0].tolist() == [0, 0, 0.5, 0, 0]
    with pytest.raises(ConfigError, match="folds 1 to 5"):
        ds.letor("mq2008", fold=6, data_dir=tmp_path)
    for name in ("train", "vali", "test"):
        put(tmp_path / "mine" / "Fold1", f"{name}.txt", "1 qid:3 1:1\n")
    assert [len(log) for log in ds.letor("mine", data_dir=tmp_path)] == [1, 1, 1]


# -- download, from a server on this machine ------------------------------------------------------------------------------
def archive_zip() -> bytes:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        info = tarfile.TarInfo("deep/b.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"inner"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("../../a.txt", "outer")
        z.writestr("set/not wanted.txt", "no")
        z.writestr("set/inside.tar.gz", inner.getvalue())
    return out.getvalue()


FILES = {
    "/plain.txt": b"0 1 2\n",
    "/set.zip": archive_zip(),
    "/short.txt": b"0 1 2\n",
    "/bad.zip": b"PK\x03\x04 no zip",
}


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in FILES:
                self.send_error(404)
                return
            self.server.asked.append(self.path)
            data = FILES[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) + (7 if self.path == "/short.txt" else 0)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.asked = []
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        yield httpd
        httpd.shutdown()
        thread.join()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_fetched_and_checked_by_each_kind_of_checksum(server, tmp_path):
    # the git id of "0 1 2\n", as `git hash-object` gives it, from its definition
    git = "git:" + hashlib.sha1(b"blob 6\0" + FILES["/plain.txt"]).hexdigest()
    for checksum in (sha256(FILES["/plain.txt"]), "md5:" + hashlib.md5(FILES["/plain.txt"]).hexdigest(), git):
        ds.fetch(ds.Remote(f"{server.url}/plain.txt", checksum), tmp_path)
        assert (tmp_path / "plain.txt").read_bytes() == FILES["/plain.txt"]
        (tmp_path / "plain.txt").unlink()


def test_without_a_published_checksum_the_computed_one_is_printed(server, tmp_path, capsys):
    ds.fetch(ds.Remote(f"{server.url}/plain.txt"), tmp_path)
    assert f"computed {sha256(FILES['/plain.txt'])}; pin it" in capsys.readouterr().out


def test_wanted_files_come_out_of_nested_archives_and_none_leaves_the_folder(server, tmp_path):
    remote = ds.Remote(f"{server.url}/set.zip", sha256(FILES["/set.zip"]), ("a.txt", "b.txt"))
    ds.fetch(remote, tmp_path / "x" / "y")
    assert left(tmp_path / "x" / "y") == ["a.txt", "b.txt"]
    assert (tmp_path / "x" / "y" / "a.txt").read_text() == "outer"
    assert (tmp_path / "x" / "y" / "b.txt").read_text() == "inner"
    assert left(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("path", "checksum", "keep", "message"),
    [
        ("/plain.txt", "sha256:" + "0" * 64, (), "not the published file: its sha256 is"),
        ("/short.txt", None, (), "cut short: 6 of 13 bytes"),
        ("/missing.txt", None, (), "Cannot fetch .*Not Found"),
        ("/set.zip", None, ("a.txt", "z.txt"), "holds no file 'z.txt'"),
        ("/bad.zip", None, ("a.txt",), "damaged archive"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_no_half_file(path, checksum, keep, message, server, tmp_path):
    with pytest.raises(DataError, match=message):
        ds.fetch(ds.Remote(server.url + path, checksum, keep), tmp_path)
    assert left(tmp_path) in ([], ["a.txt"])  # a.txt is whole: only z.txt was missing


def test_no_connection_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"Cannot fetch http://127.0.0.1:1/x"):
        ds.fetch(ds.Remote("http://127.0.0.1:1/x"), tmp_path)


def test_download_puts_files_where_the_loader_looks_and_fetches_them_once(server, tmp_path, monkeypatch, capsys):
    remotes = tuple(ds.Remote(f"{server.url}/{n}", sha256(FILES[f"/{n}"])) for n in ("plain.txt",))
    this = ds.About("toy", "toy()", "2 rows", "A toy.", "toy terms", ("toy-folder",), ("plain.txt",), remotes)
    monkeypatch.setattr(about, "all_sets", lambda: {"toy": this})
    assert this.here(tmp_path) is None
    folder = ds.download("toy", tmp_path)
    assert folder == tmp_path / "toy-folder" == this.folder(tmp_path)
    assert "toy terms" in capsys.readouterr().out
    ds.download("toy", tmp_path)
    assert server.asked == ["/plain.txt"]
    ds.download("toy", tmp_path, force=True)
    assert server.asked == ["/plain.txt"] * 2
    with pytest.raises(ConfigError, match="Did you mean 'toy'"):
        ds.download("toi", tmp_path)


def test_a_set_without_an_address_says_how_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match="no address to download from; put"):
        ds.download("frappe", tmp_path)


def test_names_are_functions_though_files_have_the_same_names():
    about.all_sets()  # imports every file
    assert all(callable(getattr(ds, name)) for name in ds.__all__)


# -- the real files -------------------------------------------------------------------------------------------------------
def schema_is_whole(schema: Schema) -> bool:
    return Schema.from_dict(schema.to_dict()) == schema


def need(data_dir: Path, folder: str) -> None:
    if not (data_dir / folder).is_dir():
        pytest.skip(f"no {folder} in {data_dir}")


@pytest.mark.real_data
def test_real_movielens_1m(data_dir):
    need(data_dir, "ml-1m")
    log = ds.movielens_1m("liked", data_dir=data_dir)
    assert log.events["rating"].value_counts().sort("rating")["count"].to_list() == [
        56174,
        107557,
        261197,
        348971,
        226310,
    ]
    assert (log.events["user_id"].n_unique(), log.events["item_id"].n_unique()) == (6040, 3706)
    assert (log.users.height, log.items.height) == (6040, 3883)
    assert log.items["genres"].explode().n_unique() == 18
    assert log.items["year"].null_count() == 0
    assert log.events["liked"].sum() == 348971 + 226310
    assert log.events.select((pl.col("seq").n_unique().over("user_id") == pl.len().over("user_id")).all()).item()
    assert schema_is_whole(log.schema)
    # each feature has its column
    assert {log.place(f.name) for f in log.schema.features if f.role != "history"} == {"events", "users", "items"}


@pytest.mark.real_data
def test_real_movielens_100k(data_dir):
    need(data_dir, "ml-100k")
    log = ds.movielens_100k(data_dir=data_dir)
    assert (len(log), log.users.height, log.items.height) == (100_000, 943, 1682)
    assert log.items["genres"].list.len().min() == 1
    assert log.items["genres"].explode().n_unique() == 19
    assert {log.place(f.name) for f in log.schema.features if f.role != "history"} == {"events", "users", "items"}


@pytest.mark.real_data
@pytest.mark.slow
def test_real_kuairand(data_dir):
    need(data_dir, "kuairand-pure-part")
    log = ds.kuairand_pure(data_dir=data_dir)
    assert log.events["split"].value_counts().sort("split")["count"].to_list() == [133_545, 94_784]
    assert (log.users.height, log.items.height) == (27_285, 7_583)
    assert log.events["user_id"].n_unique() == 25_156
    assert {log.place(f.name) for f in log.schema.features if f.role != "history"} == {"events", "users", "items"}
    assert not set(log.events["tab"]) & {"3", "7", "9", "10", "11", "13", "14"}  # each of under 500 rows
    # what the docstring says about labels without a click
    idle = log.events.filter(pl.col("click") == 0)
    assert (idle["long_view"].sum(), idle["like"].sum(), log.events["like"].sum()) == (250, 703, 3915)
    # no history holds an event at or after its own time
    timeline, end = log.timelines["watched"], log.events["watched@end"].to_numpy()
    some = end > log.events["watched@begin"].to_numpy()
    assert some.mean() > 0.9
    assert (timeline.times[end[some] - 1] < log.times[some]).all()
    assert schema_is_whole(log.schema)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder", "users", "items", "train", "test"),
    [
        ("gowalla", "lightgcn-gowalla", 29_858, 40_981, 810_128, 217_242),
        ("amazoncds", "ultragcn-amazoncds", 43_169, 35_648, 604_475, 172_951),
        ("ml-1m", "ultragcn-ml-1m", 6_022, 3_043, 796_244, 99_455),
        ("lastfm", "lightgcn-lastfm", 1_892, 4_489, 42_135, 10_533),
    ],
)
def test_real_lightgcn(data_dir, name, folder, users, items, train, test):
    need(data_dir, folder)
    both = ds.lightgcn(name, data_dir=data_dir)
    assert [len(log) for log in both] == [train, test]
    pairs = pl.concat([log.events for log in both])
    assert pairs.n_unique(["user_id", "item_id"]) == pairs.height
    assert pairs["user_id"].n_unique() <= users
    assert pairs["item_id"].n_unique() <= items
    if name in ("gowalla", "amazoncds"):
        assert (pairs["user_id"].n_unique(), pairs["item_id"].n_unique()) == (users, items)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "users", "items", "rows"), [("ml-1m", 6_040, 3_416, 999_611), ("Video", 31_013, 23_715, 287_107)]
)
def test_real_sasrec(data_dir, name, users, items, rows):
    need(data_dir, "sasrec")
    log = ds.sasrec(name, data_dir=data_dir)
    assert (len(log), log.events["user_id"].n_unique(), len(log.catalog())) == (rows, users, items)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "users", "items", "rows"),
    [
        ("Beauty", 22_363, 12_101, 198_502),
        ("Sports_and_Outdoors", 35_598, 18_357, 296_337),
        ("Toys_and_Games", 19_412, 11_924, 167_597),
        ("Yelp", 30_431, 20_033, 316_354),
        ("LastFM", 1_090, 3_646, 52_551),
    ],
)
def test_real_s3rec(data_dir, name, users, items, rows):
    need(data_dir, "s3rec")
    log = ds.s3rec(name, data_dir=data_dir)
    assert (len(log), log.events["user_id"].n_unique(), log.events["item_id"].n_unique()) == (rows, users, items)
    assert log.events["item_id"].is_in(log.items["item_id"].implode()).all()


@pytest.mark.real_data
def test_real_frappe(data_dir):
    need(data_dir, "frappe-afn")
    train, valid, test = ds.frappe(data_dir=data_dir)
    assert [len(log) for log in (train, valid, test)] == [202_027, 57_722, 28_860]
    everything = pl.concat([log.events for log in (train, valid, test)])
    assert (everything["user_id"].n_unique(), everything["item_id"].n_unique()) == (957, 4082)
    assert everything.null_count().sum_horizontal().item() == 0
    assert sum(train.events[f.name].n_unique() for f in train.schema.features) == 5_379  # ids seen in train
    assert set(everything["cost"]) == {"free", "paid"}
    positives = ds.frappe("positives", data_dir=data_dir)[0].events
    assert positives.height == 67_604 == train.events["click"].sum()
    assert positives.sort(positives.columns).equals(train.events.filter(pl.col("click") == 1).sort(positives.columns))


@pytest.mark.real_data
@pytest.mark.slow
def test_real_census(data_dir):
    need(data_dir, "census-income-kdd")
    train, valid, test = ds.census_income(data_dir=data_dir)
    assert [len(train), len(valid), len(test)] == [199_523, 49_881, 49_881]
    assert train.events["income"].sum() == 12_382
    assert (train.events["marital"].sum(), valid.events["income"].sum() + test.events["income"].sum()) == (
        86_485,
        6_186,
    )
    assert abs(valid.events["income"].mean() - test.events["income"].mean()) < 0.003
    income, marital = (train.events[t].to_numpy() for t in ("income", "marital"))
    assert abs(np.corrcoef(income, marital)[0, 1]) == pytest.approx(0.1768, abs=2e-3)  # MMoE's paper
    college = ds.census_income(("education", "marital"), data_dir=data_dir)[0].events["education"].to_numpy()
    assert abs(np.corrcoef(college, marital)[0, 1]) == pytest.approx(0.2373, abs=3e-3)
    missing = {c: (train.events[c] == "?").sum() for c in train.events.select(pl.col(pl.String)).columns}
    assert {n for n in missing.values() if n} == {708, 3393, 6119, 6713, 99696}
    assert all(n == 99696 for c, n in missing.items() if c.startswith("migration_"))
    # the file census-income.names counts these
    assert train.events["class_of_worker"].n_unique() == 9
    assert train.events["detailed_industry_recode"].n_unique() == 52
    assert train.events["wage_per_hour"].n_unique() == 1240


@pytest.mark.real_data
def test_real_coat(data_dir):
    need(data_dir, "coat")
    train, test = ds.coat(data_dir=data_dir)
    assert (len(train), len(test)) == (6_960, 4_640)
    assert (train.events.group_by("user_id").len()["len"] == 24).all()
    assert (test.events.group_by("user_id").len()["len"] == 16).all()
    assert train.events["liked"].mean() > test.events["liked"].mean() + 0.1  # chosen, and drawn
    assert train.items.select(pl.all().n_unique()).row(0) == (300, 2, 16, 13, 2)


@pytest.mark.real_data
@pytest.mark.slow
def test_real_xmrec(data_dir):
    need(data_dir, "xmrec-wsdm22")
    train, valid, test = ds.xmrec(("s3", "t1"), data_dir=data_dir)
    counts = test.events.group_by("market").agg(pl.col("bought").sum(), pl.len()).sort("market")
    assert counts["bought"].to_list() == [3_328, 2_697]
    assert counts["len"].to_list() == [332_800, 269_700]
    assert (len(valid), valid.events["bought"].sum()) == (602_500, 6_025)
    assert train.events["bought"].mean() == pytest.approx(0.2)


@pytest.mark.real_data
@pytest.mark.slow
def test_real_movielens_by_age(data_dir):
    need(data_dir, "ml-1m")
    parts = ds.movielens_1m_by_age(data_dir=data_dir)
    counts = pl.concat([p.events for p in parts])["age_group"].value_counts().sort("age_group")
    assert counts["count"].to_list() == [395_556, 393_906, 210_747]  # as Scenario-Wise-Rec counts them


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "folder", "rows", "queries", "size"),
    [("mq2008", "ltr-mq2008", 15_211, 784, 46), ("ohsumed", "ltr-ohsumed", 16_140, 106, 45)],
)
def test_real_letor(data_dir, name, folder, rows, queries, size):
    need(data_dir, folder)
    parts = ds.letor(name, fold=3, data_dir=data_dir)
    assert sum(len(log) for log in parts) == rows
    assert sum(log.events["query"].n_unique() for log in parts) == queries
    assert parts[0].schema.feature("features").size == size
    assert set(parts[0].events["relevance"]) == {0, 1, 2}
    assert parts[0].events["doc"].null_count() == 0
