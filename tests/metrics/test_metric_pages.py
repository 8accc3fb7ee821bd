"""The business's ratios and pages beyond accuracy, by loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from recstack import metrics
from recstack.errors import DataError


def test_ratios_of_a_log_by_loops():
    chance = np.random.default_rng(0)
    n = 500
    click = (chance.random(n) < 0.3).astype(float)
    columns = {
        "cost": click * chance.uniform(0.1, 1, n),
        "revenue": click * chance.uniform(0, 2, n),
        "gmv": click * (chance.random(n) < 0.2) * 30.0,
        "position": chance.integers(1, 9, n).astype(float),
    }
    group, where, weight = chance.integers(0, 4, n) + 10, chance.random(n) < 0.8, chance.uniform(0.5, 2, n)
    columns["cost"][group == 13] = 0
    columns["cost"][~where] = np.nan  # a dead row may hold anything
    given = {name: torch.from_numpy(x) for name, x in {**columns, "where": where, "weight": weight}.items()}
    found = metrics.business(torch.from_numpy(click), group=torch.from_numpy(group), **given)
    assert found["group"].tolist() == [10, 11, 12, 13]
    for i, g in enumerate(range(10, 14)):
        rows = where & (group == g)
        w = weight[rows]
        total = {name: (w * x[rows]).sum() for name, x in columns.items()} | {"click": (w * click[rows]).sum()}
        expected = {
            "impressions": w.sum(),
            "clicks": total["click"],
            "ctr": total["click"] / w.sum(),
            "ppc": total["cost"] / total["click"],
            "cpm": 1000 * total["cost"] / w.sum(),
            "rpm": 1000 * total["revenue"] / w.sum(),
            "gmv": total["gmv"],
            "roi": total["gmv"] / total["cost"] if total["cost"] else math.nan,
            "clicked_position": (w * click[rows] * columns["position"][rows]).sum() / total["click"],
            "impression_share": w.sum() / weight[where].sum(),
        }
        assert {k: v[i].item() for k, v in found.items() if k != "group"} == pytest.approx(expected, nan_ok=True)
    assert set(metrics.business(torch.from_numpy(click))) == {"impressions", "clicks", "ctr"}
    with pytest.raises(DataError, match=r"cost is \[499\] and click \[500\]"):
        metrics.business(torch.from_numpy(click), cost=given["cost"][1:])
    with pytest.raises(DataError, match="cost holds"):
        metrics.business(torch.from_numpy(click), cost=given["cost"])


def pages(seed=1, n=12, k=5, items=30):
    chance = np.random.default_rng(seed)
    ids = np.stack([chance.permutation(items)[:k] + 1 for _ in range(n)])
    ids[0, 2:], ids[1] = 0, 0  # a short page, and an empty one
    return torch.from_numpy(ids), items


def test_exposure_by_loops():
    ids, items = pages()
    count = np.bincount(ids[ids > 0].numpy(), minlength=items + 1)[1:]
    assert metrics.coverage(ids, items).item() == pytest.approx((count > 0).mean())
    mean_gap = np.mean([abs(a - b) for a in count for b in count])
    assert metrics.gini(ids, items).item() == pytest.approx(mean_gap / 2 / count.mean())
    share = count[count > 0] / count.sum()
    assert metrics.exposure_entropy(ids, items).item() == pytest.approx(-(share * np.log2(share)).sum())
    assert metrics.concentration(ids, items).item() == pytest.approx((share**2).sum())
    assert metrics.user_coverage(ids, least=3).item() == pytest.approx(10 / 12)
    news = [np.mean([i not in old for i in new if i]) for new, old in zip(ids.tolist()[2:], ids.tolist(), strict=False)]
    assert metrics.temporal_diversity(ids[:-2], ids[2:]).item() == pytest.approx(np.mean(news))
    train = np.arange(items + 1.0) ** 2
    shown = train[ids[ids > 0].numpy()]
    assert metrics.popularity(ids, torch.from_numpy(train)).item() == pytest.approx(shown.mean())
    assert metrics.novelty(ids, torch.from_numpy(train)).item() == pytest.approx(-np.log2(shown / train.sum()).mean())
    head, total = set(), 0.0
    for item in np.argsort(-train):
        if total >= 0.5 * train.sum():
            break
        head.add(item)
        total += train[item]
    tail = np.mean([i not in head for i in ids[ids > 0].tolist()])
    assert metrics.long_tail(ids, torch.from_numpy(train), head=0.5).item() == pytest.approx(tail)
    with pytest.raises(DataError, match="ids are 1 to 3"):
        metrics.gini(ids, 3)


@pytest.mark.parametrize("kind", ["vectors", "categories"])
def test_distances_within_pages_by_loops(kind):
    ids, items = pages()
    chance = torch.Generator().manual_seed(0)
    vectors = torch.randn(items + 1, 4, generator=chance)
    vectors[7] = 0
    table = vectors if kind == "vectors" else torch.randint(0, 4, (items + 1,), generator=chance)

    def distance(a, b):
        if kind == "categories":
            return float(table[a] != table[b])
        return 1 - torch.cosine_similarity(table[a], table[b], dim=0).item()

    expected = []
    for page in ids.tolist():
        real = [i for i in page if i > 0]
        if len(real) > 1:
            expected.append(np.mean([distance(a, b) for a, b in itertools.permutations(real, 2)]))
    assert metrics.intra_list_distance(ids, table).item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_distances_between_pages_by_loops():
    ids, items = pages(items=12)
    sets = [{i for i in page if i > 0} for page in ids.tolist()]
    sets = [s for s in sets if s]
    alike = [len(a & b) / math.sqrt(len(a) * len(b)) for a, b in itertools.permutations(sets, 2)]
    assert metrics.personalisation(ids, items).item() == pytest.approx(1 - np.mean(alike))
    other = ids.flip(0)
    expected = []
    for a, b in zip(ids.tolist(), other.tolist(), strict=True):
        overlap = [len({*a[:d]} & {*b[:d]} - {0}) / d for d in range(1, 6)]
        expected.append(sum(o * 0.8**d for d, o in enumerate(overlap)) / sum(0.8**d for d in range(5)))
    assert metrics.rank_biased_overlap(ids, other, 0.8).item() == pytest.approx(np.mean(expected))
    assert metrics.rank_biased_overlap(ids[2:], ids[2:]).item() == pytest.approx(1)
    relevant = torch.from_numpy(np.random.default_rng(0).random(ids.shape) < 0.5)
    good = [
        r and i not in e
        for i, r, e in zip(
            ids[ids > 0].tolist(),
            relevant[ids > 0].tolist(),
            [row for row, page in zip(other.tolist(), ids.tolist(), strict=True) for i in page if i > 0],
            strict=True,
        )
    ]
    assert metrics.serendipity(ids, relevant, other).item() == pytest.approx(np.mean(good))
