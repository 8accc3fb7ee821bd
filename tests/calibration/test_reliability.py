"""Reliability: tables by loops, and what a calibration error of known size looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recstack.calibration import (
    brier,
    expected_calibration_error,
    field_calibration_error,
    field_relative_error,
    field_table,
    maximum_calibration_error,
    reliability_diagram,
    reliability_table,
)
from recstack.errors import ConfigError, DataError


def test_groups_of_equal_weight_by_loops():
    chance = np.random.default_rng(0)
    p, y = chance.random(1000), (chance.random(1000) < 0.4).astype(float)
    table = reliability_table(torch.from_numpy(p), torch.from_numpy(y), bins=8)
    order = sorted(range(1000), key=lambda i: p[i])
    for b in range(8):
        rows = order[b * 125 : (b + 1) * 125]
        assert float(table["predicted"][b]) == pytest.approx(np.mean([p[i] for i in rows]))
        assert float(table["observed"][b]) == pytest.approx(np.mean([y[i] for i in rows]))
        assert float(table["weight"][b]) == 125
    error = sum(abs(float(table["predicted"][b]) - float(table["observed"][b])) for b in range(8)) / 8
    assert expected_calibration_error(torch.from_numpy(p), torch.from_numpy(y), bins=8) == pytest.approx(error)


def test_the_curve_is_scikit_learns():
    calibration = pytest.importorskip("sklearn.calibration")
    chance = np.random.default_rng(1)
    p = chance.permutation(np.linspace(0.01, 0.99, 1000))
    y = (chance.random(1000) < p**2).astype(float)
    observed, predicted = calibration.calibration_curve(y, p, n_bins=10, strategy="quantile")
    table = reliability_table(p, y, bins=10)
    np.testing.assert_allclose(table["predicted"], predicted)
    np.testing.assert_allclose(table["observed"], observed)


def test_equal_probabilities_share_a_group():
    p = torch.tensor([0.3] * 50 + [0.6] * 50)
    y = torch.tensor([1.0, 0.0] * 50)
    table = reliability_table(p, y, bins=10)
    assert table["weight"].tolist() == [50, 50]
    assert expected_calibration_error(p, y, bins=10) == pytest.approx((0.2 + 0.1) / 2)


def test_weight_two_is_the_row_twice_and_masked_is_absent():
    chance = torch.Generator().manual_seed(0)
    p, y = torch.rand(60, generator=chance).double(), (torch.rand(60, generator=chance) < 0.5).double()
    w, where = torch.ones(60).double(), torch.ones(60, dtype=torch.bool)
    w[:10], where[10:20], y[20:25] = 2, False, float("nan")
    short = torch.cat([p[:10], p[:10], p[25:]]), torch.cat([y[:10], y[:10], y[25:]])
    kept = reliability_table(p, y, weight=w, where=where, bins=5)
    for name, column in reliability_table(*short, bins=5).items():
        torch.testing.assert_close(kept[name], column)
    shaped = reliability_table(p.view(6, 10), y.view(6, 10), weight=w.view(6, 10), where=where.view(6, 10), bins=5)
    torch.testing.assert_close(kept["observed"], shaped["observed"])


def test_honest_probabilities_have_a_small_error_and_shifted_ones_their_shift():
    chance = np.random.default_rng(2)
    p = chance.uniform(0.1, 0.7, 200_000)
    y = (chance.random(200_000) < p).astype(float)
    assert expected_calibration_error(p, y) < 0.005
    assert expected_calibration_error(p + 0.2, y) == pytest.approx(0.2, abs=0.005)


def test_the_interval_is_wilsons():
    # 1 of 10: the published example of the Wilson score interval, 0.0179 to 0.4042
    table = reliability_table(torch.full((10,), 0.3), torch.tensor([1.0] + [0.0] * 9), bins=3)
    assert float(table["low"][0]) == pytest.approx(0.0179, abs=1e-4)
    assert float(table["high"][0]) == pytest.approx(0.4042, abs=1e-4)


def test_no_rows_and_shapes_are_named():
    with pytest.raises(DataError, match="no labelled row"):
        reliability_table(torch.rand(3), torch.ones(3), where=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(DataError, match=r"probability is \[3\], label \[4\]"):
        reliability_table(torch.rand(3), torch.ones(4))


def test_groups_of_equal_width_by_loops():
    chance = np.random.default_rng(4)
    p, y, w = chance.random(300) ** 2, (chance.random(300) < 0.4).astype(float), chance.uniform(0.5, 2, 300)
    table = reliability_table(p, y, weight=w, bins=7, by="width")
    slow = [(b, [i for i in range(300) if b / 7 <= p[i] < (b + 1) / 7]) for b in range(7)]
    gaps = []
    for column, (_, rows) in enumerate((b, rows) for b, rows in slow if rows):
        mean_p, mean_y = np.average(p[rows], weights=w[rows]), np.average(y[rows], weights=w[rows])
        assert float(table["observed"][column]) == pytest.approx(mean_y)
        gaps.append((abs(mean_p - mean_y), w[rows].sum()))
    assert maximum_calibration_error(p, y, weight=w, bins=7, by="width") == pytest.approx(max(gaps)[0])
    expected = sum(g * m for g, m in gaps) / w.sum()
    assert expected_calibration_error(p, y, weight=w, bins=7, by="width") == pytest.approx(expected)
    with pytest.raises(ConfigError, match="Did you mean 'width'"):
        reliability_table(p, y, by="widht")


def test_errors_of_fields_by_loops():
    chance = np.random.default_rng(5)
    p, w = chance.random(200), chance.uniform(0.5, 2, 200)
    y, field = (chance.random(200) < 0.3).astype(float), chance.integers(0, 9, 200)
    y[field == 3], y[:10] = 0, np.nan  # a value without a positive, and rows without a label
    where = np.arange(200) < 190
    live = where & ~np.isnan(y)
    absolute = relative = kept = 0.0
    for f in set(field[live]):
        rows = live & (field == f)
        gap = abs((w[rows] * (y[rows] - p[rows])).sum())
        absolute += gap
        if y[rows].sum():
            relative += w[rows].sum() * gap / (w[rows] * y[rows]).sum()
            kept += w[rows].sum()
    given = {"where": where, "weight": w}
    assert field_calibration_error(p, y, field, **given) == pytest.approx(absolute / w[live].sum())
    assert field_relative_error(p, y, field, **given) == pytest.approx(relative / kept)
    table = field_table(p, y, field, **given)
    at = table["value"].tolist().index(3)
    assert float(table["observed"][at]) == 0
    assert float(table["weight"][at]) == pytest.approx(w[live & (field == 3)].sum())
    with pytest.raises(DataError, match="give integers"):
        field_table(p, y, field.astype(float))


def test_brier_is_scikit_learns_and_the_sum_of_its_parts():
    metrics = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(6)
    p, y, w = chance.integers(0, 11, 500) / 10, (chance.random(500) < 0.4).astype(float), chance.uniform(0.5, 2, 500)
    parts = brier(p, y, weight=w)
    assert parts.error == pytest.approx(metrics.brier_score_loss(y, p, sample_weight=w))
    assert parts.error == pytest.approx(parts.reliability - parts.resolution + parts.uncertainty)


def test_the_diagram_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    p = torch.linspace(0.1, 0.9, 50)
    reliability_diagram({"one": reliability_table(p, (p > 0.4).float(), bins=4)}, tmp_path / "r.svg")
    assert "<svg" in (tmp_path / "r.svg").read_text()
