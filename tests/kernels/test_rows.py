"""Sparse gathering equals dense gathering; compiled updates equal the torch lines beside them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.kernels import rows as kernel
from recstack.kernels.rows import Gather, Rows, coalesced, dense_gather, sparse_gather


def table(n=50, d=4, dtype=torch.float32):
    w = torch.randn(n, d, dtype=dtype)
    w[0] = 0
    return w.requires_grad_()


def bags(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


@settings(deadline=None, max_examples=40)
@given(
    ids=st.lists(st.integers(0, 9), max_size=30),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    mean=st.sampled_from([None, False, True]),
    data=st.data(),
)
def test_the_sparse_gradient_is_the_dense_one(ids, dtype, mean, data):
    index, offsets = torch.tensor(ids, dtype=dtype), None
    if mean is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
        offsets = torch.tensor([0, *cuts, len(ids)])
    a, b = table(10), None
    b = a.detach().clone().requires_grad_()
    x = sparse_gather(a, Rows(index, offsets, bool(mean)))
    y = dense_gather(b, Rows(index, offsets, bool(mean)))
    torch.testing.assert_close(x, y)
    weight = torch.randn_like(x)
    (x * weight).sum().backward()
    (y * weight).sum().backward()
    assert a.grad.is_sparse
    torch.testing.assert_close(a.grad.to_dense(), b.grad)
    grad = coalesced(a.grad)
    assert grad.is_coalesced()
    assert grad._values().data_ptr() == a.grad._values().data_ptr()  # nothing had to be sorted or copied
    assert grad._indices()[0].tolist() == sorted(set(ids) - {0})


def test_pooling_means_over_what_is_there():
    w = table()
    index = torch.tensor([3, 5, 0, 7], dtype=torch.int32)
    got = dense_gather(w, Rows(index, bags([2, 0, 2]), mean=True))
    torch.testing.assert_close(got, torch.stack([(w[3] + w[5]) / 2, torch.zeros(4), w[7]]))


def test_any_leading_shape():
    w, index = table(), torch.randint(0, 50, (3, 2, 5))
    assert torch.equal(sparse_gather(w, Rows(index)), w[index])


def test_several_backward_passes_share_one_order():
    w, rows = table(), Rows(torch.randint(0, 50, (40,)))
    y = sparse_gather(w, rows)
    y.sum().backward(retain_graph=True)
    plan = rows.plan
    once = w.grad.to_dense().clone()
    y.sum().backward()
    assert rows.plan is plan
    torch.testing.assert_close(w.grad.to_dense(), 2 * once)


def test_two_tasks_have_gradients_on_equal_rows():
    w, rows = table(), Rows(torch.randint(0, 50, (40,)))
    y = sparse_gather(w, rows)
    one, two = (torch.autograd.grad(loss, w, retain_graph=True)[0] for loss in (y.sum(), y.square().sum()))
    assert torch.equal(one._indices(), two._indices())


def test_accumulating_micro_batches_is_one_batch():
    w, index = table(), torch.randint(0, 50, (60,))
    sparse_gather(w, Rows(index)).square().sum().backward()
    whole, w.grad = w.grad.to_dense(), None
    for part in index.split(20):
        sparse_gather(w, Rows(part)).square().sum().backward()
    torch.testing.assert_close(w.grad.to_dense(), whole)
    merged = coalesced(w.grad)
    assert merged._indices()[0].tolist() == index.unique()[index.unique() > 0].tolist()
    torch.testing.assert_close(merged.to_dense(), whole)


def test_a_sparse_and_a_dense_use_in_one_graph_add_up():
    w, index = table(), torch.randint(0, 50, (60,))
    loss = lambda gather: gather(w, Rows(index)).sum() + w.square().sum()  # noqa: E731
    (got,) = torch.autograd.grad(loss(sparse_gather), w)
    (want,) = torch.autograd.grad(loss(dense_gather), w)
    torch.testing.assert_close(got, want)


def test_a_bf16_table_gets_the_sum_in_float32():
    w = table(dtype=torch.bfloat16)
    index = torch.full((1000,), 7)
    sparse_gather(w, Rows(index)).sum().backward()
    assert w.grad.dtype == torch.bfloat16
    assert w.grad.to_dense()[7, 0] == 1000  # added up in bf16 it would stop at 256


@pytest.mark.slow
def test_compiled_through_the_gradient_stays_sparse():
    w, index = table(), torch.randint(1, 50, (60,))

    def loss(x):
        return (sparse_gather(w, Rows(x)) * 2).square().sum()

    torch.compile(loss, backend="eager")(index).backward()
    assert w.grad.is_sparse


UPDATES = {
    "rowwise_adagrad_": lambda n, d: ([torch.rand(n)], (0.1, 1e-8)),
    "adagrad_": lambda n, d: ([torch.rand(n, d)], (0.1, 1e-8)),
    "lazy_adam_": lambda n, d: (
        [torch.randn(n, d), torch.rand(n, d), torch.randint(0, 9, (n,), dtype=torch.int32)],
        (0.1, (0.9, 0.999), 1e-8),
    ),
    "partial_rowwise_adam": lambda n, d: (
        [torch.randn(n, d), torch.rand(n), torch.randint(0, 9, (n,), dtype=torch.int32)],
        (0.1, (0.9, 0.999), 1e-8),
    ),
    "ftrl_": lambda n, d: ([torch.randn(n, d), torch.rand(n, d)], (0.1, 1.0, 0.3, 0.1)),
    "sgd_": lambda n, d: ([], (0.1,)),
}


def update(name):
    return kernel.lazy_adam_ if name == "partial_rowwise_adam" else getattr(kernel, name)


def both(name, dtype, n=200, d=8, touched=60, threads=1, monkeypatch=None):
    """The update by the compiled loop and by the torch lines, from equal beginnings."""
    state, scalars = UPDATES[name](n, d)
    weight, rows, grad = torch.randn(n, d, dtype=dtype), torch.randperm(n)[:touched].sort().values, None
    grad = torch.randn(touched, d)
    out = []
    for native in (True, False):
        w, s = weight.clone(), [x.clone() for x in state]
        with monkeypatch.context() as m:
            if not native:
                m.setattr(kernel, "_native", lambda *a: False)
            update(name)(w, *s, rows, grad, *scalars)
        out.append([w, *s])
    return weight, rows, out


@pytest.mark.parametrize("name", UPDATES)
def test_the_loop_is_the_torch_lines(name, monkeypatch):
    weight, rows, (fast, slow) = both(name, torch.float32, monkeypatch=monkeypatch)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(
            a, b, rtol=2e-6, atol=2e-6 if name == "ftrl_" else 1e-7
        )  # it subtracts at its threshold
    untouched = torch.ones(len(weight), dtype=torch.bool)
    untouched[rows] = False
    assert torch.equal(fast[0][untouched], weight[untouched])
    assert not torch.equal(fast[0][rows], weight[rows])


@pytest.mark.parametrize("name", UPDATES)
def test_the_number_of_threads_changes_no_bit(name, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    results = []
    for chunk in (1 << 30, 50):
        monkeypatch.setattr(kernel, "CHUNK", chunk)
        torch.manual_seed(1)
        results.append(both(name, torch.float32, touched=101, monkeypatch=monkeypatch)[2][0])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", UPDATES)
def test_a_copy_of_the_rows_is_updated_as_they_are(name, monkeypatch):
    """What a bf16 table gives: its rows, widened, stand elsewhere than their state."""
    for native in (True, False):
        if not native:
            monkeypatch.setattr(kernel, "_native", lambda *a: False)
        state, scalars = UPDATES[name](200, 8)
        weight, rows, grad = torch.randn(200, 8), torch.randperm(200)[:60].sort().values, torch.randn(60, 8)
        copy, other = weight[rows].clone(), [x.clone() for x in state]
        update(name)(weight, *state, rows, grad, *scalars)
        update(name)(copy, *other, rows, grad, *scalars, torch.arange(60))
        assert torch.equal(copy, weight[rows])
        assert all(torch.equal(a, b) for a, b in zip(state, other, strict=True))


@pytest.mark.parametrize("native", [True, False])
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(native):
    wide = torch.randn(50, 4) * torch.tensor([1e-30, 1.0, 1e4, 0.0])
    rows = torch.randperm(90)[:50].sort().values
    low = (wide.view(torch.int32) & -65536).view(torch.float32)  # cut off
    high = ((wide.view(torch.int32) & -65536) + 65536).view(torch.float32)
    total, n = torch.zeros(50, 4, dtype=torch.double), 1000
    for step in range(n):
        table = torch.zeros(90, 4, dtype=torch.bfloat16)
        table = table if native else table.t().contiguous().t()  # strided ones go through the torch lines
        kernel.narrow_(table, rows, wide, step)
        got = table[rows].float()
        assert ((got == low) | (got == high)).all()
        total += got
    away = ((total / n - wide) / (high - low).abs().double()).abs()
    assert away.max() < 4.5 * (0.25 / n) ** 0.5  # standard errors of a coin's mean


def test_stochastic_rounding_is_the_same_in_the_loop_and_in_the_torch_lines(monkeypatch):
    wide, rows = torch.randn(50, 4), torch.arange(0, 100, 2)
    wide[3] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    fast = torch.zeros(100, 4, dtype=torch.bfloat16)
    kernel.narrow_(fast, rows, wide, 2**40 + 7)
    strided = torch.zeros(4, 100, dtype=torch.bfloat16).t()
    kernel.narrow_(strided, rows, wide, 2**40 + 7)
    assert torch.equal(fast.view(torch.int16), strided.contiguous().view(torch.int16))
    assert fast[6, :2].tolist() == [torch.inf, -torch.inf]
    assert fast[6, 2].isnan()
    again = torch.zeros_like(fast)
    kernel.narrow_(again, rows, wide, 2**40 + 8)
    assert not torch.equal(fast, again)


def test_rows_of_a_bf16_table_are_widened_exactly():
    table, rows = torch.randn(30, 5).bfloat16(), torch.tensor([0, 3, 4, 29])
    table[3, :3] = torch.tensor([torch.inf, -0.0, torch.nan])
    for t in (table, table.t().contiguous().t()):
        assert torch.equal(kernel.widened(t, rows).view(torch.int32), table[rows].float().view(torch.int32))


def test_rowwise_adagrad_by_hand():
    w, total = torch.ones(3, 2), torch.tensor([0.0, 1.0, 2.0])
    kernel.rowwise_adagrad_(w, total, torch.tensor([2]), torch.tensor([[3.0, 4.0]]), 0.5, 0.0)
    rate = 0.5 / (2 + 12.5) ** 0.5
    torch.testing.assert_close(w[2], torch.tensor([1 - 3 * rate, 1 - 4 * rate]))
    assert total.tolist() == [0, 1, 14.5]


def test_lazy_adam_is_adam_when_every_row_is_touched():
    p = torch.nn.Parameter(torch.randn(20, 4))
    w, state = p.detach().clone(), [torch.zeros(20, 4), torch.zeros(20, 4), torch.zeros(20, dtype=torch.int32)]
    adam = torch.optim.Adam([p], lr=0.01)
    for _ in range(5):
        p.grad = torch.randn(20, 4)
        kernel.lazy_adam_(w, *state, torch.arange(20), p.grad, 0.01, (0.9, 0.999), 1e-8)
        adam.step()
    torch.testing.assert_close(w, p.detach(), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.integers(0, 5) | st.integers(0, 2**31 - 1), max_size=60),
    wide=st.booleans(),
)
def test_the_plan_is_a_stable_sort_of_the_live_rows(ids, wide):
    rows = Rows(torch.tensor(ids, dtype=torch.int64 if wide else torch.int32))
    unique, order, first = rows.plan
    live = [i for i in sorted(range(len(ids)), key=lambda i: ids[i]) if ids[i]]
    assert order.tolist() == live
    assert unique.tolist() == [sorted(set(ids) - {0})]
    assert [ids[live[k]] for k in first.tolist()] == unique[0].tolist()
    assert rows.counts.tolist() == [ids.count(r) for r in unique[0].tolist()]


def test_a_row_past_the_table_is_refused():
    w = table(10)
    for wrong in (10, -1):
        with pytest.raises(IndexError):
            sparse_gather(w, Rows(torch.tensor([3, wrong])))


def test_huge_pages_change_no_value(monkeypatch):
    monkeypatch.setattr(kernel, "HUGE", 1)
    x = torch.randn(1000, 100)
    assert torch.equal(kernel.huge_pages(x), x.clone())
    assert kernel.huge_pages(torch.empty(0)).numel() == 0


def merge(index, grad, n):
    """A gradient as a GPU has it, merged."""
    rows, values = Rows(index).spread(grad)
    return kernel.merged(torch.sparse_coo_tensor(rows, values, (n, grad.shape[-1]), check_invariants=False))


def test_a_merged_gradient_is_the_same_matrix_with_the_same_norm():
    index, grad = torch.randint(0, 9, (6, 7), dtype=torch.int32), torch.randn(6, 7, 4)
    w = table(9)
    sparse_gather(w, Rows(index)).backward(grad)
    once = merge(index, grad, 9)
    torch.testing.assert_close(once.to_dense(), w.grad.to_dense())
    torch.testing.assert_close(once._values().norm(), w.grad._values().norm())
    rows = once._indices()[0]
    assert once._values()[~kernel.is_first(rows)].abs().sum() == 0
    twice = kernel.merged(once)
    assert torch.equal(once._indices(), twice._indices())
    torch.testing.assert_close(once._values(), twice._values())


@pytest.mark.parametrize("mean", [False, True])
def test_pooled_rows_spread_to_the_same_gradient(mean):
    index, offsets = torch.tensor([3, 0, 3, 5, 0, 7]), bags([2, 0, 3, 1])
    w, grad = table(9), torch.randn(4, 4)
    rows = Rows(index, offsets, mean)
    sparse_gather(w, rows).backward(grad)
    spread = torch.sparse_coo_tensor(*rows.spread(grad), (9, 4), check_invariants=False)
    torch.testing.assert_close(spread.to_dense(), w.grad.to_dense())


@pytest.mark.parametrize("name", UPDATES)
def test_a_row_that_comes_twice_with_one_sum_steps_once(name, monkeypatch):
    """As on a GPU: the torch lines write the same values twice."""
    monkeypatch.setattr(kernel, "_native", lambda *a: False)
    state, scalars = UPDATES[name](9, 4)
    weight, rows, grad = torch.randn(9, 4), torch.tensor([1, 4, 6]), torch.randn(3, 4)
    copy, other, times = weight.clone(), [x.clone() for x in state], torch.tensor([0, 0, 1, 2, 2, 2])
    update(name)(weight, *state, rows, grad, *scalars)
    update(name)(copy, *other, rows[times], grad[times], *scalars)
    assert torch.equal(copy, weight)
    assert all(torch.equal(a, b) for a, b in zip(state, other, strict=True))


def test_one_sort_orders_positions_within_a_row():
    index = torch.tensor([[5, 0, 2], [2, 5, 5]])
    unique, order, first = Rows(index).plan
    assert unique.tolist() == [[2, 5]]
    assert order.tolist() == [2, 3, 0, 4, 5]
    assert first.tolist() == [0, 2]


def test_gather_is_differentiable_once_only():
    w = table()
    (g,) = torch.autograd.grad(Gather.apply(w, Rows(torch.tensor([1, 2]))).square().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(g.to_dense().sum(), w)


def test_embedding_bag_is_the_same_pool():
    w, index, offsets = table(), torch.randint(1, 50, (30,)), bags([5, 0, 25])
    want = F.embedding_bag(index, w, offsets[:-1], mode="sum")
    torch.testing.assert_close(dense_gather(w, Rows(index, offsets)), want)
