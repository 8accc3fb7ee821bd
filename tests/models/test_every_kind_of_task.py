"""Every model that has heads predicts every kind of task, whatever it learns them by."""

import pytest
import torch

from contract_cases import CASES
from recstack import losses, testing
from recstack.features import tasks
from recstack.models import retrieval
from recstack.models.base import Model, Reranker, Retriever
from recstack.schema import Task

TASKS = (
    Task("click", loss="jrc"),
    Task("order", given="click", loss="bce_pairwise"),
    Task("ordered", product=("click", "order"), loss="focal"),
    Task("watch", kind="histogram", bins=(0.0, 1.0, 2.5), weight=0.1),
    Task("stay", kind="regression", label="watch", loss="weighted_logistic", weight=0.1),
)
# Models of task graphs: without the names of their case's tasks, or, where a graph (or one output) is all they are, not here.
UNNAMED = {"AITM": {"chain": (), "alpha": 0.0}, "DBMTL": {"parents": None}, "ESMM": {"direct": None}}
GRAPHS = ("DCMT", "DDPG", "DEAR", "DFM", "EGRerank", "ESCM2", "ESM2", "NAR4Rec", "NMTR", "PIER", "Seq2Slate", "SlateQ")
FIRST = {
    c.model: c
    for c in reversed(CASES)
    if issubclass(c.model, Model) and not issubclass(c.model, Retriever) and getattr(c.model, "gradients", True)
    if c.model.__name__ not in GRAPHS
}


@pytest.mark.parametrize("case", FIRST.values(), ids=lambda c: c.model.__name__)
def test_heads_losses_and_links_of_every_kind(case):
    schema = case.declared.replace(tasks=TASKS)
    torch.manual_seed(0)
    model = case.build(schema, **UNNAMED.get(case.model.__name__, {}))
    some = testing.batch(schema, 4, 3, mask=True, times=True)
    out = model(some)
    for task in TASKS:
        shape = (4, 3) if tasks.outputs(task) == 1 else (4, 3, tasks.outputs(task))
        assert out[task.name].shape == shape
    total = sum(model.losses(some).values())
    total.backward()
    assert total.isfinite()
    read = model.predict(some)
    assert all(value.shape == (4, 3) for value in read.values())
    assert ((read["click"] >= 0) & (read["click"] <= 1)).all()
    assert ((read["watch"] >= 0) & (read["watch"] <= 2.5)).all()
    assert (read["stay"] >= 0).all()


def test_one_score_of_a_retriever_serves_every_kind():
    """A score for each item: the log-odds of a pair of logits, and more of a histogram's high values."""
    case = next(c for c in CASES if c.model is retrieval.DSSM)
    schema = case.declared.replace(tasks=TASKS)
    model, some = case.build(schema), testing.batch(schema, 4, 3)
    out, read = model(some), model.predict(some)
    score = out["order"]
    torch.testing.assert_close(read["click"], score.sigmoid())
    torch.testing.assert_close(read["stay"], score.exp())
    order = score.argsort(-1)
    assert (read["watch"].gather(-1, order).diff() >= 0).all()


def test_rerankers_keep_their_own_usual_loss():
    """A page's clicks by softmax; every other kind by its task's loss."""
    case = next(c for c in CASES if issubclass(c.model, Reranker))
    schema = case.declared.replace(tasks=(Task("click"), Task("watch", kind="histogram", bins=(0.0, 3.0))))
    model, some = case.build(schema).eval(), testing.batch(schema, 4, 3)
    found, logits = model.losses(some), model(some)
    torch.testing.assert_close(found["click"], losses.softmax(logits["click"], some["click@label"]))
    torch.testing.assert_close(found["watch"], losses.kl(logits["watch"], some["watch@label"], values=(0.0, 3.0)))
