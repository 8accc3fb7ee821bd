"""Distillation for pre-rankers: the teacher's order, several teachers, and features that only the teacher sees."""

import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import losses, testing
from recstack.errors import ConfigError
from recstack.models.pre_ranking import COLD
from recstack.schema import Categorical, Numeric, Schema, Task


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_soft_list_by_loops():
    s, t, where = draw(4, 6), draw(4, 6, seed=1), draw(4, 6, seed=2) > -0.7
    weight = torch.tensor([[1.0], [2.0], [0.0], [3.0]])
    total = 0.0
    for r in range(4):
        live = where[r].nonzero().squeeze(1).tolist()
        top = sorted(live, key=lambda i: -t[r, i])[:3]
        p = (t[r, top] / 2).softmax(0)
        q = (s[r, top] / 2).exp() / (s[r, live] / 2).exp().sum()
        total = total + float(weight[r]) * 4 * (p * (p / q).log()).sum()
    dirty = torch.where(where, s, torch.nan).requires_grad_()
    found = losses.soft_list(dirty, torch.where(where, t, torch.nan), where=where, weight=weight, temperature=2.0, k=3)
    assert_close(found, total / 6)
    found.backward()
    assert dirty.grad.isfinite().all()
    assert losses.soft_list(t, t).abs() < 1e-6
    assert losses.soft_list(draw(5, 1), draw(5, 1, seed=1)) == 0


def test_rank_distillation_by_loops():
    s, t, where = draw(4, 6), draw(4, 6, seed=1), draw(4, 6, seed=2) > -0.7
    total = 0.0
    for r in range(4):
        top = sorted(where[r].nonzero().squeeze(1).tolist(), key=lambda i: -t[r, i])[:4]
        share = torch.tensor([-(i + 1) / 2.0 for i in range(len(top))]).exp()
        total = total - (share / share.sum() * s[r, top].sigmoid().log()).sum() / 4
    found = losses.rank_distillation(s, t, where=where, k=4, sharpness=2.0)
    assert_close(found, total)
    with pytest.raises(ConfigError, match="sharpness is a number above 0; got 0"):
        losses.rank_distillation(s, t, sharpness=0)


def model(schema, seed):
    torch.manual_seed(seed)
    made = testing.wake(rs.ranking.LR(schema), seed)
    made.fitted = True
    return made


def test_several_teachers_are_the_mean_of_their_logits_and_may_teach_the_order():
    schema = testing.schema(tasks=(Task("click"), Task("cart")))
    batch = testing.batch(schema, 4, 5, mask=True)
    student, a, b = (model(schema, seed) for seed in range(3))
    mean = {name: (a(batch)[name] + b(batch)[name]) / 2 for name in ("click", "cart")}
    own, s, live = student.losses(batch), student(batch), batch["@mask"]
    found = rs.Distillation(student, [a, b], mix=0.4, everywhere=True).losses(batch)
    for name in ("click", "cart"):
        assert_close(found[name], 0.6 * own[name] + 0.4 * losses.soft_bce(s[name], mean[name], where=live))
    teachers, order = {"click": (a, b)}, ("soft_list", {"k": 2})
    found = rs.Distillation(student, teachers, mix=0.4, everywhere=True, lists=order).losses(batch)
    assert_close(
        found["click"], 0.6 * own["click"] + 0.4 * losses.soft_list(s["click"], mean["click"], where=live, k=2)
    )
    assert torch.equal(found["cart"], own["cart"])
    with pytest.raises(ConfigError, match="Did you mean 'soft_list'"):
        rs.Distillation(student, a, lists="soft_lst")


@pytest.mark.slow
def test_a_student_gains_from_features_that_only_its_teacher_sees():
    schema = Schema(
        [Categorical("item", "item", size=5), *(Numeric(n, "item") for n in ("x0", "x1", "x2", "secret"))],
        [Task("click")],
    )

    def batch(seed, rows=64):
        some = testing.batch(schema, rows, 1, seed)
        chance = (1.5 * some["x0"] + 6 * some["secret"]).sigmoid()
        some["click@label"] = torch.bernoulli(chance, generator=torch.Generator().manual_seed(seed))
        return some

    few, many, test = [batch(1)], [batch(i) for i in range(100, 160)], batch(999, 4000)
    options = {"lr": 0.02, "progress": False}

    def cold(of):
        torch.manual_seed(0)
        return COLD(of, dim=2, hidden=(16,), gates=False, norm=None)

    teacher, alone, taught = cold(schema), cold(schema.without("secret")), cold(schema.without("secret"))
    rs.Trainer(teacher, epochs=4, **options).fit(many)
    rs.Trainer(alone, epochs=1, **options).fit(few * 100)
    rs.Trainer(rs.Distillation(taught, teacher, mix=0.9), epochs=1, **options).fit(few * 100)
    with torch.no_grad():
        auc = [float(rs.metrics.auc(m.eval()(test)["click"], test["click@label"])) for m in (alone, taught)]
    assert auc[1] > auc[0] + 0.01, auc
