"""CGC and PLE by the paper's equations, expert by expert."""

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.multitask import CGC, PLE
from recstack.schema import Numeric, Schema, Task
from recstack.training import gates

TASKS = (Task("click"), Task("like"), Task("share"))
M, S, H = 2, 3, 5


def expert(level, e, x):
    """Expert e of a level, on its own."""
    networks = level.experts
    if networks.first is None:
        return (x @ networks.weights[0][e] + networks.biases[0][e]).relu()
    rows = slice(e * H, (e + 1) * H)
    return (x @ networks.first.weight[rows].T + networks.first.bias[rows]).relu()


def looped(model, x):
    """The vectors of the tasks before their towers, level by level, gate by gate."""
    tasks = len(model.names)
    own, shared = [x] * tasks, x
    for level in model.levels:
        of_task = [[expert(level, k * M + i, own[k]) for i in range(M)] for k in range(tasks)]
        of_all = [expert(level, tasks * M + i, shared) for i in range(S)]
        new = []
        for k in range(tasks):
            weight = (own[k] @ level.gates.weight[k].T).softmax(-1)
            new.append(sum(weight[..., e, None] * one for e, one in enumerate(of_task[k] + of_all)))
        if level.shared_gate is not None:
            weight = (shared @ level.shared_gate.weight[0].T).softmax(-1)
            every = [one for some in of_task for one in some] + of_all
            assert weight.shape[-1] == len(every)
            shared = sum(weight[..., e, None] * one for e, one in enumerate(every))
        own = new
    return torch.stack(own, -2)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ple_by_the_equation(levels):
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(PLE(schema, dim=4, levels=levels, shared=S, specific=M, hidden=(H,), towers=(4,)))
    batch = testing.batch(schema, 3, 2)
    x, found = model.trunk.inputs(batch).flat(), model.trunk(batch)[0]
    for level in model.levels:
        found = level(found)
    torch.testing.assert_close(found, looped(model, x))
    for name, logit in model.answer(looped(model, x), batch).items():
        torch.testing.assert_close(model(batch)[name], logit)


def test_the_shared_gate_sees_every_expert_of_its_level():
    """Others let it see the shared ones only: then a task's experts teach the next level's shared ones nothing."""
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(PLE(schema, dim=4, levels=2, shared=S, specific=M, hidden=(H,), towers=(4,)))
    assert model.levels[0].shared_gate.experts == 3 * M + S
    model(testing.batch(schema, 40, 5))["like"].sum().backward()
    first = model.levels[0].experts.first.weight.grad.unflatten(0, (3 * M + S, H))
    assert all(one.abs().sum() > 0 for one in first), "another task's experts reach it through the shared gate"
    assert not model.levels[1].experts.weights[0].grad[:M].any(), "and not on the last level"


def test_the_last_level_has_no_shared_gate():
    schema = testing.schema(tasks=TASKS)
    model = PLE(schema, levels=3, hidden=(H,), towers=(4,))
    assert [level.shared_gate is None for level in model.levels] == [False, False, True]


def test_ple_with_one_level_is_cgc():
    schema = testing.schema(tasks=TASKS)
    options = {"dim": 4, "shared": 3, "specific": 1, "hidden": (H, 4), "towers": (4,)}
    one, other = (testing.wake(m) for m in (PLE(schema, levels=1, **options), CGC(schema, **options)))
    other.load_state_dict(one.state_dict())
    batch = testing.batch(schema, 3, 2)
    for name, logit in one(batch).items():
        torch.testing.assert_close(other(batch)[name], logit, rtol=0, atol=0)


def test_one_task_is_allowed():
    schema = testing.schema(tasks=TASKS[:1])
    assert PLE(schema, hidden=(H,), towers=(4,))(testing.batch(schema, 3, 2))["click"].shape == (3, 2)


def test_ples_parameters_are_the_papers():
    """Two tasks, 512 inputs, two levels; experts of one layer of 256, towers of 128 and 64."""
    schema = Schema([Numeric(f"x{i}", "item") for i in range(512)], TASKS[:2])
    count = sum(p.numel() for p in PLE(schema).parameters())
    m, s, tasks = 2, 2, 2
    experts = (tasks * m + s) * ((512 * 256 + 256) + (256 * 256 + 256))
    gates = tasks * (m + s) * (512 + 256) + (tasks * m + s) * 512
    towers = tasks * ((256 * 128 + 128) + (128 * 64 + 64) + (64 + 1))
    assert count == experts + gates + towers


def test_gates_are_measured_by_task_and_the_shared_one_by_its_name():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(PLE(schema, dim=4, shared=1, specific=1, hidden=(H,), towers=(4,)))
    found = model.measures(testing.batch(schema, 3, 2))
    assert {n.rsplit("/", 1)[0] for n in found} == {
        *(f"{t.name}/gate{i}" for t in TASKS for i in (1, 3)),
        "shared/gate2",
    }
    assert sum(float(found[f"shared/gate2/{e}"]) for e in range(4)) == pytest.approx(1)


def test_an_own_expert_that_its_task_does_not_use_is_told_though_others_use_theirs():
    """Each task's own expert came first in its gate, so that one number stood for all tasks' own."""
    schema = testing.schema(tasks=TASKS[:2])
    model = testing.wake(CGC(schema, dim=4, shared=1, specific=1, hidden=(H,), towers=(4,)))
    with torch.no_grad():
        model.levels[0].gates.weight.zero_()
        batch = testing.batch(schema, 3, 2)
        x = model.trunk.inputs(batch).flat()
        model.levels[0].gates.weight[1, 1] = 100 * torch.linalg.lstsq(x.flatten(0, 1), torch.ones(6)).solution
    found = {name: float(value) for name, value in model.measures(batch).items()}
    a, b = TASKS[0].name, TASKS[1].name
    assert {n for n in found if not n.endswith("entropy")} == {
        f"{a}/gate/0",
        f"{a}/gate/2",
        f"{b}/gate/1",
        f"{b}/gate/2",
    }
    assert found[f"{b}/gate/1"] < 0.01 < found[f"{a}/gate/0"]
    assert "No task gives expert 1 of gate" in gates.alarms(found)["gate/idle"]


def test_ple_without_shared_experts_is_refused():
    with pytest.raises(ConfigError, match="needs a level, a shared expert"):
        CGC(testing.schema(tasks=TASKS), shared=0)
