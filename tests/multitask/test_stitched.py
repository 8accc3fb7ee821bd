"""Cross-stitch, sluice and soft sharing: networks of the tasks that lean on each other."""

from itertools import combinations

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.multitask import CrossStitch, Sluice, SoftSharing
from recstack.nn.stitch import Stitch
from recstack.schema import Numeric, Schema, Task

TASKS = (Task("click"), Task("like"), Task("share"))


def layer(networks, k, x):
    """The one layer of task k's network."""
    return (x @ networks.stacked()[0][k] + networks.stacked_biases()[0][k]).relu()


def test_a_unit_mixes_each_subspace_with_all():
    unit, x = Stitch(3, 6, subspaces=2), torch.randn(4, 3, 6)
    torch.nn.init.normal_(unit.alpha)
    found = unit(x)
    parts = [x[:, t, s * 3 : s * 3 + 3] for t in range(3) for s in range(2)]
    for t in range(3):
        for s in range(2):
            slow = sum(unit.alpha[2 * t + s, n] * part for n, part in enumerate(parts))
            torch.testing.assert_close(found[:, t, s * 3 : s * 3 + 3], slow)


def test_units_start_with_the_own_task():
    torch.testing.assert_close(Stitch(3, 4).alpha, torch.full((3, 3), 0.05) + 0.85 * torch.eye(3))
    torch.testing.assert_close(Stitch(1, 4).alpha, torch.ones(1, 1))


def test_cross_stitch_by_the_equation():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(CrossStitch(schema, dim=4, hidden=(6, 5), towers=()))
    batch = testing.batch(schema, 3, 2)
    x = [model.trunk.inputs(batch).flat()] * 3
    for networks, unit in zip(model.layers, model.stitches, strict=True):
        h = [layer(networks, k, x[k]) for k in range(3)]
        x = [sum(unit.alpha[t, s] * h[s] for s in range(3)) for t in range(3)]
    for k, t in enumerate(TASKS):
        torch.testing.assert_close(model(batch)[t.name], model.heads.layers[t.name](x[k]).squeeze(-1))


def test_without_stitching_no_task_reads_another():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(CrossStitch(schema, dim=4, hidden=(6, 5), towers=(4,)))
    for unit in model.stitches:
        torch.nn.init.eye_(unit.alpha)
    model(testing.batch(schema, 9, 3))["like"].sum().backward()
    assert model.layers[1].weights[0].grad.flatten(1).any(1).tolist() == [False, True, False]


def test_cross_stitch_has_the_networks_of_single_tasks_and_one_number_for_each_pair():
    schema = Schema([Numeric(f"x{i}", "item") for i in range(100)], TASKS)
    count = sum(p.numel() for p in CrossStitch(schema).parameters())
    single = (100 * 256 + 256) + (256 * 128 + 128) + (128 * 64 + 64) + (64 + 1)
    assert count == 3 * single + 2 * 3 * 3


def test_sluice_reads_all_layers_and_keeps_subspaces_apart():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(Sluice(schema, dim=4, layers=3, width=6, subspaces=3, orthogonality=0.5))
    batch = testing.batch(schema, 3, 2)
    x, total = [model.trunk.inputs(batch).flat()] * 3, 0.0
    for i, (networks, unit) in enumerate(zip(model.layers, model.stitches, strict=True)):
        x = unit(torch.stack([layer(networks, k, x[k]) for k in range(3)], -2)).unbind(-2)
        total = total + torch.stack([model.beta[k, i] * x[k] for k in range(3)], -2)
    for k, t in enumerate(TASKS):
        torch.testing.assert_close(model(batch)[t.name], model.heads.layers[t.name](total[..., k, :]).squeeze(-1))
    slow = sum(
        (networks.stacked()[0][k][:, 2 * i : 2 * i + 2].T @ networks.stacked()[0][k][:, 2 * j : 2 * j + 2])
        .square()
        .sum()
        for networks in model.layers
        for k in range(3)
        for i, j in combinations(range(3), 2)
    )
    torch.testing.assert_close(model.losses(batch)["subspaces"], 0.5 * slow)


def test_soft_sharing_is_the_distance_of_every_pair():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(SoftSharing(schema, dim=4, hidden=(6, 5), towers=(4,), l2=0.1))
    some = [*model.networks.stacked(), *model.networks.stacked_biases()]
    slow = sum((p[a] - p[b]).square().sum() for p in some for a, b in combinations(range(3), 2))
    torch.testing.assert_close(model.losses(testing.batch(schema))["distance"], 0.1 * slow)
    with torch.no_grad():
        for p in (*model.networks.parameters(),):
            p.zero_()
    assert model.distance() == 0


def test_a_width_that_cannot_be_cut_is_said():
    with pytest.raises(ConfigError, match="width 64 cannot be cut into 3"):
        Sluice(testing.schema(tasks=TASKS), subspaces=3)
