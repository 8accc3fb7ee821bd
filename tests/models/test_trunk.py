"""Any deep model is a trunk: what it would have given its heads is what tasks read."""

from functools import partial

import pytest
import torch
from tests.contract_cases import CASES

from recstack import testing
from recstack.errors import ConfigError
from recstack.models import multitask, ranking, retrieval
from recstack.models.multitask import ESMM, MMoE, SharedBottom
from recstack.schema import Task

NONE = (
    "LR",
    "FM",
    "FFM",
    "FwFM",
    "FmFM",
    "HOFM",
    "AFN",
    "AutoInt",
    "DCNv3",
    "xDeepFM",
    "FinalMLP",
    "FinalNet",
    "PAL",
    "RegressionEM",
    "DLA",
)  # shallow, trees, or logits of several parts
TASKS = (Task("click"), Task("order", given="click", weight=0), Task("ordered", product=("click", "order")))
DEEP = {c.model: c for c in CASES if c.model.__module__.startswith("recstack.models.ranking") and not c.label}


@pytest.mark.parametrize("case", DEEP.values(), ids=lambda c: c.model.__name__)
def test_a_ranker_is_a_trunk_or_says_why_not(case):
    schema = (case.schema or testing.schema()).replace(tasks=TASKS)
    trunk = partial(case.model, **case.options)
    if case.model.__name__ in NONE:
        with pytest.raises(ConfigError, match="cannot be a trunk"):
            ESMM(schema, trunk=trunk)
        return
    found = ESMM(schema, hidden=(4,), trunk=trunk)(testing.batch(schema, 3, 2))
    assert found["order"].shape == (3, 2)


def test_a_trunk_gives_what_its_heads_would_have_read():
    schema = testing.schema(tasks=TASKS)
    torch.manual_seed(0)
    whole = testing.wake(ranking.DeepFM(schema, dim=4, hidden=(8,)))
    model = SharedBottom(schema, dim=4, hidden=(), towers=(), trunk=partial(ranking.DeepFM, hidden=(8,)))
    model.trunk.model.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("heads.")})
    model.heads.load_state_dict(whole.heads.state_dict())
    batch = testing.batch(schema, 3, 2)
    for task, logit in whole.eval()(batch).items():
        torch.testing.assert_close(model.eval()(batch)[task], logit)


def test_tasks_of_a_multi_task_trunk_keep_their_own_vectors():
    schema = testing.schema(tasks=TASKS)
    model = testing.wake(ESMM(schema, dim=4, hidden=(6,), trunk=partial(MMoE, experts=2, hidden=(5,), towers=(3,))))
    batch = testing.batch(schema, 3, 2)
    model(batch)["click"].sum().backward()
    gates = model.trunk.model.gates.weight.grad
    assert gates[0].abs().sum() > 0
    assert gates[1].abs().sum() == 0


def test_a_detached_task_leaves_what_it_reads_alone():
    schema = testing.schema(tasks=[Task("click"), Task("like")])
    model = testing.wake(SharedBottom(schema, dim=4, hidden=(6,), towers=(3,), detach=("like",)))
    batch = testing.batch(schema, 3, 2)
    model(batch)["like"].sum().backward()
    assert model.bottom.first.weight.grad is None or not model.bottom.first.weight.grad.any()
    assert model.towers.networks.first.weight.grad[3:].any()
    assert not model.towers.networks.first.weight.grad[:3].any()


@pytest.mark.parametrize(("trunk", "says"), [(retrieval.DSSM, "cannot be a trunk"), (MMoE, "has one for each")])
def test_what_is_no_trunk_is_said(trunk, says):
    with pytest.raises(ConfigError, match=says):
        multitask.SharedBottom(testing.schema(tasks=[Task("click")]), trunk=trunk)
