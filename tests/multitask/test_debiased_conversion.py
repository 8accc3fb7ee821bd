"""ESCM2 and its losses: unbiased where the theory says so, and none of the slips that others made."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.features import tasks
from recstack.losses import doubly_robust, inverse_propensity
from recstack.models.multitask import DCMT, ESCM2, MMoE
from recstack.schema import Task

CHAIN = (Task("click"), Task("order", given="click", weight=0.1), Task("ordered", product=("click", "order")))


def simulated(rows=400_000):
    """A prediction's errors, seen where a click is, and more often where they are small."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(rows, generator=g)
    p = 0.05 + 0.5 * x
    error = 2 - 1.5 * x + 0.2 * torch.randn(rows, generator=g)
    return x, error, torch.bernoulli(p, generator=g).bool(), p


# -- the losses -------------------------------------------------------------------------------------------------------
def test_unbiased_when_either_the_propensity_or_the_imputation_is_right():
    x, error, seen, p = simulated()
    truth, imputed, nonsense = float(error.mean()), 2 - 1.5 * x, 0.3 + 0 * x
    assert abs(float(error[seen].mean()) - truth) > 0.1  # what is seen is not what there is
    assert float(inverse_propensity(error, seen, p)) == pytest.approx(truth, abs=0.02)
    assert abs(float(inverse_propensity(error, seen, nonsense)) - truth) > 0.1
    assert float(doubly_robust(error, nonsense, seen, p)) == pytest.approx(truth, abs=0.02)
    assert float(doubly_robust(error, imputed, seen, nonsense)) == pytest.approx(truth, abs=0.02)
    assert abs(float(doubly_robust(error, nonsense, seen, nonsense)) - truth) > 0.1
    assert float(inverse_propensity(error, seen, p, self_normalised=True)) == pytest.approx(truth, abs=0.02)


def test_what_is_not_seen_has_no_say():
    error = torch.tensor([1.0, torch.nan, 3.0, torch.inf], requires_grad=True)
    seen, p = torch.tensor([True, False, True, False]), torch.tensor([0.5, 0.0, 0.5, torch.nan])
    where, weight = torch.tensor([True, True, True, False]), torch.tensor([1.0, 1.0, 2.0, torch.nan])
    found = inverse_propensity(error, seen, p, where=where, weight=weight)
    assert found.item() == pytest.approx((1 * 2 + 2 * 2 * 3) / 4)
    found.backward()
    torch.testing.assert_close(error.grad, torch.tensor([0.5, 0.0, 1.0, 0.0]))
    assert inverse_propensity(error, seen, p, where=torch.zeros(4, dtype=torch.bool)).item() == 0


def test_the_floor_is_of_each_row_and_the_sum_is_not_clipped():
    """PaddleRec clips the weighted sum to [-15, 15], where its gradient is zero."""
    error = torch.tensor([100.0, 100.0], requires_grad=True)
    seen, p = torch.tensor([True, True]), torch.tensor([1e-9, 0.5])
    found = inverse_propensity(error, seen, p, floor=0.01)
    assert found.item() == pytest.approx((100 / 0.01 + 100 / 0.5) / 2)
    found.backward()
    torch.testing.assert_close(error.grad, torch.tensor([50.0, 1.0]))


# -- the model --------------------------------------------------------------------------------------------------------
def built(method, chain=CHAIN, **options):
    schema = testing.schema(tasks=chain)
    model = testing.wake(ESCM2(schema, dim=4, hidden=(6,), method=method, **options)).eval()
    return model, schema, testing.batch(schema, 12, 3, mask=True, weight=True)


@pytest.mark.parametrize("method", ["ips", "dr"])
def test_escm2_by_the_equation(method):
    model, schema, batch = built(method, floor=0.3)
    batch["order@label"][0, 0] = torch.nan
    losses, logits = model.losses(batch), model(batch)
    click, order = batch["click@label"], batch["order@label"]
    live = batch["@mask"] & ~((click == 1) & order.isnan())
    w, seen = batch["@weight"] * live, (click == 1) & live
    ratio = seen / logits["click"].sigmoid().clamp(min=0.3)
    error = F.binary_cross_entropy_with_logits(logits["order"], order.nan_to_num(), reduction="none")
    guess = 0
    if method == "dr":
        h = model.imputers(model.trunk(batch)[0])[..., 0, :]
        label = model.imputed["order"](h).squeeze(-1).sigmoid()
        guess = F.binary_cross_entropy_with_logits(logits["order"], label, reduction="none")
    risk = (w * (guess + ratio * (error - guess))).sum() / w.sum()
    torch.testing.assert_close(losses["order"], 0.1 * risk)
    plain = tasks.losses(logits, batch, schema)
    for name in ("click", "ordered"):
        torch.testing.assert_close(losses[name], plain[name])


def test_a_longer_chain_is_as_likely_as_all_that_comes_before():
    chain = (Task("click"), Task("cart", given="click"), Task("order", given="cart"))
    model, _, batch = built("ips", chain, floor=0.01)
    batch["cart@label"][0, 0] = torch.nan
    logits, mask = model(batch), batch["@mask"]
    click, cart, order = (batch[f"{name}@label"] for name in ("click", "cart", "order"))
    live = mask & ((click == 0) | cart.isfinite())  # a cart that is not known yet hides whether the order is asked for
    w, seen = batch["@weight"] * live, (cart == 1) & (click == 1) & live
    ratio = seen / (logits["click"].sigmoid() * logits["cart"].sigmoid()).clamp(min=0.01)
    error = F.binary_cross_entropy_with_logits(logits["order"], order, reduction="none")
    torch.testing.assert_close(model.losses(batch)["order"], (w * ratio * error).sum() / w.sum())


def test_no_gradient_goes_through_a_propensity_or_an_imputed_label():
    model, _, batch = built("dr")
    model.losses(batch)["order"].backward()
    assert model.heads.layers["click"].weight.grad is None
    assert model.imputed["order"].weight.grad is None
    assert model.heads.layers["order"].weight.grad.any()


def test_rows_that_were_not_clicked_teach_only_through_what_is_imputed():
    for method, taught in (("ips", False), ("dr", True)):
        model, _, batch = built(method, CHAIN[:2])
        batch["click@label"][:] = 0
        model.losses(batch)["order"].backward()
        assert bool(model.heads.layers["order"].weight.grad.any()) == taught


def test_conversions_are_measured_where_they_are_asked_for():
    """PaddleRec measures the conversion on all rows, against click and order: another task's number."""
    model, schema, batch = built("ips")
    meters = tasks.meters(schema)
    tasks.update_meters(meters, model(batch), batch, schema)
    clicked = batch["@mask"] & (batch["click@label"] == 1)
    loss = F.binary_cross_entropy_with_logits(
        model(batch)["order"][clicked], batch["order@label"][clicked], batch["@weight"][clicked], reduction="sum"
    )
    assert meters["order/logloss"].compute().item() == pytest.approx(
        (loss / batch["@weight"][clicked].sum()).item(), rel=1e-4
    )


@pytest.mark.parametrize("each", [False, True])
def test_dcmt_by_the_equation(each):
    schema = testing.schema(tasks=CHAIN)
    trunk = partial(MMoE, experts=2, hidden=(6,), towers=(4,)) if each else None
    model = testing.wake(DCMT(schema, dim=4, hidden=(6,), bond=0.3, floor=0.2, trunk=trunk)).eval()
    batch = testing.batch(schema, 12, 3, mask=True, weight=True)
    batch["order@label"][0, 0] = torch.nan
    losses, found = model.losses(batch), model.predict(batch)
    click, order = batch["click@label"], batch["order@label"]
    x = model.trunk(batch)[0]
    twin = model.twins["order"](model.twin_towers(x[..., 1:2, :] if each else x)[..., 0, :]).squeeze(-1).sigmoid()
    total, sums = 0.0, [0.0, 0.0, 0.0, 0.0]
    for i in batch["@mask"].nonzero().tolist():
        o, y, p, w = (float(t[tuple(i)]) for t in (click, order, found["click"], batch["@weight"]))
        mine, other = float(found["order"][tuple(i)]), float(twin[tuple(i)])
        if o == 1 and y != y:
            continue
        if o == 1:
            ratio = w / max(p, 0.2)
            sums[0] += ratio * -(y * math.log(mine) + (1 - y) * math.log(1 - mine))
            sums[1] += ratio
        else:
            sums[2] += w / max(1 - p, 0.2) * -math.log(other)
            sums[3] += w / max(1 - p, 0.2)
        total += w
    live = batch["@mask"] & ~((click == 1) & order.isnan())
    apart = ((1 - found["order"] - twin).abs() * batch["@weight"])[live].sum() / total
    expected = 0.1 * (sums[0] / sums[1] + sums[2] / sums[3] + 0.3 * float(apart.detach()))
    assert float(losses["order"].detach()) == pytest.approx(expected, rel=1e-4)


def test_dcmt_learns_of_what_was_not_clicked_by_its_twin_alone_and_no_gradient_goes_through_the_propensity():
    schema = testing.schema(tasks=CHAIN[:2])
    for bond in (0.0, 1.0):
        model = testing.wake(DCMT(schema, dim=4, hidden=(6,), bond=bond))
        batch = testing.batch(schema, 12, 3)
        batch["click@label"][:] = 0
        model.losses(batch)["order"].backward()
        assert model.heads.layers["click"].weight.grad is None
        assert model.twins["order"].weight.grad.any()
        assert bool(model.heads.layers["order"].weight.grad.any()) == bool(bond)
    with pytest.raises(SchemaError, match="and none is declared"):
        DCMT(testing.schema(tasks=(Task("click"),)))


def test_escm2_says_what_it_needs():
    for chain in ((Task("click"),), (CHAIN[0], Task("order", given="click", weight=0), CHAIN[2])):
        with pytest.raises(SchemaError, match="and none is declared"):
            ESCM2(testing.schema(tasks=chain))
    with pytest.raises(SchemaError, match="task 'order' has another loss"):
        ESCM2(testing.schema(tasks=(CHAIN[0], Task("order", given="click", loss="focal"))))
    with pytest.raises(ConfigError, match="Unknown method"):
        ESCM2(testing.schema(tasks=CHAIN), method="snips")
