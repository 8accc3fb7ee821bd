"""Beta, histogram, BBQ, down-sampling and calibration by field, each against another road to the same numbers."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.calibration import BBQ, Beta, ByField, DownSampling, Histogram, Isotonic, Platt, Temperature
from recstack.errors import ConfigError, DataError

FITTED = [Beta, Histogram, lambda: Histogram(bins=7, smoothing=2.0), BBQ]


def world(n=3000, seed=0, slope=0.6, offset=-0.8):
    chance = np.random.default_rng(seed)
    z = chance.normal(0, 2, n).round(2)
    y = (chance.random(n) < 1 / (1 + np.exp(-(slope * z + offset)))).astype(float)
    return torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(chance.uniform(0.2, 3, n))


# -- beta -------------------------------------------------------------------------------------------------------------
def test_beta_is_scikit_learns_logistic_regression_of_the_two_logarithms():
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, y, w = world()
    p = z.sigmoid().numpy()
    features = np.stack([np.log(p), -np.log1p(-p)], 1)
    positive, negative = (w * y).sum().item(), (w * (1 - y)).sum().item()
    up, down = (positive + 1) / (positive + 2), 1 / (negative + 2)
    soft = np.where(y.numpy() == 1, up, down)
    twice = np.concatenate([features, features])
    label = np.repeat([1, 0], len(z))
    weight = np.concatenate([w.numpy() * soft, w.numpy() * (1 - soft)])
    theirs = linear_model.LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(twice, label, weight)
    fitted = Beta().fit(z, y, w)
    ours = [float(fitted.state[n]) for n in ("a", "b", "c")]
    assert ours == pytest.approx([*theirs.coef_[0], theirs.intercept_[0]], rel=1e-3)


def test_beta_with_equal_slopes_is_platts_line_and_a_negative_slope_is_dropped():
    z, y, _ = world(40_000)
    fitted = Beta().fit(z, y)
    assert float(fitted.state["a"]) == pytest.approx(0.6, abs=0.05)
    assert float(fitted.state["b"]) == pytest.approx(0.6, abs=0.05)
    chance = np.random.default_rng(1)
    z = torch.from_numpy(chance.normal(0, 2, 5000))
    y = torch.from_numpy(
        chance.random(5000) < np.where(z < 0, 0.2 - 0.15 * torch.tanh(-z), 0.2 - 0.02 * z.clamp(max=5))
    ).double()
    fitted = Beta().fit(z, y)
    assert min(float(fitted.state["a"]), float(fitted.state["b"])) == 0
    backwards = Beta().fit(z, (z < 0).double())
    assert float(backwards.state["a"]) == float(backwards.state["b"]) == 0
    assert backwards.probability(z[:1]).item() == pytest.approx((z < 0).double().mean().item(), abs=1e-3)


# -- staircases -------------------------------------------------------------------------------------------------------
def test_a_histogram_is_the_rate_of_each_group():
    z, y, w = torch.tensor([0.0, 1, 2, 3, 4, 5]), torch.tensor([0.0, 1, 1, 1, 0, 1]), torch.tensor([1.0, 2, 1, 2, 1, 2])
    fitted = Histogram(bins=3, smoothing=1.5).fit(z, y, w)
    mean = 7 / 9
    rates = [(2 + 1.5 * mean) / 4.5, (3 + 1.5 * mean) / 4.5, (2 + 1.5 * mean) / 4.5]
    at = torch.tensor([-9.0, 1.4, 1.6, 3.4, 3.6, 99.0]).double()
    assert fitted.probability(at).tolist() == pytest.approx([rates[i] for i in (0, 0, 1, 1, 2, 2)])


def oracle_bbq(z, y, at, spread, prior):
    """Naeini et al., equations 1 to 4, one model and one bin at a time, on rows without ties."""
    order = sorted(range(len(z)), key=lambda i: z[i])
    p = [1 / (1 + math.exp(-z[i])) for i in order]
    label = [y[i] for i in order]
    n = len(p)
    cube = n ** (1 / 3)
    least, most = max(1, math.floor(cube / spread)), min(n, math.ceil(cube * spread))
    likelihood, rate = [], []
    for bins in range(least, most + 1):
        cuts = [[i for i in range(n) if int((i + 0.5) * bins / n) == b] for b in range(bins)]
        logit = [z[i] for i in order]
        inner = [(logit[a[-1]] + logit[b[0]]) / 2 for a, b in itertools.pairwise(cuts)]
        ends = [0.0, *(1 / (1 + math.exp(-e)) for e in inner), 1.0]
        value, here = 1.0, None
        for b, rows in enumerate(cuts):
            q = (ends[b] + ends[b + 1]) / 2
            total, m = len(rows), sum(label[i] for i in rows)
            a_, b_ = prior / bins * q, prior / bins * (1 - q)
            value *= math.gamma(prior / bins) / math.gamma(total + prior / bins)
            value *= math.gamma(m + a_) / math.gamma(a_) * math.gamma(total - m + b_) / math.gamma(b_)
            if (b == 0 or at > inner[b - 1]) and (b == bins - 1 or at <= inner[b]):
                here = (m + a_) / (total + prior / bins)
        likelihood.append(value)
        rate.append(here)
    return sum(v * r for v, r in zip(likelihood, rate, strict=True)) / sum(likelihood)


@pytest.mark.parametrize(("n", "spread", "prior"), [(12, 10.0, 2.0), (30, 3.0, 0.7), (40, 1.0, 2.0)])
def test_bbq_is_the_papers_sum_over_models_and_bins(n, spread, prior):
    chance = np.random.default_rng(n)
    z = chance.normal(0, 2, n)
    y = (chance.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    fitted = BBQ(spread, prior).fit(z, y)
    for at in [*np.linspace(-5, 5, 23), *z]:
        slow = oracle_bbq(z.tolist(), y.tolist(), at, spread, prior)
        assert fitted.probability(torch.tensor([at])).item() == pytest.approx(slow, rel=1e-6)


# -- all of them ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", FITTED)
def test_weight_two_is_the_row_twice_and_the_rate_is_met(make):
    z, y, _ = world(400)
    twice = torch.ones(400).double()
    twice[:50], twice[50:60] = 2, 0
    rows = torch.cat([z[:50], z[:50], z[60:]]), torch.cat([y[:50], y[:50], y[60:]])
    grid = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(make().fit(z, y, twice)(grid), make().fit(*rows)(grid))
    z, y, w = world(20_000)
    p = make().fit(z, y, w).probability(z)
    assert float((w * p).sum() / w.sum()) == pytest.approx(float((w * y).sum() / w.sum()), abs=0.004)
    assert torch.nn.functional.binary_cross_entropy(p, y) < torch.nn.functional.binary_cross_entropy_with_logits(z, y)


@pytest.mark.parametrize("make", [Platt, Temperature, Isotonic, Beta, partial(DownSampling, negative=0.3)])
def test_what_calls_itself_monotone_keeps_the_order(make):
    z, y, _ = world()
    fitted = make().fit(z, y)
    assert fitted.monotone
    assert (fitted(z.unique()).diff() > 0).all()


@pytest.mark.parametrize("make", [Histogram, BBQ])
def test_a_staircase_says_that_it_does_not(make):
    assert not make().monotone
    out = make().fit(torch.zeros(3, 2), torch.ones(3, 2))(torch.tensor([[-80.0, 80.0]]))
    assert out.isfinite().all()
    assert out.shape == (1, 2)


def test_down_sampling_takes_the_rate_back():
    chance = np.random.default_rng(0)
    y = (chance.random(200_000) < 0.1).astype(float)
    kept = (y == 1) | (chance.random(len(y)) < 0.2)
    rate = y[kept].mean()
    assert DownSampling(negative=0.2).probability(torch.tensor([rate]).logit()).item() == pytest.approx(0.1, abs=0.003)
    assert DownSampling(positive=0.2, negative=0.2)(torch.tensor(0.7)).item() == pytest.approx(0.7)
    with pytest.raises(ConfigError, match="above 0"):
        DownSampling(negative=0)


# -- by field ---------------------------------------------------------------------------------------------------------
def fields(n=6000, seed=0):
    chance = np.random.default_rng(seed)
    field = chance.integers(0, 40, n) ** 2  # values between which there is nothing
    level = chance.normal(0, 1, 1600)
    z = chance.normal(-1, 1, n)
    y = (chance.random(n) < 1 / (1 + np.exp(-(z + level[field])))).astype(float)
    return torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(field), level


def test_shifts_are_the_most_probable_ones_and_the_variance_is_its_own_mean():
    optimize = pytest.importorskip("scipy.optimize")
    z, y, field, _ = fields(3000)
    fitted = ByField(method=Platt).fit(z, y, field=field)
    base, key, shift = fitted.all(z).numpy(), fitted.state["key"].numpy(), fitted.state["shift"].numpy()
    curve = []
    for f, g in zip(key, shift, strict=True):
        p = 1 / (1 + np.exp(-(base[field == f] + g)))
        curve.append((p * (1 - p)).sum())
    variance = 1.0
    for _ in range(200):
        variance = np.mean(shift**2 + 1 / (np.array(curve) + 1 / variance))

    def loss(g):
        s = base + g[np.searchsorted(key, field.numpy())]
        return (np.logaddexp(0, s) - y.numpy() * s).sum() + (g**2).sum() / (2 * variance)

    best = optimize.minimize(loss, np.zeros(len(key)), method="BFGS", options={"gtol": 1e-6}).x
    assert shift == pytest.approx(best, abs=3e-3)


def test_by_field_learns_levels_and_leaves_strangers_alone():
    from recstack.calibration import field_relative_error

    z, y, field, _ = fields(20_000)
    z2, y2, field2, _ = fields(20_000)  # the same levels, other rows
    fitted = ByField().fit(z, y, field=field)
    one = field_relative_error(fitted.probability(z2), y2, field2)
    each = field_relative_error(fitted.probability(z2, field2), y2, field2)
    assert each < one / 3
    strange = torch.full_like(field, 1601)
    torch.testing.assert_close(fitted(z, strange), fitted(z))
    torch.testing.assert_close(fitted(z), Isotonic().fit(z, y)(z))
    some = z[field == field[0]].unique()
    assert (fitted(some, field[0].expand(len(some))).diff() > 0).all()


def test_a_field_that_says_nothing_moves_nothing():
    z, y, _ = world(20_000)
    noise = torch.from_numpy(np.random.default_rng(9).integers(0, 50, len(z)))
    assert ByField(method=Platt).fit(z, y, field=noise).state["shift"].abs().max() < 0.12


def test_labels_that_are_missing_and_weights_of_zero_are_no_rows():
    z, y, field, _ = fields(800)
    label, weight = y.clone(), torch.ones(800).double()
    label[:100], weight[100:200] = float("nan"), 0
    a = ByField(method=Platt).fit(z, label, weight, field=field)
    b = ByField(method=Platt).fit(z[200:], y[200:], field=field[200:])
    torch.testing.assert_close(a(z, field), b(z, field))


@pytest.mark.parametrize(
    "make",
    [
        Beta,
        lambda: Histogram(bins=9, smoothing=0.5),
        lambda: BBQ(spread=4.0, prior=3.0),
        lambda: DownSampling(negative=0.3, positive=0.9),
        lambda: ByField("category", partial(Isotonic, bins=9)),
    ],
)
def test_saved_and_loaded_it_is_the_same_to_the_bit(make, tmp_path):
    z, y, field, _ = fields(500)
    more = {"field": field} if isinstance(make(), ByField) else {}
    fitted = make().fit(z, y, **more)
    back = rs.load(fitted.save(tmp_path / "c"))
    assert torch.equal(back(z, *more.values()), fitted(z, *more.values()))
    assert str(back.config()) == str(fitted.config())


def test_what_cannot_be_fitted_is_named():
    z, y, field, _ = fields(10)
    with pytest.raises(DataError, match="needs field="):
        ByField().fit(z, y)
    with pytest.raises(DataError, match=r"field is torch.float64"):
        ByField().fit(z, y, field=field.double())
    with pytest.raises(ConfigError, match="ByField is not fitted"):
        ByField()(z)
    with pytest.raises(ConfigError, match="a calibrator's class"):
        ByField(method=dict)
    with pytest.raises(ConfigError, match="at least one bin"):
        Histogram(bins=0)
    with pytest.raises(ConfigError, match="a prior above 0"):
        BBQ(prior=0)
