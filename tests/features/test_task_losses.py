"""What a Task's loss, its options and its kind mean for heads, losses, metrics and predictions."""

import dataclasses
import json
import math

import pytest
import torch
import yaml
from torch.testing import assert_close

from recstack import losses, testing
from recstack.errors import ConfigError, SchemaError
from recstack.features import Heads, tasks
from recstack.models import ranking
from recstack.schema import Categorical, Schema, Task

BINS = (0.0, 10.0, 15.0, 60.0)
KINDS = (
    Task("click", loss=("jrc", {"alpha": 0.7})),
    Task("cart", given="click", loss=("focal", {"gamma": 1.0})),
    Task("carted", product=("click", "cart"), loss="ghm"),
    Task("watch", kind="histogram", bins=BINS, given="click", loss="wasserstein", weight=0.5),
    Task("stay", kind="regression", label="watch", loss="weighted_logistic"),
    Task("shelf", kind="multiclass", classes=3, loss=("cross_entropy", {"label_smoothing": 0.1})),
)


def schema(*declared: Task) -> Schema:
    return Schema([Categorical("user", "user", size=9), Categorical("item", "item", size=9)], declared)


def logits_of(declared: Schema, *lead: int) -> dict[str, torch.Tensor]:
    own = {t.name: tasks.outputs(t) for t in declared.tasks if not t.derived}
    random = {n: torch.randn(*lead, k) if k > 1 else torch.randn(*lead) for n, k in own.items()}
    return tasks.derive(random, declared)


# -- losses by name ---------------------------------------------------------------------------------------------------
def test_the_loss_of_a_task_is_its_function_on_its_rows():
    declared = schema(*KINDS)
    batch = testing.batch(declared, 6, 5, mask=True, weight=True, missing=0.2)
    batch["watch@label"] = 70 * torch.rand(6, 5) * batch["click@label"]
    logits = logits_of(declared, 6, 5)
    found = tasks.losses(logits, batch, declared)

    def by_hand(loss, name, **options):
        label, where, weight = tasks.target(batch, declared, name)
        return loss(logits[name], label, where=where, weight=weight, **options)

    assert_close(found["click"], by_hand(losses.jrc, "click", alpha=0.7))
    assert_close(found["cart"], by_hand(losses.focal, "cart", gamma=1.0))
    assert_close(found["carted"], by_hand(losses.ghm, "carted"))
    assert_close(found["watch"], 0.5 * by_hand(losses.wasserstein, "watch", values=BINS))
    assert_close(found["stay"], by_hand(losses.weighted_logistic, "stay"))
    assert_close(found["shelf"], by_hand(losses.cross_entropy, "shelf", label_smoothing=0.1))


def test_what_stands_in_hidden_rows_touches_no_loss_and_no_gradient():
    """Dead candidates, missing labels, and rows whose condition is 0 may hold anything."""
    declared = schema(*KINDS)
    batch = testing.batch(declared, 6, 5, mask=True)
    batch["watch@label"] = 70 * torch.rand(6, 5)
    clean, dirty = logits_of(declared, 6, 5), {}
    for task in declared.tasks:
        where = tasks.target(batch, declared, task).where
        where = where.unsqueeze(-1) if tasks.outputs(task) > 1 else where
        dirty[task.name] = torch.where(where, clean[task.name], torch.nan).requires_grad_()
        clean[task.name].requires_grad_()
    batch["watch@label"] = torch.where(batch["@mask"], batch["watch@label"], torch.nan)
    a, b = tasks.losses(clean, batch, declared), tasks.losses(dirty, batch, declared)
    assert_close(a, b)
    for name in a:
        slopes = [torch.autograd.grad(x[name], y[name], retain_graph=True)[0] for x, y in ((a, clean), (b, dirty))]
        assert_close(*slopes)


def test_the_losses_of_tasks_compile_in_one_graph():
    declared = schema(*KINDS)
    batch = testing.batch(declared, 6, 5, mask=True)
    logits = logits_of(declared, 6, 5)
    compiled = torch.compile(tasks.losses, backend="eager", fullgraph=True)
    assert_close(compiled(logits, batch, declared), tasks.losses(logits, batch, declared))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task("a", loss="focl"), "Unknown loss 'focl'. Did you mean 'focal'"),
        (Task("a", loss=("focal", {"gama": 2})), "Unknown option of the loss 'focal' 'gama'. Did you mean 'gamma'"),
        (Task("a", loss=("focal", {"gamma": -2})), "Option gamma of the loss 'focal' is a number from 0; got -2."),
        (Task("a", loss=("kl", {"values": (0, 1)})), "Unknown option of the loss 'kl' 'values'"),
        (
            Task("a", loss="weighted_logistic"),
            "Task 'a' is binary, and the loss 'weighted_logistic' is not for that kind.",
        ),
        (Task("a", kind="regression", loss="jrc"), "Task 'a' is regression, and the loss 'jrc' is not for that kind."),
        (
            Task("a", kind="histogram", bins=BINS, loss="mse"),
            "'mse' is not for that kind. Choose one of kl, js, wasserst",
        ),
        (
            Task("a", kind="regression", transform="log1p", loss="weighted_logistic"),
            "Task 'a': 'weighted_logistic' learns the value itself; drop transform='log1p'.",
        ),
        (
            Task("a", kind="multiclass", classes=3, loss=("focal", {"alpha": (1.0, 2.0)})),
            "Option alpha of the loss 'focal' is a tuple of 3 numbers, one per class; got (1.0, 2.0).",
        ),
    ],
)
def test_a_loss_that_cannot_be_is_met_when_the_model_is_built(task, said):
    with pytest.raises(ConfigError) as error:
        ranking.LR(schema(task))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_product_has_one_logit():
    declared = (Task("click"), Task("cart", given="click"), Task("both", product=("click", "cart"), loss="jrc"))
    with pytest.raises(ConfigError, match="Task 'both' is a product and has one logit"):
        tasks.check(schema(*declared))


# -- the task itself --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"kind": "histogram"},
            "Task 'a' is a histogram; give bins=, a number of bins from 2 or their ascending values",
        ),
        ({"kind": "histogram", "bins": 1}, "got 1."),
        ({"kind": "histogram", "bins": (0, 5, 5)}, r"got \(0, 5, 5\)."),
        ({"kind": "histogram", "bins": (0, math.inf)}, r"got \(0, inf\)."),
        ({"bins": 4}, "bins= is for kind='histogram', and it is binary"),
        ({"loss": ("focal", 2.0)}, "loss= is a name, or a name and its options as in"),
        ({"loss": 3}, "loss= is a name, or a name and its options as in"),
    ],
)
def test_a_task_that_cannot_be_is_one_sentence(options, said):
    with pytest.raises(SchemaError, match=said):
        Task("a", **options)


def test_tasks_go_through_files():
    declared = schema(*KINDS, Task("more", kind="multiclass", classes=2, loss=("focal", {"alpha": (1.0, 2.0)})))
    for text in (json.dumps(declared.to_dict()), yaml.safe_dump(declared.to_dict())):
        again = Schema.from_dict(yaml.safe_load(text))
        assert again.tasks == declared.tasks
        assert len({*again.tasks, *declared.tasks}) == len(declared.tasks)


def test_bins_that_nobody_has_learned_are_named():
    with pytest.raises(SchemaError, match=r"Task 'watch' has no values for its 8 bins yet. Fit an Encoder"):
        ranking.LR(schema(Task("watch", kind="histogram", bins=8)))


# -- heads, links and metrics -----------------------------------------------------------------------------------------
def test_every_kind_has_its_link():
    declared = schema(*KINDS)
    logits = logits_of(declared, 2, 3)
    found = tasks.predictions(logits, declared)
    click = (logits["click"][..., 1] - logits["click"][..., 0]).sigmoid()
    assert_close(found["click"], click)
    assert_close(found["carted"], click * logits["cart"].sigmoid())
    assert_close(found["watch"], (logits["watch"].softmax(-1) * torch.tensor(BINS)).sum(-1))
    assert_close(found["stay"], logits["stay"].exp())
    assert_close(found["shelf"].sum(-1), torch.ones(2, 3))


def test_metrics_measure_what_is_read():
    declared = schema(*KINDS)
    batch = testing.batch(declared, 6, 5, mask=True, weight=True)
    batch["watch@label"] = 50 * torch.rand(6, 5)
    logits = logits_of(declared, 6, 5)
    meters = tasks.meters(declared)
    assert {"watch/rmse", "watch/mae", "stay/mae", "click/auc"} <= set(meters)
    assert tasks.metric_names(KINDS[3])[0] == "rmse"
    tasks.update_meters(meters, logits, batch, declared)
    read = tasks.predictions(logits, declared)
    for name in ("watch", "stay"):
        label, where, weight = tasks.target(batch, declared, name)
        error = ((read[name] - label).abs() * weight * where).sum() / (weight * where).sum()
        assert meters[f"{name}/mae"].compute().item() == pytest.approx(error.item(), rel=1e-5)


def test_one_number_a_row_moves_ordered_outputs():
    """What FM-like models add: the log-odds of two logits, and the mean of a histogram, grow with it."""
    declared = schema(
        Task("click", loss="jrc"),
        Task("watch", kind="histogram", bins=BINS),
        Task("half", kind="histogram", bins=(0, 1)),
    )
    for heads, hidden in ((Heads(declared, 4), torch.randn(1, 1, 4).expand(1, 7, 4)), (Heads(declared, 0), None)):
        plus = torch.linspace(-3, 3, 7).unsqueeze(0)
        found = heads(hidden, plus=plus)
        base = heads(hidden, plus=torch.zeros_like(plus))
        score = {t.name: tasks.score(found[t.name], t) for t in declared.tasks}
        assert_close(score["click"], tasks.score(base["click"], declared.task("click")) + plus)
        assert (score["watch"].diff() > 0).all()
        assert_close(score["half"].logit(), tasks.score(base["half"], declared.task("half")).logit() + plus)


def test_a_drawn_candidate_was_not_watched():
    assert Task("click").unseen == 0
    assert KINDS[4].unseen == 0
    assert math.isnan(KINDS[3].unseen)
    assert math.isnan(dataclasses.replace(KINDS[4], loss="mse").unseen)
