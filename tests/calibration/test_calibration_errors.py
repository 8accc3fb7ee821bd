"""Debiased ECE and Cal-N by loops, and what chance makes of an honest model."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recstack import calibration as cal


def world(n=600, seed=0):
    chance = np.random.default_rng(seed)
    p = chance.choice(np.linspace(0.05, 0.6, 12), n)
    return p, (chance.random(n) < 0.8 * p).astype(float), chance.integers(0, 3, n)


def groups(p, y, bins):
    step = np.minimum((p * bins).astype(int), bins - 1)
    return [(p[step == b], y[step == b]) for b in range(bins) if (step == b).any()]


def test_each_is_its_definition():
    p, y, field = world()
    total = 0.0
    for q, z in groups(p, y, 7):
        total += len(q) / len(p) * ((q.mean() - z.mean()) ** 2 - z.mean() * (1 - z.mean()) / (len(q) - 1))
    assert cal.debiased_calibration_error(p, y, bins=7, by="width") == pytest.approx(math.sqrt(total))

    def cal_n(p, y):
        ratios = [q.mean() / z.mean() for q, z in groups(p, y, 7) if z.any()]
        return math.sqrt(np.mean([(r - 1 if r >= 1 else 1 / r - 1) ** 2 for r in ratios]))

    assert cal.calibration_ratio_error(p, y, bins=7, by="width") == pytest.approx(cal_n(p, y))
    expected = sum((field == f).sum() * cal_n(p[field == f], y[field == f]) for f in range(3)) / len(p)
    assert cal.calibration_ratio_error(p, y, field, bins=7, by="width") == pytest.approx(expected)
    assert math.isnan(cal.calibration_ratio_error(p, np.zeros_like(y)))


def test_a_weight_of_two_is_no_second_row_to_the_debiased():
    p, y, _ = world()
    assert cal.debiased_calibration_error(p, y, weight=np.full(len(p), 2.0)) == pytest.approx(
        cal.debiased_calibration_error(p, y)
    )


def test_of_an_honest_model_little_is_left():
    plain, debiased = [], []
    for seed in range(30):
        chance = np.random.default_rng(seed)
        p = chance.uniform(0.1, 0.5, 400)
        y = (chance.random(400) < p).astype(float)
        plain.append(cal.expected_calibration_error(p, y) ** 2)
        debiased.append(cal.debiased_calibration_error(p, y) ** 2)
    assert np.mean(debiased) < 0.5 * np.mean(plain)
