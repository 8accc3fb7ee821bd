"""Tables with fewer rows than ids: vectors by loops over Python integers, gradients, counts of parameters, state."""

import dataclasses

import pytest
import torch

from recstack import testing
from recstack.errors import DataError, SchemaError
from recstack.features import Inputs, Tables
from recstack.features.codes import hashed
from recstack.features.tables import Ask
from recstack.models.ranking.deepfm import DeepFM
from recstack.models.ranking.din import DIN
from recstack.schema import Categorical, Numeric, Schema, Task, Text

SIZE, ROWS = 23, 5
KINDS = ["hash", "double_hash", "quotient_remainder"]


def tables(kind, size=SIZE, rows=ROWS, dim=3, **options):
    torch.manual_seed(0)
    declared = {"item": Categorical("item", compress=kind, rows=rows, **options)}
    return Tables({"user": 6, "item": size}, {"user": dim, "item": dim}, std=0.5, declared=declared)


def loop(t: Tables, kind: str, i: int) -> torch.Tensor:
    arena = t.arena("item")
    parts = arena.tables(arena.weight)
    if i == 0:
        return torch.zeros(arena.embedding_dim)
    if kind == "quotient_remainder":
        return parts["item"][(i - 1) % ROWS] * parts["item@quotient"][(i - 1) // ROWS]
    rows = [hashed(torch.tensor([i]), ROWS, which).item() - 1 for which in range(1 + (kind == "double_hash"))]
    return sum(parts["item"][r] for r in rows)


def test_the_hash_is_that_of_whole_numbers_without_end():
    ids = [1, 2, 3, 22, 1 << 20, (1 << 31) - 1]
    for which, mixer in enumerate((-0x61C8864680B583EB, -0x4B47D0C58D2E9A6D)):
        word = (1 << 64) - 1
        for i in ids:
            h = i * (mixer & word) & word
            h = (h ^ (h >> 32)) * 0x2545F4914F6CDD1D & word
            assert hashed(torch.tensor([i], dtype=torch.int32), 1000, which).item() == (h >> 33) % 1000 + 1
    assert hashed(torch.tensor([0]), 1000, 0).item() == 0


def test_hashes_spread_evenly_and_independently():
    ids = torch.arange(1, 100_001)
    one, two = (hashed(ids, 100, which) - 1 for which in (0, 1))
    cells = torch.bincount(one * 100 + two, minlength=10_000).double()
    assert ((cells - 10) ** 2 / 10).sum() < 10_000 + 5 * 2**0.5 * 100  # χ² of 10,000 cells, five deviations


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_the_loop(kind):
    t = tables(kind)
    ids = torch.tensor([[0, 1, 22], [7, 7, 16]], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 2, 6])
    flat = ids.reshape(-1)
    asks = [
        Ask("item", ids),
        Ask("user", flat % 6),
        Ask("item", flat, offsets, True),
        Ask("item", flat, offsets, False),
    ]
    found, _, mean, total = t.gather(asks)
    slow = torch.stack([loop(t, kind, i) for i in flat.tolist()])
    torch.testing.assert_close(found, slow.view(2, 3, 3))
    torch.testing.assert_close(total, torch.stack([slow[:2].sum(0), torch.zeros(3), slow[2:].sum(0)]))
    torch.testing.assert_close(mean, torch.stack([slow[1], torch.zeros(3), slow[2:].mean(0)]))  # id 0 does not count
    every = torch.stack([loop(t, kind, i) for i in range(SIZE)])
    torch.testing.assert_close(t.weight("item"), every[1:])
    torch.testing.assert_close(t.by_id("item")[1:], every[1:])
    assert len(t.by_id("item")) == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_to_the_unit(kind):
    arena = tables(kind).arena("item")
    rows = {"hash": 5, "double_hash": 5, "quotient_remainder": 5 + 5}[kind]  # 22 live ids by 5: quotients 0 … 4
    assert arena.weight.shape == (1 + 5 + rows, 3)  # padding, user, item
    assert tables(kind, size=1 << 30, rows=1 << 16).arena("item").weight.numel() == 3 * (
        1 + 5 + (1 << 16) + ((1 << 14) if kind == "quotient_remainder" else 0)
    )


def test_quotient_and_remainder_give_every_id_a_vector_of_its_own():
    vectors = tables("quotient_remainder").weight("item")
    assert len({tuple(v) for v in vectors.tolist()}) == SIZE - 1
    std = tables("quotient_remainder", size=90_000, rows=300, dim=8).weight("item").std()
    assert 0.5 < std / 0.5 < 1.3  # products start as rows would, not as their squares


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop_and_padding_has_none(kind, pooled):
    ids = torch.tensor([0, 3, 8, 3, 0, 22])
    offsets = torch.tensor([0, 3, 6]) if pooled else None
    grads = []
    for sparse in (False, True, None):
        t = tables(kind)
        arena = t.arena("item")
        if sparse is None:
            found = torch.stack([loop(t, kind, i) for i in ids.tolist()])
            found = torch.stack([found[:3].sum(0), found[3:].sum(0)]) if pooled else found
        else:
            arena.sparse = sparse
            (found,) = t.gather([Ask("item", ids, offsets, False)])
        found.square().sum().backward()
        grad = arena.weight.grad
        assert grad is not None
        assert grad.is_sparse == bool(sparse)
        grads.append(grad.to_dense())
    torch.testing.assert_close(grads[0], grads[2])
    torch.testing.assert_close(grads[1], grads[2])
    assert not grads[0][0].any()
    assert grads[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_table_passes_gradients_on(kind):
    one, other = tables(kind), tables(kind)
    weights = torch.randn(SIZE - 1, 3)
    (one.weight("item") * weights).sum().backward()
    (torch.stack([loop(other, kind, i) for i in range(1, SIZE)]) * weights).sum().backward()
    torch.testing.assert_close(one.arena("item").weight.grad, other.arena("item").weight.grad)


def test_an_id_that_the_table_has_not_is_named_for_every_kind():
    for options in ({"compress": k, "rows": 5} for k in KINDS):
        schema = Schema([Categorical("i", "item", size=9, **options)], [Task("click")])
        with pytest.raises(DataError, match="Column 'i' holds id 9, and its table has 9 ids"):
            Inputs(schema, 4)({"i": torch.tensor([[3], [9]])})
    schema = Schema([Categorical("i", "item", size=9, rows=5)], [Task("click")])
    with pytest.raises(DataError, match="Column 'i' holds id -1"):
        Inputs(schema, 4)({"i": torch.tensor([[3], [-1]])})


def test_many_columns_of_one_length_are_checked_each_by_its_own_table():
    sizes = {"a": 5, "b": 9, "c": 7}
    schema = Schema([Categorical(n, "context", size=s) for n, s in sizes.items()], [Task("click")])
    inputs, good = Inputs(schema, 4), {n: torch.tensor([0, s - 1]) for n, s in sizes.items()}
    inputs(good)
    for n, s in sizes.items():
        for bad in (s, -1):
            with pytest.raises(DataError, match=f"Column '{n}' holds id {bad}, and its table has {s} ids"):
                inputs(good | {n: torch.tensor([0, bad])})


def options_schema():
    """Every way to keep a table, in one schema."""
    ways = {
        "user_id": {"compress": "double_hash", "rows": 6},
        "likes": {"rows": 4, "evict": "lru"},
        "item_id": {"compress": "quotient_remainder", "rows": 5},
        "favourite": {"compress": "quotient_remainder", "rows": 5},
        "hour": {"rows": 3, "admit": 2},
        "genre": {"dtype": "bfloat16"},
        "title": {"compress": "hash", "rows": 7},
    }
    schema = testing.schema()
    return schema.with_features(*(dataclasses.replace(schema.feature(n), **o) for n, o in ways.items()))


# one id may stand for another, so that a column need not change anything; options are those of the models' own rows
EXEMPT = ("learns", "gradients", "reads_every_column", "arguments", "documented", "example")
CASES = [
    testing.Case(DeepFM, {"dim": 4, "hidden": (8,), "norm": None, "dropout": 0.1}, schema=options_schema()),
    testing.Case(DIN, {"dim": 4, "hidden": (8,)}, schema=options_schema()),
]


@pytest.mark.parametrize(
    ("law", "case"),
    [
        pytest.param(law, c, id=f"{c}-{law.name}")
        for c in CASES
        for law in testing.laws(c)
        if law.name not in EXEMPT and not law.slow
    ],
)
def test_models_know_nothing_of_it(law, case):
    law(case)


def test_options_that_say_nothing_together_are_refused():
    wrong = {
        "needs rows=": {"compress": "hash"},
        "admit= is for a dynamic table": {"admit": 2},
        "evict= is for a dynamic table": {"compress": "hash", "rows": 3, "evict": "lru"},
        'evict="ttl" and ttl=': {"rows": 3, "evict": "ttl"},
        "go together": {"rows": 3, "evict": "lfu", "ttl": 3},
        "drop rows= or trainable=False": {"rows": 3, "trainable": False},
        "rows must be a whole number": {"rows": 0},
        "Unknown compress of feature 'i' 'hashed'": {"compress": "hashed", "rows": 3},
        "Unknown evict": {"rows": 3, "evict": "fifo"},
        "Unknown dtype": {"dtype": "int8"},
    }
    for match, options in wrong.items():
        with pytest.raises(SchemaError, match=match):
            Categorical("i", **options)
    with pytest.raises(SchemaError, match="compress= is for a table, and a Numeric"):
        Numeric("n", rows=3, compress="hash")
    with pytest.raises(SchemaError, match="gives table 'a' rows 4, 'a' gives it 3"):
        Schema([Categorical("a", compress="hash", rows=3), Categorical("b", table="a", compress="hash", rows=4)])
    kept = [
        Numeric("n", transform="bucketize", compress="hash", rows=3),
        Text("t", rows=9, admit=2, evict="ttl", ttl=7),
    ]
    schema = Schema(kept)
    assert Schema.from_dict(schema.to_dict()) == schema
