"""Distillation: the soft losses against numpy, and a student that learns what its teachers know."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.errors import ConfigError, DataError
from recstack.features import tasks

TASKS = (
    rs.Task("click"),
    rs.Task("cart", given="click", weight=0.5),
    rs.Task("stars", "regression"),
    rs.Task("shelf", "multiclass", classes=3),
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the losses -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_losses_are_t_squared_kl(temperature):
    s, t, weight = draw(6, 5), draw(6, 5, seed=1) * 3, draw(6, 5, seed=2).abs()
    where = draw(6, 5, seed=3) > 0
    p, q = (1 / (1 + np.exp(-x.double().numpy() / temperature)) for x in (t, s))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    w = (weight * where).double().numpy()
    dirty = torch.where(where, s, torch.nan)
    found = losses.soft_bce(
        dirty, torch.where(where, t, torch.nan), where=where, weight=weight, temperature=temperature
    )
    assert float(found) == pytest.approx(temperature**2 * (kl * w).sum() / w.sum(), rel=1e-5)
    # Two classes are one logit.
    two = [torch.stack([torch.zeros_like(x), x], -1) for x in (dirty, t)]
    found = losses.soft_cross_entropy(*two, where=where, weight=weight, temperature=temperature)
    assert float(found) == pytest.approx(temperature**2 * (kl * w).sum() / w.sum(), rel=1e-5)


def test_only_the_student_has_a_gradient_and_dead_cells_have_none():
    s, t = (torch.tensor([1.0, torch.nan, -300.0], requires_grad=True) for _ in range(2))
    teacher = torch.where(s.isnan(), s, -s).detach().requires_grad_()
    losses.soft_bce(s, teacher, where=torch.tensor([True, False, True])).backward()
    assert s.grad.isfinite().all()
    assert s.grad[1] == 0
    assert teacher.grad is None
    assert t.grad is None


def test_soft_losses_say_what_does_not_fit():
    with pytest.raises(ConfigError, match="temperature is a number above 0; got 0"):
        losses.soft_bce(draw(2), draw(2), temperature=0)
    with pytest.raises(DataError, match="teacher"):
        losses.soft_cross_entropy(draw(2, 3), draw(2, 4))


def test_label_smoothing_towards_a_prior_keeps_the_share_of_positives():
    label = torch.tensor([1.0, 0.0, 0.0, 0.0])
    score = torch.tensor(0.25).logit().expand(4).clone().requires_grad_()
    losses.bce(score, label, label_smoothing=0.2, prior=0.25).backward()
    assert abs(float(score.grad.sum())) < 1e-7  # the constant that fits is the share itself
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(score, 0.8 * label + 0.2 * 0.25)
    assert_close(losses.bce(score, label, label_smoothing=0.2, prior=0.25), wanted)
    with pytest.raises(ConfigError, match="prior of the loss 'bce'"):
        losses.bce(score, label, prior=2)


# -- the wrapper ------------------------------------------------------------------------------------------------------
def model(schema, seed, trained=True):
    torch.manual_seed(seed)
    made = testing.wake(rs.multitask.SharedBottom(schema, dim=4, hidden=(6,), towers=(4,)), seed)
    made.fitted = trained
    return made


@pytest.fixture(scope="module")
def world():
    schema = testing.schema(tasks=TASKS)
    return schema, testing.batch(schema, 8, 4, mask=True, weight=True, missing=0.3)


@pytest.mark.parametrize("everywhere", [False, True])
def test_losses_are_the_mixture(world, everywhere):
    schema, batch = world
    student, teacher, other = model(schema, 0, False), model(schema, 1), model(schema, 2)
    teachers = {"click": teacher, "cart": other, "stars": teacher, "shelf": other}
    both = rs.Distillation(student, teachers, temperature=2.0, mix=0.3, everywhere=everywhere)
    own, s, t, o = student.losses(batch), student(batch), teacher(batch), other(batch)
    found = both.losses(batch)
    for name, loss, said in (
        ("click", lambda *x, **k: losses.soft_bce(*x, temperature=2.0, **k), t),
        ("cart", lambda *x, **k: 0.5 * losses.soft_bce(*x, temperature=2.0, **k), o),
        ("stars", losses.mse, t),
        ("shelf", lambda *x, **k: losses.soft_cross_entropy(*x, temperature=2.0, **k), o),
    ):
        target = tasks.target(batch, schema, name)
        where = batch["@mask"] if everywhere else target.where
        assert_close(found[name], 0.7 * own[name] + 0.3 * loss(s[name], said[name], where=where, weight=target.weight))
    alone = rs.Distillation(student, teacher, mix=0.0).losses(batch)
    assert all(torch.equal(alone[name], own[name]) for name in own)


@pytest.mark.slow
def test_a_student_learns_what_its_labels_do_not_say_and_teachers_stand_still(world):
    schema, batch = world
    student, teacher = model(schema, 0, False), model(schema, 1)
    before = {n: p.clone() for n, p in teacher.state_dict().items()}
    both = rs.Distillation(student, teacher, mix=1.0, everywhere=True)
    assert set(both.state_dict()) == {f"student.{n}" for n in student.state_dict()}

    @torch.no_grad()
    def distance():
        return float((student(batch)["cart"] - teacher(batch)["cart"])[batch["@mask"]].abs().mean())

    far = distance()
    rs.Trainer(both, epochs=2, lr=0.03, balance="uncertainty", progress=False).fit([batch] * 30, [batch])
    assert distance() < 0.3 * far
    assert all(torch.equal(p, before[n]) for n, p in teacher.state_dict().items())
    assert student.fitted
    assert both.predict(batch).keys() == student.predict(batch).keys()


def test_what_does_not_fit_is_said(world):
    schema, _ = world
    student, teacher = model(schema, 0), model(schema, 1)
    with pytest.raises(ConfigError, match="'click', a SharedBottom, was never trained"):
        rs.Distillation(student, {"click": model(schema, 1, False)})
    with pytest.raises(ConfigError, match="Unknown task of the student 'clik'"):
        rs.Distillation(student, {"clik": teacher})
    one = model(testing.schema(tasks=(rs.Task("like"), rs.Task("click", "regression"))), 1)
    with pytest.raises(ConfigError, match="has no task 'cart'"):
        rs.Distillation(student, {"cart": one})
    with pytest.raises(ConfigError, match="has kind='regression' for it, and the student 'binary'"):
        rs.Distillation(student, {"click": one})
    with pytest.raises(ConfigError, match="mix= is from 0 to 1"):
        rs.Distillation(student, teacher, mix=1.5)
    with pytest.raises(ConfigError, match="needs a teacher"):
        rs.Distillation(student, {})


def test_a_teacher_whose_ids_are_others_is_refused():
    first, second = (rs.simulator.small(users=40, items=30, seed=seed) for seed in (0, 1))
    a, b = (rs.Encoder(log.schema).fit(log).schema for log in (first, second))
    teacher = rs.ranking.DeepFM(a, dim=4, hidden=(4,))
    teacher.fitted = True
    with pytest.raises(ConfigError, match="has other ids for"):
        rs.Distillation(rs.ranking.DeepFM(b, dim=4, hidden=(4,)), teacher)
