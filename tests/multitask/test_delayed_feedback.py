"""Delayed feedback: likelihood and streams against what is known, and p recovered where the labels are not ripe."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from torch.testing import assert_close

from recstack import testing
from recstack.calibration import reweighted, true_from_stream
from recstack.data import delays
from recstack.errors import DataError, SchemaError
from recstack.losses import bce, delayed_feedback, fake_negative_weighted
from recstack.models.multitask import DFM
from recstack.schema import Task

DELAYED = (Task("click"), Task("order", given="click"), Task("delay", kind="regression", given="order", weight=0))


def planted(rows=200_000, p=0.3, rate=0.5, seed=0):
    """Conversions of chance p with an exponential delay, clicks over ten days, read at day ten."""
    g = torch.Generator().manual_seed(seed)
    elapsed = 10 * torch.rand(rows, generator=g)
    delay = torch.empty(rows).exponential_(rate, generator=g)
    ever = torch.rand(rows, generator=g) < p
    label = (ever & (delay <= elapsed)).float()
    return label, torch.where(label > 0, delay, elapsed), ever, delay


# -- the likelihood ---------------------------------------------------------------------------------------------------
def test_the_likelihood_by_the_equation():
    s, m = torch.randn(2, 20, dtype=torch.float64)
    label, elapsed = torch.randint(0, 2, (20,)).double(), 5 * torch.rand(20, dtype=torch.float64)
    p, rate = s.sigmoid(), (-m).exp()
    slow = label * -(p.log() + rate.log() - rate * elapsed)
    slow = slow + (1 - label) * -(1 - p + p * (-rate * elapsed).exp()).log()
    assert_close(delayed_feedback(s, m, label, elapsed), slow.mean())
    forever = torch.full_like(s, 1e9)
    assert_close(delayed_feedback(s, m, 0 * label, forever), bce(s, 0 * label))  # who waited for ever has a negative


def test_extremes_stay_finite_and_dead_rows_have_no_say():
    s = torch.tensor([-80.0, 80.0, 80.0, torch.nan], requires_grad=True)
    m = torch.tensor([-9.0, 9.0, -9.0, torch.nan], requires_grad=True)
    label = torch.tensor([1.0, 0.0, 0.0, torch.nan])
    loss = delayed_feedback(s, m, label, torch.tensor([30.0, 30.0, 30.0, torch.nan]), where=label.isfinite())
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert m.grad.isfinite().all()
    assert s.grad[3] == 0


def test_p_is_recovered_and_the_naive_rate_is_short_by_those_still_to_come():
    label, elapsed, _, _ = planted()
    s, m = (torch.zeros((), requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([s, m], max_iter=50)

    def step():
        optimizer.zero_grad()
        loss = delayed_feedback(s.expand(len(label)), m.expand(len(label)), label, elapsed)
        loss.backward()
        return loss

    optimizer.step(step)
    assert s.sigmoid().item() == pytest.approx(0.3, abs=0.005)
    assert m.exp().item() == pytest.approx(2.0, abs=0.05)
    late = (1 - math.exp(-5.0)) / 5  # P(delay > e), over e up to ten days and delays of two
    assert float(label.mean()) == pytest.approx(0.3 * (1 - late), abs=0.005)


# -- the stream -------------------------------------------------------------------------------------------------------
def frame():
    return pl.DataFrame({"time": [0, 2, 4, 6], "order_time": [9, 3, None, 30]})


def test_what_is_known_at_a_moment():
    seen = delays.as_of(frame(), 5, unit=1)
    assert seen["order"].to_list() == [0, 1, 0]
    assert seen["delay"].to_list() == [5, 1, 1]


def test_a_window_keeps_early_conversions_from_being_negatives():
    rows = delays.stream(frame(), 12, window=2)["time", "order", "seen", "late"].rows()
    assert rows == [(0, 0, 2, False), (2, 1, 4, False), (4, 0, 6, False), (6, 0, 8, False), (0, 1, 9, True)]
    assert delays.stream(frame(), 12, window=2, since=6)["time", "late"].rows() == [(6, False), (0, True)]


def test_a_conversion_before_its_click_is_named():
    with pytest.raises(DataError, match="the first order_time 3 against time 5"):
        delays.as_of(pl.DataFrame({"time": [5], "order_time": [3]}), 9)
    with pytest.raises(DataError, match="no column 'paid'"):
        delays.stream(frame(), 9, happened="paid")


def test_weighing_or_calibrating_undoes_the_fake_negatives():
    """Of rows of rate p the stream has as many negatives as rows, and p times as many positives."""
    p = torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64)
    label = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 3)
    share = torch.stack([torch.ones(3, dtype=torch.float64), p])

    def rate(loss):
        z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([z], 15.0)
        for _ in range(400):
            optimizer.zero_grad()
            loss(z.expand(2, 3), label, weight=share).backward()
            optimizer.step()
        return z.detach()

    assert_close(rate(fake_negative_weighted).sigmoid(), p, atol=1e-4, rtol=0)
    biased = rate(bce)
    assert_close(biased.sigmoid(), p / (1 + p), atol=1e-4, rtol=0)
    assert_close(true_from_stream(biased).sigmoid(), p, atol=1e-3, rtol=0)


P, RATE, WINDOW, NOW = 0.3, 0.5, 1.0, 40.0


def clicks(rows=100_000, seed=0):
    """Clicks over thirty days, of which 0.3 convert after an exponential delay of two days on average."""
    g = np.random.default_rng(seed)
    time = g.uniform(0, 30, rows)
    happened = np.where(g.random(rows) < P, time + g.exponential(1 / RATE, rows), np.nan)
    return pl.DataFrame({"time": time, "order_time": happened}).with_columns(pl.col("order_time").fill_nan(None))


def test_the_labels_of_both_helpers_have_the_rates_of_the_papers():
    late = P * math.exp(-RATE * WINDOW)
    settled = delays.settled(clicks(), window=WINDOW)
    assert settled["delayed"].mean() == pytest.approx(late, abs=0.005)
    assert settled["never"].mean() == pytest.approx((1 - P) / (1 - P + late), abs=0.005)
    shifted = delays.shifted(clicks(), NOW, 20.0, unit=1.0).filter(pl.col("elapsed") < 3)
    for name, chance in (
        ("arrived", lambda e: 1 - np.exp(-RATE * e)),
        ("never", lambda e: (1 - P) / (1 - P + P * np.exp(-RATE * e))),
    ):
        rows = shifted.filter(pl.col(name).is_not_null())
        assert rows[name].mean() == pytest.approx(chance(rows["elapsed"].to_numpy()).mean(), abs=0.025)


def test_weighing_by_the_true_probabilities_gives_the_true_rate_on_either_kind_of_rows():
    late = P * math.exp(-RATE * WINDOW)
    stream = delays.stream(clicks(), NOW, window=WINDOW, since=10.0).filter(pl.col("seen") < 30)
    y = stream["order"].to_numpy()
    assert y.mean() == pytest.approx(P / (1 + late), abs=0.01)
    w = delays.elapsed_weight(y, np.full_like(y, late), np.full_like(y, (1 - P) / (1 - P + late)))
    assert (w * y).sum() / w.sum() == pytest.approx(P, abs=0.01)

    known = delays.as_of(clicks(), 30.0, unit=1.0)
    y, age = known["order"].to_numpy(), 30.0 - known["time"].to_numpy()
    some = age > 0.1
    y, age = y[some], age[some]
    assert y.mean() < P - 0.01
    arrived = 1 - np.exp(-RATE * age)
    w = delays.shift_weight(y, arrived, (1 - P) / (1 - P * arrived))
    assert (w * y).sum() / w.sum() == pytest.approx(P, abs=0.01)
    assert delays.shift_weight(np.ones(1), np.zeros(1), np.ones(1), floor=0.1) == pytest.approx(10)


def test_weights_of_positives_are_taken_back():
    p = torch.tensor([0.01, 0.4], dtype=torch.float64)
    trained = 5 * p / (5 * p + 0.5 * (1 - p))
    assert_close(reweighted(trained.logit(), positive=5.0, negative=0.5).sigmoid(), p)
    with pytest.raises(Exception, match="above 0"):
        reweighted(trained, positive=0.0)


# -- the model --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("transform", [None, "log1p"])
def test_dfm_by_the_equation(transform):
    tasks = (*DELAYED[:2], Task("delay", kind="regression", given="order", weight=0, transform=transform))
    schema = testing.schema(tasks=tasks)
    model = testing.wake(DFM(schema, dim=4, hidden=(6,))).eval()
    batch = testing.batch(schema, 12, 3, mask=True, weight=True)
    found, losses = model.predict(batch), model.losses(batch)
    assert set(losses) == {"click", "order"}
    live = batch["@mask"] & (batch["click@label"] == 1)
    p, e = found["order"][live], batch["delay@label"][live]
    rate, weight = 1 / found["delay"][live], batch["@weight"][live]
    y = batch["order@label"][live]
    value = -y * (p.log() + rate.log() - rate * e) - (1 - y) * (1 - p + p * (-rate * e).exp()).log()
    assert_close(losses["order"], (weight * value).sum() / weight.sum(), atol=1e-4, rtol=1e-4)


def test_dfm_says_which_tasks_it_needs():
    with pytest.raises(SchemaError, match=r'Task\("wait", kind="regression", given="order", weight=0\)'):
        DFM(testing.schema(tasks=DELAYED), delay="wait")
