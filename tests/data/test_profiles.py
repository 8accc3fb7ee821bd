"""Live user state: as the log leaves it, and as events change it."""

import threading

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack import bundle
from recstack.data import Encoder, Log, Profiles, Requests
from recstack.errors import DataError, SchemaError
from recstack.schema import Categorical, History, Numeric, Schema, Task, Vector

SCHEMA = Schema(
    [
        Categorical("user", "user"),
        Numeric("age", "user", fill=5.0),
        Vector("face", "user", size=2),
        Categorical("tags", "user", multi=True),
        Categorical("item", "item"),
        Numeric("price", "item"),
        Categorical("hour", "context"),
        History("past", of=("item", "price"), max_len=3),
        History("liked", of="item", max_len=2, where="click"),
    ],
    [Task("click")],
    time="at",
)
EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 1), st.integers(0, 9)), min_size=2, max_size=25
)


def frame(rows) -> pl.DataFrame:
    out = pl.DataFrame(
        rows, schema={"user": pl.Int64, "item": pl.Int64, "click": pl.Int64, "at": pl.Int64}, orient="row"
    )
    return out.with_columns(price=pl.col("item") * 1.0, hour=pl.col("at") % 4)


def make(rows, users=True) -> Log:
    people = {"user": [3, 0, 9], "age": [30.0, None, 90.0], "face": [[3.0, 3.0], [0.0, 0.5], [9.0, 9.0]]}
    people["tags"] = [["x", "y"], None, ["x"]]
    events = frame(rows)
    if users:
        more = [u for u in range(3) if u not in people["user"]]
        people = pl.concat(
            [
                pl.DataFrame(people),
                pl.DataFrame(
                    {
                        "user": more,
                        "age": [1.0] * len(more),
                        "face": [[1.0, 1.0]] * len(more),
                        "tags": [["z"]] * len(more),
                    }
                ),
            ]
        )
        return Log(events, SCHEMA, users=people)
    age = pl.col("user") * 10.0 + pl.col("at")
    return Log(
        events.with_columns(age=age, face=pl.concat_list(age, age), tags=pl.concat_list(pl.col("at").cast(pl.String))),
        SCHEMA,
    )


def slow(rows, user, keep, needs_click=False):
    own = sorted((at, i) for i, (u, _, c, at) in enumerate(rows) if u == user and (c or not needs_click))
    return [rows[i][1] for _, i in own][-keep:]


def read(encoder, ids):
    return [x for x in encoder.decode("item", ids.numpy()) if x is not None]


@pytest.mark.parametrize("of_columns", [False, True])
@given(rows=EVENTS)
@settings(max_examples=40, deadline=None)
def test_the_state_is_all_that_happened(of_columns, rows):
    log = make(rows)
    encoder = Encoder(SCHEMA).fit(log)
    profiles = Profiles.build(encoder.encode(log) if of_columns else log, encoder)
    users = sorted({u for u, *_ in rows})
    asked = profiles.requests(users)
    for i, user in enumerate(users):
        assert read(encoder, asked.batch["item@past"][i]) == slow(rows, user, 3)
        assert asked.batch["price@past"][i].tolist()[: len(slow(rows, user, 3))] == slow(rows, user, 3)
        assert read(encoder, asked.batch["item@liked"][i]) == slow(rows, user, 2, True)
        offsets, items = asked.seen
        own = sorted({item for u, item, *_ in rows if u == user})
        assert encoder.decode("item", items[offsets[i] : offsets[i + 1]]).tolist() == own
    assert asked.users.tolist() == encoder.encode_values("user", users).tolist()
    again = profiles.requests(asked.users, encoded=True)
    assert all(torch.equal(asked.batch[k], again.batch[k]) for k in asked.batch)


@given(EVENTS, st.integers(1, 24))
@settings(max_examples=30, deadline=None)
def test_events_that_come_live_equal_events_in_the_log(rows, cut):
    rows = [*rows, *[(9, i, 1, 0) for i in range(6)]]  # every item is known
    log = make(rows)
    encoder = Encoder(SCHEMA).fit(log)
    early, late = rows[-6:] + rows[:-6][:cut], rows[:-6][cut:]
    live = Profiles.build(make(early), encoder)
    for user, item, click, at in late:
        live.append(user, item, at, click=click)
    whole = Profiles.build(make(early + late), encoder)
    users = [0, 1, 2, 3, 9, 77]
    a, b = live.requests(users), whole.requests(users)
    assert torch.equal(a.batch["item@past"], b.batch["item@past"])
    assert torch.equal(a.batch["item@liked"], b.batch["item@liked"])
    assert [x.tolist() for x in a.seen] == [x.tolist() for x in b.seen]
    for moment in (0, 4, 20):
        asked = live.requests(users, time=moment, times=True)
        for i, user in enumerate(users):
            given = read(encoder, asked.batch["item@past"][i])
            when = asked.batch["@time@past"][i][: len(given)].tolist()
            assert when == sorted(when)
            assert all(t < moment for t in when)
            assert moment < 20 or given == slow(early + late, user, 3)  # of what lies far back some is forgotten


@pytest.mark.parametrize("framed", [True, False])
def test_attributes_are_those_of_the_frame_or_of_the_last_event(framed):
    rows = [(0, 1, 1, 5), (0, 2, 1, 3), (1, 1, 1, 1)]
    log = make(rows, users=framed)
    encoder = Encoder(SCHEMA).fit(log)
    asked = Profiles.build(log, encoder).requests([0, 9, 50])
    if framed:
        assert asked.batch["age"].tolist() == [5, 90, 5]  # the null's fill; known, but never seen; unknown
        assert asked.batch["face"].tolist() == [[0, 0.5], [9, 9], [0, 0]]
        assert [encoder.decode("tags", t.numpy()).tolist() for t in asked.batch["tags"]] == [[None], [None], [None]]
        assert asked.users.tolist() == [2, 1, 1]
    else:
        assert asked.batch["age"].tolist() == [5, 5, 5]  # at time 5 the age was 0 * 10 + 5
        assert asked.batch["face"][0].tolist() == [5, 5]
        assert encoder.decode("tags", asked.batch["tags"][0].numpy()).tolist() == ["5"]
    assert not asked.batch["item@past"][1:].any()
    assert asked.seen[0].tolist() == [0, 2, 2, 2]


def test_unknown_users_do_not_share_a_history():
    log = make([(0, 1, 1, 1), (0, 2, 1, 2)])
    profiles = Profiles.build(log, Encoder(SCHEMA).fit(log))
    profiles.append(100, 1, 3)
    profiles.append(200, 2, 3)
    asked = profiles.requests([100, 200, 300])
    assert asked.users.tolist() == [1, 1, 1]
    assert asked.batch["item@past"].tolist() == [[2], [3], [0]]
    assert profiles.history(200).tolist() == [2]
    assert profiles.history(300).tolist() == []
    assert 100 in profiles
    assert 300 not in profiles
    profiles.append(100, 2)  # without a time: after all there is
    assert profiles.history(100, "liked").tolist() == [1, 2]


def test_context_is_given_or_unknown():
    log = make([(0, 1, 1, 1), (0, 2, 1, 2)])
    encoder = Encoder(SCHEMA).fit(log)
    profiles = Profiles.build(log, encoder)
    assert profiles.requests([0, 1]).batch["hour"].tolist() == [1, 1]
    one, two = encoder.encode_values("hour", [1, 2]).tolist()
    assert profiles.requests([0, 1], context={"hour": 2}).batch["hour"].tolist() == [two, two]
    assert profiles.requests([0, 1], context=[{"hour": 1}, {"hour": 2}]).batch["hour"].tolist() == [one, two]
    with pytest.raises(DataError, match="2 users and 1 contexts"):
        profiles.requests([0, 1], context=[{"hour": 1}])
    with pytest.raises(SchemaError, match="'hour' is missing from context 0"):
        profiles.requests([0], context={})
    with pytest.raises(SchemaError, match="'user' holds text"):
        profiles.requests(["0"])
    with pytest.raises(SchemaError, match="'item' holds text"):
        profiles.append(0, "x")
    with pytest.raises(SchemaError, match="no History 'bought'"):
        profiles.history(0, "bought")


def test_times_come_when_asked_for():
    log = make([(0, 1, 1, 1), (0, 2, 1, 7)])
    profiles = Profiles.build(log, Encoder(SCHEMA).fit(log))
    assert not [k for k in profiles.requests([0]).batch if "@time" in k]
    batch = profiles.requests([0], time=9, times=True).batch
    assert (batch["@time@past"].tolist(), batch["@time"].tolist()) == ([[1, 7]], [9])


@pytest.mark.parametrize("text", [False, True])
def test_saving_keeps_appended_events(tmp_path, text):
    log = make([(0, 1, 1, 1), (1, 2, 0, 2)])
    if text:
        names = pl.col("user").cast(pl.String)
        log = Log(log.events.with_columns(names), SCHEMA, users=log.users.with_columns(names))
    zero, new = ("0", "77") if text else (0, 77)
    encoder = Encoder(SCHEMA).fit(log)
    profiles = Profiles.build(log, encoder)
    profiles.append(new, 2, 5)
    profiles.append(zero, 2, 0)
    bundle.write(tmp_path / "b", {"encoder": encoder.to_piece(), "profiles": profiles.to_piece()})
    pieces = bundle.read(tmp_path / "b").pieces
    loaded = Profiles.from_piece(pieces["profiles"], Encoder.from_piece(pieces["encoder"]))
    assert loaded.users == profiles.users
    a, b = profiles.requests(profiles.users), loaded.requests(profiles.users)
    assert all(torch.equal(a.batch[k], b.batch[k]) for k in a.batch)
    assert [x.tolist() for x in a.seen] == [x.tolist() for x in b.seen]
    loaded.append(new, 1, 6)
    assert loaded.history(new).tolist() == [2, 1]


@pytest.mark.parametrize("padded", [True, False])
def test_a_slice_is_the_requests_of_those_users(padded):
    log = make([(u, u % 3, 1, t) for t in range(4) for u in range(4)])
    profiles = Profiles.build(log, Encoder(SCHEMA).fit(log))
    whole, part = profiles.requests([3, 0, 9, 1], padded=padded), profiles.requests([0, 9], padded=padded)
    cut = whole.slice(1, 3)
    assert len(cut) == 2
    assert set(cut.batch) == set(part.batch)
    for name, tensor in part.batch.items():
        wide = tuple(slice(0, n) for n in tensor.shape[1:])
        assert torch.equal(cut.batch[name][(slice(None), *wide)], tensor), name
    assert [x.tolist() for x in cut.seen] == [x.tolist() for x in part.seen]
    assert len(whole.slice(2, 99)) == 2


def test_requests_of_columns_see_what_they_are_told_to():
    log = make([(0, 1, 1, 1), (0, 2, 1, 2), (1, 1, 1, 3)]).with_histories()
    encoder = Encoder(SCHEMA).fit(log)
    train, test = encoder.encode(log.select([0])), encoder.encode(log.select([1, 2]))
    asked = Requests.of(test, np.array([1, 0]), seen=train)
    assert asked.users.tolist() == [3, 2]
    assert asked.seen[0].tolist() == [0, 0, 1]
    assert asked.batch["item@past"].tolist() == [[0], [2]]
    assert Requests.of(test).seen[0].tolist() == [0, 1, 2]


def test_a_busy_users_events_are_kept_as_far_as_histories_reach():
    log = make([(1, 1, 1, 0), (2, 2, 1, 0)])
    profiles = Profiles.build(log, Encoder(SCHEMA).fit(log))
    for at in range(1, 100):
        profiles.append(1, 1 + at % 2, at)
    asked = profiles.requests([1], times=True)
    assert asked.batch["@time@past"].tolist() == [[97, 98, 99]]
    assert all(len(times) <= 6 for times, _ in profiles._new[1].values())


def test_threads_may_read_and_write():
    log = make([(0, 1, 1, 1), (1, 2, 0, 2)])
    profiles = Profiles.build(log, Encoder(SCHEMA).fit(log))
    failed = []

    def work(user):
        try:
            for t in range(50):
                profiles.append(user, 1 + t % 2, t)
                profiles.requests([user, 0])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(100 + i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert all(len(profiles.history(100 + i)) == 3 for i in range(4))


def test_profiles_need_an_encoder_and_a_user():
    log = make([(0, 1, 1, 1)])
    with pytest.raises(SchemaError, match="need an Encoder"):
        Profiles.build(log)
    schema = Schema([Categorical("item", "item")])
    log = Log({"item": [1]}, schema)
    with pytest.raises(SchemaError, match="need a user key"):
        Profiles.build(log, Encoder(schema).fit(log))


def test_histories_given_as_lists_go_on_from_the_last():
    schema = Schema([Categorical("user", "user"), Categorical("item", "item"), History("past", of="item", max_len=3)])
    log = Log({"user": [1, 2], "item": ["c", "a"], "past": [["a", "b", "b"], []]}, schema)
    profiles = Profiles.build(log, Encoder(schema).fit(log))
    assert profiles.history(1).tolist() == ["b", "b", "c"]
    assert profiles.history(2).tolist() == ["a"]
    profiles.append(1, "a")
    assert profiles.history(1).tolist() == ["b", "c", "a"]
