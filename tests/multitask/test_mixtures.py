"""MoE with one gate, and gates that look at the experts' content."""

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError
from recstack.models.multitask import AttentionMMoE, MMoE, MoE
from recstack.nn.gates import TaskQueries
from recstack.schema import Numeric, Schema, Task

TASKS = (Task("click"), Task("like"))


def test_moe_is_mmoe_whose_gates_are_one():
    schema = testing.schema(tasks=TASKS)
    one = testing.wake(MoE(schema, dim=4, experts=3, hidden=(6,), towers=()))
    many = testing.wake(MMoE(schema, dim=4, experts=3, hidden=(6,), towers=()))
    many.load_state_dict(one.state_dict() | {"gates.weight": one.gate.weight.expand(2, -1, -1)}, strict=False)
    batch = testing.batch(schema, 3, 2)
    for name, logit in one(batch).items():
        torch.testing.assert_close(many(batch)[name], logit)


def test_moes_parameters_are_mmoes_less_one_gate():
    schema = Schema([Numeric(f"x{i}", "item") for i in range(100)], TASKS)
    a, b = (sum(p.numel() for p in m(schema).parameters()) for m in (MMoE, MoE))
    assert a - b == 8 * 100


@pytest.mark.parametrize("heads", [1, 3])
def test_task_queries_attend_head_by_head(heads):
    queries = TaskQueries(6, 2, heads)
    experts, d = torch.randn(5, 4, 6), 6 // heads
    keys, values = queries.keys(experts), queries.values(experts)
    found = queries(experts)
    for row in range(5):
        for task in range(2):
            parts = []
            for h in range(heads):
                cut = slice(h * d, (h + 1) * d)
                score = keys[row, :, cut] @ queries.gates.queries[h, task] / d**0.5
                parts.append(sum(a * v for a, v in zip(score.softmax(0), values[row, :, cut], strict=True)))
            torch.testing.assert_close(found[row, task], queries.out(torch.cat(parts)))


def test_the_order_of_experts_means_nothing_to_attention():
    queries, experts = TaskQueries(6, 2, 2), torch.randn(5, 4, 6)
    torch.testing.assert_close(queries(experts[:, [2, 0, 3, 1]]), queries(experts))


def test_attention_gates_are_measured():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(AttentionMMoE(schema, dim=4, experts=3, hidden=(6,), heads=2))
    batch = testing.batch(schema, 5, 4, mask=True)
    found = model.measures(batch)
    assert set(found) == {f"{t.name}/gate/{what}" for t in TASKS for what in ("0", "1", "2", "entropy")}
    assert sum(float(found[f"like/gate/{i}"]) for i in range(3)) == pytest.approx(1)


def test_heads_divide_the_width():
    with pytest.raises(ConfigError, match="cannot be divided among 3 heads"):
        AttentionMMoE(testing.schema(tasks=TASKS), heads=3)
