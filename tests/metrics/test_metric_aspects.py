"""α-nDCG and ERR-IA by loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recstack import metrics
from recstack.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:In .* of the lists")


def lists(seed, n=25, length=6, aspects=3):
    chance = np.random.default_rng(seed)
    score = torch.from_numpy(chance.integers(0, 4, (n, length)) / 4)
    label = torch.from_numpy((chance.random((n, length, aspects)) < 0.3) * 1.0)
    where = torch.from_numpy(chance.random((n, length)) < 0.8)
    label[0] = 0
    return score, label, where


def dcg(order, label, alpha, cut):
    served, total = np.zeros(label.shape[-1]), 0.0
    for rank, i in enumerate(order[:cut], 1):
        total += float((label[i] > 0) @ (1 - alpha) ** served) / np.log2(1 + rank)
        served += label[i] > 0
    return total


def greedy(live, label, alpha):
    order, served = [], np.zeros(label.shape[-1])
    while len(order) < len(live):
        best = max(
            (i for i in live if i not in order), key=lambda i: (float((label[i] > 0) @ (1 - alpha) ** served), -i)
        )
        order.append(best)
        served += label[best] > 0
    return order


@pytest.mark.parametrize(("k", "alpha"), [(None, 0.5), (3, 0.3), (20, 0.0), (1, 1.0)])
def test_alpha_ndcg_by_loops(k, alpha):
    score, label, where = lists(k or 0)
    each = metrics.alpha_ndcg(score, label, where=where, k=k, alpha=alpha, reduction="none")
    expected = []
    for i in range(len(score)):
        live = [c for c in range(score.shape[1]) if where[i, c]]
        order, of = sorted(live, key=lambda c: -score[i, c].item()), label[i].numpy()
        ideal = dcg(greedy(live, of, alpha), of, alpha, k)
        expected.append(dcg(order, of, alpha, k) / ideal if ideal else np.nan)
    assert each.tolist() == pytest.approx(expected, nan_ok=True)
    assert metrics.alpha_ndcg(score, label, where=where, k=k, alpha=alpha).item() == pytest.approx(np.nanmean(expected))


def test_with_one_aspect_and_no_impatience_it_is_ndcg():
    score, label, where = lists(7, aspects=1)
    score = score + torch.linspace(0, 0.1, score.numel()).reshape(score.shape).double()
    found = metrics.alpha_ndcg(score, label, where=where, alpha=0.0, k=4, reduction="none")
    expected = metrics.ndcg(score, label.squeeze(-1), where=where, k=4, reduction="none")
    assert found.tolist() == pytest.approx(expected.tolist(), nan_ok=True)


@pytest.mark.parametrize("given", [True, False])
def test_intent_aware_err_by_loops(given):
    score, label, where = lists(4)
    share = torch.rand(len(score), 3, generator=torch.Generator().manual_seed(0)).double() if given else None
    each = metrics.intent_aware_err(score, label, where=where, k=4, share=share, reduction="none")
    for i in range(len(score)):
        live = [c for c in range(score.shape[1]) if where[i, c]]
        order = sorted(live, key=lambda c: -score[i, c].item())
        err, there = [], []
        for a in range(3):
            stop, total = 1.0, 0.0
            for rank, c in enumerate(order[:4], 1):
                satisfied = 0.5 * label[i, c, a].item()
                total, stop = total + stop * satisfied / rank, stop * (1 - satisfied)
            err.append(total)
            there.append(any(label[i, c, a] > 0 for c in live))
        if not any(there):
            assert each[i].isnan()
            continue
        weights = share[i].numpy() if given else np.array(there) / sum(there)
        assert each[i].item() == pytest.approx(float(np.array(err) @ weights))


def test_padding_and_wrong_shapes():
    score, label, where = lists(2)
    wide = torch.nn.functional.pad(score, (0, 3), value=9.0)
    more, live = torch.nn.functional.pad(label, (0, 0, 0, 3), value=1.0), torch.nn.functional.pad(where, (0, 3))
    for metric in (metrics.alpha_ndcg, metrics.intent_aware_err):
        assert metric(wide, more, where=live).item() == pytest.approx(metric(score, label, where=where).item())
        with pytest.raises(DataError, match=r"\[..., L, A\]"):
            metric(score, label[..., 0])
    with pytest.raises(ConfigError, match="alpha is a number from 0 to 1"):
        metrics.alpha_ndcg(score, label, alpha=2.0)
