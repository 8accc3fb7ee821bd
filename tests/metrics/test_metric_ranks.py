"""ERR, RBP, positions and inversions by loops; NDCG of lists without anything relevant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recstack import metrics
from recstack.errors import ConfigError, DataError


def lists(seed, n=40, length=8):
    chance = np.random.default_rng(seed)
    score = torch.from_numpy(chance.integers(0, 5, (n, length)) / 4)
    label = torch.from_numpy(chance.integers(0, 4, (n, length)) * (chance.random((n, length)) < 0.5)).double()
    where = torch.from_numpy(chance.random((n, length)) < 0.8)
    return score, label, where


def ordered(score, label, where):
    """Labels of the live cells, best score first, ties in the order of input."""
    cells = [(s, y) for s, y, m in zip(score.tolist(), label.tolist(), where.tolist(), strict=True) if m]
    return [y for _, y in sorted(cells, key=lambda cell: -cell[0])]


@pytest.mark.filterwarnings("ignore:In .* of the lists")
@pytest.mark.parametrize("k", [None, 1, 3, 20])
def test_each_is_its_definition(k):
    score, label, where = lists(k or 0)
    asked = {"where": where, "reduction": "none", "k": k}
    err = metrics.expected_reciprocal_rank(score, label, top_grade=3, **asked)
    rbp = metrics.rank_biased_precision(score, label, patience=0.7, **asked)
    position = metrics.average_position(score, label, **asked)
    for i in range(len(score)):
        y = ordered(score[i], label[i], where[i])
        cut = len(y) if k is None else k
        if not any(y):
            assert err[i].isnan()
            assert position[i].isnan()
            continue
        stop, expected = 1.0, 0.0
        for rank, grade in enumerate(y[:cut], 1):
            satisfied = (2**grade - 1) / 2**3
            expected += stop * satisfied / rank
            stop *= 1 - satisfied
        assert err[i].item() == pytest.approx(expected)
        assert rbp[i].item() == pytest.approx(0.3 * sum(0.7 ** (r - 1) for r, g in enumerate(y[:cut], 1) if g))
        ranks = [min(r, cut + 1) for r, g in enumerate(y, 1) if g]
        assert position[i].item() == pytest.approx(np.mean(ranks))


def test_inversions_are_counted_pair_by_pair(monkeypatch):
    from recstack.metrics import ranks

    monkeypatch.setattr(ranks, "PAIRS", 64 * 3)  # three lists at a time
    score, label, where = lists(7)
    each = metrics.pair_inversions(score, label, where=where, reduction="none")
    for i in range(len(score)):
        wrong = pairs = 0.0
        for a in range(8):
            for b in range(8):
                if where[i, a] and where[i, b] and label[i, a] > label[i, b]:
                    pairs += 1
                    wrong += float(score[i, a] < score[i, b]) + 0.5 * float(score[i, a] == score[i, b])
        assert each[i].item() == pytest.approx(wrong / pairs, nan_ok=True) if pairs else each[i].isnan()
    binary = (label > 0).double()
    value = metrics.pair_inversions(score, binary, where=where)
    assert value.item() == pytest.approx(1 - metrics.gauc(score, binary, where=where, weights="uniform").item())


@pytest.mark.filterwarnings("ignore:In .* of the lists")
@pytest.mark.parametrize("k", [None, 2])
def test_what_is_kept_of_clicks_and_what_a_list_earns(k):
    score, label, where = lists(3)
    label = label / 3
    theta, missed = torch.linspace(1, 0.3, 8), torch.arange(len(score)) % 3
    kept = total = 0.0
    earned = []
    for i in range(len(score)):
        y = ordered(score[i], label[i], where[i])
        kept, total = kept + sum(y[:k]), total + sum(y) + missed[i].item()
        earned.append(sum(t * g for t, g in zip(theta.tolist(), y[:k], strict=False)))
    all_of = torch.where(where, label, 0).sum(-1) + missed
    assert metrics.click_recall(score, label, where=where, k=k, total=all_of).item() == pytest.approx(kept / total)
    assert metrics.list_value(score, label, where=where, k=k, examination=theta).item() == pytest.approx(
        np.mean(earned)
    )
    with pytest.raises(DataError, match="values from 0"):
        metrics.list_value(score, label - 1, where=where)
    with pytest.raises(DataError, match="total is less"):
        metrics.click_recall(score, label, total=torch.zeros(len(score)))


def test_blank_lists_count_as_it_is_said():
    score = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 0.0]])
    label = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    where = torch.tensor([[True, True], [True, True], [False, False]])
    one = metrics.ndcg(score[:1], label[:1]).item()
    for blank, expected in ((None, one), (1.0, (one + 1) / 2), (0.0, one / 2)):  # an empty list is no list
        assert metrics.ndcg(score, label, where=where, blank=blank).item() == pytest.approx(expected)
        meter = metrics.get("ndcg", blank=blank).meter()
        meter.update(score, label, where=where)
        assert meter.compute().item() == pytest.approx(expected)


def test_what_has_no_formula_is_said():
    score, label, _ = lists(1)
    with pytest.raises(ConfigError, match="no average over ties"):
        metrics.expected_reciprocal_rank(score, label, ties="average")
    with pytest.raises(DataError, match="A label is 3, above top_grade = 1"):
        metrics.expected_reciprocal_rank(score, label, top_grade=1)
    with pytest.raises(ConfigError, match="patience"):
        metrics.rank_biased_precision(score, label, patience=1.0)


@pytest.mark.parametrize("name", ["err@5", "pair_inversions", "ndcg@5", "average_position"])
def test_any_list_metric_can_validate_a_task_and_no_order_of_rows_flatters_it(name):
    from recstack.features.tasks import metric

    score, label = torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert metric(name)(score, label).item() == pytest.approx(metric(name)(score, label.flip(-1)).item())
