"""MMoE, ESMM and STAR: identities of the papers."""

import math

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import SchemaError
from recstack.models.multidomain import STAR
from recstack.models.multidomain.star import _PartitionedNorm, _StarLinear, by_domain
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


# -- STAR -------------------------------------------------------------------------------------------------------------
def star(**options) -> tuple[STAR, Schema]:
    schema = testing.schema(domain=True)
    options = {"dim": 4, "hidden": (8, 6), "auxiliary": (5,), **options}
    return testing.wake(STAR(schema, **options)), schema


def test_star_by_the_equation():
    model, schema = star()
    batch = testing.batch(schema, 9, 2)
    logit = model(batch)["click"]
    slots = model.inputs(batch)
    x = slots.flat("user", "context", "item", "pair", "history")
    assert x.shape[-1] + 4 == model.inputs.width()  # everything but the domain
    wide = slots.flat()
    for r, scene in enumerate(batch["scene"].tolist()):
        p = scene - 1  # row of the statistics; 0 has no domain
        norm = model.norm
        own = (norm.scale[p - 1], norm.shift[p - 1]) if p > 0 else (1.0, 0.0)
        z = (x[r] - norm.mean[max(p, 0)]) / (norm.var[max(p, 0)] + norm.eps).sqrt()
        z = z * (norm.shared_scale * own[0]) + (norm.shared_shift + own[1])
        for i, layer in enumerate(model.star):
            weight = layer.shared.weight * layer.weight[p - 1] if p > 0 else layer.shared.weight
            bias = layer.shared.bias + layer.bias[p - 1] if p > 0 else layer.shared.bias
            z = z @ weight.T + bias
            z = z.relu() if i < 2 else z
        slow = z + model.out(model.auxiliary(wide[r]))
        torch.testing.assert_close(logit[r], slow.squeeze(-1))


def test_all_domains_start_as_the_shared_network():
    schema = testing.schema(domain=True)
    model = STAR(schema, dim=4, hidden=(8,)).eval()
    x = torch.randn(5, 2, model.norm.mean.shape[1])
    one = by_domain(model._network, x, torch.zeros(5, dtype=torch.long), None)
    for p in (1, 2, 3):
        torch.testing.assert_close(by_domain(model._network, x, torch.full((5,), p), None), one)


def test_rows_in_any_order_of_domains_are_one_domain_at_a_time():
    layer = _StarLinear(3, 2, 4)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x, domain = torch.randn(6, 2, 3), torch.tensor([3, 0, 1, 3, 4, 1])
    fast = by_domain(layer, x, domain, None)
    (served,) = layer([x], [domain])  # the form of an exported graph: a matrix for each request
    for r, p in enumerate(domain.tolist()):
        own = (layer.weight[p - 1], layer.bias[p - 1]) if p else (1.0, 0.0)
        slow = x[r] @ (layer.shared.weight * own[0]).T + layer.shared.bias + own[1]
        torch.testing.assert_close(fast[r], slow)
        torch.testing.assert_close(served[r], slow)


def test_dead_rows_are_zeros_and_go_nowhere():
    seen = []

    def network(parts, domains):
        seen.append(([part.shape[0] for part in parts], domains))
        return [part * 2 for part in parts]

    x, domain = torch.randn(3, 2, 4), torch.tensor([2, 1, 2])
    mask = torch.tensor([[True, False], [False, False], [True, True]])
    y = by_domain(network, x, domain, mask)
    assert seen == [([3], [2])]
    torch.testing.assert_close(y, 2 * x * mask.unsqueeze(-1))
    assert not by_domain(network, x, domain, torch.zeros_like(mask)).any()


def test_each_domain_is_normalised_by_its_own_batch():
    norm = _PartitionedNorm(3, 2).train()
    a, b = torch.randn(50, 3) * 4 + 7, torch.randn(30, 3) - 2
    one, two = norm([a, b], [1, 2])
    for y in (one, two):
        torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(y.var(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.mean[1], a.mean(0))  # the first batch sets them
    torch.testing.assert_close(norm.var[2], b.var(0))
    norm([a + 1], [1])
    torch.testing.assert_close(norm.mean[1], a.mean(0) + 0.1)  # the next moves them by a tenth
    torch.testing.assert_close(norm.mean[2], b.mean(0))  # and leaves the domain that is not there


def test_a_single_row_of_a_domain_moves_nothing():
    norm = _PartitionedNorm(3, 2).train()
    a = torch.randn(50, 3)
    norm([a], [1])
    before = {n: v.clone() for n, v in norm.named_buffers()}
    row = torch.randn(1, 3)
    (y,) = norm([row], [1])
    torch.testing.assert_close(y, (row - a.mean(0)) / (a.var(0) + norm.eps).sqrt())
    assert all(torch.equal(v, before[n]) for n, v in norm.named_buffers())


def test_a_domain_not_met_in_training_has_the_statistics_of_all_rows():
    norm = _PartitionedNorm(2, 3).train()
    a, b = torch.randn(400, 2) * 2 + 5, torch.randn(100, 2) - 1
    norm([a, b], [1, 3])
    mean, var = norm.eval().statistics(2)
    every = torch.cat([a, b])
    torch.testing.assert_close(mean, every.mean(0))
    torch.testing.assert_close(var, every.var(0), rtol=0.01, atol=0)
    means, _ = norm.statistics(torch.tensor([2, 1]))
    torch.testing.assert_close(means, torch.stack([every.mean(0), a.mean(0)]))


def test_an_unknown_domain_is_served_by_the_shared_parameters():
    model, schema = star()
    batch = testing.batch(schema, 4, 2)
    batch["scene"][:] = 1  # out of vocabulary
    before = model(batch)["click"]
    with torch.no_grad():
        for layer in model.star:
            layer.weight.normal_()
            layer.bias.normal_()
        model.norm.scale.normal_()
    torch.testing.assert_close(model(batch)["click"], before)
    batch["scene"][:] = 2
    assert (model(batch)["click"] - before).abs().max() > 0.1


def test_a_prediction_does_not_depend_on_the_domains_of_others():
    model, schema = star()
    batch = testing.batch(schema, 6, 2)
    batch["scene"] = torch.tensor([2, 3, 4, 2, 3, 1], dtype=torch.int32)
    alone = model(testing.take(batch, schema, slice(0, 1)))["click"]
    torch.testing.assert_close(model(batch)["click"][:1], alone)
    batch["scene"][1:] = 4
    torch.testing.assert_close(model(batch)["click"][:1], alone)


def test_a_domain_learns_only_from_its_own_rows():
    model, schema = star()
    batch = testing.batch(schema, 8, 2)
    batch["scene"][:] = 3
    sum(model.train().losses(batch).values()).backward()
    for layer in model.star:
        assert layer.weight.grad[1].any()
        assert not layer.weight.grad[[0, 2]].any()


def test_star_wants_one_plain_domain():
    schema = testing.schema()
    with pytest.raises(SchemaError, match="STAR needs a feature with role='domain'"):
        STAR(schema)
    with pytest.raises(SchemaError, match="single-valued Categorical"):
        STAR(schema.with_features(Numeric("scene", "domain")))
