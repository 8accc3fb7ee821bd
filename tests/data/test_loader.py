"""The Loader: every row once, in a seeded order, resumable anywhere, with negatives that the user does not have."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.data import Encoder, Loader, Log
from recstack.errors import ConfigError, DataError, TrainingError
from recstack.schema import Categorical, Numeric, Schema, Task

FEATURES = [
    Categorical("user", "user"),
    Categorical("item", "item"),
    Numeric("price", "item"),
    Categorical("tags", "item", multi=True),
]
SCHEMA = Schema(FEATURES, [Task("click"), Task("stars", kind="regression")])
N = 53


def columns(implicit=False, schema=SCHEMA, **more):
    chance = np.random.default_rng(0)
    item = chance.integers(0, 12, N)
    frame = {
        "user": chance.integers(0, 7, N),
        "item": item,
        "price": item * 2.0,
        "tags": [[int(i), 99] for i in item],
        "click": chance.integers(0, 2, N),
        "stars": np.arange(N) * 1.0,
    }
    log = Log(frame, schema, implicit=implicit, **more)
    return Encoder(schema).fit(log).encode(log)


@pytest.fixture(scope="module")
def data():
    return columns()


def stars(batches):
    return torch.cat([b["stars@label"][:, 0] for b in batches]).tolist()


def equal(a, b):
    return len(a) == len(b) and all(
        set(x) == set(y) and all(torch.equal(x[k].nan_to_num(-7), y[k].nan_to_num(-7)) for k in x)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_row_comes_once_an_epoch(data, prefetch, drop_last):
    loader = Loader(data, 8, shuffle=True, prefetch=prefetch, drop_last=drop_last)
    first, second = list(loader), list(loader)
    assert len(first) == len(second) == len(loader) == (6 if drop_last else 7)
    seen = stars(first)
    assert len(set(seen)) == len(seen) == (48 if drop_last else N)
    assert seen != stars(second)
    assert stars(Loader(data, 8)) == list(range(N))


def test_the_order_is_the_seeds(data):
    a, b, c = (list(Loader(data, 8, shuffle=True, seed=s, prefetch=p)) for s, p in ((1, 0), (1, 2), (2, 2)))
    assert equal(a, b)
    assert not equal(a, c)


@given(st.integers(0, 15), st.integers(0, 3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_resumed_loader_goes_on_as_if_never_stopped(batches, prefetch, negatives):
    data = columns(implicit=True)
    options = {"shuffle": True, "seed": 3, "prefetch": prefetch, "negatives": 2 if negatives else 0}
    whole = Loader(data, 8, **options)
    expected = [*whole, *whole, *whole, *whole]
    first, seen = Loader(data, 8, **options), []
    state = first.state_dict()
    while len(seen) < batches:
        for batch in first:
            seen.append(batch)
            state = first.state_dict()
            if len(seen) == batches:
                break
    second = Loader(data, 8, **options)
    second.load_state_dict(state)
    assert second.state_dict() == state
    while len(seen) < len(expected):
        seen += list(second)
    assert equal(seen, expected)


def test_a_loop_that_was_left_starts_its_epoch_again(data):
    loader = Loader(data, 8, shuffle=True)
    for _ in loader:
        break
    assert loader.state_dict()["step"] == 1
    assert stars(loader) == stars(Loader(data, 8, shuffle=True))


def test_a_position_of_another_run_is_refused(data):
    with pytest.raises(TrainingError, match="saved position has batch_size 8 and this loader 4"):
        Loader(data, 4).load_state_dict(Loader(data, 8).state_dict())
    with pytest.raises(TrainingError, match="has seed 1 and this loader 0"):
        Loader(data, 4).load_state_dict(Loader(data, 4, seed=1).state_dict())


def test_no_thread_outlives_its_loop(data):
    def threads():
        return [t for t in threading.enumerate() if t.name == "recstack-loader"]

    for _ in Loader(data, 1, prefetch=2):
        assert len(threads()) == 1
        break
    until = time.time() + 5
    while threads() and time.time() < until:
        time.sleep(0.01)
    assert not threads()
    list(Loader(data, 8))
    assert not threads()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_goes_wrong_in_the_thread_is_raised_in_the_loop(data, prefetch, monkeypatch):
    made = type(data).batch

    def broken(self, index, **options):
        if index.start >= 16:
            raise DataError("the disk is gone")
        return made(self, index, **options)

    monkeypatch.setattr(type(data), "batch", broken)
    seen = []
    with pytest.raises(DataError, match="the disk is gone"):
        seen.extend(Loader(data, 8, prefetch=prefetch))
    assert len(seen) == 2


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_negatives_are_items_that_the_user_does_not_have(power):
    data = columns(implicit=True)
    has = {}
    for user, item in zip(data.user_ids.tolist(), data.item_ids.tolist(), strict=True):
        has.setdefault(user, set()).add(item)
    for batch in Loader(data, 8, shuffle=True, negatives=5, negative_power=power):
        assert batch["item"].shape == batch["click@label"].shape == (len(batch["user"]), 6)
        for user, items in zip(batch["user"].tolist(), batch["item"].tolist(), strict=True):
            assert items[0] in has[user]
            assert not has[user] & set(items[1:])
            assert 0 not in items
        assert batch["click@label"][:, 0].eq(1).all()
        assert batch["click@label"][:, 1:].eq(0).all()
        assert batch["stars@label"][:, 1:].isnan().all()
        catalog = data.catalog.batch(batch["item"])
        assert all(torch.equal(batch[k], catalog[k]) for k in ("price", "tags"))


def test_only_positive_rows_get_negatives(data):
    batches = list(Loader(data, 8, negatives=1))
    assert sum(len(b["user"]) for b in batches) == int(data.labels["click"].sum())
    assert all(b["click@label"][:, 0].eq(1).all() for b in batches)


def test_negatives_are_uniform_or_follow_popularity():
    n = 4000
    item = np.where(np.arange(n) % 4 == 0, np.arange(n) // 4 % 20, 0)  # item 0 three quarters of the time
    schema = Schema([Categorical("user", "user"), Categorical("item", "item")], [Task("click")])
    # Each user has one item, so nothing but the own item is excluded.
    log = Log({"user": np.arange(n), "item": item}, schema, implicit=True)
    data = Encoder(schema).fit(log).encode(log)
    others = data.item_ids != 2
    for power in (0.0, 1.0):
        drawn = [b["item"][:, 1:] for b in Loader(data.select(others), 500, negatives=20, negative_power=power)]
        share = np.bincount(torch.cat(drawn).reshape(-1).numpy(), minlength=22)[2:] / torch.cat(drawn).numel()
        count = np.bincount(data.item_ids[others], minlength=22)[2:].astype(float)
        if power == 0:
            # Item 2 is never anyone's own here: it is drawn 1/19 of the time, being one of 19 that are not the own.
            assert abs(share[0] - 1 / 19) < 0.01
        else:
            assert share[0] == count[0] == 0


def test_a_user_who_has_everything_gets_masked_cells():
    schema = Schema([Categorical("user", "user"), Categorical("item", "item")], [Task("click")])
    log = Log({"user": [1, 1, 1, 2, 3, 3], "item": [1, 2, 3, 1, 1, 2]}, schema, implicit=True)
    data = Encoder(schema).fit(log).encode(log)
    (batch,) = Loader(data, 10, negatives=40)
    assert batch["@mask"][:, 0].all()
    assert not batch["@mask"][:3, 1:].any()
    assert not batch["item"][:3, 1:].any()
    assert batch["@mask"][3:].all()
    assert batch["item"][4:, 1:].eq(4).all()  # user 3 lacks one item only


def test_what_cannot_be_loaded_is_said(data):
    with pytest.raises(ConfigError, match="batch_size is at least 1; got 0"):
        Loader(data, 0)
    with pytest.raises(ConfigError, match="negatives is at least 0; got -1"):
        Loader(data, 1, negatives=-1)
    with pytest.raises(DataError, match="has no rows to load"):
        Loader(data.select(np.array([], int)), 1)
    frame = {"user": [1, 1], "item": [1, 2], "price": [1.0, 1.0], "tags": [[1], [1]], "click": [1, 0], "stars": [1, 1]}
    log = Log(frame | {"visit": [1, 1]}, SCHEMA, request="visit")
    lists = Encoder(SCHEMA).fit(log).encode(log)
    with pytest.raises(ConfigError, match="negatives= is for rows of one candidate"):
        Loader(lists, 1, negatives=1)
    schema = SCHEMA.with_features(Numeric("stars", "pair"))
    with pytest.raises(ConfigError, match=r"cannot make pair feature 'stars'.*schema.without\('stars'\)"):
        Loader(columns(schema=schema), 1, negatives=1)
    schema = Schema([Categorical("user", "user")], [Task("click")])
    log = Log({"user": [1, 2], "click": [0, 1]}, schema)
    with pytest.raises(ConfigError, match="no item key or no items"):
        Loader(Encoder(schema).fit(log).encode(log), 1, negatives=1)
