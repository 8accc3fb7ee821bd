"""Crossed and Hits features: the same numbers by hand, in columns, from live profiles, and in every model."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch

import recstack as rs
from recstack import catalog, testing
from recstack.errors import DataError, SchemaError
from recstack.features import Inputs, derived
from recstack.schema import Categorical, Crossed, History, Hits, Numeric, Schema, Task

MASK = (1 << 64) - 1


# -- crosses ------------------------------------------------------------------------------------------------------------
def slow_cross(names: tuple[str, ...], ids: tuple[int, ...], buckets: int) -> int:
    """The hash by whole numbers without end, cut to 64 bits."""

    def mixed(h: int) -> int:
        h = h * (-0x61C8864680B583EB) & MASK
        h = (h ^ (h >> 32)) * 0x2545F4914F6CDD1D & MASK
        return h >> 33

    if min(ids) < 2:
        return 0
    key = ids[0]
    for i in ids[1:]:
        key = key * (-0x61C8864680B583EB) + i & MASK
    salt = int.from_bytes(hashlib.blake2b("@".join(names).encode(), digest_size=8).digest(), "little") >> 1
    return mixed(key & (MASK >> 1) ^ salt) % buckets + 1


PARTS = (
    Categorical("user", "user", size=50),
    Categorical("likes", "user", multi=True, size=99),
    Categorical("item", "item", size=50),
    Categorical("genre", "item", multi=True, size=99),
    Categorical("hour", "context", size=9),
)


def ids_of(cross: Crossed, batch: dict) -> torch.Tensor:
    schema = Schema([*PARTS, cross])
    lead = batch["item"].shape
    return derived.cross_ids(batch, schema, schema.feature(cross.name), lead)  # type: ignore[arg-type]


def test_a_cross_is_the_salted_hash_of_its_ids_on_every_machine():
    cross = Crossed("x", of=("item", "user"), buckets=1000)  # in the schema's order: user, item
    batch = {"user": torch.tensor([7, 1]), "item": torch.tensor([[3, 48, 0], [3, 4, 5]])}
    found = ids_of(cross, batch)[..., 0]
    assert found.tolist() == [[slow_cross(("user", "item"), (7, i), 1000) for i in (3, 48, 0)], [0, 0, 0]]
    assert found[0].tolist() == [267, 777, 0]  # golden: a bundle saved today means the same rows tomorrow
    swapped = Schema([Categorical("item", "user", size=50), Categorical("user", "item", size=50), cross])
    other = derived.cross_ids({"item": batch["user"], "user": batch["item"]}, swapped, swapped.feature("x"), (2, 3))  # type: ignore[arg-type]
    assert (other[0, :2, 0] != found[0, :2]).all()  # the same ids under other names


def test_lists_cross_in_all_combinations_and_what_is_missing_in_none():
    cross = Crossed("x", of=("likes", "genre"), buckets=10**6)
    batch = {
        "likes": torch.tensor([[5, 9, 0], [0, 0, 0]]),
        "item": torch.tensor([[2, 3], [2, 3]]),
        "genre": torch.tensor([[[4, 1], [6, 8]], [[4, 5], [0, 0]]]),
    }
    found = ids_of(cross, batch)
    for r, l in itertools.product(range(2), range(2)):
        pairs = itertools.product(batch["likes"][r].tolist(), batch["genre"][r, l].tolist())
        wanted = [slow_cross(("likes", "genre"), pair, 10**6) for pair in pairs]
        assert found[r, l].tolist() == wanted
    assert (found > 0).sum((-2, -1)).tolist() == [6, 0]  # 2 x (1 + 2) live pairs; the id 1 is no value


def test_no_cross_has_more_than_64_combinations():
    batch = {
        "likes": torch.full((1, 30), 5),
        "item": torch.tensor([[2]]),
        "genre": torch.full((1, 1, 30), 4),
    }
    assert ids_of(Crossed("x", of=("likes", "genre")), batch).shape == (1, 1, 64)
    assert ids_of(Crossed("x", of=("likes", "item")), batch).shape == (1, 1, 30)


def test_a_cross_has_the_role_of_its_parts():
    roles = {
        ("user", "hour"): "context",
        ("user", "likes"): "user",
        ("item", "genre"): "item",
        ("hour", "genre"): "pair",
    }
    for of, role in roles.items():
        assert Schema([*PARTS, Crossed("x", of=of)]).feature("x").role == role


# -- hits ---------------------------------------------------------------------------------------------------------------
def world(seed: int, rows: int = 120):
    """A log with clicks, items with a shop (some unknown) and several tags (some without), as frames."""
    chance = np.random.default_rng(seed)
    items = {
        "item": np.arange(15),
        "shop": [None if i == 3 else f"s{i % 4}" for i in range(15)],
        "tags": [[int(t) for t in chance.choice(6, i % 3, replace=False)] for i in range(15)],
    }
    events = {
        "user": chance.integers(0, 6, rows),
        "item": chance.integers(0, 15, rows),
        "click": (chance.random(rows) < 0.5).astype(int),
        "at": chance.integers(0, 400, rows),
    }
    features = [
        Categorical("user", "user"),
        Categorical("item", "item"),
        Categorical("shop", "item"),
        Categorical("tags", "item", multi=True),
        History("clicked", of=("item", "shop", "tags"), where="click", max_len=8),
        Hits("shops", target="shop", history="clicked", last=(1, 3), within=(50, 200)),
        Hits("tagged", target="tags", history="clicked", last=2),
    ]
    schema = Schema(features, [Task("click")], time="at")
    return rs.Log(events, schema, items=items), events, items


def slow_hits(events, items, user, item, now, attribute, last, within):
    """The statistics of one candidate, read off the raw log."""

    def values(i):
        v = items[attribute][i]
        return set() if v is None else set(v) if isinstance(v, list) else {v}

    past = [
        (t, n, i)
        for n, (u, i, c, t) in enumerate(zip(*(events[k] for k in ("user", "item", "click", "at")), strict=True))
        if u == user and c and t < now
    ]
    past = [(t, i) for t, _, i in sorted(past)][-8:]
    newest = list(enumerate(reversed(past), 1))
    hit = [(place, now - t) for place, (t, i) in newest if values(i) & values(item)]
    out = [float(bool(hit)), float(hit[0][0]) if hit else 0.0]
    if within:
        out.append(float(hit[0][1]) if hit else 0.0)
    windows = [lambda p, a: True, *((lambda p, a, n=n: p <= n) for n in last)]
    windows += [(lambda p, a, s=s: a <= s) for s in within]
    for inside in windows:
        steps = sum(inside(place, now - t) for place, (t, _) in newest)
        count = sum(inside(place, age) for place, age in hit)
        out += [float(count), count / max(steps, 1)]
    return out


@pytest.mark.parametrize("seed", range(3))
def test_hits_are_what_a_loop_over_the_raw_log_finds_offline_and_online(seed):
    log, events, items = world(seed)
    encoder = rs.Encoder(log.schema).fit(log)
    columns, schema = encoder.encode(log), encoder.schema
    rows = np.arange(len(log))
    for name, attribute, last, within in (("shops", "shop", (1, 3), (50, 200)), ("tagged", "tags", (2,), ())):
        f = schema.feature(name)
        rows_of = zip(events["user"], events["item"], events["at"], strict=True)
        wanted = torch.tensor([slow_hits(events, items, *row, attribute, last, within) for row in rows_of]).float()
        assert wanted[:, 0].mean() > 0.2
        for padded in (True, False):
            batch = columns.batch(rows, padded=padded)
            found = torch.stack(derived.hits(batch, schema, f, (len(rows), 1)), -1)[:, 0]  # type: ignore[arg-type]
            torch.testing.assert_close(found, wanted, msg=f"{name}, padded={padded}")

        now = 500
        live = rs.Profiles.build(log, encoder).requests(list(range(6)), time=now)
        catalog = encoder.catalog.batch(encoder.encode_values("item", items["item"]))  # type: ignore[union-attr]
        batch = {**live.batch, **{k: v.expand(6, *v.shape) for k, v in catalog.items()}}
        found = torch.stack(derived.hits(batch, schema, f, (6, 15)), -1)  # type: ignore[arg-type]
        wanted = [[slow_hits(events, items, u, i, now, attribute, last, within) for i in range(15)] for u in range(6)]
        torch.testing.assert_close(found, torch.tensor(wanted).float(), msg=f"{name}, live")


def test_numbers_are_logarithms_and_buckets_double():
    f = Hits("h", target="shop", history="clicked", of="shop", last=(), within=(64,), transform="bucketize")
    assert f.statistics == ("any", "last", "since", "count", "share", "count_within_64", "share_within_64")
    found = [torch.tensor([[x]]) for x in (1.0, 3.0, 32.0, 4.0, 0.5, 0.0, 0.0)]
    none = [torch.zeros(1, 1)] * 7
    wanted = [1.0, math.log(4), math.log(1.5), math.log(5), 0.5, 0, 0]
    torch.testing.assert_close(derived.hit_numbers(found, f)[0, 0], torch.tensor(wanted))
    # 3 is in bucket 1 (2-3), 32 is half of the window: 128 steps of 1/256 of it, 4 is in bucket 2, .5 in the fourth eighth
    assert derived.hit_ids(found, f)[0, 0].tolist() == [1, 1 + 16 + 1, 1 + 32 + 7, 1 + 48 + 2, 1 + 64 + 3, 0, 0]
    assert not derived.hit_ids(none, f).any()
    assert not derived.hit_numbers(none, f).any()
    full = [torch.full((1, 1), x) for x in (1.0, 1e9, 1e9, 1e9, 1.0, 1e9, 1.0)]
    assert int(derived.hit_ids(full, f).max()) < f.size


def test_what_hits_nothing_is_padding_and_not_a_row_of_zero():
    schema = rich(transform="bucketize")
    inputs = Inputs(schema, 4, stacked=True)
    with torch.no_grad():
        for p in inputs.parameters():
            p[1:].normal_() if p.dim() > 1 else p.normal_()
    batch = testing.batch(testing.schema(), 4, 3)
    batch["item_id@watched"], batch["genre@watched"] = (
        torch.zeros_like(batch[k]) for k in ("item_id@watched", "genre@watched")
    )
    assert not inputs(batch)["met"].any()
    batch["item_id@watched"] = batch["item_id"].new_full(batch["item_id@watched"].shape, 7)
    assert bool((inputs(batch)["met"].abs().sum(-1) > 0).eq(batch["item_id"] == 7).all())


def test_a_batch_without_the_time_says_so():
    log, *_ = world(0)
    encoder = rs.Encoder(log.schema).fit(log)
    live = rs.Profiles.build(log, encoder).requests([1])
    item = encoder.catalog.batch(np.array([[2]]))  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"Hits 'shops' looks back in time, and the batch has no '@time'.*time=now"):
        Inputs(encoder.schema, 4)({**live.batch, **item})


# -- in schemas and models ------------------------------------------------------------------------------------------------
def rich(transform: str = "log") -> Schema:
    """The schema of the contract with features that have no column."""
    schema = testing.schema()
    return schema.with_features(
        Crossed("user_x_genre", of=("user_id", "genre"), buckets=40),
        Crossed("likes_x_hour", of=("likes", "hour"), buckets=40, pooling="sum"),
        Hits("met", target="item_id", history="watched", last=2, transform=transform),
        Hits("same_genre", target="genre", history="watched", last=()),
    )


def test_a_schema_keeps_them_apart_from_its_columns():
    schema, plain = rich(), testing.schema()
    assert schema.features == plain.features
    assert schema.names == plain.names
    assert schema.fields == schema.features + schema.derived
    assert Schema.from_dict(schema.to_dict()) == schema
    assert {f.name for f in schema.without("likes").derived} == {"user_x_genre", "met", "same_genre"}
    assert {f.name for f in schema.without("met").derived} == {"user_x_genre", "likes_x_hour", "same_genre"}
    assert schema.replace(tasks=[]).derived == schema.derived
    assert schema.replace(features=plain.features).derived == schema.derived
    assert schema != plain


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (Crossed("x", of=("user_id", "age")), "Crossed 'x' reads 'age', which has no ids"),
        (Crossed("x", of=("user_id", "gender")), "Unknown feature that Crossed 'x' reads 'gender'"),
        (Hits("x", target="hour", history="watched"), "'hour' is no Categorical of the candidates"),
        (Hits("x", target="genre", history="likes"), "history='likes' is a Categorical, not a History"),
        (Hits("x", target="genre", history="watched", of="title"), "Unknown of= of Hits 'x' in History 'watched'"),
        (Hits("x", target="genre", history="watched", of="item_id"), "whose ids mean other values"),
        (Hits("x", target="genre", history="watched", within=60), "name the time column"),
    ],
)
def test_what_cannot_be_made_is_named(feature, said):
    with pytest.raises(SchemaError, match=said):
        testing.schema().with_features(feature)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Crossed("x", of="user"), "several features"),
        (lambda: Hits("x", target="a", history="b", last=(0,)), "last= holds whole numbers of at least 1"),
        (lambda: Hits("x", target="a", history="b", compress="hash", rows=5), "compress= is for a table"),
        (lambda: Hits("x", target="a", history=""), "needs target="),
        (lambda: Numeric("x", embedding="piecewise", transform="log"), 'reads transform="quantile"'),
        (lambda: Numeric("x", embedding="autodis", powers=(1, 2)), "exclude each other"),
        (lambda: Numeric("x", embedding="auto"), "Unknown embedding of feature 'x' 'auto'"),
    ],
)
def test_what_makes_no_sense_is_named(wrong, said):
    with pytest.raises(SchemaError, match=said):
        wrong()


OPTIONS = {"FFM": {"dim": 2}, "DCNv3": {"dim": 8}, "CAN": {"dim": 4}}
RANKERS = [entry.name for entry in catalog.models() if entry.stage == "ranking"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKERS)
def test_every_ranking_model_reads_them(name):
    """In both spellings of a batch, and their tables learn."""
    torch.manual_seed(0)
    model = getattr(rs.ranking, name)
    model = testing.wake(model(rich(), **OPTIONS.get(name, {})))
    batch = testing.batch(testing.schema(), 6, 3)
    logits = model(batch)["click"]
    torch.testing.assert_close(
        model(testing.batch(testing.schema(), 6, 3, jagged=True))["click"], logits, rtol=1e-4, atol=1e-5
    )
    if not model.gradients:
        return
    sum(model.losses(batch).values()).backward()
    arenas = [
        m for m in model.modules() if getattr(m, "sizes", None) and "user_x_genre" in m.sizes and hasattr(m, "start")
    ]
    assert arenas, f"{name} has no table for the cross"
    for arena in arenas:
        rows = arena.weight.grad[1 + arena.start["user_x_genre"] :][:40]
        assert rows.abs().sum() > 0, f"no gradient reaches the cross in {name}"


@pytest.mark.slow
def test_a_linear_model_of_a_cross_knows_a_parity_that_no_sum_knows():
    """Whether user and item are both odd or both even: nothing for LR, everything for LR with the cross."""
    chance = np.random.default_rng(0)
    user, item = chance.integers(0, 8, 4000), chance.integers(0, 8, 4000)
    rows = {"user": user, "item": item, "click": ((user + item) % 2).astype(int)}
    columns = [Categorical("user", "user"), Categorical("item", "item")]
    auc = {}
    for name, more in (("plain", []), ("crossed", [Crossed("both", of=("user", "item"), buckets=1000)])):
        log = rs.Log(rows, Schema([*columns, *more], [Task("click")]))
        model = rs.ranking.LR(rs.Encoder(log.schema).fit(log).schema)
        model.fit(log, epochs=3, batch_size=256, lr=0.05, progress=False)
        auc[name] = rs.metrics.auc(
            torch.from_numpy(model.score(log)["click"]), torch.from_numpy(rows["click"]).float()
        ).item()
    assert auc["plain"] < 0.6
    assert auc["crossed"] > 0.99


def test_bundles_keep_them(tmp_path):
    log, *_ = world(1)
    encoder = rs.Encoder(log.schema.with_features(Crossed("x", of=("user", "shop"), buckets=64))).fit(log)
    model = rs.ranking.LR(encoder.schema).eval()
    with torch.no_grad():
        for p in model.parameters():
            p[1:].normal_()  # row 0 is padding
    model.save(tmp_path / "lr")
    again = rs.load(tmp_path / "lr")
    assert again.schema == model.schema
    np.testing.assert_array_equal(again.score(log)["click"], model.score(log)["click"])
