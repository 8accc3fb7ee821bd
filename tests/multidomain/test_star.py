"""STAR: identities of the paper, and what it does with domains."""

from functools import partial

import pytest
import torch

from recstack import testing
from recstack.errors import SchemaError
from recstack.models.multidomain import STAR
from recstack.models.multitask import MMoE
from recstack.nn.domains import by_domain
from recstack.schema import Numeric, Schema, Task


def star(**options) -> tuple[STAR, Schema]:
    schema = testing.schema(domain=True)
    options = {"dim": 4, "hidden": (8, 6), "auxiliary": (5,), **options}
    return testing.wake(STAR(schema, **options)), schema


def test_star_by_the_equation():
    """Its last layer is the head: a domain's own factors and bias, times and beside the shared ones."""
    model, schema = star()
    batch = testing.batch(schema, 9, 2)
    logit = model(batch)["click"]
    slots = model.inputs(batch)
    x = slots.flat("user", "context", "item", "pair", "history")
    assert x.shape[-1] + 4 == model.inputs.width()  # everything but the domain
    head, wide = model.heads.layers["click"], slots.flat()
    for r, scene in enumerate(batch["scene"].tolist()):
        p = scene - 1  # row of the statistics; 0 has no domain
        norm = model.norm
        own = (norm.scale[p - 1], norm.shift[p - 1]) if p > 0 else (1.0, 0.0)
        z = (x[r] - norm.mean[max(p, 0)]) / (norm.var[max(p, 0)] + norm.eps).sqrt()
        z = z * (norm.shared_scale * own[0]) + (norm.shared_shift + own[1])
        for layer in model.star:
            weight = layer.shared.weight * layer.weight[p - 1] if p > 0 else layer.shared.weight
            bias = layer.shared.bias + layer.bias[p - 1] if p > 0 else layer.shared.bias
            z = (z @ weight.T + bias).relu()
        weight = head.weight[0, :6] * model.scale[p - 1] if p > 0 else head.weight[0, :6]
        bias = head.bias + model.bias[p - 1] if p > 0 else head.bias
        slow = z @ weight + bias + model.auxiliary(wide[r]) @ head.weight[0, 6:]
        torch.testing.assert_close(logit[r], slow)


def test_all_domains_start_as_the_shared_network():
    schema = testing.schema(domain=True)
    model = STAR(schema, dim=4, hidden=(8,)).eval()
    x = torch.randn(5, 2, model.norm.mean.shape[1])
    one = by_domain(model._network, x, torch.zeros(5, dtype=torch.long))
    for p in (1, 2, 3):
        torch.testing.assert_close(by_domain(model._network, x, torch.full((5,), p)), one)


def test_an_unknown_domain_is_served_by_the_shared_parameters():
    model, schema = star()
    batch = testing.batch(schema, 4, 2)
    batch["scene"][:] = 1  # out of vocabulary
    before = model(batch)["click"]
    with torch.no_grad():
        for layer in model.star:
            layer.weight.normal_()
            layer.bias.normal_()
        for own in (model.norm.scale, model.scale, model.bias):
            own.normal_()
    torch.testing.assert_close(model(batch)["click"], before)
    batch["scene"][:] = 2
    assert (model(batch)["click"] - before).abs().max() > 0.1


def test_a_domain_learns_only_from_its_own_rows():
    model, schema = star()
    batch = testing.batch(schema, 8, 2)
    batch["scene"][:] = 3
    sum(model.train().losses(batch).values()).backward()
    for own in (*(layer.weight for layer in model.star), model.scale, model.bias):
        assert own.grad[1].any()
        assert not own.grad[[0, 2]].any()


def test_experts_stand_on_a_star():
    schema = testing.schema(tasks=[Task("click"), Task("like")], domain=True)
    model = testing.wake(MMoE(schema, dim=4, experts=2, trunk=partial(STAR, hidden=(8, 6), auxiliary=(5,))))
    assert model.trunk.width == 11
    batch = testing.batch(schema, 6, 2)
    before = model(batch)["like"]
    batch["scene"] = 6 - batch["scene"].clamp(min=2)
    assert (model(batch)["like"] - before).abs().max() > 1e-3


def test_star_wants_one_plain_domain():
    schema = testing.schema()
    with pytest.raises(SchemaError, match="STAR needs a feature with role='domain'"):
        STAR(schema)
    with pytest.raises(SchemaError, match="single-valued Categorical"):
        STAR(schema.with_features(Numeric("scene", "domain")))
