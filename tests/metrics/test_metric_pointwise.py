"""AUC, GAUC and the metrics of sums against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score
from torch.testing import assert_close

from recstack import metrics
from recstack.errors import ConfigError, DataError


def world(seed, n=60, levels=8, groups=7):
    """Scores with many ties, labels, weights and groups; at least one positive and one negative."""
    random = np.random.default_rng(seed)
    score = random.integers(-levels, levels, n) / 4
    label = (random.random(n) < 0.4).astype(float)
    label[:2] = 0, 1
    weight, group = random.random(n) + 0.1, random.integers(0, groups, n) * 1000
    return [torch.tensor(x) for x in (score, label, weight, group)]


seeds = st.integers(0, 10_000)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 50))
def test_auc_is_that_of_scikit_learn(seed, levels):
    score, label, weight, _ = world(seed, levels=levels)
    assert_close(metrics.auc(score, label).item(), roc_auc_score(label, score))
    assert_close(metrics.auc(score, label, weight=weight).item(), roc_auc_score(label, score, sample_weight=weight))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_gauc_is_a_slow_loop_over_users(seed):
    score, label, weight, group = world(seed)
    each, impressions, clicks = [], [], []
    for user in group.unique():
        mine = group == user
        if label[mine].unique().numel() < 2:
            continue
        each.append(roc_auc_score(label[mine], score[mine], sample_weight=weight[mine]))
        impressions.append(weight[mine].sum().item())
        clicks.append((weight * label)[mine].sum().item())
    for weights, share in (("impressions", impressions), ("clicks", clicks), ("uniform", None)):
        value = metrics.gauc(score, label, weight=weight, group=group, weights=weights)
        assert_close(value.item(), np.average(each, weights=share))
    coverage = metrics.gauc_coverage(score, label, weight=weight, group=group)
    assert_close(coverage.groups, len(each) / group.unique().numel())
    assert_close(coverage.impressions, sum(impressions) / weight.sum().item())


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_metrics_of_sums_are_those_of_scikit_learn(seed):
    score, label, weight, _ = world(seed)
    p = score.sigmoid()
    assert_close(metrics.logloss(score, label, weight=weight).item(), log_loss(label, p, sample_weight=weight))
    assert_close(
        metrics.accuracy(score, label, weight=weight).item(), accuracy_score(label, score > 0, sample_weight=weight)
    )
    assert_close(
        metrics.mae(score, label, weight=weight).item(), mean_absolute_error(label, score, sample_weight=weight)
    )
    squared = mean_squared_error(label, score, sample_weight=weight)
    assert_close(metrics.rmse(score, label, weight=weight).item(), squared**0.5)


def test_entropy_and_calibration_by_hand():
    """Golden: logloss .364923, NE .542223, predicted over observed 1.15."""
    label, p = torch.tensor([1.0, 0, 0, 1, 0]), torch.tensor([0.8, 0.3, 0.2, 0.6, 0.4], dtype=torch.float64)
    score = torch.logit(p)
    assert_close(metrics.logloss(score, label).item(), 0.364923, rtol=1e-5, atol=0)
    assert_close(metrics.normalized_entropy(score, label).item(), 0.542223, rtol=1e-5, atol=0)
    assert_close(metrics.calibration_ratio(score, label).item(), 1.15)


def test_multiclass_is_that_of_scikit_learn():
    score, label = torch.randn(3, 20, 4), torch.randint(4, (3, 20)).float()
    where = torch.rand(3, 20) < 0.7
    p, y = score[where].double().softmax(-1), label[where]
    assert_close(metrics.logloss(score, label, where=where).item(), log_loss(y, p, labels=range(4)))
    assert_close(metrics.accuracy(score, label, where=where).item(), accuracy_score(y, p.argmax(-1)))


POINTWISE = ["auc", "gauc", "logloss", "normalized_entropy", "calibration_ratio", "mae", "rmse", "accuracy"]


@pytest.mark.parametrize("name", POINTWISE)
def test_a_dead_cell_is_an_absent_cell_even_if_it_holds_nan(name):
    score, label, weight, group = world(1)
    where = torch.rand(60) < 0.6
    where[:6] = True
    dirty = [torch.where(where, x, torch.nan) for x in (score, label, weight)]
    value = metrics.get(name)(dirty[0], dirty[1], where=where, weight=dirty[2], group=group)
    absent = metrics.get(name)(score[where], label[where], weight=weight[where], group=group[where])
    assert_close(value, absent)


@pytest.mark.parametrize("name", POINTWISE)
def test_weight_n_is_the_row_n_times(name):
    score, label, _, group = world(2)
    times = torch.randint(0, 4, (60,))
    times[:2] = 1
    value = metrics.get(name)(score, label, weight=times, group=group)
    again = [x.repeat_interleave(times) for x in (score, label, group)]
    assert_close(value, metrics.get(name)(again[0], again[1], group=again[2]))


@pytest.mark.parametrize("name", POINTWISE)
def test_order_and_axes_change_nothing(name):
    score, label, weight, group = world(3)
    order = torch.randperm(60)
    flat = metrics.get(name)(score, label, weight=weight, group=group)
    folded = [x[order].reshape(3, 4, 5) for x in (score, label, weight, group)]
    assert_close(metrics.get(name)(folded[0], folded[1], weight=folded[2], group=folded[3]), flat)


def test_auc_of_soft_labels_is_auc_of_the_shares():
    score, share = torch.randn(20), torch.rand(20)
    twice = torch.cat([torch.ones(20), torch.zeros(20)])
    value = metrics.auc(torch.cat([score, score]), twice, weight=torch.cat([share, 1 - share]))
    assert_close(metrics.auc(score, share), value)


def test_auc_sees_only_the_order():
    score, label, weight, _ = world(4)
    assert_close(metrics.auc(score.exp(), label, weight=weight), metrics.auc(score, label, weight=weight))
    assert_close(metrics.auc(-score, label, weight=weight), 1 - metrics.auc(score, label, weight=weight))


def test_infinite_scores_are_only_the_highest_and_the_lowest():
    score, label = torch.tensor([torch.inf, 1.0, torch.inf, -torch.inf]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert_close(metrics.auc(score, label).item(), roc_auc_score(label, [9, 1, 9, -9]))


def test_half_precision_scores_keep_their_ties():
    score = torch.tensor([0.1, 0.1001, 0.5]).bfloat16()  # the first two are one number
    assert metrics.auc(score, torch.tensor([1.0, 0.0, 0.0])) == 0.25


def test_a_request_can_be_the_group():
    score, label = torch.randn(6, 9), (torch.rand(6, 9) < 0.5).float()
    ids = torch.arange(6)
    by_list = metrics.gauc(score, label)
    assert_close(metrics.gauc(score, label, group=ids), by_list)
    assert_close(metrics.gauc(score.flatten(), label.flatten(), group=ids.repeat_interleave(9)), by_list)
    assert_close(metrics.auc_by_group(score, label, group=ids * 7).group, ids * 7)
    with pytest.raises(ConfigError, match="needs group="):
        metrics.gauc(score.flatten(), label.flatten())


@pytest.mark.parametrize("name", ["auc", "gauc", "normalized_entropy"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_is_nan_with_a_warning(name, label):
    with pytest.warns(RuntimeWarning, match="NaN: it needs"):
        value = metrics.get(name)(torch.randn(5), torch.full((5,), label), group=torch.zeros(5, dtype=torch.long))
    assert value.isnan()


def test_calibration_without_a_positive_is_nan_with_a_warning():
    with pytest.warns(RuntimeWarning, match="needs a positive"):
        assert metrics.calibration_ratio(torch.randn(5), torch.zeros(5)).isnan()


@pytest.mark.filterwarnings("ignore:.*is NaN")
@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_no_rows_are_nan(name, shape):
    group = torch.zeros(shape, dtype=torch.long)
    assert metrics.get(name)(torch.zeros(shape), torch.zeros(shape), group=group).isnan()


@pytest.mark.parametrize("name", sorted(set(POINTWISE)))
def test_a_broken_model_measures_nan_and_not_a_number(name):
    score, label, _, group = world(5)
    score[3] = torch.nan
    assert metrics.get(name)(score, label, group=group).isnan()


@pytest.mark.parametrize("name", POINTWISE)
def test_a_live_nan_label_is_named(name):
    with pytest.raises(DataError, match="NaN in 1 live cells"):
        metrics.get(name)(torch.zeros(2), torch.tensor([1.0, torch.nan]), group=torch.zeros(2, dtype=torch.long))


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(DataError, match="between 0 and 1, and 5 came"):
        metrics.auc(torch.zeros(2), torch.tensor([1.0, 5.0]))
    with pytest.raises(DataError, match="Give both the same shape"):
        metrics.auc(torch.zeros(2, 1), torch.zeros(3))
    with pytest.raises(DataError, match="without an axis of classes"):
        metrics.auc(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ConfigError, match="Did you mean 'clicks'"):
        metrics.gauc(torch.zeros(2), torch.zeros(2), group=torch.zeros(2), weights="click")
