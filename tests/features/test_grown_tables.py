"""Growth: old rows and optimiser state where they belong, new rows fresh; vectors from elsewhere; rows of 8 and 4 bits."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from recstack import testing
from recstack.data import Encoder, Log
from recstack.errors import ConfigError, DataError, SchemaError
from recstack.features import Arena, Tables, carry, load_grown
from recstack.features.quantized import QuantizedArena, quantize, unpacked
from recstack.features.tables import Ask
from recstack.models.base import load
from recstack.models.ranking.deepfm import DeepFM
from recstack.models.ranking.din import DIN
from recstack.models.retrieval.dssm import DSSM
from recstack.models.retrieval.sasrec import SASRec
from recstack.schema import Categorical, Schema, Task

MORE = {"user_id": 17, "item_id": 29, "favourite": 29, "genre": 9}


def larger(schema=None, more=MORE):
    schema = schema or testing.schema()
    return schema.with_features(*(dataclasses.replace(schema.feature(n), size=s) for n, s in more.items()))


@pytest.mark.parametrize(
    "options",
    [{}, {"compress": "hash", "rows": 6}, {"compress": "quotient_remainder", "rows": 6}, {"dtype": "bfloat16"}],
)
@pytest.mark.parametrize("cls", [DeepFM, DIN, SASRec])
def test_a_grown_model_answers_as_before(cls, options):
    schema = testing.schema()
    names = ("item_id", "favourite")
    schema = schema.with_features(*(dataclasses.replace(schema.feature(n), **options) for n in names))
    model = testing.Case(cls, {"dim": 4}, schema=schema).build()
    new = model.grown(larger(schema))
    assert type(new) is cls
    assert new.config["dim"] == 4
    assert new.schema.feature("item_id").size == 29
    assert not new.training
    batch = testing.batch(schema, 5, 3)
    for task, logit in model(batch).items():
        assert torch.equal(new(batch)[task], logit)
    fresh = testing.batch(new.schema, 40, 3)
    assert bool((fresh["item_id"] >= 20).any())
    assert all(v.isfinite().all() for v in new(fresh).values())


def test_rows_of_new_ids_are_fresh_and_all_else_is_equal():
    torch.manual_seed(0)
    model = DIN(testing.schema(), dim=4)
    new = model.grown(larger())
    before, after = model.state_dict(), new.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if value.dim() else after[name], value), name
    rows = after["inputs.tables.4.item_id"][19:]
    assert rows.shape == (9, 4)
    assert 0 < rows.std() < 1e-3  # as any new table's
    before["inputs.tables.4.item_id"].zero_()
    assert after["inputs.tables.4.item_id"].any()  # nothing is shared


def test_state_by_row_follows_its_rows():
    old, new = Arena({"a": 4, "b": 3}, 2, 1.0), Arena({"a": 6, "b": 3, "c": 2}, 2, 1.0)
    state = torch.arange(100.0, 106.0)  # padding, a1 a2 a3, b1 b2
    into = torch.full((9,), 0.5)
    carry(new, state, {"a": 4, "b": 3, "c": 1}, into)
    assert into.tolist() == [100, 101, 102, 103, 0.5, 0.5, 104, 105, 0.5]
    plain = torch.zeros(5, 2)
    carry(nn.Embedding(5, 2), torch.ones(3, 2), {"weight": 3}, plain)
    assert plain[:, 0].tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(AssertionError):
        carry(new, state, {"a": 5, "b": 3, "c": 1}, into)
    assert old.weight.shape == (6, 2)


def test_the_weights_and_any_state_by_row_go_the_same_way():
    """Optimiser state that is a copy of the weights stays one."""
    schema = testing.schema()
    model, new = DIN(schema, dim=4), DIN(larger(), dim=4)
    olds = {n: m for n, m in model.named_modules() if isinstance(m, Arena)}
    states = {n: m.weight.detach().clone() for n, m in olds.items()}
    intos = {n: m.weight.detach().clone() for n, m in new.named_modules() if isinstance(m, Arena)}
    sizes = load_grown(new, model.state_dict())
    assert set(sizes) == set(olds)
    assert all(sizes[n] == m.sizes for n, m in olds.items())
    for name, into in intos.items():
        table = new.get_submodule(name)
        carry(table, states[name], sizes[name], into)
        assert torch.equal(into, table.weight)


def test_what_does_not_grow_is_said():
    schema = testing.schema()
    model = DIN(schema, dim=4)
    with pytest.raises(SchemaError, match="Table 'genre' had 9 ids and would have 8; tables only grow"):
        model.grown(larger(more=MORE | {"genre": 8}))
    with pytest.raises(SchemaError, match="Feature 'genre' has changed"):
        model.grown(schema.with_features(dataclasses.replace(schema.feature("genre"), pooling="sum")))
    with pytest.raises(SchemaError, match="other features or tasks"):
        model.grown(schema.without("age"))
    with pytest.raises(
        SchemaError, match=r"'inputs\.tables\.4\.user_id' has shape \(16, 4\) in the weights and \(13, 4\)"
    ):
        load_grown(DIN(schema, dim=4), DIN(larger(), dim=4).state_dict())
    with pytest.raises(SchemaError, match="only embedding tables can grow"):
        load_grown(DIN(schema, dim=4, hidden=(8,)), DIN(schema, dim=4, hidden=(9,)).state_dict())
    with pytest.raises(SchemaError, match="no table"):
        load_grown(DIN(schema, dim=4), {})


def log(users, items):
    return Log({"user": users, "item": items, "click": [i % 2 for i in range(len(users))]}, SCHEMA)


SCHEMA = Schema([Categorical("user", "user"), Categorical("item", "item", dim=3)], [Task("click")])


def test_another_encoder_is_not_a_grown_one():
    one = Encoder(SCHEMA).fit(log(["a", "c"], [5, 7]))
    model = DeepFM(one.schema, dim=3, hidden=(4,))
    with pytest.raises(
        SchemaError, match=r"Id 3 of 'user' was 'c' and would be 'b'; grow the Encoder with encoder\.grown"
    ):
        model.grown(Encoder(SCHEMA).fit(log(["a", "b", "c"], [5, 7, 9])))
    assert model.grown(Encoder(SCHEMA).fit(log(["a", "c", "d"], [5, 7, 9]))).schema.feature("user").size == 5


def test_counts_that_come_from_data_are_left_to_fit():
    model = DSSM(testing.schema(), dim=4)
    model.softmax.drawn.fill_(3.0)
    new = model.grown(larger())
    assert new.softmax.drawn.shape == (29,)
    assert not new.softmax.drawn.any()


# -- vectors from elsewhere --------------------------------------------------------------------------------------------
def test_vectors_reach_the_rows_of_their_values():
    encoder = Encoder(SCHEMA).fit(log(["a", "b", "c"], [50, 70, 90]))
    model = DeepFM(encoder.schema, dim=4, hidden=(4,))
    before = model.inputs.tables.weight("item").detach().clone()
    given = {90: [1.0, 2, 3], 70: [4.0, 5, 6], 12345: [7.0, 8, 9]}
    assert model.load_vectors("item", given) == 2
    table = model.inputs.tables.weight("item")  # ids 1 … 4: unknown, 50, 70, 90
    assert torch.equal(table[:2], before[:2])
    assert table[2:].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert model.load_vectors("item", ([50], np.full((1, 3), 0.5))) == 1
    assert model.inputs.tables.weight("item")[1].tolist() == [0.5, 0.5, 0.5]
    assert not model.inputs.tables.arena("item").weight[0].any()
    for match, error, vectors in (
        ("vectors for 'item' have 2 columns, its table has 1 or 3; declare it with dim=2", SchemaError, {50: [1.0, 2]}),
        ("not all of one width", DataError, {50: [1.0, 2, 3], 70: [1.0, 2]}),
        ("2 values of 'item' need a matrix", DataError, ([50, 70], np.zeros((3, 3)))),
        ("vector for 'item' 70 is not finite", DataError, {50: [1.0, 2, 3], 70: [1.0, float("nan"), 3]}),
    ):
        with pytest.raises(error, match=match):
            model.load_vectors("item", vectors)
    with pytest.raises(SchemaError, match="knows no Encoder"):
        DeepFM(testing.schema(), dim=4).load_vectors("item_id", given)
    hashed = Encoder(SCHEMA.with_features(Categorical("item", "item", dim=3, buckets=9))).fit(log(["a"], [50]))
    with pytest.raises(SchemaError, match="'item' has no learned vocabulary"):
        DeepFM(hashed.schema, dim=4, hidden=(4,)).load_vectors("item", given)
    shared = Encoder(SCHEMA.with_features(Categorical("item", "item", dim=3, compress="hash", rows=2))).fit(
        log(["a"], [50])
    )
    with pytest.raises(SchemaError, match="has not one row for each id"):
        DeepFM(shared.schema, dim=4, hidden=(4,)).load_vectors("item", given)


# -- rows of 8 and 4 bits ---------------------------------------------------------------------------------------------
def quantised(bits, dim=16, n=400):
    torch.manual_seed(0)
    t = Tables({"a": n, "b": 7}, {"a": dim, "b": dim}, std=0.05)
    with torch.no_grad():
        t.arena("a").weight[5] = 0.3  # a row of one value
    holder = nn.Module()
    holder.tables = t
    whole = t.arena("a").weight.detach().clone()
    quantize(holder, bits)
    return holder.tables, whole


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_off_by_half_a_step_at_most(bits):
    t, whole = quantised(bits)
    arena = t.arena("a")
    assert isinstance(arena, QuantizedArena)
    assert arena.packed.dtype is torch.uint8
    assert arena.packed.shape[1] == {8: 16 + 8, 4: 8 + 4}[bits]  # bytes, in place of 64
    step = (whole.amax(1) - whole.amin(1)) / (2**bits - 1)
    rounding = 1e-6 if bits == 8 else 0.3 * 2**-10 + 15 * 2**-11 * step.max()  # float16 scale and offset
    error = (unpacked(arena.packed, bits) - whole).abs().amax(1)
    assert bool((error <= step / 2 + rounding).all())
    assert error.max() > step.max() / 4  # they are no longer float


@pytest.mark.parametrize("bits", [8, 4])
def test_lookups_are_those_of_unpacked_rows(bits):
    t, _ = quantised(bits)
    every = unpacked(t.arena("a").packed, bits)
    ids = torch.tensor([[0, 1, 399], [7, 7, 2]], dtype=torch.int32)
    offsets = torch.tensor([0, 2, 2, 6])
    flat = ids.reshape(-1)
    found, other, mean, total = t.gather(
        [Ask("a", ids), Ask("b", torch.tensor([6])), Ask("a", flat, offsets, True), Ask("a", flat, offsets, False)]
    )
    torch.testing.assert_close(found, every[ids.long()])
    torch.testing.assert_close(other, every[[399 + 6]])
    rows = every[flat.long()]
    torch.testing.assert_close(total, torch.stack([rows[:2].sum(0), torch.zeros(16), rows[2:].sum(0)]))
    torch.testing.assert_close(mean, torch.stack([rows[1], torch.zeros(16), rows[2:].mean(0)]))
    assert not found[0, 0].any()
    torch.testing.assert_close(t.weight("a"), every[1:400])
    torch.testing.assert_close(t.by_id("b")[1:], every[400:])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_serves_and_saves(tmp_path, bits):
    case = testing.Case(DeepFM, {"dim": 8, "hidden": (8,)})
    model = case.build()
    served = model.quantized(bits)
    batch = case.batch(6, 3)
    assert not any(isinstance(m, QuantizedArena) for m in model.modules())
    arenas = dict(served.inputs.tables.items())
    assert isinstance(arenas["8"], QuantizedArena)
    assert isinstance(dict(served.first_order.inputs.tables.items())["1"], Arena)  # would not become smaller
    got = served(batch)["click"]
    assert not torch.equal(got, model(batch)["click"])
    rounded = case.build()
    with torch.no_grad():
        dict(rounded.inputs.tables.items())["8"].weight.copy_(unpacked(arenas["8"].packed, bits))
    torch.testing.assert_close(got, rounded(batch)["click"])
    again = load(served.save(tmp_path / "m"))
    assert again.bits == bits
    assert torch.equal(again(batch)["click"], got)
    for (name, a), b in zip(served.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_exports(bits):
    case = testing.Case(DeepFM, {"dim": 8, "hidden": (8,)})
    served, batch = case.build().quantized(bits), case.batch(6, 3)
    rows = torch.export.Dim("R", min=1, max=4096)
    some = {k: v for k, v in batch.items() if not k.endswith("@label")}
    graph = torch.export.export(served, (some,), dynamic_shapes=({k: {0: rows} for k in some},)).module()
    torch.testing.assert_close(graph(some)["click"], served(batch)["click"])


def test_quantised_tables_are_not_trained():
    model = testing.Case(DeepFM, {"dim": 8, "hidden": (8,)}).build()
    served = model.quantized()
    with pytest.raises(
        ConfigError, match=r"Quantised tables are for serving; train the model that quantized\(\) was called"
    ):
        served.train()
    with pytest.raises(ConfigError, match="8 bits already"):
        served.quantized(4)
    with pytest.raises(ConfigError, match="bits= is 8 or 4; got 2"):
        model.quantized(2)
    with pytest.raises(ConfigError, match="cannot grow"):
        served.grown(larger())
    with pytest.raises(ConfigError, match="DIN has no table that 8-bit rows would make smaller"):
        testing.Case(DIN, {"dim": 2}).build().quantized()
    with pytest.raises(SchemaError, match="quantised, for serving"):
        served.inputs.tables.load("item_id", torch.tensor([2]), torch.zeros(1, 8))
    optimiser = [n for n, _ in served.named_parameters() if "inputs.tables.8" in n]
    assert not optimiser


def test_odd_widths_and_every_kind_of_table_can_be_quantised():
    from test_codes import options_schema

    model = testing.Case(DeepFM, {"dim": 9, "hidden": (8,), "norm": None}, schema=options_schema()).build()
    served = model.quantized(4)
    assert {a.bits for a in served.inputs.tables.children()} == {8}
    batch = testing.batch(options_schema(), 6, 3)
    torch.testing.assert_close(served(batch)["click"], model(batch)["click"], rtol=0.05, atol=0.05)
