"""AITM, ESM2, DBMTL and NMTR: the equations, and the task graphs that they refuse."""

from functools import partial

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.losses import mixture_logit
from recstack.models.multitask import AITM, DBMTL, ESM2, ESMM, NMTR, SharedBottom
from recstack.schema import Task

STEPS = (Task("click"), Task("cart"), Task("order"))
BRANCHES = (
    Task("click"),
    Task("cart", given="click", weight=0),
    Task("order", given="click", weight=0),
    Task("carted", product=("click", "cart")),
    Task("ordered", product=("click", "order")),
)


def graph(model, tasks, candidates=2, **options):
    schema = testing.schema(tasks=tasks)
    model = testing.wake(model(schema, dim=4, hidden=(6,), **options)).eval()
    return model, testing.batch(schema, 5, candidates, mask=candidates > 2)


def logit_of(model, task, h):
    layer = model.heads.layers[task]
    return (h @ layer.weight.T + layer.bias).squeeze(-1)


# -- AITM -------------------------------------------------------------------------------------------------------------
def test_aitm_by_the_equation():
    model, batch = graph(AITM, STEPS)
    q = model.towers(model.trunk(batch)[0])
    z = q[..., 0, :]
    found = model(batch)
    for t, task in enumerate(("click", "cart", "order")):
        if t:
            step = model.transfers[t - 1]
            parts = [(z @ step.carry.weight.T + step.carry.bias).relu(), q[..., t, :]]
            score = [((u @ step.query.weight.T) * (u @ step.key.weight.T)).sum(-1) / 6**0.5 for u in parts]
            weight = torch.stack(score, -1).softmax(-1)
            z = sum(weight[..., i, None] * (u @ step.value.weight.T) for i, u in enumerate(parts))
        torch.testing.assert_close(found[task], logit_of(model, task, z))


def test_the_calibrator_is_the_mean_excess_of_live_rows():
    model, batch = graph(AITM, STEPS, candidates=4, alpha=0.5)
    p = model.predict(batch)
    excess = (p["cart"] - p["click"]).clamp(min=0) + (p["order"] - p["cart"]).clamp(min=0)
    losses = model.losses(batch)
    assert set(losses) == {"click", "cart", "order", "calibrator"}
    torch.testing.assert_close(losses["calibrator"], 0.5 * excess[batch["@mask"]].mean())
    assert losses["calibrator"] > 0
    assert set(graph(AITM, STEPS, alpha=0)[0].losses(batch)) == {"click", "cart", "order"}


def test_only_later_steps_hear_of_earlier_ones():
    model, batch = graph(AITM, STEPS, chain=("order", "click"), alpha=0)
    before = model(batch)
    with torch.no_grad():
        model.transfers[0].value.weight.mul_(2)
    after = model(batch)
    assert (after["click"] != before["click"]).any()
    torch.testing.assert_close(after["order"], before["order"])
    torch.testing.assert_close(after["cart"], before["cart"])  # not in the chain


def test_a_conditional_task_has_no_calibrator():
    schema = testing.schema(tasks=BRANCHES)
    with pytest.raises(ConfigError, match=r"task 'cart' is only asked where 'click' is 1.*alpha=0"):
        AITM(schema)
    AITM(schema, alpha=0.0)
    with pytest.raises(ConfigError, match="Did you mean 'order'"):
        AITM(schema, chain=("click", "ordr"), alpha=0)


# -- ESM2 -------------------------------------------------------------------------------------------------------------
def test_esm2_by_the_equation():
    model, batch = graph(ESM2, BRANCHES)
    *h, without = model.towers(model.trunk(batch)[0]).unbind(-2)
    y1, y2, y3 = (logit_of(model, t, v).sigmoid() for t, v in zip(("click", "cart", "order"), h, strict=True))
    y4 = model.heads.without(without).squeeze(-1).sigmoid()
    found = model.predict(batch)
    wanted = {"click": y1, "cart": y2, "carted": y1 * y2, "order": y4 * (1 - y2) + y3 * y2}
    wanted["ordered"] = y1 * wanted["order"]
    assert list(found) == [t.name for t in BRANCHES]
    for name, p in wanted.items():
        torch.testing.assert_close(found[name], p)
    assert set(model.losses(batch)) == {"click", "carted", "ordered"}


def test_mixtures_stay_finite_where_probabilities_do_not():
    logits = torch.tensor([-90.0, 0.0, 90.0], requires_grad=True)
    z = mixture_logit(*(x.flatten() for x in torch.meshgrid(logits, logits, logits, indexing="ij")))
    z.sum().backward()
    assert z.isfinite().all()
    assert logits.grad.isfinite().all()
    w, y, n = torch.randn(3, 50, dtype=torch.float64)
    p = w.sigmoid() * y.sigmoid() + (1 - w.sigmoid()) * n.sigmoid()
    torch.testing.assert_close(mixture_logit(w, y, n).sigmoid(), p)


def test_esm2_says_what_it_decomposes():
    for tasks in (STEPS, BRANCHES[:2]):
        with pytest.raises(SchemaError, match="an action and the order that it announces"):
            ESM2(testing.schema(tasks=tasks))


# -- DBMTL ------------------------------------------------------------------------------------------------------------
def test_dbmtl_by_the_equation_whatever_the_order_of_the_tasks():
    tasks = (Task("order"), Task("click"), Task("cart"))
    parents = {"order": ("cart", "click"), "cart": ("click",)}
    model, batch = graph(DBMTL, tasks, relation=(5,), parents=parents)
    own = dict(zip(("order", "click", "cart"), model.towers(model.trunk(batch)[0]).unbind(-2), strict=True))
    r = {}
    for task in ("click", "cart", "order"):
        layer = model.relations[task].first
        x = torch.cat([own[task], *(r[p] for p in parents.get(task, ()))], -1)
        r[task] = (x @ layer.weight.T + layer.bias).relu()
        torch.testing.assert_close(model(batch)[task], logit_of(model, task, r[task]))


@pytest.mark.parametrize("detach", [False, True])
def test_a_child_shapes_its_parent_unless_it_is_detached(detach):
    model, batch = graph(DBMTL, BRANCHES, detach=detach)  # parents are what a task is given
    model(batch)["cart"].sum().backward()
    reached = model.relations["click"].first.weight.grad
    assert (reached is None) == detach


def test_a_network_of_targets_has_no_circle():
    schema = testing.schema(tasks=STEPS)
    with pytest.raises(ConfigError, match="click, cart are each other's parents in a circle"):
        DBMTL(schema, parents={"click": ("cart",), "cart": ("click",)})
    with pytest.raises(ConfigError, match="task in parents="):
        DBMTL(schema, parents={"clik": ("cart",)})
    with pytest.raises(ConfigError, match="DBMTL links tasks"):
        DBMTL(schema)


# -- NMTR -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("interaction", ["gmf", "mlp", "neumf"])
@pytest.mark.parametrize("carry", ["prob", "logit"])
def test_nmtr_by_the_equation(interaction, carry):
    model, batch = graph(NMTR, STEPS, interaction=interaction, carry=carry)
    found, said = model(batch), 0
    for k, task in enumerate(("click", "cart", "order")):
        parts = []
        if interaction != "mlp":
            p, q = (model.keys(batch)[n] for n in ("user_id", "item_id"))
            parts.append(p.unsqueeze(1) * q)
        if interaction != "gmf":
            parts.append(model.mlps(model.trunk(batch)[0])[..., k, :])
        logit = logit_of(model, task, torch.cat(parts, -1)) + said
        torch.testing.assert_close(found[task], logit)
        said = logit.sigmoid() if carry == "prob" else logit
    assert set(model.losses(batch)) == {"click", "cart", "order"}  # of keys alone, which have no trunk, too


def test_nmtr_says_what_it_cannot_do():
    with pytest.raises(SchemaError, match=r"task 'cart' is given 'click'"):
        NMTR(testing.schema(tasks=BRANCHES))
    with pytest.raises(ConfigError, match="keys alone"):
        NMTR(testing.schema(tasks=STEPS), interaction="gmf", trunk=SharedBottom)


# -- ESMM's bound -----------------------------------------------------------------------------------------------------
def test_a_direct_head_and_the_product_bind_each_other():
    chain = (Task("click"), Task("order", given="click", weight=0), Task("ordered", product=("click", "order")))
    model, batch = graph(ESMM, (*chain, Task("bought", label="order")), candidates=4, direct="bought", bound=0.5)
    live = batch["@mask"]
    p, q = (torch.distributions.Bernoulli(model.predict(batch)[n][live]) for n in ("ordered", "bought"))
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    found = model.losses(batch)["ordered/bought"]
    torch.testing.assert_close(found, 0.5 * both.mean())
    found.backward()
    assert all(model.heads.layers[name].weight.grad.any() for name in ("click", "order", "bought"))
    with pytest.raises(SchemaError, match="direct='order' predicts what the product does"):
        ESMM(testing.schema(tasks=chain), direct="order")


# -- together ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("trunk", [partial(NMTR, dim=4, hidden=(5,)), partial(AITM, alpha=0.0, hidden=(5,))])
def test_task_graphs_are_trunks_of_each_other(trunk):
    model, batch = graph(DBMTL, STEPS, parents={"order": ("click",)}, trunk=trunk)
    assert {n: v.shape for n, v in model(batch).items()} == dict.fromkeys(("click", "cart", "order"), (5, 2))
    model, batch = graph(ESM2, BRANCHES, trunk=partial(ESM2, hidden=(5,)))
    assert model(batch)["ordered"].shape == (5, 2)


def test_exported_under_the_same_names():
    """pCTR, pCVR and pCTCVR are outputs of one graph, the exported one too."""
    model, batch = graph(ESM2, BRANCHES)
    inputs = {k: v for k, v in batch.items() if "@label" not in k}
    served = torch.export.export(model, (inputs,)).module()(inputs)
    assert list(served) == list(model.predict(batch)) == [t.name for t in BRANCHES]
    for name, p in model.predict(batch).items():
        torch.testing.assert_close(served[name].sigmoid(), p)
