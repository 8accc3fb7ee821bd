"""Losses over vectors: in-batch and full softmax against slow twins."""

import pytest
import torch
from torch.testing import assert_close

from recstack import losses
from recstack.errors import ConfigError

B, M, D, K = 7, 4, 3, 2


def world(seed=0):
    random = torch.Generator().manual_seed(seed)
    user, item, extra = (torch.randn(n, D, generator=random, dtype=torch.float64) for n in (B, B, M))
    ids = torch.randint(2, 7, (B,), generator=random)  # accidental hits are certain
    extra_ids = torch.randint(2, 12, (M,), generator=random)
    log_q, extra_log_q = (-torch.rand(n, generator=random, dtype=torch.float64) * 5 for n in (B, M))
    return user, item, ids, log_q, extra, extra_ids, extra_log_q


def slow(user, item, ids, log_q, extra, extra_ids, extra_log_q, temperature, seen, live, weight):
    columns, column_ids = torch.cat([item, extra]), torch.cat([ids, extra_ids])
    column_log_q = torch.cat([log_q, extra_log_q])
    total = weights = 0.0
    for i in range(len(user)):
        if not live[i]:
            continue
        logit = [user[i] @ columns[j] / temperature - column_log_q[j] for j in range(len(columns))]
        keep = [
            j == i
            or ((j >= len(item) or bool(live[j])) and column_ids[j] != ids[i] and int(column_ids[j]) not in seen[i])
            for j in range(len(columns))
        ]
        terms = torch.stack([z for z, kept in zip(logit, keep, strict=True) if kept])
        total = total + weight[i] * (terms.logsumexp(0) - logit[i])
        weights = weights + weight[i]
    return total / weights


def as_csr(seen):
    offsets = torch.tensor([0, *[len(s) for s in seen]]).cumsum(0)
    return offsets, torch.tensor([i for s in seen for i in sorted(s)], dtype=torch.int32)


@pytest.mark.parametrize("seed", range(5))
def test_in_batch_softmax_is_the_slow_loop(seed):
    user, item, ids, log_q, extra, extra_ids, extra_log_q = world(seed)
    random = torch.Generator().manual_seed(100 + seed)
    seen = [set(torch.randint(2, 14, (n,), generator=random).tolist()) for n in (0, 3, 8, 0, 2, 5, 1)]
    live = torch.rand(B, generator=random) < 0.8
    live[0] = True
    weight = torch.rand(B, generator=random, dtype=torch.float64)
    value = losses.in_batch_softmax(
        user,
        item,
        ids,
        log_q=log_q,
        temperature=0.3,
        extra_item=extra,
        extra_ids=extra_ids,
        extra_log_q=extra_log_q,
        seen=as_csr(seen),
        where=live,
        weight=weight,
    )
    assert_close(value, slow(user, item, ids, log_q, extra, extra_ids, extra_log_q, 0.3, seen, live, weight))


def test_a_dead_row_is_an_absent_row_even_if_it_holds_nan():
    user, item, ids, log_q, *_ = world()
    live = torch.ones(B, dtype=torch.bool)
    live[[1, 4]] = False
    dirty_user, dirty_item = (x.clone().index_fill_(0, (~live).nonzero()[:, 0], torch.nan) for x in (user, item))
    dirty_user.requires_grad_()
    dirty_item.requires_grad_()
    value = losses.in_batch_softmax(
        dirty_user, dirty_item, ids, log_q=torch.where(live, log_q, torch.nan), where=live, weight=live / live
    )
    value.backward()
    u, v = user[live].requires_grad_(), item[live].requires_grad_()
    absent = losses.in_batch_softmax(u, v, ids[live], log_q=log_q[live])
    absent.backward()
    assert_close(value, absent)
    for dirty, clean in ((dirty_user, u), (dirty_item, v)):
        assert_close(dirty.grad[live], clean.grad)
        assert (dirty.grad[~live] == 0).all()


def test_nothing_live_gives_zero():
    user, item, ids, *_ = world()
    user = (user * torch.nan).requires_grad_()
    value = losses.in_batch_softmax(user, item, ids, where=torch.zeros(B, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert (user.grad == 0).all()


def test_of_several_interests_the_nearest_is_trained():
    _, item, ids, *_ = world()
    user = torch.randn(B, K, D, dtype=torch.float64, requires_grad=True)
    nearest = torch.stack([max(user[i], key=lambda u, i=i: (u @ item[i]).item()) for i in range(B)])
    assert_close(losses.in_batch_softmax(user, item, ids), losses.in_batch_softmax(nearest, item, ids))
    losses.in_batch_softmax(user, item, ids).backward()
    assert ((user.grad.abs().sum(-1) > 0).sum(-1) <= 1).all()


def test_equal_log_q_changes_nothing_and_popular_columns_are_discounted():
    user, item, ids, *_ = world()
    plain = losses.in_batch_softmax(user, item, ids)
    assert_close(losses.in_batch_softmax(user, item, ids, log_q=torch.full((B,), -3.0, dtype=torch.float64)), plain)
    distinct = torch.arange(B)
    log_q = torch.full((B,), -5.0, dtype=torch.float64)
    log_q[2] = -0.1  # drawn often, so as a negative it counts little

    def column_slope(**options):
        v = item.clone().requires_grad_()
        losses.in_batch_softmax(user[:1].expand(B, D), v, distinct, **options).backward()
        return v.grad.norm(dim=-1)

    weight = torch.zeros(B, dtype=torch.float64)
    weight[0] = 1
    assert column_slope(log_q=log_q, weight=weight)[2] < column_slope(weight=weight)[2]


def test_the_temperature_can_be_learned():
    user, item, ids, *_ = world()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: losses.in_batch_softmax(user, item, ids, temperature=t), temperature)


def test_vectors_under_autocast_are_float32():
    user, item, ids, *_ = (x.float() if x.is_floating_point() else x for x in world())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = losses.in_batch_softmax(user, item, ids)
        full = losses.full_softmax(user, item, torch.arange(B), chunk=2)
    assert_close(value, losses.in_batch_softmax(user, item, ids))
    assert_close(full, losses.full_softmax(user, item, torch.arange(B)))


def test_an_extra_part_needs_its_companion():
    user, item, ids, log_q, extra, extra_ids, _ = world()
    with pytest.raises(ConfigError, match="extra_item and extra_ids"):
        losses.in_batch_softmax(user, item, ids, extra_item=extra)
    with pytest.raises(ConfigError, match="extra_log_q"):
        losses.in_batch_softmax(user, item, ids, log_q=log_q, extra_item=extra, extra_ids=extra_ids)
    with pytest.raises(ConfigError, match="extra_log_q"):
        losses.in_batch_softmax(user, item, ids, extra_item=extra, extra_ids=extra_ids, extra_log_q=extra[:, 0])


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
def test_full_softmax_is_the_list_softmax_over_the_catalog(chunk):
    random = torch.Generator().manual_seed(3)
    user = torch.randn(5, 6, D, generator=random, dtype=torch.float64)
    item = torch.randn(11, D, generator=random, dtype=torch.float64)
    target = torch.randint(11, (5, 6), generator=random)
    where = torch.rand(5, 6, generator=random) < 0.6
    weight = torch.rand(5, 6, generator=random, dtype=torch.float64)

    def gradients(loss):
        u, v = user.clone().requires_grad_(), item.clone().requires_grad_()
        value = loss(u, v)
        return value.detach(), *torch.autograd.grad(value, (u, v))

    def by_list(u, v):
        label = torch.nn.functional.one_hot(target, 11)
        live = where.unsqueeze(-1).expand(5, 6, 11)
        return losses.softmax(u @ v.T / 0.5, label, where=live, weight=weight.unsqueeze(-1))

    def by_vector(u, v):
        return losses.full_softmax(u, v, target, temperature=0.5, where=where, weight=weight, chunk=chunk)

    for fast, plain in zip(gradients(by_vector), gradients(by_list), strict=True):
        assert_close(fast, plain)


def test_full_softmax_under_autocast_multiplies_in_its_type_and_sums_in_float32():
    torch.manual_seed(0)
    user, item = torch.randn(64, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True)
    target = torch.randint(50, (64,))
    exact = torch.autograd.grad(losses.full_softmax(user, item, target, chunk=10), (user, item))
    with torch.autocast("cpu", torch.bfloat16):
        value = losses.full_softmax(user, item, target, chunk=10)
    near = torch.autograd.grad(value, (user, item))
    torch.testing.assert_close(value, losses.full_softmax(user, item, target, chunk=10), rtol=0.01, atol=0)
    for a, b in zip(near, exact, strict=True):
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() / b.norm() < 0.02


@pytest.mark.parametrize("chunk", [None, 4])
def test_full_softmax_of_dead_rows_is_zero_with_zero_gradients(chunk):
    user = torch.full((3, D), torch.nan, requires_grad=True)
    item = torch.randn(5, D, requires_grad=True)
    value = losses.full_softmax(user, item, torch.zeros(3), where=torch.zeros(3, dtype=torch.bool), chunk=chunk)
    value.backward()
    assert value == 0
    assert (user.grad == 0).all()
    assert (item.grad == 0).all()
