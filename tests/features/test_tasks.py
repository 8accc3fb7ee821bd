"""Tasks: which rows count, what the labels of products are, and that loss and metric see the same rows."""

import math

import pytest
import torch
import torch.nn.functional as F

from recstack import testing
from recstack.errors import DataError, SchemaError
from recstack.features import Heads, tasks
from recstack.schema import Categorical, Schema, Task

NAN = float("nan")
CHAIN = (
    Task("click"),
    Task("cart", given="click"),
    Task("order", given="cart"),
    Task("carted", product=("click", "cart")),
    Task("ordered", product=("click", "cart", "order")),
)


def schema(*declared: Task) -> Schema:
    return Schema([Categorical("user", "user", size=9), Categorical("item", "item", size=9)], declared)


def labels(**columns) -> dict[str, torch.Tensor]:
    return {f"{name}@label": torch.tensor([values], dtype=torch.float32) for name, values in columns.items()}


def test_a_condition_hides_rows_and_a_missing_condition_hides_what_depends_on_it():
    batch = labels(click=[1, 1, 0, NAN, 1, 1], cart=[1, 0, 0, 1, NAN, 1], order=[1, 1, 1, 1, 1, NAN])
    found = tasks.targets(batch, schema(*CHAIN))
    assert found["click"].where.tolist() == [[True, True, True, False, True, True]]
    assert found["cart"].where.tolist() == [[True, True, False, False, False, True]]
    assert found["order"].where.tolist() == [[True, False, False, False, False, False]]
    assert all(t.label.isfinite().all() for t in found.values())


def test_a_products_label_is_zero_as_soon_as_a_member_is():
    batch = labels(click=[1, 1, 0, 0, NAN, 1, NAN], cart=[1, 0, 1, NAN, 0, NAN, 1], order=[1, NAN, NAN, 1, 1, 1, 1])
    found = tasks.targets(batch, schema(*CHAIN))
    assert found["carted"].label.tolist() == [[1, 0, 0, 0, 0, 0, 0]]
    assert found["carted"].where.tolist() == [[True, True, True, True, True, False, False]]
    assert found["ordered"].label[found["ordered"].where].tolist() == [1, 0, 0, 0, 0]
    assert found["ordered"].where.tolist() == [[True, True, True, True, True, False, False]]


def test_dead_candidates_count_nothing_and_weights_reach_the_rows():
    batch = labels(click=[1, 0, 1])
    batch["@mask"] = torch.tensor([[True, True, False]])
    batch["@weight"] = torch.tensor([2.0])
    label, where, weight = tasks.target(batch, schema(Task("click")), "click")
    assert where.tolist() == [[True, True, False]]
    assert label.tolist() == [[1, 0, 0]]
    assert weight.tolist() == [[2, 2, 2]]


def test_log1p_is_undone_in_predictions():
    declared = schema(Task("stay", kind="regression", transform="log1p", label="seconds"))
    found = tasks.target(labels(seconds=[0, 9, -3]), declared, "stay")
    torch.testing.assert_close(found.label, torch.tensor([[0.0, math.log(10), 0.0]]))
    predicted = tasks.predictions({"stay": torch.tensor([math.log(10)])}, declared)["stay"]
    torch.testing.assert_close(predicted, torch.tensor([9.0]))


def test_a_missing_label_column_is_named():
    with pytest.raises(DataError, match="no label 'seconds', which task 'stay' learns from"):
        tasks.target({}, schema(Task("stay", kind="regression", label="seconds")), "stay")


def test_losses_are_the_mean_over_live_rows_times_the_tasks_weight():
    declared = schema(Task("click"), Task("cart", given="click", weight=0.5), Task("extra", weight=0))
    batch = labels(click=[1, 0, NAN, 1], cart=[0, 1, 1, 1])
    logits = {name: torch.tensor([[0.3, -1.0, 2.0, 0.7]]) for name in ("click", "cart", "extra")}
    found = tasks.losses(logits, batch, declared)
    assert set(found) == {"click", "cart"}  # weight 0 has no loss, and its label is not asked for
    z = logits["click"][0]
    click = F.binary_cross_entropy_with_logits(z[[0, 1, 3]], torch.tensor([1.0, 0.0, 1.0]))
    cart = F.binary_cross_entropy_with_logits(z[[0, 3]], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found["click"], click)
    torch.testing.assert_close(found["cart"], 0.5 * cart)


def test_no_live_row_is_a_loss_of_zero_with_zero_gradients():
    declared = schema(*CHAIN)
    batch = labels(click=[0, 0], cart=[NAN, 0], order=[NAN, NAN])
    logits = {t.name: torch.randn(1, 2, requires_grad=True) for t in declared.tasks}
    found = tasks.losses(logits, batch, declared)
    assert found["cart"].item() == found["order"].item() == 0
    sum(found.values()).backward()
    assert not logits["cart"].grad.any()
    assert logits["click"].grad.isfinite().all()


def test_a_schema_in_which_nothing_is_learned_is_refused():
    with pytest.raises(SchemaError, match="No task has a loss"):
        tasks.losses({"click": torch.zeros(1, 1)}, labels(click=[1]), schema(Task("click", weight=0)))


def test_a_products_logit_is_the_logit_of_the_product():
    logits = {name: torch.randn(3, 2) for name in ("click", "cart", "order")}
    found = tasks.derive(logits, schema(*CHAIN))
    assert list(found) == [t.name for t in CHAIN]
    p = [logits[n].double().sigmoid() for n in ("click", "cart", "order")]
    torch.testing.assert_close(found["ordered"].double(), (p[0] * p[1] * p[2]).logit(), rtol=1e-4, atol=1e-5)


def test_links_by_kind():
    declared = schema(
        Task("click"), Task("stars", kind="regression"), Task("shelf", kind="multiclass", classes=3), Task("b")
    )
    logits = {
        "click": torch.tensor([[0.0]]),
        "stars": torch.tensor([[3.5]]),
        "shelf": torch.zeros(1, 1, 3),
        "b": torch.ones(1, 1),
    }
    found = tasks.predictions(logits, declared)
    assert found["click"].item() == 0.5
    assert found["stars"].item() == 3.5
    torch.testing.assert_close(found["shelf"], torch.full((1, 1, 3), 1 / 3))


def test_loss_and_metric_count_the_same_rows():
    declared = schema(Task("click", metric="logloss"), Task("cart", given="click", metric="logloss"))
    batch = labels(click=[1, 0, NAN, 1, 1], cart=[0, 1, 1, 1, NAN])
    batch["@mask"] = torch.tensor([[True, True, True, True, True]])
    batch["user"] = torch.tensor([3])
    logits = {name: torch.randn(1, 5) for name in ("click", "cart")}
    loss = tasks.losses(logits, batch, declared)
    meters = tasks.meters(declared)
    tasks.update_meters(meters, logits, batch, declared)
    for name in ("click", "cart"):
        assert float(meters[f"{name}/logloss"].compute()) == pytest.approx(float(loss[name]), rel=1e-5)


def test_the_tasks_own_metric_stands_first():
    assert tasks.metric_names(Task("click", metric="logloss")) == ("logloss", "auc")
    assert tasks.metric_names(Task("stay", kind="regression")) == ("mae", "rmse")


def test_equal_scores_earn_nothing_by_the_order_of_a_list():
    declared = schema(Task("click", metric="hit_rate@1"))
    meters = tasks.meters(declared)
    batch = {"click@label": torch.tensor([[1.0, 0.0, 0.0, 0.0]])}
    tasks.update_meters(meters, {"click": torch.zeros(1, 4)}, batch, declared)
    assert float(meters["click/hit_rate@1"].compute()) == pytest.approx(1 / 4)


# -- heads ------------------------------------------------------------------------------------------------------------
def test_one_head_a_task_and_none_for_products():
    declared = schema(*CHAIN, Task("shelf", kind="multiclass", classes=3))
    heads = Heads(declared, 4)
    assert set(heads.layers) == {"click", "cart", "order", "shelf"}
    hidden, plus = torch.randn(2, 3, 4), torch.randn(2, 3)
    found = heads(hidden, plus=plus)
    assert list(found) == [t.name for t in declared.tasks]
    torch.testing.assert_close(found["cart"], heads.layers["cart"](hidden).squeeze(-1) + plus)
    assert found["shelf"].shape == (2, 3, 3)
    by_task = heads(dict.fromkeys(heads.layers, hidden), plus=dict.fromkeys(heads.layers, plus))
    torch.testing.assert_close(by_task["ordered"], found["ordered"])


def test_without_a_hidden_vector_a_head_is_a_bias():
    heads = Heads(schema(Task("click")), 0)
    assert [p.shape for p in heads.parameters()] == [torch.Size([1])]
    heads.layers["click"].bias.data.fill_(2.0)
    torch.testing.assert_close(heads(None, plus=torch.ones(2, 3))["click"], torch.full((2, 3), 3.0))


def test_logits_stay_float32_under_autocast():
    heads = Heads(schema(Task("click")), 4)
    hidden = torch.randn(50, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = heads(hidden.bfloat16())["click"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, heads(hidden.bfloat16().float())["click"])


def test_heads_need_a_task():
    with pytest.raises(SchemaError, match="nothing to predict"):
        Heads(schema(), 4)


def test_a_random_batch_gives_every_task_a_target():
    declared = testing.schema(tasks=CHAIN)
    for seed in range(5):
        batch = testing.batch(declared, 8, 3, seed, mask=True, missing=0.3)
        for target in tasks.targets(batch, declared).values():
            assert target.label.shape == target.where.shape == (8, 3)
            assert target.label.isfinite().all()
            assert not (target.where & ~batch["@mask"]).any()
