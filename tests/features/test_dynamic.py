"""Dynamic tables inside Inputs and models: who owns which row, what begins anew, what is saved. Also frozen and bfloat16."""

import copy

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.features import FirstOrder, Inputs, Tables
from recstack.features.tables import Ask
from recstack.models.ranking.deepfm import DeepFM
from recstack.schema import Categorical, Numeric, Schema, Task

HUGE = 1 << 30


def tables(rows=3, dim=2, std=1.0, **options):
    torch.manual_seed(0)
    declared = {"q": Categorical("q", rows=rows, **options)}
    return Tables({"a": 5, "q": HUGE}, {"a": dim, "q": dim}, std=std, declared=declared)


def look(t, *ids):
    return t.gather([Ask("q", torch.tensor(ids, dtype=torch.int32))])[0]


def test_ids_get_rows_in_training_and_only_there():
    t = tables(admit=2)
    rows = t.arena("q").tables(t.arena("q").weight)["q"].detach()  # out-of-vocabulary, then three rows
    assert rows.shape == (4, 2)
    oov = rows[0]
    for quiet in (t.eval, t.train):
        quiet()
        with torch.no_grad():
            assert torch.equal(look(t, 0, 1, 99, 99), torch.stack([torch.zeros(2), oov, oov, oov]))
    t.train()
    assert torch.equal(look(t, HUGE - 1, 7), torch.stack([oov, oov]))
    found = look(t, 7, 9, HUGE - 1)
    assert torch.equal(found, torch.stack([rows[1], oov, rows[2]]))
    t.eval()
    assert torch.equal(look(t, HUGE - 1, 9, 7, 0), torch.stack([rows[2], oov, rows[1], torch.zeros(2)]))


def test_what_is_pooled_and_what_is_not_share_owners():
    t = tables(rows=9).train()
    ids = torch.tensor([50, 60, 0, 70])
    offsets = torch.tensor([0, 3, 4, 4])
    one, total, mean = t.gather([Ask("q", ids), Ask("q", ids, offsets, False), Ask("q", ids, offsets, True)])
    torch.testing.assert_close(total, torch.stack([one[0] + one[1], one[3], torch.zeros(2)]))
    torch.testing.assert_close(mean, torch.stack([(one[0] + one[1]) / 2, one[3], torch.zeros(2)]))
    assert len(t.arena("q").codes["q"].table) == 3


def test_rows_that_change_hands_begin_anew_and_are_told():
    t = tables(rows=2, evict="lru", std=0.01).train()
    arena = t.arena("q")
    assert arena.renewed() is None
    look(t, 50, 60)
    with torch.no_grad():
        arena.weight[1:] = 5.0
    assert arena.renewed() is None
    look(t, 60)
    assert arena.renewed() is None
    found = look(t, 60, 70)
    assert (found[0] == 5).all()
    assert (found[1].abs() < 1).all()
    start = arena.start["q"]
    assert arena.renewed().tolist() == [start + 2]  # where 50 was
    assert arena.renewed() is None
    assert (arena.weight[1 : start + 2] == 5).all()  # the other table, the row of unknown ids


def test_rows_of_one_step_stay_within_it():
    """Two forward passes before `renewed`: the second takes no row of the first."""
    t = tables(rows=2, evict="lru").train()
    arena = t.arena("q")
    arena.renewed()
    first = look(t, 50, 60)
    second = look(t, 70, 80)
    assert torch.equal(second[0], arena.tables(arena.weight)["q"][0])
    assert torch.equal(look(t, 50, 60), first)
    arena.renewed()
    look(t, 70)
    assert len(arena.renewed()) == 1


def test_several_processes_do_not_share_owners():
    t = tables().train()
    t.arena("q").remote = lambda weight, rows: weight[rows.index.long()]
    with pytest.raises(ConfigError, match="Table 'q' is dynamic, and each of several processes"):
        look(t, 50)


def test_outside_a_trainer_each_pass_is_a_step():
    t = tables(rows=1, evict="lru").train()
    for i in (50, 60, 70):
        found = look(t, i)
        t.eval()
        assert torch.equal(look(t, i), found)
        t.train()


def test_the_gradient_goes_to_the_owner():
    t = tables().train()
    arena = t.arena("q")
    arena.sparse = True
    look(t, 50, 60, 50, 0).sum().backward()
    start = arena.start["q"]
    assert arena.weight.grad.coalesce().indices().tolist() == [[start + 2, start + 3]]
    assert arena.weight.grad.coalesce().values().tolist() == [[2, 2], [1, 1]]


def schema():
    q = Categorical("query", "context", size=HUGE, rows=12, admit=2, evict="lfu")
    return Schema([Categorical("item", "item", size=9), q, Numeric("x", "user")], [Task("click")])


def batches(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "item": torch.randint(0, 9, (20, 1), generator=g),
            "query": (torch.rand(20, generator=g) ** 3 * 60).int() * 9_000_001 + 2,
            "x": torch.randn(20, generator=g),
            "click@label": torch.randint(0, 2, (20, 1), generator=g).float(),
        }
        for _ in range(n)
    ]


def steps(model, some):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    for batch in some:
        optimizer.zero_grad()
        sum(model.losses(batch).values()).backward()
        for arena in (m for m in model.modules() if hasattr(m, "renewed")):
            arena.renewed()
        optimizer.step()
    return model


def test_a_saved_state_goes_on_as_if_nothing_had_been():
    torch.manual_seed(0)
    model = DeepFM(schema(), dim=4, hidden=(8,))
    steps(model, batches(10))
    twin = DeepFM(schema(), dim=4, hidden=(8,))
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    for one in (model, twin):
        torch.manual_seed(1)
        steps(one, batches(10, seed=1))
    state = model.state_dict()
    assert "inputs.tables.4.query@keys" in state
    for name, value in twin.state_dict().items():
        assert torch.equal(value, state[name]), name
    other = Schema([f if f.name != "query" else Categorical("query", "context", size=HUGE, rows=13) for f in schema().features], [Task("click")])  # fmt: skip
    with pytest.raises(RuntimeError, match=r"table 'query' has shape \(13, 4\), this model's has \(14, 4\)"):
        DeepFM(other, dim=4, hidden=(8,)).load_state_dict(state)


def test_the_same_batches_make_the_same_owners():
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(steps(DeepFM(schema(), dim=4, hidden=(8,)), batches(12)))
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_bundle_and_an_exported_graph_serve_the_same(tmp_path):
    from recstack.models.base import load

    model = steps(DeepFM(schema(), dim=4, hidden=(8,)), batches(12)).eval()
    (some,) = batches(1, seed=5)
    del some["click@label"]
    wanted = model(some)["click"]
    model.save(tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(some)["click"], wanted)
    rows = torch.export.Dim("R", min=1, max=4096)
    graph = torch.export.export(model, (some,), dynamic_shapes=({k: {0: rows} for k in some},)).module()
    torch.testing.assert_close(graph(some)["click"], wanted)
    fewer = {k: v[:3] for k, v in some.items()}
    torch.testing.assert_close(graph(fewer)["click"], model(fewer)["click"])


def test_a_table_of_too_many_ids_is_not_laid_out():
    t = tables()
    with pytest.raises(SchemaError, match="Table 'q' is dynamic and has 1073741824 ids, too many"):
        t.weight("q")
    small = Tables({"q": 9}, {"q": 2}, std=1.0, declared={"q": Categorical("q", rows=3)}).train()
    small.gather([Ask("q", torch.tensor([5, 8]))])
    own = small.arena("q").weight
    assert torch.equal(small.weight("q"), own[[1, 1, 1, 1, 2, 1, 1, 3]])
    assert torch.equal(small.by_id("q")[1:], small.weight("q"))


# -- frozen, bfloat16 -------------------------------------------------------------------------------------------------
def test_a_frozen_table_has_no_gradient_and_its_first_order_weights_have():
    frozen = Schema(
        [Categorical("a", "context", size=5, trainable=False), Categorical("b", "context", size=5)], [Task("click")]
    )
    inputs = Inputs(frozen, 4)
    assert dict(inputs.tables.home) == {"a": "4_frozen", "b": "4"}
    batch = {"a": torch.tensor([1, 2]), "b": torch.tensor([1, 2])}
    inputs(batch).flat().sum().backward()
    assert inputs.tables.arena("a").weight.grad is None
    assert not inputs.tables.arena("a").weight.requires_grad
    assert inputs.tables.arena("b").weight.grad is not None
    assert all(p.requires_grad for p in FirstOrder(frozen).parameters())


def test_short_rows_give_vectors_that_are_not(tmp_path):
    half = Schema(
        [Categorical("a", "context", size=50, dtype="bfloat16"), Categorical("b", "item", size=9)], [Task("c")]
    )
    model = DeepFM(half, dim=4, hidden=(8,))
    arena = model.inputs.tables.arena("a")
    assert arena.weight.dtype is torch.bfloat16
    assert model.inputs.tables.arena("b").weight.dtype is torch.float32
    batch = {"a": torch.tensor([3, 4]), "b": torch.tensor([[1], [2]]), "c@label": torch.zeros(2, 1)}
    slots = model.inputs(batch)
    assert slots["a"].dtype is torch.float32
    assert torch.equal(slots["a"], arena.weight[[3, 4]].float())
    assert model.inputs.tables.weight("a").dtype is torch.float32
    steps(model, [batch] * 3).eval()
    from recstack.models.base import load

    again = load(model.save(tmp_path / "m"))
    assert again.inputs.tables.arena("a").weight.dtype is torch.bfloat16
    assert torch.equal(again(batch)["c"], model(batch)["c"])


@pytest.mark.parametrize("sparse", [False, True])
def test_bags_of_short_rows_are_summed_in_float(sparse):
    t = Tables({"a": 900}, {"a": 4}, std=1.0, declared={"a": Categorical("a", dtype="bfloat16")})
    t.arena("a").sparse = sparse
    ids, offsets = torch.arange(1, 800), torch.tensor([0, 700, 799])
    found, mean = t.gather([Ask("a", ids, offsets, False), Ask("a", ids, offsets, True)])
    every = t.arena("a").weight[1:800].double()
    slow = torch.stack([every[:700].sum(0), every[700:].sum(0)])
    torch.testing.assert_close(found.double(), slow, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean.double(), slow / torch.tensor([[700.0], [99.0]]), rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert (t.arena("a").weight.grad.to_dense()[1:800] == 1).all()


# -- one order by row for several arenas --------------------------------------------------------------------------------
def test_equal_lookups_share_their_rows_and_changed_ones_do_not():
    plain = Schema([Categorical("a", "context", size=5), Categorical("b", "context", size=9)], [Task("click")])
    wide, narrow = Inputs(plain, 4), FirstOrder(plain)
    arenas = wide.tables.arena("a"), narrow.inputs.tables.arena("a")
    for arena in arenas:
        arena.sparse, arena.asked = True, []
    batch = {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([8, 0, 8])}
    one = wide(batch).flat().sum()
    two = narrow(batch).sum()
    assert arenas[0].asked[0] is arenas[1].asked[0]
    (one + two).backward(retain_graph=True)
    batch["a"].numpy()[:] = 4  # behind torch's back
    three = narrow(batch).sum()
    assert arenas[0].asked[0] is not arenas[1].asked[1]
    arenas[1].weight.grad = None
    three.backward()
    start = arenas[1].start["b"]
    assert arenas[1].weight.grad.coalesce().indices().tolist() == [[4, start + 8]]


def test_an_index_written_to_after_the_forward_pass_changes_no_gradient():
    plain = Schema([Categorical("a", "context", size=9)], [Task("click")])
    inputs = Inputs(plain, 4)
    inputs.tables.arena("a").sparse = True
    batch = {"a": torch.tensor([1, 2, 3])}
    loss = inputs(batch).flat().sum()
    batch["a"].fill_(7)
    loss.backward()
    assert inputs.tables.arena("a").weight.grad.coalesce().indices().tolist() == [[1, 2, 3]]


def test_nothing_outlives_its_graph():
    import gc

    from recstack.features.tables import _alive

    inputs = Inputs(testing.schema(), 4)
    for arena in inputs.tables.children():
        arena.sparse = True
    inputs(testing.batch(testing.schema(), 3, 2)).flat().sum().backward()
    gc.collect()
    assert len(_alive) == 0


# -- under the Trainer --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam", "adam"])
def test_a_resumed_run_has_the_same_owners_weights_and_state(tmp_path, optimizer):
    from recstack.training import Trainer

    def trainer(model, epochs, folder):
        choice = {"embedding": optimizer, "default": "adam"}
        return Trainer(model, optimizer=choice, epochs=epochs, checkpoint=tmp_path / folder, progress=False)

    def model():
        torch.manual_seed(0)
        return DeepFM(schema(), dim=4, hidden=(8,))

    some = batches(8)
    whole, parts = model(), model()
    trainer(whole, 2, "whole").fit(some)
    trainer(parts, 1, "parts").fit(some)
    torch.manual_seed(99)
    parts = DeepFM(schema(), dim=4, hidden=(8,))
    trainer(parts, 2, "parts").fit(some, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name
    assert int(whole.inputs.tables.arena("query").codes["query"].table.state["clock"][0]) >= 16


def test_the_optimiser_knows_nothing_of_the_owner_before():
    """A row that changes hands has the state that it had before its first step; others keep theirs."""
    from recstack.training import Trainer

    ids = lambda *q: {"item": torch.ones(len(q), 1).int(), "query": torch.tensor(q).int(), "x": torch.ones(len(q)), "click@label": torch.ones(len(q), 1)}  # noqa: E731  # fmt: skip
    one = Schema([f if f.name != "query" else Categorical("query", "context", size=HUGE, rows=2, evict="lru") for f in schema().features], [Task("click")])  # fmt: skip
    norms = {}
    for name, some in {"taken over": [ids(50), ids(60), ids(60), ids(70)], "new": [ids(60), ids(60), ids(70)]}.items():
        torch.manual_seed(0)
        model = DeepFM(one, dim=4, hidden=(8,))
        trainer = Trainer(model, optimizer={"embedding": "rowwise_adagrad", "default": "adam"}, lr={"embedding": 0.1, "default": 1e-4}, epochs=1, progress=False)  # fmt: skip
        trainer.fit(some)
        with torch.no_grad():
            norms[name] = model.first_order.inputs.tables.gather([Ask("query", torch.tensor([70, 60, 50]))])[
                0
            ].flatten()
            oov = model.first_order.inputs.tables.gather([Ask("query", torch.tensor([1]))])[0].flatten()
    # the first step of row-wise Adagrad is lr · sign(g), whatever the gradient: 70 made one, in a row that 50 had
    assert norms["taken over"][0].item() == pytest.approx(0.1, abs=0.01)
    assert norms["new"][0].item() == pytest.approx(0.1, abs=0.01)
    assert norms["taken over"][1].item() > 0.11
    assert norms["taken over"][2] == oov
