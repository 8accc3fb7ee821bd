"""Curves, areas and decisions against scikit-learn on random rows with ties and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack import metrics
from recstack.errors import ConfigError, DataError

sk = pytest.importorskip("sklearn.metrics")
WORLDS = settings(max_examples=25, deadline=None)


@st.composite
def worlds(draw):
    """Scores with many or few ties, labels of both classes, weights or none (in float32 or float64)."""
    seed, n, levels = draw(st.integers(0, 2**31)), draw(st.integers(4, 60)), draw(st.sampled_from([2, 5, 1000]))
    chance = np.random.default_rng(seed)
    score = chance.integers(-levels, levels, n) / 7
    label = (chance.random(n) < 0.4).astype(float)
    label[:2] = 0, 1
    weight = chance.integers(1, 5, n).astype(float) / 2 if draw(st.booleans()) else None
    kind = draw(st.sampled_from([torch.float32, torch.float64]))
    return (
        torch.from_numpy(score).to(kind),
        torch.from_numpy(label),
        None if weight is None else torch.from_numpy(weight),
    )


def theirs(score, label, weight):
    given = {} if weight is None else {"sample_weight": weight.numpy()}
    return label.numpy(), score.double().numpy(), given


@WORLDS
@given(worlds())
def test_areas_are_scikit_learns(world):
    score, label, weight = world
    y, s, more = theirs(score, label, weight)
    assert metrics.auc(score, label, weight=weight).item() == pytest.approx(sk.roc_auc_score(y, s, **more))
    ours = metrics.average_precision(score, label, weight=weight).item()
    assert ours == pytest.approx(sk.average_precision_score(y, s, **more))
    for share in (0.1, 0.37):
        ours = metrics.partial_auc(score, label, weight=weight, max_false_positives=share).item()
        assert ours == pytest.approx(sk.roc_auc_score(y, s, max_fpr=share, **more))


@WORLDS
@given(worlds())
def test_curves_are_scikit_learns(world):
    score, label, weight = world
    y, s, more = theirs(score, label, weight)
    x, up, _ = sk.roc_curve(y, s, drop_intermediate=False, **more)
    ours = metrics.roc_curve(score, label, weight=weight)
    np.testing.assert_allclose(ours.x, x)
    np.testing.assert_allclose(ours.y, up)
    assert metrics.kolmogorov_smirnov(score, label, weight=weight).item() == pytest.approx(np.abs(up - x).max())
    precision, recall, threshold = sk.precision_recall_curve(y, s, **more)
    ours = metrics.precision_recall_curve(score, label, weight=weight)
    np.testing.assert_allclose(ours.x.flip(0), recall)
    np.testing.assert_allclose(ours.y.flip(0), precision)
    np.testing.assert_allclose(ours.threshold.flip(0)[:-1], threshold)


@WORLDS
@given(worlds())
def test_decisions_are_scikit_learns(world):
    score, label, weight = world
    y, s, more = theirs(score, label, weight)
    taken = s > 0.2
    found = metrics.confusion(score, label, weight=weight, threshold=0.2)
    tn, fp, fn, tp = sk.confusion_matrix(y, taken, labels=[0, 1], **more).ravel()
    assert [x.item() for x in found] == pytest.approx([tp, fp, fn, tn])
    if 0 < taken.sum() < len(y):
        assert found.matthews.item() == pytest.approx(sk.matthews_corrcoef(y, taken, **more))
        assert found.balanced_accuracy.item() == pytest.approx(sk.balanced_accuracy_score(y, taken, **more))
        assert found.f(2.0).item() == pytest.approx(sk.fbeta_score(y, taken, beta=2, **more))
        assert found.accuracy.item() == pytest.approx(sk.accuracy_score(y, taken, **more))
        assert (found.precision + fp / (tp + fp)).item() == pytest.approx(1)
        assert (found.negative_precision + fn / (tn + fn)).item() == pytest.approx(1)
        assert (found.recall + found.false_negative_rate).item() == pytest.approx(1)
        assert (found.specificity + found.false_positive_rate).item() == pytest.approx(1)


@WORLDS
@given(worlds(), st.integers(1, 6))
def test_gauc_is_scikit_learns_of_each_group(world, users):
    score, label, weight = world
    y, s, _ = theirs(score, label, weight)
    user = np.random.default_rng(len(y)).integers(0, users, len(y)) * 10**9 - 5
    w = np.ones(len(y)) if weight is None else weight.numpy()
    each = metrics.by_group("auc", score, label, torch.from_numpy(user), weight=weight)
    assert each.group.tolist() == sorted(set(user))
    for u, value, mass in zip(each.group.tolist(), each.value.tolist(), each.weight.tolist(), strict=True):
        rows = user == u
        assert mass == pytest.approx(w[rows].sum())
        if len(set(y[rows])) == 2:
            assert value == pytest.approx(sk.roc_auc_score(y[rows], s[rows], sample_weight=w[rows]))
        else:
            assert np.isnan(value)


def test_half_of_each_label_is_the_row_twice():
    chance = torch.Generator().manual_seed(0)
    score, share = torch.rand(40, generator=chance), torch.rand(40, generator=chance)
    both = torch.cat([score, score]), torch.cat([torch.ones(40), torch.zeros(40)]), torch.cat([share, 1 - share])
    for name in ("auc", "average_precision", "ks", "lift", "partial_auc"):
        metric = metrics.get(name)
        torch.testing.assert_close(metric(score, share), metric(both[0], both[1], weight=both[2]))


def test_gain_and_lift_by_hand():
    score, label = torch.tensor([4.0, 3.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    curve = metrics.gain_curve(score, label)
    assert curve.x.tolist() == pytest.approx([0, 0.2, 0.6, 0.8, 1])
    assert curve.y.tolist() == pytest.approx([0, 0.5, 1, 1, 1])
    assert metrics.lift(score, label, share=0.2).item() == pytest.approx(2.5)
    assert metrics.lift(score, label, share=0.4).item() == pytest.approx(0.75 / 0.4)  # half of the tie


def test_zero_is_minus_zero_and_what_does_not_fit_is_a_sentence():
    label = torch.tensor([1.0, 0.0])
    assert metrics.auc(torch.tensor([0.0, -0.0]), label).item() == 0.5
    assert metrics.auc(torch.tensor([0.0, -0.0]), label, weight=torch.tensor([2.0, 1.0])).item() == 0.5
    with pytest.raises(DataError, match="between 0 and 1, and 2 came"):
        metrics.roc_curve(torch.zeros(2), torch.tensor([2.0, 0.0]))
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        metrics.lift(torch.zeros(2), label, share=0)
    with pytest.raises(ConfigError, match="Known: gain, precision_recall, roc"):
        metrics.draw_curves({}, "x.svg", kind="rok")


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    chance = torch.Generator().manual_seed(0)
    score, label = torch.rand(5000, generator=chance), (torch.rand(5000, generator=chance) < 0.3).float()
    makers = {"roc": metrics.roc_curve, "gain": metrics.gain_curve, "precision_recall": metrics.precision_recall_curve}
    for kind, make in makers.items():
        metrics.draw_curves({"a": make(score, label)}, tmp_path / f"{kind}.svg", kind)
        assert "<svg" in (tmp_path / f"{kind}.svg").read_text()
