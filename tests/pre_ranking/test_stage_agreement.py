"""Stage consistency against loops, and its identities."""

import math

import pytest
import torch

from recstack.errors import ConfigError
from recstack.metrics import stage_ndcg, stage_recall


def test_agreement_by_loops():
    g = torch.Generator().manual_seed(0)
    score, ranker = torch.randn(5, 8, generator=g), torch.randn(5, 8, generator=g)
    where = torch.rand(5, 8, generator=g) > 0.3
    where[4] = False
    shares, gains = [], []
    for r in range(4):
        live = where[r].nonzero().squeeze(1).tolist()
        theirs = sorted(live, key=lambda i: -ranker[r, i])[:3]
        ours = sorted(live, key=lambda i: -score[r, i])
        shares.append(len(set(theirs) & set(ours[:5])) / len(theirs))
        grade = {i: 3 - place for place, i in enumerate(theirs)}
        dcg = sum(grade.get(i, 0) / math.log2(2 + place) for place, i in enumerate(ours[:3]))
        gains.append(dcg / sum((3 - place) / math.log2(2 + place) for place in range(len(theirs))))
    assert stage_recall(score, ranker, where=where, k=3, kept=5).item() == pytest.approx(sum(shares) / 4)
    assert stage_ndcg(score, ranker, where=where, k=3).item() == pytest.approx(sum(gains) / 4)
    assert stage_recall(score, ranker, where=where, k=3, kept=5, reduction="none")[4].isnan()


def test_a_ranker_agrees_with_itself_and_the_overlap_is_symmetric():
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(6, 20, generator=g), torch.randn(6, 20, generator=g)
    assert stage_recall(3 * a + 1, a, k=5) == 1
    assert stage_ndcg(3 * a + 1, a, k=5) == 1
    torch.testing.assert_close(stage_recall(a, b, k=5), stage_recall(b, a, k=5))
    with pytest.raises(ConfigError, match="got kept=3 for k=5"):
        stage_recall(a, b, k=5, kept=3)
