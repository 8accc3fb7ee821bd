"""Ranking models against published parameter counts and the papers' equations written out."""

import itertools

import pytest
import torch

from recstack import testing
from recstack.errors import ConfigError, SchemaError
from recstack.models.ranking import DIN, FM, LR, DCNv2, DeepFM
from recstack.nn.mlp import MLP
from recstack.schema import Categorical, History, Numeric, Schema, Task

# The published counts are of Frappe: ten fields, 5,389 ids with one extra row a field. An arena has one padding row more.
SIZES = (958, 4083, 8, 8, 3, 3, 10, 81, 234, 11)
FRAPPE = Schema([Categorical(f"f{i}", size=n) for i, n in enumerate(SIZES)], [Task("click")])


@pytest.mark.parametrize(
    ("model", "published", "padding"),
    [
        (LR(FRAPPE), 5_390, 1),
        (FM(FRAPPE), 59_280, 11),
        (DeepFM(FRAPPE), 423_280, 11),
        (DCNv2(FRAPPE, layers=4), 458_391, 10),
        (DCNv2(FRAPPE, layers=4, structure="stacked", hidden=(), norm=None), 94_391, 10),
    ],
    ids=["LR", "FM", "DeepFM", "DCNv2", "CrossNetV2"],
)
def test_parameters_are_as_many_as_published(model, published, padding):
    assert sum(n - 1 for n in SIZES) == 5_389
    assert sum(p.numel() for p in model.parameters()) == published + padding


def test_the_multilayer_perceptron_has_the_published_parameters():
    layers = ((100, 400), (400, 400), (400, 400))
    written_out = sum(i * o + o + 2 * o for i, o in layers)
    assert sum(p.numel() for p in MLP(100, (400, 400, 400), norm="batch").parameters()) == written_out
    assert 5_389 * 10 + written_out + 401 == 417_891  # the published DNN


def shallow() -> tuple[Schema, dict[str, torch.Tensor]]:
    schema = Schema(
        [
            Categorical("user", "user", size=5),
            Categorical("item", "item", size=7),
            Numeric("price", "item"),
            Numeric("age", "user"),
        ],
        [Task("click")],
    )
    return schema, testing.batch(schema, 3, 2)


def weights(model, batch, table_of) -> list[torch.Tensor]:
    """[R, L, ...] for each of user, item, price, age: table rows times 1, or a vector times the number."""
    user = table_of("user")[batch["user"].long() - 1].unsqueeze(1).expand(3, 2, -1)
    return [user, table_of("item")[batch["item"].long() - 1]]


def test_lr_is_a_sum_of_weights():
    schema, batch = shallow()
    model = testing.wake(LR(schema))
    line = model.first_order["click"]
    user, item = weights(model, batch, line.inputs.tables.weight)
    slow = model.heads.layers["click"].bias + user[..., 0] + item[..., 0]
    slow = slow + line.numbers["price"].weight[0, 0] * batch["price"]
    slow = slow + line.numbers["age"].weight[0, 0] * batch["age"].unsqueeze(1)
    torch.testing.assert_close(model(batch)["click"], slow)


def test_fm_is_a_line_and_all_pairs_and_numbers_multiply_their_vector():
    schema, batch = shallow()
    model = testing.wake(FM(schema, dim=3))
    fields = weights(model, batch, model.inputs.tables.weight)
    fields.append(batch["price"].unsqueeze(-1) * model.inputs.lifts["price"].weight[:, 0])
    fields.append((batch["age"].unsqueeze(-1) * model.inputs.lifts["age"].weight[:, 0]).unsqueeze(1).expand(3, 2, 3))
    pairs = sum((a * b).sum(-1) for a, b in itertools.combinations(fields, 2))
    line = model.first_order["click"](batch) + model.heads.layers["click"].bias
    torch.testing.assert_close(model(batch)["click"], line + pairs)


def test_fm_without_an_interaction_is_lr():
    schema, batch = shallow()
    fm = testing.wake(FM(schema, dim=3))
    lr = LR(schema)
    lr.load_state_dict({k: v for k, v in fm.state_dict().items() if not k.startswith("inputs.")})
    for p in fm.inputs.parameters():
        p.data.zero_()
    torch.testing.assert_close(fm(batch)["click"], lr(batch)["click"])


def test_shallow_models_learn_each_task_with_its_own_weights():
    schema = testing.schema(tasks=[Task("click"), Task("like")])
    for model in (LR(schema), FM(schema)):
        logits = testing.wake(model)(testing.batch(schema, 4, 3))
        assert (logits["click"] - logits["like"]).std() > 0.01


@pytest.mark.parametrize("model", [LR, FM])
def test_shallow_models_say_that_they_give_one_number_a_row(model):
    with pytest.raises(SchemaError, match="'shelf' is multiclass"):
        model(testing.schema(tasks=[Task("shelf", kind="multiclass", classes=3)]))


def test_deepfm_is_fm_and_mlp_on_one_set_of_embeddings():
    schema, batch = shallow()
    model = testing.wake(DeepFM(schema, dim=3, hidden=(4,), norm=None))
    fields = model.inputs(batch).stack()
    pairs = sum((fields[..., i, :] * fields[..., j, :]).sum(-1) for i, j in itertools.combinations(range(4), 2))
    deep = model.heads.layers["click"](model.mlp(fields.flatten(-2))).squeeze(-1)
    torch.testing.assert_close(model(batch)["click"], model.first_order(batch) + pairs + deep)


@pytest.mark.parametrize("rank", [None, 2])
def test_dcnv2_parallel_and_stacked_by_the_equation(rank):
    schema, batch = shallow()
    for structure in ("parallel", "stacked"):
        model = testing.wake(DCNv2(schema, dim=3, layers=2, rank=rank, structure=structure, hidden=(4,), norm=None))
        start = x = model.inputs(batch).flat()
        for layer in model.cross.layers:
            x = start * layer(x) + x
        hidden = torch.cat([x, model.mlp(start)], -1) if structure == "parallel" else model.mlp(x)
        torch.testing.assert_close(model(batch)["click"], model.heads.layers["click"](hidden).squeeze(-1))


def test_dcnv2_guesses_the_structure():
    with pytest.raises(ConfigError, match="Did you mean 'parallel'"):
        DCNv2(testing.schema(), structure="paralel")


def test_din_pools_the_history_anew_for_each_target():
    schema = Schema(
        [
            Categorical("user", "user", size=5),
            Categorical("item", "item", size=30),
            History("seen", of=("item",)),
        ],
        [Task("click")],
    )
    model = testing.wake(DIN(schema, dim=4, hidden=(6,), attention=(5,)))
    batch = testing.batch(schema, 3, 2)
    slots, unit = model.inputs(batch), model.inputs.poolings["seen"]
    items, (steps, mask) = slots["item"], slots.sequence("seen")
    for r in range(3):
        for l in range(2):
            e, t = steps[r, mask[r]], items[r, l]
            q = t.expand_as(e)
            pooled = (unit.score(unit.first(torch.cat([q, e, q - e, q * e], -1))) * e).sum(0)
            torch.testing.assert_close(slots["seen"][r, l], pooled)
    x = torch.cat([slots["user"].unsqueeze(1).expand(3, 2, 4), items, slots["seen"]], -1)
    torch.testing.assert_close(model(batch)["click"], model.heads.layers["click"](model.mlp(x)).squeeze(-1))


def test_din_says_what_it_needs():
    with pytest.raises(SchemaError, match="DIN needs a feature with role='history'"):
        DIN(testing.schema().without("watched"))
