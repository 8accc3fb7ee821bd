"""Losses of two towers against slow loops."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from recstack import losses
from recstack.errors import ConfigError
from recstack.nn.memory import CrossBatchMemory

R, L = 6, 5


def lists(seed=0):
    """One positive a list, somewhere; the last list has no live negative, the one before no positive."""
    g = torch.Generator().manual_seed(seed)
    score = torch.rand(R, L, generator=g, dtype=torch.float64) * 2 - 1
    label = F.one_hot(torch.randint(L, (R,), generator=g), L).double()
    where = (torch.rand(R, L, generator=g) < 0.8) | (label > 0)
    where[-1] = label[-1] > 0
    where[-2] &= label[-2] == 0
    weight = torch.rand(R, L, generator=g, dtype=torch.float64)
    return score, label, where, weight


def slow(kind, score, label, where, weight, log_q):
    total = weights = 0.0
    for r in range(R):
        own = [i for i in range(L) if label[r, i] > 0 and where[r, i]]
        if not own:
            continue
        (i,) = own
        others = [j for j in range(L) if label[r, j] == 0 and where[r, j]]
        k = len(others)
        if kind == "triplet":
            if not k:
                continue
            value = sum(max(0.0, 0.3 - score[r, i] + score[r, j]) for j in others) / k
        elif kind == "cosine_contrastive":
            value = 1 - score[r, i] + (20 / max(k, 1)) * sum(max(0.0, score[r, j] - 0.1) for j in others)
        else:
            shift = lambda j, k=k, r=r: torch.log(torch.tensor(float(max(k, 1)))) + log_q[r, j]  # noqa: E731
            value = -torch.sigmoid(score[r, i] - shift(i)).log()
            value = value - sum(torch.sigmoid(shift(j) - score[r, j]).log() for j in others)
        total, weights = total + weight[r, i] * value, weights + weight[r, i]
    return total / weights


@pytest.mark.parametrize(
    ("kind", "options"),
    [("triplet", {"margin": 0.3}), ("cosine_contrastive", {"margin": 0.1, "negative_weight": 20.0}), ("nce", {})],
)
def test_losses_of_one_positive_are_the_slow_loop(kind, options):
    score, label, where, weight = lists()
    log_q = -torch.rand(R, L, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    wanted = slow(kind, score, label, where, weight, log_q)
    dirty = torch.where(where, score, torch.nan).requires_grad_()  # what a dead cell holds touches nothing
    more = {"log_q": log_q} if kind == "nce" else {}
    found = getattr(losses, kind)(dirty, label, where=where, weight=weight, **options, **more)
    assert_close(found, wanted)
    (slope,) = torch.autograd.grad(found, dirty)
    assert (slope[~where] == 0).all()
    assert slope.isfinite().all()
    assert getattr(losses, kind)(score, label, where=where & False) == 0


def test_a_triplet_loss_is_a_pairwise_hinge():
    score, label, where, weight = lists(3)
    weight = weight[:, :1].expand(R, L)
    assert_close(
        *(f(score, label, where=where, weight=weight, margin=0.3) for f in (losses.triplet, losses.pairwise_hinge))
    )


def test_nce_learns_log_probabilities():
    """Drawn by a crooked q, corrected for it: the scores become the log of the data's chances, without normalisation."""
    g = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    score = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([score], 0.03)
    for _ in range(300):
        items = torch.cat(
            [p.multinomial(400, True, generator=g)[:, None], q.multinomial(2000, True, generator=g).view(400, 5)], 1
        )
        label = torch.zeros(400, 6)
        label[:, 0] = 1
        optimizer.zero_grad()
        losses.nce(score[items], label, log_q=q.log()[items]).backward()
        optimizer.step()
    assert_close(score.detach(), p.log(), atol=0.25, rtol=0)


def test_direct_au_is_the_slow_loop_over_distinct_ids():
    g = torch.Generator().manual_seed(0)
    user, item = (F.normalize(torch.randn(7, 3, generator=g, dtype=torch.float64), dim=-1) for _ in range(2))
    user_ids, item_ids = torch.tensor([5, 6, 5, 7, 8, 9, 9]), torch.tensor([2, 3, 4, 2, 5, 6, 7])
    where = torch.tensor([1, 1, 1, 1, 0, 1, 1]).bool()
    weight = torch.rand(7, generator=g, dtype=torch.float64)
    apart = weights = 0.0
    for r in range(7):
        if where[r]:
            apart, weights = apart + weight[r] * (user[r] - item[r]).pow(2).sum(), weights + weight[r]

    def uniformity(x, ids):
        first = {}
        for r in range(7):
            if where[r]:
                first.setdefault(int(ids[r]), x[r])
        x = list(first.values())
        near = [(-2 * (x[a] - x[b]).pow(2).sum()).exp() for a in range(len(x)) for b in range(a + 1, len(x))]
        return torch.stack(near).mean().log()

    wanted = apart / weights + 0.35 * (uniformity(user, user_ids) + uniformity(item, item_ids))
    dirty = torch.where(where.unsqueeze(-1), user, torch.nan).requires_grad_()
    found = losses.direct_au(dirty, item, user_ids=user_ids, item_ids=item_ids, where=where, weight=weight, gamma=0.7)
    assert_close(found, wanted)
    found.backward()
    assert dirty.grad.isfinite().all()
    alone = user[:1].clone().requires_grad_()
    losses.direct_au(alone, item[:1]).backward()  # no two vectors: nothing to spread
    assert alone.grad.isfinite().all()
    assert losses.direct_au(user[:0], item[:0]) == 0


def test_category_alignment_is_the_covariances_distance():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(14, 3, generator=g, dtype=torch.float64)
    category = torch.tensor([2, 2, 2, 2, 3, 3, 3, 4, 1, 1, 0, 5, 5, 2])  # 4 has one row; 0 and 1 are none
    where = torch.ones(14, dtype=torch.bool)
    where[3] = False
    covariance = {c: torch.cov(x[(category == c) & where].T) for c in (2, 3, 5)}
    wanted = sum((covariance[2] - covariance[c]).square().sum() for c in (3, 5))
    assert_close(losses.category_alignment(x, category, where=where), wanted)
    lonely = x.clone().requires_grad_()
    value = losses.category_alignment(lonely, torch.arange(2, 16))
    value.backward()
    assert value == 0
    assert (lonely.grad == 0).all()
    assert losses.category_alignment(x[:0], category[:0]) == 0


def test_the_hardest_of_the_other_rows_are_the_slow_search():
    g = torch.Generator().manual_seed(0)
    user, item = torch.randn(8, 3, generator=g), torch.randn(8, 3, generator=g)
    ids, row = torch.tensor([2, 3, 2, 4, 5, 6, 3, 7]), torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    score, where = losses.hardest_others(user, item, ids, 2, row)
    for r in range(8):
        first = {}
        for j in range(8):
            first.setdefault(int(ids[j]), j)
        others = [j for i, j in first.items() if i != ids[r] and row[j] != row[r]]
        wanted = sorted((float(user[r] @ item[j]) for j in others), reverse=True)[:2]
        assert_close(score[r], torch.tensor(wanted))
    assert where.all()
    score, where = losses.hardest_others(user[:2], item[:2], ids[:2], 2, row[:2])  # one request: no other rows
    assert not where.any()


def test_an_item_of_the_memory_is_an_extra_negative_unless_it_is_the_rows_own():
    g = torch.Generator().manual_seed(0)
    user, item, past = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (3, 3, 5))
    ids, log_q = torch.tensor([7, 8, 9]), torch.rand(20, generator=g, dtype=torch.float64).log()
    memory = CrossBatchMemory(4, 3).double()
    memory.push(past[:2], torch.tensor([7, 11]))
    before = losses.in_batch_softmax(
        user,
        item,
        ids,
        log_q=log_q[ids],
        extra_item=memory.vectors,
        extra_ids=memory.ids,
        extra_log_q=log_q[memory.ids],
    )
    total = 0.0
    for r in range(3):
        columns = [(item[j], int(ids[j])) for j in range(3)] + [(past[0], 7), (past[1], 11)]
        kept = [user[r] @ v - log_q[i] for j, (v, i) in enumerate(columns) if j == r or i != ids[r]]
        total += torch.stack(kept).logsumexp(0) - (user[r] @ item[r] - log_q[ids[r]])
    assert_close(before, total / 3)
    memory.push(past[2:], torch.tensor([12, 13, 14]))
    assert memory.ids.tolist() == [14, 11, 12, 13]
    assert_close(memory.vectors, past[[4, 1, 2, 3]])


def test_a_loss_of_towers_is_chosen_as_any_other():
    assert losses.get("nce", losses.OF_TOWERS) is losses.nce
    assert losses.get(("direct_au", {"gamma": 2.0}), losses.OF_TOWERS).keywords == {"gamma": 2.0}
    with pytest.raises(ConfigError, match=r"Unknown loss 'direct_ua'\. Did you mean 'direct_au'"):
        losses.get("direct_ua", losses.OF_TOWERS)
    with pytest.raises(ConfigError, match="Unknown option of the loss 'triplet' 'margins'"):
        losses.get(("triplet", {"margins": 1}), losses.OF_TOWERS)
    with pytest.raises(ConfigError, match="gamma"):
        losses.direct_au(torch.eye(2), torch.eye(2), gamma=-1.0)
