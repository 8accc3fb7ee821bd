"""The Loader: every row once, in a seeded order, resumable anywhere, with negatives that the user does not have."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.data import Columns, Encoder, Loader, Log
from recstack.data import loader as loader_module
from recstack.errors import ConfigError, DataError, TrainingError
from recstack.schema import Categorical, Numeric, Schema, Task, Vector

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


def test_a_position_on_other_data_or_of_another_order_is_refused(data, tmp_path):
    saved = Loader(data, 8, shuffle=True).state_dict()
    data.save(tmp_path)
    Loader(Columns.load(tmp_path), 8, shuffle=True).load_state_dict(saved)  # the same data, mapped
    other = columns()
    other.labels["stars"][:] += 1
    with pytest.raises(TrainingError, match=r"saved position has data \w+ and this loader \w+; it is of another run"):
        Loader(other, 8, shuffle=True).load_state_dict(saved)
    with pytest.raises(TrainingError, match="has requests 53 and this loader 52"):
        Loader(data.select(np.arange(52)), 8, shuffle=True).load_state_dict(saved)
    with pytest.raises(TrainingError, match="has shuffle True and this loader False"):
        Loader(data, 8).load_state_dict(saved)
    blocks = Loader(data, 8, shuffle="blocks", block=4, window=2)
    with pytest.raises(TrainingError, match="has shuffle True and this loader \\['blocks', 4, 2\\]"):
        blocks.load_state_dict(saved)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.integers(1, 60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_blocks_bring_every_row_once_and_no_row_leaves_its_window(n, block, window, batch_size, negatives):
    data = columns(implicit=negatives).select(np.arange(min(n, N)))
    if negatives:
        data = data.select(data.positives())
    if not len(data):
        return
    options = {"shuffle": "blocks", "block": block, "window": window, "prefetch": 0, "seed": 5}
    loader = Loader(data, batch_size, negatives=int(negatives), **options)
    rows = {x: i for i, x in enumerate(data.labels["stars"].tolist())}
    for _ in range(2):
        seen = [rows[x] for x in stars(loader)]
        assert sorted(seen) == list(range(len(data)))
        start = 0
        while start < len(seen):  # windows are whole blocks; the last block is short, wherever it comes
            blocks = list(dict.fromkeys(r // block for r in seen[start:]))[: window + 1]
            sizes = {b: min(block, len(data) - b * block) for b in blocks}
            end = start
            opened = set()
            while end < len(seen) and len(opened | {seen[end] // block}) <= window:
                opened.add(seen[end] // block)
                end += 1
            assert end - start == sum(sizes[b] for b in opened)
            start = end


@given(st.integers(0, 15), st.sampled_from([False, "blocks", True]), st.integers(0, 2))
@settings(max_examples=12, deadline=None)
def test_every_shuffle_resumes_exactly(batches, shuffle, negatives):
    data = columns(implicit=True)
    options = {"shuffle": shuffle, "seed": 3, "negatives": negatives, "block": 5, "window": 3}
    whole = Loader(data, 8, **options)
    expected = [*whole, *whole, *whole, *whole]
    first, seen = Loader(data, 8, **options), []
    while len(seen) < batches:
        for batch in first:
            seen.append(batch)
            state = first.state_dict()
            if len(seen) == batches:
                break
    second = Loader(data, 8, **options)
    if batches:
        second.load_state_dict(state)
    while len(seen) < len(expected):
        seen += list(second)
    assert equal(seen, expected)


# -- ranks ------------------------------------------------------------------------------------------------------------
def together(parts, world):
    """Batches of one process from those of its ranks."""
    merged = []
    for batch in zip(*parts, strict=True):
        out = {}
        for name in batch[0]:
            if name.endswith("@offsets"):
                lengths = torch.cat([b[name].diff() for b in batch])
                out[name] = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            else:
                out[name] = torch.cat([b[name] for b in batch])
        merged.append(out)
    return merged


@given(
    st.integers(3, N),
    st.integers(1, 3),
    st.integers(3, 20),
    st.sampled_from([False, "blocks", True]),
    st.integers(0, 2),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_ranks_share_the_batches_of_one_process(n, world, batch_size, shuffle, negatives, drop_last):
    data = columns().select(np.arange(n))
    data.implicit = True
    if negatives and data.positives().sum() < world:
        return
    options = {"shuffle": shuffle, "seed": 1, "negatives": negatives, "block": 4, "window": 2, "drop_last": drop_last}
    whole = list(Loader(data, batch_size, **options))
    loaders = [Loader(data, batch_size, part=(rank, world), **options) for rank in range(world)]
    parts = [list(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(part) for part in parts} == {len(parts[0])}
    sizes = [[len(b["user"]) for b in part] for part in parts]
    assert all(max(of) - min(of) <= 1 and min(of) >= 1 for of in zip(*sizes, strict=True))
    merged = together([[{k: v for k, v in b.items() if not k.startswith("tags")} for b in p] for p in parts], world)
    if whole and len(whole[-1]["user"]) < world and len(whole) > 1:  # too few for a batch of their own
        last = whole[-2:]
        assert len(merged) == len(whole) - 1
        stars_of = torch.cat([b["stars@label"] for b in last])
        assert len(merged[-1]["user"]) == len(stars_of)
        if not negatives:
            assert torch.equal(merged[-1]["stars@label"], stars_of)
        whole, merged = whole[:-2], merged[:-1]
    whole = [{k: v for k, v in b.items() if not k.startswith("tags")} for b in whole]
    assert equal(merged, whole)


def test_ranks_share_lists_of_candidates():
    frame = {"user": [1, 1, 2, 3, 3, 3, 4], "item": [1, 2, 1, 2, 3, 1, 3], "price": [1.0] * 7, "tags": [[1]] * 7}
    frame |= {"click": [1, 0] * 3 + [1], "stars": np.arange(7.0), "visit": [1, 1, 2, 3, 3, 3, 4]}
    log = Log(frame, SCHEMA, request="visit")
    lists = Encoder(SCHEMA).fit(log).encode(log)
    parts = [list(Loader(lists, 4, part=(rank, 2))) for rank in range(2)]
    assert [len(p) for p in parts] == [1, 1]
    first, second = parts[0][0], parts[1][0]
    assert first["user"].tolist() == [2, 3]
    assert second["user"].tolist() == [4, 5]
    assert (first["item"].shape, second["item"].shape) == ((2, 2), (2, 3))  # each as wide as its own longest list
    assert first["stars@label"][first["@mask"]].tolist() == [0, 1, 2]
    assert second["stars@label"][second["@mask"]].tolist() == [3, 4, 5, 6]


def test_a_rank_resumes_where_another_number_of_ranks_left(data):
    one = Loader(data, 10, shuffle=True)
    whole = list(one)
    state = None
    for i, _ in enumerate(one):
        if i == 1:
            state = one.state_dict()
            break
    again = [*Loader(data, 10, shuffle=True)]
    assert equal(whole, again)
    parts = []
    for rank in range(3):
        loader = Loader(data, 10, shuffle=True, part=(rank, 3))
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        parts.append(stars(loader))
    second = Loader(data, 10, shuffle=True)
    second.load_state_dict(state)
    assert sorted(star for part in parts for star in part) == sorted(stars(second))


def test_a_part_that_does_not_fit_is_said(data):
    for part in ((2, 2), (-1, 2), (0, 9)):
        with pytest.raises(ConfigError, match=r"part= is \(rank, world\) with 0 <= rank < world <= batch_size"):
            Loader(data, 8, part=part)
    with pytest.raises(DataError, match="has 2 rows to load for 3 ranks; each needs one"):
        Loader(data.select(np.arange(2)), 8, part=(0, 3))
    with pytest.raises(ConfigError, match=r"Unknown shuffle= 'block'\. Did you mean 'blocks'"):
        Loader(data, 8, shuffle="block")
    with pytest.raises(ConfigError, match="window is at least 1; got 0"):
        Loader(data, 8, shuffle="blocks", window=0)


# -- memory and devices -----------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
@pytest.mark.parametrize("shuffle", [False, "blocks"])
def test_what_has_passed_is_given_back(tmp_path, shuffle):
    n, width = 120_000, 80
    vectors = np.arange(n * width, dtype=np.float32).reshape(n, width) % 1024
    schema = Schema([Vector("v", size=width)], [Task("click")])
    log = Log({"v": vectors, "click": np.arange(n) % 2}, schema)
    Encoder(schema).fit(log).encode(log).save(tmp_path)
    mapped = Columns.load(tmp_path)

    def resident():
        """KiB of the files that are in memory now."""
        inside, total = False, 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split(" ")[0] and not line.startswith("Rss"):
                inside = str(tmp_path) in line
            elif line.startswith("Rss:") and inside:
                total += int(line.split()[1])
        return total

    largest, total, whole = 0, 0.0, n * width * 4 // 1024
    for batch in Loader(mapped, 2048, shuffle=shuffle, block=2048, window=2, prefetch=0):
        total += batch["v"].sum(dtype=torch.float64).item()
        largest = max(largest, resident())
    assert total == vectors.sum(dtype=np.float64)
    assert largest < whole / 2  # two blocks are a thirtieth; the kernel maps up to 2 MiB around what is read
    list(Loader(mapped, 2048, shuffle=True, prefetch=0))
    assert resident() > 0.9 * whole  # the measure can see what is not given back


@pytest.mark.parametrize("negatives", [0, 2])
def test_batches_on_a_device_are_the_same(negatives):
    data = columns(implicit=True)
    options = {"shuffle": True, "negatives": negatives}
    assert equal(list(Loader(data, 8, device="cpu", **options)), list(Loader(data, 8, **options)))


def test_a_block_travels_once():
    block = torch.arange(12.0).reshape(4, 3)
    batch = dict(zip("abc", block.unbind(1), strict=True)) | {"d": torch.arange(4), "e": block[:, :1].expand(4, 5)}
    there = loader_module.moved(batch, torch.device("cpu"))
    assert all(torch.equal(there[k], batch[k]) and there[k].stride() == batch[k].stride() for k in batch)
    assert len({t.untyped_storage().data_ptr() for t in there.values()}) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("negatives", [0, 2])
def test_batches_staged_on_cuda_are_the_same(negatives):
    data = columns(implicit=True)
    options = {"shuffle": True, "negatives": negatives}
    there = list(Loader(data, 8, device="cuda", **options))
    assert all(t.is_cuda for b in there for t in b.values())
    assert equal([{k: v.cpu() for k, v in b.items()} for b in there], list(Loader(data, 8, **options)))


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))],
)
@pytest.mark.parametrize("shuffle", [False, "blocks", True])
def test_data_that_live_on_a_device_give_the_same_batches(device, shuffle):
    chance = np.random.default_rng(0)
    schema = Schema(
        [Categorical("user", "user"), Numeric("age", "user", fill=0.0), Categorical("item", "item"),
         Numeric("price", "item", fill=0.0), Vector("image", "item", size=2), Categorical("hour")],
        [Task("click"), Task("stars", kind="regression")],
        time="at",
    )  # fmt: skip
    frame = {"user": chance.integers(0, 7, N), "item": chance.integers(0, 9, N), "hour": chance.integers(0, 24, N)}
    frame |= {"image": chance.random((N, 2)).tolist(), "click": chance.integers(0, 2, N), "stars": np.arange(N) * 1.0}
    frame |= {"at": np.arange(N), "w": chance.random(N)}
    log = Log(frame, schema, users={"user": [1, 2], "age": [3.0, 4.0]}, items={"item": [1], "price": [2.0]}, weight="w")
    data = Encoder(schema).fit(log).encode(log)
    options = {"shuffle": shuffle, "times": True, "block": 4, "window": 3}
    there = list(Loader(data.to(device), 8, **options))
    assert all(t.device.type == device for b in there for t in b.values())
    assert equal([{k: v.cpu() for k, v in b.items()} for b in there], list(Loader(data, 8, **options)))
    parts = [stars(Loader(data.to(device), 8, part=(r, 2), **options)) for r in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(N))


def test_what_cannot_live_on_a_device_is_said(data):
    with pytest.raises(ConfigError, match=r"takes no feature 'tags', whose length differs by row; use Loader\(columns"):
        data.to("cpu")
    schema = SCHEMA.without("tags")
    frame = {"user": [1, 1], "item": [1, 2], "price": [1.0, 1.0], "click": [1, 0], "stars": [1, 1], "visit": [1, 1]}
    log = Log(frame, schema, request="visit")
    with pytest.raises(ConfigError, match="takes no requests of several candidates"):
        Encoder(schema).fit(log).encode(log).to("cpu")
    plain = Log({k: v for k, v in frame.items() if k != "visit"}, schema)
    with pytest.raises(ConfigError, match="negatives= draws on the CPU"):
        Loader(Encoder(schema).fit(plain).encode(plain).to("cpu"), 1, negatives=1)


def test_request_columns_are_stored_and_taken_once_a_request():
    frame = {"user": [1, 1, 1, 2, 2], "item": [1, 2, 3, 1, 2], "price": [1.0] * 5, "tags": [[1]] * 5}
    frame |= {"click": [1, 0, 0, 1, 0], "stars": [1.0] * 5, "visit": [1, 1, 1, 2, 2], "hour": [7, 7, 7, 9, 9]}
    schema = SCHEMA.with_features(Categorical("hour"), Numeric("height", "user", fill=0.0))
    log = Log(frame, schema, request="visit", users={"user": [1, 2], "height": [1.5, 1.75]})
    lists = Encoder(schema).fit(log).encode(log)
    arrays = lists.arrays()
    assert arrays["user.i32"].shape == (2, 2)  # user and hour of two requests, not of five rows
    assert arrays["users.f32"].shape == (3, 1)  # the height of two users, and of an unknown one
    (batch,) = Loader(lists, 2)
    assert batch["hour"].shape == batch["user"].shape == batch["height"].shape == (2,)
    assert batch["item"].shape == (2, 3)
    assert batch["height"].tolist() == [1.5, 1.75]


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
