"""Factorisation machines and what came after them: published parameter counts, identities, equations written out."""

import itertools

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.ranking import AFM, FEFM, FFM, FM, HOFM, FmFM, FwFM, GwPFM
from recstack.schema import Categorical, Numeric, Schema, Task

SIZES = (958, 4083, 8, 8, 3, 3, 10, 81, 234, 11)
FRAPPE = Schema([Categorical(f"f{i}", size=n) for i, n in enumerate(SIZES)], [Task("click")])
V, F, P = 5_389, 10, 45  # ids with one more a field, fields, pairs


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "published", "padding"),
    [
        (FFM(FRAPPE), 490_400, 91),
        (FwFM(FRAPPE, linear="FeLV"), 107_826, 20),
        (FmFM(FRAPPE, interaction="vectorized"), 59_730, 11),
        (HOFM(FRAPPE), 113_170, 21),
        (HOFM(FRAPPE, shared=True), 59_280, 11),
        (AFM(FRAPPE, attention=128), 60_826, 11),
    ],
    ids=["FFM", "FwFM", "FmFM", "HOFM", "HOFM-shared", "AFM"],
)
def test_parameters_are_the_published_and_one_padding_row_a_width(model, published, padding):
    assert count(model) == published + padding


def test_parameters_without_a_published_number_follow_the_formulas():
    fm = V * 11 + 1 + 11
    assert count(FwFM(FRAPPE, linear="LW")) == fm + P
    assert count(FwFM(FRAPPE, linear="FiLV")) == V * 10 + F * 10 + P + 1 + 10
    assert count(FmFM(FRAPPE)) == count(FEFM(FRAPPE)) == fm + P * 100
    inputs = F * 10 + P
    assert count(FEFM(FRAPPE, hidden=(7,))) == fm + P * 100 + inputs * 7 + 7 + 7
    assert count(GwPFM(FRAPPE, groups="field")) == V * (1 + 100) + 1 + 55 + 101
    assert count(GwPFM(FRAPPE, groups=())) == fm + 1


def world(numbers: bool = True) -> tuple[Schema, dict[str, torch.Tensor]]:
    """Request and candidate fields mixed, so that the order of fields is not the order of features."""
    features = [
        Categorical("item", "item", size=7),
        Categorical("user", "user", size=5),
        Categorical("genre", "item", size=4),
        Categorical("hour", "context", size=6),
        *([Numeric("price", "item"), Numeric("age", "user")] if numbers else []),
    ]
    schema = Schema(features, [Task("click")])
    return schema, testing.batch(schema, 3, 2)


def pairs(fields: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(fields), 2))


def line(model, batch) -> torch.Tensor:
    return model.first_order["click"](batch) + model.heads.layers["click"].bias


# -- identities -------------------------------------------------------------------------------------------------------
def copied(model: torch.nn.Module, fm: torch.nn.Module) -> torch.nn.Module:
    """`model` with the weights of `fm`, whose names they share."""
    assert not model.load_state_dict(fm.state_dict(), strict=False).unexpected_keys
    return model.eval()


@pytest.mark.parametrize(
    ("build", "numbers"),
    [
        (lambda s: FwFM(s, dim=3, linear="LW"), True),
        (lambda s: FmFM(s, dim=3), False),
        (lambda s: FmFM(s, dim=3, interaction="vectorized"), True),
        (lambda s: FEFM(s, dim=3), True),
        (lambda s: GwPFM(s, dim=3, groups=()), True),
        (lambda s: GwPFM(s, dim=3, groups=(("item", "user", "genre", "hour", "price", "age"),)), True),
        (lambda s: HOFM(s, dim=3, order=2), True),
        (lambda s: HOFM(s, dim=3, order=2, shared=True), True),
    ],
    ids=["FwFM", "FmFM", "FvFM", "FEFM", "GwPFM", "GwPFM-named", "HOFM", "HOFM-shared"],
)
def test_it_is_a_factorisation_machine_where_its_weights_are_one(build, numbers):
    schema, batch = world(numbers)
    fm, model = testing.wake(FM(schema, dim=3)), build(schema)
    if isinstance(model, FwFM):
        torch.nn.init.ones_(model.pairs.weight)
    assert fm(batch)["click"].std() > 0.1
    torch.testing.assert_close(copied(model, fm)(batch)["click"], fm(batch)["click"], rtol=1e-5, atol=1e-5)


def test_afm_without_attention_is_a_factorisation_machine_where_p_is_one():
    schema, batch = world()
    fm, model = testing.wake(FM(schema, dim=3)), AFM(schema, dim=3, attention=None)
    model.first_order.load_state_dict(fm.first_order["click"].state_dict())
    model.inputs.load_state_dict(fm.inputs.state_dict())
    torch.nn.init.ones_(model.heads.layers["click"].weight)
    model.heads.layers["click"].bias.data.copy_(fm.heads.layers["click"].bias)
    torch.testing.assert_close(model.eval()(batch)["click"], fm(batch)["click"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_gwpfm_with_a_group_for_each_field_is_ffm():
    schema, batch = world()
    ffm, model = testing.wake(FFM(schema, dim=3)), testing.wake(GwPFM(schema, dim=3, groups="field"), seed=1)
    torch.nn.init.ones_(model.weight)
    model.first_order.load_state_dict(ffm.first_order.state_dict())
    model.heads.load_state_dict(ffm.heads.state_dict())
    names = list(ffm.inputs.widths)
    for i, name in enumerate(names):
        if name in ffm.inputs.tables.home:
            given = ffm.inputs.tables.weight(name)
            arena = model.inputs.tables.arena(name)
            taken = arena.tables(arena.weight)[name]
        else:
            given, taken = ffm.inputs.lifts[name].weight.T, model.inputs.lifts[name].weight.T
        for j, other in enumerate(names):
            if i != j:
                place, group = j - (j > i), model.groups.index(other)
                taken[:, 3 * group : 3 * group + 3] = given[:, 3 * place : 3 * place + 3]
    torch.testing.assert_close(model(batch)["click"], ffm(batch)["click"], rtol=1e-5, atol=1e-5)


# -- equations --------------------------------------------------------------------------------------------------------
def test_ffm_by_the_equation():
    schema, batch = world()
    model = testing.wake(FFM(schema, dim=3))
    fields = model.inputs(batch).stack()

    def vector(i: int, j: int) -> torch.Tensor:
        place = [k for k in range(6) if k != i].index(j)
        return fields[..., i, 3 * place : 3 * place + 3]

    slow = sum((vector(i, j) * vector(j, i)).sum(-1) for i, j in pairs(6))
    torch.testing.assert_close(model(batch)["click"], line(model, batch) + slow)


def test_ffm_keeps_a_frozen_feature_of_its_own_width():
    schema = Schema(
        [Categorical("user", "user", size=5), Categorical("item", "item", size=7, dim=4, trainable=False)],
        [Task("click")],
    )
    model = FFM(schema, dim=3)
    model.inputs.tables.load("item", torch.arange(1, 7), torch.randn(6, 4))
    torch.testing.assert_close(
        model.inputs(testing.batch(schema, 3, 2)).stack()[..., 1, :],
        model.inputs.lifts["item"](model.inputs.tables.by_id("item")[testing.batch(schema, 3, 2)["item"].long()]),
    )


@pytest.mark.parametrize("linear", ["LW", "FeLV", "FiLV"])
def test_fwfm_by_the_equation(linear):
    schema, batch = world()
    model = testing.wake(FwFM(schema, dim=3, linear=linear))
    fields, part, names = model.inputs(batch).stack(), model.first_order["click"], list(model.inputs.widths)
    slow = model.heads.layers["click"].bias + torch.zeros(3, 2)
    for i, name in enumerate(names):
        if linear == "FiLV":
            w = part.weights.weight[0, 3 * i : 3 * i + 3]
        elif linear == "FeLV":
            number = name in ("price", "age")
            w = part.inputs.lifts[name].weight[:, 0] if number else part.inputs(batch).stack()[..., i, :]
        else:
            continue
        slow = slow + (fields[..., i, :] * w).sum(-1)
    if linear == "LW":
        slow = slow + part(batch, fields)
    for r, (i, j) in zip(model.pairs.weight[:, 0], pairs(6), strict=True):
        slow = slow + r * (fields[..., i, :] * fields[..., j, :]).sum(-1)
    torch.testing.assert_close(model(batch)["click"], slow)


def test_fwfm_strengths_are_r_under_the_names_of_the_fields():
    model = FwFM(world()[0])
    names = list(model.inputs.widths)
    assert names == ["user", "hour", "age", "item", "genre", "price"]
    assert list(model.strengths()) == list(itertools.combinations(names, 2))
    torch.nn.init.zeros_(model.pairs.weight)
    model.pairs.weight.data[pairs(6).index((0, 3))] = 0.5
    assert {pair: r for pair, r in model.strengths().items() if r} == {("user", "item"): 0.5}


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_fefm_by_the_equation_with_an_mlp_beside_it_or_not(hidden):
    schema, batch = world()
    model = testing.wake(FEFM(schema, dim=3, hidden=hidden))
    fields, each = model.inputs(batch).stack(), []
    for u, (i, j) in zip(model.pairs.weight.view(-1, 3, 3), pairs(6), strict=True):
        each.append(torch.einsum("...a,ab,...b->...", fields[..., i, :], u + u.T, fields[..., j, :]))
    slow = model.first_order["click"](batch) + sum(each)
    if hidden:
        deep = model.mlp(torch.cat([fields.flatten(-2), torch.stack(each, -1)], -1))
        slow = slow + model.heads.layers["click"](deep).squeeze(-1)
    else:
        slow = slow + model.heads.layers["click"].bias
    torch.testing.assert_close(model(batch)["click"], slow)
    (pair, norm), *_ = model.strengths().items()
    u = model.pairs.weight[:9].view(3, 3)
    assert pair == ("user", "hour")
    assert norm == pytest.approx(float((u + u.T).detach().square().sum().sqrt()))


def test_fmfm_by_the_equation_with_a_matrix_between_two_widths():
    schema, batch = world()
    dims = {"item": 4, "genre": 2, "user": 5}
    schema = schema.replace(
        features=[
            Categorical(f.name, f.role, size=f.size, dim=dims[f.name]) if f.name in dims else f for f in schema.features
        ]
    )
    model = testing.wake(FmFM(schema, dim=3))
    slots, names = model.inputs(batch), list(model.inputs.widths)
    v = slots.flat().split([5, 3, 1, 4, 2, 1], -1)
    torch.testing.assert_close(v[3], slots["item"])
    slow = line(model, batch)
    for matrix, (i, j) in zip(model.pairs.matrices(), pairs(6), strict=True):
        slow = slow + ((v[i] @ matrix) * v[j]).sum(-1)
    torch.testing.assert_close(model(batch)["click"], slow)
    strengths = model.strengths()
    assert list(strengths) == list(itertools.combinations(names, 2))
    assert strengths["user", "hour"] == pytest.approx(float(model.pairs.matrices()[0].detach().norm()))


def test_fmfm_vectorized_by_the_equation():
    schema, batch = world()
    model = testing.wake(FmFM(schema, dim=3, interaction="vectorized"))
    fields, slow = model.inputs(batch).stack(), line(model, batch)
    for m, (i, j) in zip(model.pairs.weight, pairs(6), strict=True):
        slow = slow + (fields[..., i, :] * m * fields[..., j, :]).sum(-1)
    torch.testing.assert_close(model(batch)["click"], slow)
    assert model.strengths()["user", "hour"] == pytest.approx(float(model.pairs.weight[0].detach().norm()))


def test_fmfm_does_not_begin_with_products_of_raw_numbers():
    schema, batch = world()
    model = FmFM(schema, dim=3).eval()
    before = model(batch)["click"]
    loud = model({**batch, "price": batch["price"] * 100, "age": batch["age"] * 100})["click"]
    linear = model.first_order["click"]({**batch, "price": batch["price"] * 100, "age": batch["age"] * 100})
    torch.testing.assert_close(loud - linear, before - model.first_order["click"](batch), atol=0.1, rtol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_hofm_by_the_equation(shared):
    schema, batch = world()
    model = testing.wake(HOFM(schema, dim=3, order=4, shared=shared))
    fields, slow = model.inputs(batch).stack(), line(model, batch)
    for order in (2, 3, 4):
        start = 0 if shared else 3 * (order - 2)
        for chosen in itertools.combinations(range(6), order):
            slow = slow + fields[..., list(chosen), start : start + 3].prod(-2).sum(-1)
    torch.testing.assert_close(model(batch)["click"], slow)


def test_gwpfm_by_the_equation():
    schema, batch = world()
    model = testing.wake(GwPFM(schema, dim=3, groups=(("user", "age"), ("item", "genre"))))
    assert model.groups == ["item + genre", "user + age", "others"]
    group = [1, 2, 1, 0, 0, 2]  # of user, hour, age, item, genre, price
    fields, slow = model.inputs(batch).stack().unflatten(-1, (3, 3)), line(model, batch)
    strengths = model.strengths()
    assert len(strengths) == 6
    for i, j in pairs(6):
        a, b = sorted((group[i], group[j]))
        r = strengths[model.groups[a], model.groups[b]]
        slow = slow + r * (fields[..., i, group[j], :] * fields[..., j, group[i], :]).sum(-1)
    torch.testing.assert_close(model(batch)["click"], slow)


def test_gwpfm_groups_fields_by_role_and_says_what_is_wrong():
    schema, _ = world()
    assert GwPFM(schema).groups == ["item", "user", "context"]
    with pytest.raises(ConfigError, match="Did you mean 'role'"):
        GwPFM(schema, groups="rule")
    with pytest.raises(SchemaError, match="Did you mean 'item'"):
        GwPFM(schema, groups=(("itme",),))
    with pytest.raises(ConfigError, match="'user' is in two groups"):
        GwPFM(schema, groups=(("user", "item"), ("user",)))


def test_afm_by_the_equation():
    schema, batch = world()
    model = testing.wake(AFM(schema, dim=3, attention=5))
    fields = model.inputs(batch).stack()
    first, _, second = model.attention
    products = [fields[..., i, :] * fields[..., j, :] for i, j in pairs(6)]
    scores = [second.weight[0] @ (p @ first.weight.T + first.bias).relu().unsqueeze(-1) for p in products]
    weights = torch.stack([s.squeeze(-1).exp() for s in scores])
    pooled = sum(a.unsqueeze(-1) * p for a, p in zip(weights / weights.sum(0), products, strict=True))
    head = model.heads.layers["click"]
    slow = model.first_order(batch) + pooled @ head.weight[0] + head.bias
    torch.testing.assert_close(model(batch)["click"], slow)
    found = model.strengths(batch)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert found["user", "hour"] == pytest.approx(float((weights / weights.sum(0))[0].mean().detach()), abs=1e-5)


def test_afm_strengths_are_those_of_live_rows():
    schema = world()[0]
    model, some = testing.wake(AFM(schema, dim=3, attention=5)), testing.batch(schema, 3, 2, mask=True)
    more = testing.pad_lists(some, schema, 3)
    assert model.strengths(more) == pytest.approx(model.strengths(some), abs=1e-6)


def test_factorisation_machines_guess_what_was_meant():
    schema, _ = world()
    with pytest.raises(ConfigError, match="Did you mean 'FiLV'"):
        FwFM(schema, linear="FilV")
    with pytest.raises(ConfigError, match="Did you mean 'vectorized'"):
        FmFM(schema, interaction="vectorised")
    with pytest.raises(ConfigError, match="at least 2; got 1"):
        HOFM(schema, order=1)


@pytest.mark.parametrize("model", [FFM, FwFM, FEFM, FmFM, HOFM, GwPFM])
def test_factorisation_machines_learn_each_task_with_a_linear_part_of_its_own(model):
    schema = testing.schema(tasks=[Task("click"), Task("like")])
    logits = testing.wake(model(schema, dim=3))(testing.batch(schema, 4, 3))
    assert (logits["click"] - logits["like"]).std() > 0.01
    with pytest.raises(SchemaError, match="'shelf' is multiclass"):
        model(testing.schema(tasks=[Task("shelf", kind="multiclass", classes=3)]))
