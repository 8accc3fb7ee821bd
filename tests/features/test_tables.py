"""Tables: one arena behind many names, its padding row, its two kinds of gradient, its state."""

import pytest
import torch
from torch import nn

from recstack import testing
from recstack.features import Arena, Inputs, Tables
from recstack.features.tables import Ask

SIZES = {"user": 6, "item": 9, "a.b": 4}


def filled(sizes=SIZES, dim=3) -> Arena:
    return Arena(sizes, dim, 1.0)


def test_tables_lie_behind_each_other_and_share_one_padding_row():
    arena = filled()
    assert arena.weight.shape == (1 + 5 + 8 + 3, 3)
    assert not arena.weight[0].any()
    tables = Tables(SIZES, dict.fromkeys(SIZES, 3), std=1.0)
    ids = torch.tensor([[0, 1], [3, 2]])
    for name in SIZES:
        (found,) = tables.gather([Ask(name, ids)])
        weight = tables.weight(name)
        assert weight.shape == (SIZES[name] - 1, 3)
        assert not found[0, 0].any()
        torch.testing.assert_close(found[1, 0], weight[2])
        torch.testing.assert_close(found[0, 1], weight[0])


def test_several_asks_in_one_gather_are_each_alone():
    tables = Tables(SIZES | {"wide": 5}, {"user": 3, "item": 3, "a.b": 3, "wide": 7}, {"item": "own"}, std=1.0)
    assert len(tables) == 3  # width 3, item's own arena, width 7
    offsets = torch.tensor([0, 2, 2, 3])
    asks = [
        Ask("user", torch.tensor([[1, 5], [0, 2]], dtype=torch.int32)),
        Ask("item", torch.tensor([8, 1])),
        Ask("a.b", torch.tensor([1, 3, 2]), offsets, True),
        Ask("user", torch.tensor([1, 3, 2]), offsets, False),
        Ask("wide", torch.tensor([4])),
        Ask("item", torch.tensor([4, 4, 0]), offsets, True),
    ]
    together = tables.gather(asks)
    for ask, found in zip(asks, together, strict=True):
        (alone,) = tables.gather([ask])
        torch.testing.assert_close(found, alone)
    weight = tables.weight("user")
    torch.testing.assert_close(together[3], torch.stack([weight[0] + weight[2], torch.zeros(3), weight[1]]))
    assert not together[5][2].any()  # a bag of padding is nothing


@pytest.mark.parametrize("jagged", [False, True])
def test_sparse_and_dense_gradients_are_equal(jagged):
    schema = testing.schema()
    batch = testing.batch(schema, 6, 3, jagged=jagged)
    inputs = Inputs(schema, 4, history="attention" if not jagged else "mean", std=0.5)
    grads = {}
    for sparse in (False, True):
        for arena in inputs.tables.children():
            arena.sparse = sparse
        inputs.zero_grad(set_to_none=True)
        inputs(batch).flat().square().sum().backward()
        grads[sparse] = inputs.tables["4"].weight.grad
    assert grads[True].is_sparse
    assert not grads[False].is_sparse
    torch.testing.assert_close(grads[True].to_dense(), grads[False])
    assert not grads[False][0].any()
    rows = grads[True].coalesce().indices()[0]
    assert len(rows) < len(grads[False])


def test_the_padding_row_never_moves():
    schema = testing.schema()
    for sparse in (False, True):
        inputs = Inputs(schema, 4)
        for arena in inputs.tables.children():
            arena.sparse = sparse
        optimizer = (torch.optim.SparseAdam if sparse else torch.optim.Adam)(inputs.tables.parameters(), 0.1)
        for seed in range(3):
            optimizer.zero_grad()
            inputs(testing.batch(schema, 4, 3, seed)).flat().square().sum().backward()
            optimizer.step()
        assert not inputs.tables["4"].weight[0].any()


def test_the_state_has_one_tensor_a_table():
    tables = Tables(SIZES | {"wide": 5}, {**dict.fromkeys(SIZES, 3), "wide": 7}, std=1.0)
    state = tables.state_dict()
    assert sorted(state) == ["3.a.b", "3.item", "3.user", "7.wide"]
    assert state["3.item"].shape == (8, 3)
    other = Tables({"item": 9, "a.b": 4, "wide": 5, "user": 6}, {**dict.fromkeys(SIZES, 3), "wide": 7}, std=1.0)
    other.load_state_dict(state)  # tables in another order
    for name in (*SIZES, "wide"):
        torch.testing.assert_close(other.weight(name), tables.weight(name))
    assert not other["3"].weight[0].any()


def test_a_state_that_does_not_fit_is_named():
    arena = filled()
    state = arena.state_dict()
    with pytest.raises(RuntimeError, match=r"table 'item' has shape \(8, 3\), this model's has \(19, 3\)"):
        filled(SIZES | {"item": 20}).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*more"):
        filled(SIZES | {"more": 3}).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*a\.b"):
        filled({"user": 6, "item": 9}).load_state_dict(state)


def test_a_state_loads_inside_a_larger_model():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = filled({"user": 6})
            self.ab = filled({"user": 7})

    one, two = Two(), Two()
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.ab.weight, one.ab.weight)


def test_initial_values_have_the_deviation_asked_for():
    torch.manual_seed(0)
    arena = Arena({"x": 5000}, 8, 0.02)
    assert arena.weight[1:].std().item() == pytest.approx(0.02, rel=0.02)


def test_views_by_table_reach_optimiser_state():
    arena = filled()
    rows = torch.arange(17.0)
    views = arena.tables(rows)
    assert {n: v.tolist() for n, v in views.items()} == {
        "user": list(range(1, 6)),
        "item": list(range(6, 14)),
        "a.b": list(range(14, 17)),
    }
