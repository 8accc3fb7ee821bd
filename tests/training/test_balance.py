"""Each way of balancing against its equation, a grid, or another solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from recstack.errors import ConfigError
from recstack.training import balance
from recstack.training.balance.base import Adam
from recstack.training.balance.cagrad import cagrad
from recstack.training.balance.gradients import gram
from recstack.training.balance.gradnorm import slope
from recstack.training.balance.mgda import mgda
from recstack.training.balance.nash import nash
from recstack.training.balance.pcgrad import pcgrad
from recstack.training.balance.pe_ltr import pe_ltr
from recstack.training.balance.simplex import projected

CPU = torch.device("cpu")


def grams(k: int, n: int = 10, dim: int = 6) -> list[np.ndarray]:
    """Of gradients that conflict and differ in length."""
    chance = np.random.default_rng(k)
    out = []
    for _ in range(n):
        g = chance.normal(size=(k, dim)) * 10.0 ** chance.uniform(-1, 1, (k, 1))
        out.append(g @ g.T)
    return out


def grid(k: int, parts: int) -> np.ndarray:
    """Every point of the simplex whose coordinates are multiples of 1 / parts."""
    bars = itertools.combinations(range(parts + k - 1), k - 1)
    edges = np.array([(-1, *b, parts + k - 1) for b in bars])
    return (np.diff(edges, axis=1) - 1) / parts


def length(gram: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.einsum("...i,ij,...j", w, gram, w)


def begun(method: balance.Balance, *names: str, regression: tuple[str, ...] = ()) -> balance.Balance:
    method.begin(names, regression, CPU)
    return method


def alive(*values: bool) -> torch.Tensor:
    return torch.tensor(values)


# -- MGDA -------------------------------------------------------------------------------------------------------------
def test_mgda_of_two_is_the_closed_form():
    for m in grams(2, 50):
        gamma = np.clip((m[1, 1] - m[0, 1]) / (m[0, 0] + m[1, 1] - 2 * m[0, 1]), 0, 1)
        np.testing.assert_allclose(mgda(m, np.ones(2)), [gamma, 1 - gamma], atol=1e-9)


@pytest.mark.parametrize(("k", "parts"), [(3, 120), (4, 40), (5, 24)])
def test_mgda_is_the_best_point_of_the_simplex(k, parts):
    points = grid(k, parts)
    for m in grams(k):
        w = mgda(m, np.ones(k))
        assert w.min() >= 0
        assert w.sum() == pytest.approx(1)
        assert length(m, w) <= length(m, points).min() + 1e-12
        assert (m @ w >= length(m, w) * (1 - 1e-6) - 1e-9).all()  # a step along it makes no loss worse


def test_mgda_of_divided_gradients_keeps_their_direction():
    m, losses = grams(3, 1)[0], np.array([0.1, 2.0, 30.0])
    norm = np.sqrt(np.diag(m))
    for name, by in {"l2": norm, "loss": losses, "loss+": norm * losses}.items():
        w = mgda(m, losses, name)
        direct = mgda(m / np.outer(by, by), losses) / by
        np.testing.assert_allclose(w, direct / direct.sum(), atol=1e-7)
    np.testing.assert_allclose(mgda(np.zeros((3, 3)), losses), np.full(3, 1 / 3))


# -- PE-LTR -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("solver", ["projection", "exact"])
def test_pe_ltr_keeps_its_bounds_and_sums_to_one(k, solver):
    chance = np.random.default_rng(0)
    for m in grams(k, 30):
        bounds = chance.dirichlet(np.ones(k + 1))[:k]
        w = pe_ltr(m, bounds, solver)
        assert (w >= bounds - 1e-9).all()
        assert w.sum() == pytest.approx(1)  # and not 1 + Σc, as the paper's equation 4 would have it


def test_pe_ltr_exact_is_the_best_within_bounds_and_the_projection_near_it():
    points = grid(3, 60)
    for m in grams(3, 30):
        bounds = np.array([0.2, 0.0, 0.1])
        exact, near = (length(m, pe_ltr(m, bounds, s)) for s in ("exact", "projection"))
        assert exact <= length(m, bounds + 0.7 * points).min() + 1e-12
        assert exact <= near + 1e-9
        free = np.linalg.solve(m, np.ones(3)) / np.linalg.solve(m, np.ones(3)).sum()
        if (free >= bounds).all():  # then the linear system is the whole problem
            assert near == pytest.approx(exact, rel=1e-6)


def test_the_projection_is_the_nearest_point():
    points = 0.7 * grid(3, 100)
    for v in np.random.default_rng(1).normal(size=(20, 3)):
        found = projected(v, 0.7)
        assert found.sum() == pytest.approx(0.7)
        assert found.min() >= 0
        assert np.square(found - v).sum() <= np.square(points - v).sum(1).min() + 1e-12


# -- PCGrad, CAGrad, Nash-MTL, Aligned-MTL ----------------------------------------------------------------------------
def test_pcgrad_leaves_no_conflict_between_two():
    for m in grams(2, 50):
        w = pcgrad(m, np.random.default_rng(0))
        assert (m @ w >= -1e-9).all()
        if m[0, 1] >= 0:
            assert w.tolist() == [1, 1]


def test_pcgrad_in_the_span_is_pcgrad_on_gradients():
    chance = np.random.default_rng(5)
    for _ in range(20):
        g = chance.normal(size=(4, 3))
        order, total = np.random.default_rng(9), np.zeros(3)
        for i in range(4):
            own = g[i].copy()
            for j in order.permutation([j for j in range(4) if j != i]):
                own -= min(own @ g[j], 0) / (g[j] @ g[j]) * g[j]
            total += own
        np.testing.assert_allclose(g.T @ pcgrad(g @ g.T, np.random.default_rng(9)), total, atol=1e-9)


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_is_the_optimum_that_scipy_finds(k, c):
    for m in grams(k, 12 // k):
        mean = np.full(k, 1 / k)
        radius = c * np.sqrt(mean @ m @ mean)
        size = np.abs(m).max()

        def dual(v, m=m, mean=mean, radius=radius, size=size):
            return (v @ m @ mean + radius * np.sqrt(max(v @ m @ v, 0) + 1e-16 * size)) / size

        w = cagrad(m, c) * (1 + c**2) - mean
        one = {"type": "eq", "fun": lambda v: v.sum() - 1}
        starts = [mean, *np.eye(k)]
        best = min(
            minimize(dual, s, bounds=[(0, 1)] * k, constraints=one, options={"ftol": 1e-12, "maxiter": 500}).fun
            for s in starts
        )
        assert dual(w / w.sum()) <= best + 1e-7
        d = w  # the step less the mean gradient: on the sphere
        assert np.sqrt(length(m, d)) == pytest.approx(radius, rel=1e-3)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_nash_solves_its_equation_and_is_the_optimum_that_scipy_finds(k):
    for m in grams(k, dim=k + 2):
        w = nash(m)
        scaled = m / np.linalg.norm(m)
        assert w.min() > 0
        np.testing.assert_allclose(scaled @ w * w, 1, rtol=1e-4)

        def barrier(u, scaled=scaled):  # in log w, which is convex too
            return 0.5 * np.exp(u) @ scaled @ np.exp(u) - u.sum()

        assert barrier(np.log(w)) <= minimize(barrier, np.zeros(k)).fun + 1e-6
        clipped = nash(m, max_norm=1e-3)
        assert np.sqrt(length(m, clipped)) == pytest.approx(1e-3)
        np.testing.assert_allclose(clipped / clipped.sum(), w / w.sum())
    assert np.isfinite(nash(np.array([[1.0, -1.0], [-1.0, 1.0]]))).all()  # gradients that cancel out


def test_no_loss_gains_by_a_unit_with_nash():
    m, by = grams(3, 1)[0], np.array([1.0, 100.0, 0.01])
    one, other = nash(m), nash(m * np.outer(by, by)) * by
    np.testing.assert_allclose(one / one.sum(), other / other.sum(), rtol=1e-3)


def test_a_loss_whose_gradient_has_all_but_vanished_gets_no_weight_without_bound():
    m = np.diag([1.0, 1e-16])
    assert np.ptp(np.log10(nash(m))) > 7
    w = balance.NashMTL(max_norm=99.0).solve(m, np.ones(2), np.arange(2))
    assert w[1] / w[0] == pytest.approx(1e4)


def test_aligned_gradients_stand_at_right_angles():
    g = np.random.default_rng(2).normal(size=(3, 5))
    u, s, v = np.linalg.svd(g, full_matrices=False)
    turned = s.min() * u @ v  # the nearest to g with equal singular values
    np.testing.assert_allclose(turned @ turned.T, s.min() ** 2 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(g.T @ balance.aligned.aligned(g @ g.T), turned.sum(0), atol=1e-9)


# -- GradNorm ---------------------------------------------------------------------------------------------------------
def test_gradnorm_equalises_scaled_copies_of_one_task():
    scales = np.array([1.0, 3.0, 0.2])
    method = begun(balance.GradNorm(lr=0.05), "a", "b", "c")
    m = np.outer(scales, scales)
    for step in range(600):
        w = method.solve(m, scales * 0.99**step, np.arange(3))
        assert w.sum() == pytest.approx(3)
    np.testing.assert_allclose(w * scales / (w * scales).mean(), 1, atol=0.15)


def test_gradnorm_pulls_the_slow_task_up_by_alpha():
    """The target is relative to the mean rate; without that, alpha would be the same constant for all (torch-rechub)."""
    slow = np.array([0.2, 1.0])  # the first loss fell to a fifth, the second did not fall
    assert slope(np.eye(2), slow, np.ones(2), 1.5).tolist() == [1, -1]
    assert slope(np.eye(2), slow[::-1], np.ones(2), 1.5).tolist() == [-1, 1]
    assert slope(np.eye(2), slow, np.ones(2), 0.0).tolist() == [0, 0]


def test_gradnorm_moves_by_the_gradient_of_its_loss():
    chance = torch.Generator().manual_seed(0)
    norm, ratios = torch.rand(4, generator=chance).double() + 0.5, torch.rand(4, generator=chance).double()
    w = torch.tensor([1.5, 0.5, 1.2, 0.8], dtype=torch.float64, requires_grad=True)
    target = ((w * norm).mean() * (ratios / ratios.mean()) ** 1.5).detach()
    (w * norm - target).abs().sum().backward()
    found = slope(np.diag(norm.square().numpy()), ratios.numpy(), w.detach().numpy(), 1.5)
    np.testing.assert_allclose(found, w.grad.numpy())


# -- numbers only -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("form", "share"), [("kendall", 0.5), ("seed", 1.0)])
def test_uncertainty_comes_to_rest_at_one_over_the_loss(form, share):
    method = begun(balance.Uncertainty(form, lr=0.1), "value", "click", "rare", regression=("value",))
    losses = torch.tensor([4.0, 0.5, 0.02], dtype=torch.float64)
    for _ in range(400):
        method.observe(losses, alive(True, True, True))
    torch.testing.assert_close(method.weights(alive(True, True, True)), share / losses, rtol=1e-3, atol=1e-3)
    # torch-rechub's clamp at 0 stops at twice the weight
    assert method.weights(alive(True, True, True))[2] > 20


def test_uncertainty_moves_by_the_gradient_of_its_loss():
    """And tells regression from classification: ½ e^-s L against e^-s L."""
    losses = torch.tensor([3.0, 0.2], dtype=torch.float64)
    for form, share in (("kendall", 0.5), ("seed", 1.0)):
        method = begun(balance.Uncertainty(form, first=0.3), "value", "click", regression=("value",))
        s = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
        (torch.tensor([0.5, 1.0]) * (-s).exp() * losses + share * s).sum().backward()
        seen = []
        method.adam.step = lambda values, grad, live, seen=seen: seen.append(grad) or values
        method.observe(losses, alive(True, True))
        torch.testing.assert_close(seen[0], s.grad)


def test_uncertainty_is_clamped_and_can_be_frozen():
    method = begun(balance.Uncertainty("seed", lr=1.0, limit=2.0, frozen={"like": 0.3}), "click", "like")
    for _ in range(50):
        method.observe(torch.tensor([1e-6, 1e-6]), alive(True, True))
    torch.testing.assert_close(method.weights(alive(True, True)), torch.tensor([np.exp(2.0), 0.3], dtype=torch.float64))


@pytest.mark.parametrize(
    "method",
    [
        balance.Uncertainty(lr=0.1),
        balance.DWA(),
        balance.InverseMean(0.5, normalise=True),
        balance.RandomWeights(),
        balance.GradNorm(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_task_without_rows_is_as_if_it_were_not_there(method):
    """Weights of the others, now and later, and its own state."""
    three, two = (begun(m, *names) for m, names in zip(copies(method), ("abc", "ab"), strict=True))
    on, both = alive(True, True, False), alive(True, True)
    chance = np.random.default_rng(0)
    for step in range(6):
        losses = chance.uniform(0.2, 2.0, 3)
        if method.at is None:
            w, v = three.weights(on), two.weights(both)
            if not isinstance(method, balance.RandomWeights):
                torch.testing.assert_close(w[:2], v)
            else:
                assert w.tolist()[2] == 0
                assert float(w.sum()) == pytest.approx(2)
            three.observe(torch.tensor(losses), on)
            two.observe(torch.tensor(losses[:2]), both)
            if step % 2:
                three.after_epoch()
                two.after_epoch()
        else:
            m = np.diag(chance.uniform(0.1, 3.0, 2))
            w, v = three.solve(m, losses[:2], np.arange(2)), two.solve(m, losses[:2], np.arange(2))
            np.testing.assert_allclose(w, v)
    if isinstance(method, balance.Uncertainty):
        assert three.s[2] == 0


def copies(method):
    import copy

    return copy.deepcopy(method), copy.deepcopy(method)


def test_what_learns_weights_is_adam_without_decay():
    p = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    theirs, ours, values = torch.optim.Adam([p], lr=0.1), Adam(2, 0.1), p.detach().clone()
    for step in range(5):
        p.grad = torch.tensor([0.3 * step, -1.0], dtype=torch.float64)
        values = ours.step(values, p.grad, alive(True, True))
        theirs.step()
    torch.testing.assert_close(values, p.detach())


def test_dwa_compares_epoch_means():
    method = begun(balance.DWA(temperature=1.0), "a", "b")
    for losses in ((1.0, 1.0), (0.5, 0.9)):
        torch.testing.assert_close(method.weights(alive(True, True)), torch.ones(2, dtype=torch.float64))
        for part in (0.8, 1.2):
            method.observe(torch.tensor(losses) * part, alive(True, True))
        method.after_epoch()
    e = np.exp([0.5, 0.9])
    np.testing.assert_allclose(method.weights(alive(True, True)), 2 * e / e.sum(), rtol=1e-6)


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_schedule_counts_epochs_or_steps(unit):
    method = begun(balance.Scheduled({"a": 0.5}, {"b": 3.0}, unit), "a", "b")
    for _ in range(2):
        method.observe(torch.ones(2), alive(True, True))
    assert method.weights(alive(True, True)).tolist() == [0.25 if unit == "step" else 1.0, 3.0]
    method.after_epoch()
    assert method.weights(alive(True, True)).tolist() == [0.25 if unit == "step" else 0.5, 3.0]


# -- Gram matrices ----------------------------------------------------------------------------------------------------
def test_sparse_gradients_have_the_products_of_dense_ones():
    chance = torch.Generator().manual_seed(0)
    sparse = []
    for n in (5, 3, 7):  # rows come more than once
        rows = torch.randint(0, 9, (1, n), generator=chance)
        sparse.append(torch.sparse_coo_tensor(rows, torch.randn(n, 4, generator=chance), (9, 4)))
    own, flat = gram([[g] for g in sparse]), torch.stack([g.to_dense().flatten() for g in sparse])
    torch.testing.assert_close(own, (flat @ flat.T).double(), rtol=1e-5, atol=1e-5)  # sums of float32


def test_what_one_loss_alone_moves_does_not_count():
    a, b = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    alone = torch.ones(3)
    expected = torch.tensor([[5.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(gram([[a, alone], [b, None]]), expected)


# -- choices ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("mgdaa", "Did you mean 'mgda'"),
        (("cagrad", {"c": 2}), r"c of balance='cagrad' lies in \[0, 1\); got 2"),
        (("dwa", {"temp": 2}), "balance='dwa' does not take these options"),
        (("pe_ltr", {"bounds": {"click": 0.7, "like": 0.4}}), "sum to 1.1; weights sum to 1"),
        (("mgda", {"normalise": "l3"}), "Unknown normalise of balance= 'l3'"),
        ({"click": -1}, "the weight of 'click' of balance= is a number above 0 or 0; got -1"),
        (3, "balance= is a name"),
    ],
)
def test_a_wrong_choice_is_one_sentence(choice, sentence):
    with pytest.raises(ConfigError, match=sentence):
        balance.get(choice)
