"""Calibrators against scikit-learn and scipy, and the laws of monotone maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recstack import bundle
from recstack.calibration import Isotonic, Platt, Temperature
from recstack.calibration.isotonic import increasing
from recstack.errors import ConfigError, DataError

ALL = [Platt, Temperature, Isotonic, lambda: Isotonic(bins=None, tie_break=0.0)]


def world(n=3000, seed=0, slope=0.6, offset=-0.8):
    """Logits that are too sure and too high, and labels drawn with the honest ones; with weights."""
    chance = np.random.default_rng(seed)
    z = chance.normal(0, 2, n).round(2)  # with ties
    y = (chance.random(n) < 1 / (1 + np.exp(-(slope * z + offset)))).astype(float)
    return torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(chance.uniform(0.2, 3, n))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_platt_is_scikit_learns(weighted, scale):
    calibration = pytest.importorskip("sklearn.calibration")
    z, y, w = world()
    a, b = calibration._sigmoid_calibration((z * scale).numpy(), y.numpy(), w.numpy() if weighted else None)
    fitted = Platt().fit(z * scale, y, w if weighted else None)
    assert float(fitted.state["slope"]) == pytest.approx(-a, rel=1e-4)
    assert float(fitted.state["offset"]) == pytest.approx(-b, rel=1e-4)


def test_platt_has_the_closed_form_on_two_points():
    # with two distinct logits the two numbers meet both mean targets exactly
    z = torch.tensor([-1.0] * 4 + [3.0] * 4).double()
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]).double()
    up, down = 5 / 6, 1 / 6
    mean = [(3 * down + up) / 4, (3 * up + down) / 4]
    p = Platt().fit(z, y).probability(torch.tensor([-1.0, 3.0]).double())
    assert p.tolist() == pytest.approx(mean, rel=1e-8)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_platt_with_labels_of_one_class_gives_the_smoothed_rate(label):
    z = torch.linspace(-2, 2, 9).double()
    p = Platt().fit(z, torch.full((9,), label).double()).probability(z)
    assert p.tolist() == pytest.approx([10 / 11 if label else 1 / 11] * 9, rel=1e-6)


def test_platt_survives_constant_and_perfect_logits():
    y = torch.tensor([0.0, 0.0, 1.0])
    p = Platt().fit(torch.full((3,), 5.0), y).probability(torch.full((3,), 5.0))
    assert p.tolist() == pytest.approx([(2 / 4 + 2 / 3) / 3] * 3, rel=1e-5)  # the mean of the smoothed targets
    z = torch.tensor([-5.0, -4.0, 6.0])
    assert Platt().fit(z, y)(z).isfinite().all()


def test_platt_and_temperature_find_the_planted_line():
    z, y, _ = world(200_000)
    fitted = Platt().fit(z, y)
    assert float(fitted.state["slope"]) == pytest.approx(0.6, abs=0.02)
    assert float(fitted.state["offset"]) == pytest.approx(-0.8, abs=0.02)
    z, y, _ = world(200_000, slope=0.4, offset=0.0)
    assert float(Temperature().fit(z, y).state["temperature"]) == pytest.approx(2.5, abs=0.08)


@pytest.mark.parametrize("weighted", [False, True])
def test_temperature_minimises_the_log_loss(weighted):
    optimize = pytest.importorskip("scipy.optimize")
    z, y, w = world()
    w = w if weighted else torch.ones_like(w)

    def loss(log_t):
        zt = z / np.exp(log_t)
        return float((w * torch.nn.functional.binary_cross_entropy_with_logits(zt, y, reduction="none")).sum())

    best = np.exp(optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x)
    assert float(Temperature().fit(z, y, w).state["temperature"]) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_is_scikit_learns(weighted):
    isotonic = pytest.importorskip("sklearn.isotonic")
    z, y, w = world()
    w = w if weighted else torch.ones_like(w)
    theirs = isotonic.IsotonicRegression(out_of_bounds="clip").fit(z.numpy(), y.numpy(), sample_weight=w.numpy())
    ours = Isotonic(bins=None, tie_break=0.0).fit(z, y, w)
    grid = torch.linspace(-12, 12, 4001).double()
    least = 1 / (float(w.sum()) + 2)
    expected = theirs.predict(grid.numpy()).clip(least, 1 - least)
    np.testing.assert_allclose(ours.probability(grid).numpy(), expected, atol=1e-9)


def test_pooling_is_the_best_increasing_sequence():
    # the min-max formula of isotonic regression: max over left ends of min over right ends of the mean between them
    chance = np.random.default_rng(3)
    for n in (1, 2, 7, 12):
        v, m = chance.normal(size=n), chance.uniform(0.1, 2, n)
        mean = {(i, j): np.average(v[i : j + 1], weights=m[i : j + 1]) for i in range(n) for j in range(i, n)}
        slow = [max(min(mean[i, j] for j in range(k, n)) for i in range(k + 1)) for k in range(n)]
        assert increasing(v, m) == pytest.approx(slow)


@pytest.mark.parametrize("make", ALL)
def test_a_calibrated_model_says_the_rate_it_sees(make):
    z, y, w = world(20_000)
    p = make().fit(z, y, w).probability(z)
    if make is not Temperature:  # it cannot move the base rate
        assert float((w * p).sum() / w.sum()) == pytest.approx(float((w * y).sum() / w.sum()), abs=0.003)
    before = torch.nn.functional.binary_cross_entropy_with_logits(z, y)
    assert torch.nn.functional.binary_cross_entropy(p, y) < before


@pytest.mark.parametrize("make", ALL)
def test_the_map_never_decreases(make):
    z, y, _ = world()
    grid = torch.linspace(-30, 30, 5001)
    assert (make().fit(z, y)(grid).diff() >= 0).all()


@pytest.mark.parametrize("make", [Platt, Temperature, Isotonic, lambda: Isotonic(bins=7, tie_break=0.01)])
def test_the_ranking_stays_as_it_was(make):
    z, y, _ = world()
    grid = z.unique()
    assert (make().fit(z, y)(grid).diff() > 0).all()


def test_without_tie_break_pooled_rows_are_tied():
    z, y, _ = world()
    grid = z.unique()
    flat = Isotonic(bins=None, tie_break=0.0).fit(z, y)(grid)
    assert len(flat.unique()) < len(grid) / 2
    broken = Isotonic(bins=None).fit(z, y)(grid)
    assert (broken - flat).abs().max() < 1e-3 * 10  # and the tie-break moves a logit by hardly anything


@pytest.mark.parametrize("make", ALL)
def test_weight_two_is_the_row_twice_and_weight_zero_or_a_missing_label_is_no_row(make):
    z, y, _ = world(400)
    twice = torch.ones(400).double()
    twice[:50], twice[50:60] = 2, 0
    label = y.clone()
    label[60:70] = float("nan")
    rows = torch.cat([z[:50], z[:50], z[70:]]), torch.cat([y[:50], y[:50], y[70:]])
    grid = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(make().fit(z, label, twice)(grid), make().fit(*rows)(grid))


@pytest.mark.parametrize("make", ALL)
def test_shape_and_dtype_stay_and_extremes_are_finite(make):
    z, y, _ = world(300)
    fitted = make().fit(z.view(3, 100), y.view(3, 100))
    out = fitted(torch.tensor([[-80.0, 0.0], [80.0, 1.0]]))
    assert out.shape == (2, 2)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert fitted(torch.zeros(0)).shape == (0,)
    assert fitted(torch.tensor(0.5)).shape == ()


@pytest.mark.parametrize("make", [Platt, Temperature, lambda: Isotonic(bins=9, tie_break=0.01)])
def test_saved_and_loaded_it_is_the_same_to_the_bit(make, tmp_path):
    z, y, _ = world(300)
    fitted = make().fit(z, y)
    bundle.write(tmp_path / "b", {"calibration": fitted.to_piece()})
    piece = bundle.read(tmp_path / "b").piece("calibration")
    back = bundle.resolve(piece.class_path).from_piece(piece)
    assert torch.equal(back(z), fitted(z))
    assert back.config() == fitted.config()


def test_a_single_point_is_a_constant_rate():
    fitted = Isotonic(tie_break=0.0).fit(torch.ones(4), torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert fitted.probability(torch.tensor([-3.0, 1.0, 9.0])).tolist() == pytest.approx([0.5] * 3)


def test_what_cannot_be_fitted_is_named():
    z, y, w = world(10)
    with pytest.raises(ConfigError, match="Platt is not fitted"):
        Platt()(z)
    with pytest.raises(DataError, match=r"logit is \[9\], label \[10\]"):
        Platt().fit(z[1:], y)
    with pytest.raises(DataError, match=r"weight \[9\]"):
        Platt().fit(z, y, w[1:])
    with pytest.raises(DataError, match="no labelled row"):
        Platt().fit(z, y * float("nan"))
    with pytest.raises(DataError, match="1 numbers that are not finite"):
        Platt().fit(torch.cat([z[:-1], torch.tensor([float("inf")])]), y)
    with pytest.raises(DataError, match="between 0 and 1"):
        Platt().fit(z, y + 1)
    with pytest.raises(DataError, match="weights must be positive"):
        Platt().fit(z, y, -w)
    with pytest.raises(ConfigError, match="at least one bin"):
        Isotonic(bins=0)
