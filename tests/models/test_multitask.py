"""MMoE and ESMM: identities of the papers."""

import math

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import SchemaError
from recstack.models.multitask import ESMM, MMoE
from recstack.schema import Categorical, Numeric, Schema, Task

FUNNEL = (
    Task("click"),
    Task("order", given="click", weight=0),
    Task("ordered", product=("click", "order")),
)


def answered(model, k, task, z):
    """The logit of task k by its tower of one layer, and its head."""
    networks = model.towers.networks
    h = (z @ networks.weights[0][k] + networks.biases[0][k]).relu()
    return model.heads.layers[task](h).squeeze(-1)


# -- MMoE -------------------------------------------------------------------------------------------------------------
def test_mmoe_by_the_equation():
    schema = testing.schema(tasks=[Task("click"), Task("like")])
    model = testing.wake(MMoE(schema, dim=4, experts=3, hidden=(6, 5), towers=(4,)))
    batch = testing.batch(schema, 3, 2)
    x = model.trunk.inputs(batch).flat()
    outputs = model.experts(x)
    for k, task in enumerate(("click", "like")):
        weight = F.softmax(x @ model.gates.weight[k].T, -1)
        z = sum(weight[..., e, None] * outputs[..., e, :] for e in range(3))
        torch.testing.assert_close(model(batch)[task], answered(model, k, task, z))


def test_mmoe_with_one_expert_is_a_shared_bottom():
    schema = testing.schema(tasks=[Task("click"), Task("like")])
    model = testing.wake(MMoE(schema, dim=4, experts=1, hidden=(6,), towers=(4,)))
    batch = testing.batch(schema, 3, 2)
    z = model.experts(model.trunk.inputs(batch).flat())[..., 0, :]
    for k, task in enumerate(("click", "like")):
        torch.testing.assert_close(model(batch)[task], answered(model, k, task, z))


def test_the_papers_sizes_are_the_defaults():
    """Input 100, eight experts of 16, towers of 8, two tasks: gates and experts without the embeddings."""
    schema = Schema([Numeric(f"x{i}", "item") for i in range(100)], [Task("a"), Task("b")])
    count = sum(p.numel() for p in MMoE(schema).parameters())
    experts, gates, towers, heads = 8 * (100 * 16 + 16), 2 * 8 * 100, 2 * (16 * 8 + 8), 2 * (8 + 1)
    assert count == experts + gates + towers + heads


def test_mmoe_measures_its_gates_on_live_rows():
    schema = testing.schema(tasks=[Task("click"), Task("like")])
    model = testing.wake(MMoE(schema, dim=4, experts=3))
    batch = testing.batch(schema, 5, 4, mask=True)
    found = model.measures(batch)
    assert set(found) == {f"{t}/gate/{what}" for t in ("click", "like") for what in ("0", "1", "2", "entropy")}
    for task in ("click", "like"):
        assert sum(float(found[f"{task}/gate/{i}"]) for i in range(3)) == pytest.approx(1)
        assert 0 < float(found[f"{task}/gate/entropy"]) <= math.log(3)
    more = model.measures(testing.pad_lists(batch, schema, 6))
    for name, value in found.items():
        torch.testing.assert_close(more[name], value)


# -- ESMM -------------------------------------------------------------------------------------------------------------
def rows_of_order(model):
    """The gradient of the second tower's first layer."""
    return model.towers.networks.first.weight.grad[8:]


def test_esmm_multiplies_probabilities():
    schema = testing.schema(tasks=FUNNEL)
    model = testing.wake(ESMM(schema, dim=4, hidden=(8,)))
    found = model.predict(testing.batch(schema, 6, 3))
    torch.testing.assert_close(found["ordered"], found["click"] * found["order"])


def test_esmm_learns_conversions_on_all_impressions_and_only_through_the_product():
    schema = testing.schema(tasks=FUNNEL)
    model = testing.wake(ESMM(schema, dim=4, hidden=(8,)))
    batch = testing.batch(schema, 6, 3)
    losses = model.losses(batch)
    assert set(losses) == {"click", "ordered"}
    p = model.predict(batch)["ordered"]
    label = batch["click@label"] * batch["order@label"]
    torch.testing.assert_close(losses["ordered"], F.binary_cross_entropy(p, label))
    losses["ordered"].backward()
    assert (rows_of_order(model).abs().sum(-1) > 0).any()


def test_a_row_that_was_not_clicked_teaches_the_conversion_tower():
    """On the clicked space it could not: that is the sample selection bias of the paper."""
    schema = testing.schema(tasks=FUNNEL)
    model = testing.wake(ESMM(schema, dim=4, hidden=(8,)))
    batch = testing.batch(schema, 4, 2)
    batch["click@label"] = torch.zeros(4, 2)
    batch["order@label"] = torch.full((4, 2), torch.nan)  # nobody knows
    torch.stack(list(model.losses(batch).values())).sum().backward()
    assert (rows_of_order(model).abs().sum(-1) > 0).any()


def test_both_rates_are_recovered():
    """The conversion rate has no loss of its own; it follows from the other two."""
    torch.manual_seed(0)
    schema = Schema([Categorical("item", "item", size=4)], FUNNEL)
    click, order = torch.tensor([0.8, 0.1]), torch.tensor([0.1, 0.6])
    model = ESMM(schema, dim=4, hidden=(8,))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(300):
        item = torch.randint(0, 2, (512, 1))
        clicked = torch.bernoulli(click[item])
        ordered = clicked * torch.bernoulli(order[item])
        batch = {"item": item + 2, "click@label": clicked, "order@label": ordered}
        optimizer.zero_grad()
        torch.stack(list(model.losses(batch).values())).sum().backward()
        optimizer.step()
    found = model.eval().predict({"item": torch.tensor([[2], [3]])})
    torch.testing.assert_close(found["click"].squeeze(1), click, atol=0.06, rtol=0)
    torch.testing.assert_close(found["order"].squeeze(1), order, atol=0.12, rtol=0)


def test_esmm_says_which_tasks_it_needs():
    with pytest.raises(SchemaError, match="Declare Task"):
        ESMM(testing.schema())


def test_products_of_hopeless_logits_stay_finite_in_bfloat16():
    schema = testing.schema(tasks=FUNNEL)
    model = ESMM(schema, dim=4, hidden=(8,))
    for name in ("click", "order"):
        model.heads.layers[name].bias.data.fill_(-80.0)
    batch = testing.batch(schema, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.stack(list(model.losses(batch).values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
