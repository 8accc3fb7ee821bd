"""XAUC pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack import metrics
from recstack.errors import DataError


def rows(seed, n, levels=6, groups=4):
    chance = np.random.default_rng(seed)
    score, label = (torch.from_numpy(chance.integers(0, levels, n) / 2) for _ in range(2))
    weight = torch.from_numpy(chance.uniform(0.1, 2, n))
    return score, label, weight, torch.from_numpy(chance.integers(0, groups, n))


def by_pairs(score, label, weight):
    right = pairs = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if label[i] > label[j]:
                pairs += float(weight[i] * weight[j])
                right += float(weight[i] * weight[j]) * (float(score[i] > score[j]) + 0.5 * float(score[i] == score[j]))
    return right / pairs if pairs else float("nan")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 40), st.integers(1, 8))
@pytest.mark.filterwarnings("ignore:.*is NaN")
def test_every_pair_counts_once(seed, n, levels):
    score, label, weight, _ = rows(seed, n, levels)
    expected = by_pairs(score, label, weight)
    assert metrics.xauc(score, label, weight=weight).item() == pytest.approx(expected, nan_ok=True)


def test_groups_are_measured_apart():
    score, label, weight, group = rows(3, 60)
    where = torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.8
    total = share = 0.0
    for g in group.unique():
        of = where & (group == g)
        value = by_pairs(score[of], label[of], weight[of])
        if value == value:
            total, share = total + float(weight[of].sum()) * value, share + float(weight[of].sum())
    found = metrics.xgauc(score, label, where=where, weight=weight, group=group)
    assert found.item() == pytest.approx(total / share)
    assert metrics.xauc(score, label, where=where).item() == pytest.approx(
        metrics.xauc(score[where], label[where]).item()
    )


def test_of_two_labels_it_is_auc():
    score, label, weight, group = rows(5, 3000, levels=300)
    label = (label > 75).double()
    asked = {"weight": weight}
    assert metrics.xauc(score, label, **asked).item() == pytest.approx(metrics.auc(score, label, **asked).item())
    found = metrics.xgauc(score, label, group=group)
    assert found.item() == pytest.approx(metrics.gauc(score, label, group=group).item())


def test_what_cannot_be_answered():
    with pytest.warns(RuntimeWarning, match="two different labels"):
        assert metrics.xauc(torch.rand(3), torch.ones(3)).isnan()
    with pytest.warns(RuntimeWarning, match="a group with two"):
        assert metrics.xgauc(torch.rand(2), torch.rand(2), group=torch.tensor([1, 2])).isnan()
    assert metrics.xauc(torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, 2.0])).isnan()
    with pytest.raises(DataError, match="XAUC is of regressions"):
        metrics.xauc(torch.rand(3, 2), torch.ones(3))
