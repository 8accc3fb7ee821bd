"""Exposure of groups by loops, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recstack import metrics
from recstack.errors import ConfigError, DataError


def pages(seed=1, n=12, k=5, items=30):
    chance = np.random.default_rng(seed)
    ids = np.stack([chance.permutation(items)[:k] + 1 for _ in range(n)])
    ids[0, 2:], ids[1] = 0, 0  # a short page, and an empty one
    group, merit = chance.integers(0, 3, items + 1), chance.uniform(0.1, 1, items + 1)
    return (torch.from_numpy(x) for x in (ids, group, merit))


def test_attention_by_loops():
    ids, group, merit = pages()
    seen = np.zeros(31)
    target, fair = np.array([0.5, 0.3, 0.2]), []
    for page in ids.tolist():
        own = np.zeros(3)
        for rank, i in enumerate(page, 1):
            if i:
                seen[i] += 1 / math.log2(1 + rank)
                own[group[i]] += 1 / math.log2(1 + rank)
        if own.sum():
            share, middle = own / own.sum(), (own / own.sum() + target) / 2
            terms = [x * math.log2(x / m) for p in (share, target) for x, m in zip(p, middle, strict=True) if x]
            fair.append(1 - sum(terms) / 2)
    of = [np.flatnonzero(group[1:].numpy() == g) + 1 for g in range(3)]
    total = np.array([seen[i].sum() for i in of])
    assert metrics.exposure_by_group(ids, group).tolist() == pytest.approx(total / total.sum())
    worth = merit.numpy()
    for options, each in (
        ({}, [seen[i].mean() for i in of]),
        ({"merit": merit}, [seen[i].mean() / worth[i].mean() for i in of]),
        ({"merit": merit, "impact": True}, [(seen * worth)[i].mean() / worth[i].mean() for i in of]),
    ):
        assert metrics.exposure_ratio(ids, group, **options).item() == pytest.approx(min(each) / max(each))
    found = metrics.attention_weighted_fairness(ids, group, torch.from_numpy(target))
    assert found.item() == pytest.approx(np.mean(fair))


@pytest.mark.parametrize("several", [False, True])
def test_tastes_by_loops(several):
    ids, group, _ = pages()
    met = ids.flip(0)
    met[3] = 0  # one who met nothing
    table = torch.nn.functional.one_hot(group).double()
    if several:
        table = torch.rand(31, 4, generator=torch.Generator().manual_seed(0)).double()
    expected = []
    for page, past in zip(ids.tolist(), met.tolist(), strict=True):
        if any(page) and any(past):
            q, p = (sum(table[i] for i in of if i).numpy() for of in (page, past))
            q, p = q / q.sum(), p / p.sum()
            expected.append(sum(x * math.log(x / (0.99 * y + 0.01 * x)) for x, y in zip(p, q, strict=True) if x))
    assert metrics.miscalibration(ids, met, table if several else group).item() == pytest.approx(np.mean(expected))


def test_expected_exposure_by_loops_and_at_its_target():
    chance = torch.Generator().manual_seed(0)
    score, label = torch.rand(4, 6, 5, generator=chance), (torch.rand(6, 5, generator=chance) < 0.5).float()
    where = torch.rand(6, 5, generator=chance) < 0.8
    label[0], label[1] = 1, 0
    found, losses, disparities = metrics.expected_exposure(score, label, where=where, patience=0.7), [], []
    for r in range(6):
        live = [i for i in range(5) if where[r, i]]
        seen = dict.fromkeys(live, 0.0)
        for s in range(4):
            for place, i in enumerate(sorted(live, key=lambda i: -score[s, r, i].item())):
                seen[i] += 0.7**place / 4
        good = [i for i in live if label[r, i] > 0]
        earned = {}
        for i in live:
            places = range(len(good)) if i in good else range(len(good), len(live))
            earned[i] = np.mean([0.7**p for p in places])
        losses.append(sum((seen[i] - earned[i]) ** 2 for i in live))
        disparities.append(sum(v**2 for v in seen.values()))
    assert found.loss.item() == pytest.approx(np.mean(losses), abs=1e-7)
    assert found.disparity.item() == pytest.approx(np.mean(disparities))
    even = torch.stack([torch.arange(5.0).roll(s).expand(1, 5) for s in range(5)])  # each item at each place once
    assert metrics.expected_exposure(even, torch.ones(1, 5)).loss.item() == pytest.approx(0, abs=1e-12)


def test_what_is_missing_is_said():
    ids, group, merit = pages()
    with pytest.raises(ConfigError, match="give merit="):
        metrics.exposure_ratio(ids, group, impact=True)
    with pytest.raises(DataError, match="whole numbers from 0"):
        metrics.exposure_by_group(ids, merit)
    with pytest.raises(DataError, match="add up to 1"):
        metrics.attention_weighted_fairness(ids, group, torch.tensor([0.5, 0.1, 0.1]))
