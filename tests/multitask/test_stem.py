"""STEM and AME: who learns from whom, and what is read."""

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.multitask import AME, STEM
from recstack.models.ranking import DCNv2, DeepFM
from recstack.schema import Task

TASKS = (Task("click"), Task("like"), Task("share"))
M, S, H = 2, 3, 5


def made(**options):
    schema = testing.schema(tasks=TASKS)
    options = {"dim": 4, "shared": S, "specific": M, "hidden": (H,), "gate_hidden": (6,), "towers": (4,), **options}
    return testing.wake(STEM(schema, **options)), schema


def one(networks, e, x):
    return (x @ networks.weights[0][e] + networks.biases[0][e]).relu()


def looped(model, streams, shared, k):
    """z of task k: the others' experts detached, its own and the shared ones not, each of them once."""
    g = (one(model.gate_networks, k, streams[k] + shared) @ model.gates.weight[k].T).softmax(-1)
    assert g.shape[-1] == 3 * M + S
    total = 0.0
    for j in range(3):
        for i in range(M):
            out = one(model.experts, j * M + i, streams[j])
            total = total + g[..., j * M + i, None] * (out if j == k else out.detach())
    for i in range(S):
        total = total + g[..., 3 * M + i, None] * one(model.experts, 3 * M + i, shared)
    return total


@pytest.mark.parametrize("fields", [None, ("item_id", "age", "watched")])
def test_stem_by_the_equation_with_its_gradients(fields):
    model, schema = made(task_specific_fields=fields, history="attention")
    batch = testing.batch(schema, 5, 3)
    own, shared = model._streams(batch)
    leaves = [own.detach().requires_grad_(), shared.detach().requires_grad_()]
    model._streams = lambda batch: leaves
    for k, t in enumerate(TASKS):
        found = model(batch)[t.name]
        streams, common = leaves[0].unbind(-2), leaves[1].squeeze(-2)
        slow = model.answer(torch.stack([looped(model, streams, common, k)] * 3, -2), batch)[t.name]
        torch.testing.assert_close(found, slow)
        for a, b in zip(torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(slow.sum(), leaves), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fields", [None, ("item_id", "watched")])
def test_a_task_moves_its_own_tables_and_the_shared_ones_only(fields):
    model, schema = made(task_specific_fields=fields)
    model(testing.batch(schema, 16, 3))["like"].sum().backward()
    moved = [any(p.grad is not None and p.grad.any() for p in own.parameters()) for own in model.own]
    assert moved == [False, True, False]
    assert all(p.grad is not None and p.grad.any() for p in model.trunk.inputs.parameters())
    experts = model.experts.weights[0].grad.flatten(1).any(1).tolist()
    assert experts == [False, False, True, True, False, False, True, True, True]


def test_all_tasks_are_read_forward():
    model, schema = made()
    batch = testing.batch(schema, 5, 3)
    before = model(batch)["click"]
    with torch.no_grad():
        for p in model.own[2].parameters():
            p.add_(1)
    assert (model(batch)["click"] - before).abs().max() > 1e-3


def test_only_the_chosen_fields_have_tables_of_each_task():
    model, _ = made(task_specific_fields=("genre",))
    assert [list(own.widths) for own in model.own] == [["genre"]] * 3
    batch = testing.batch(model.schema, 3, 2)
    own, shared = model._streams(batch)
    differs = (own[..., 0, :] - shared[..., 0, :]).abs().amax((0, 1)) > 0
    assert int(differs.sum()) == 4
    with pytest.raises(ConfigError, match="Unknown task-specific field 'gnre'"):
        made(task_specific_fields=("gnre",))


def test_ame_by_the_equation():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(AME(schema, dims=(6, 3), experts=M, hidden=(H,), towers=(4,)))
    assert [t.inputs.tables.dims["item_id"] for t in (model.trunk, *model.others)] == [6, 3]
    batch = testing.batch(schema, 3, 2)
    x = [t.inputs(batch).flat() for t in (model.trunk, *model.others)]
    outputs = [one_of(model.experts[m], e, x[m]) for m in range(2) for e in range(M)]
    for k, t in enumerate(TASKS):
        g = (torch.cat(x, -1) @ model.gates.weight[k].T).softmax(-1)
        z = sum(g[..., e, None] * out for e, out in enumerate(outputs))
        torch.testing.assert_close(model(batch)[t.name], model.answer(torch.stack([z] * 3, -2), batch)[t.name])


def one_of(networks, e, x):
    rows = slice(e * H, (e + 1) * H)
    return (x @ networks.first.weight[rows].T + networks.first.bias[rows]).relu()


def test_each_table_may_have_an_interaction_of_its_own():
    schema = testing.schema(tasks=TASKS)
    model = AME(schema, dims=(4, 3), hidden=(H,), trunk=(DCNv2, DeepFM))
    assert [type(t.model) for t in (model.trunk, *model.others)] == [DCNv2, DeepFM]
    assert model(testing.batch(schema))["share"].shape == (3, 2)
    with pytest.raises(ConfigError, match="a trunk for each table"):
        AME(schema, dims=(4, 3), trunk=(DCNv2,))
