"""Rows of an embedding arena: gathering them, the sparse gradient that comes back, and updates in place.

A step costs what the batch costs, never what the table costs. Row 0 of an arena is padding: it is read as it is (zeros)
and never receives a gradient. Duplicate rows are summed *before* any optimiser sees them, so that updates are exact.

On a CPU the gradient holds each row once. On a GPU that would mean waiting for the device to say how many rows there
are; there it holds every position, and `coalesced` leaves the sum of a row's gradients at the first of its positions and
zeros at the others: the same matrix with the same norm, and a length that is known beforehand.
"""

from __future__ import annotations

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Rows:
    """Rows asked of an arena; with `offsets` they are pooled.

    The order by row is worked out once, on the first backward pass, and shared by every arena that is asked for the
    same rows and by every further backward pass through them.

    Args:
        index: rows, int32 or int64, any shape [...]; flat [n] with offsets. Row 0 means "nothing there".
        offsets: int64 [bags + 1]; bag b is index[offsets[b]:offsets[b + 1]], the last entry is n.
        mean: pool by the mean of what is there; otherwise by the sum. An empty bag is zeros.

    Gathered, they are [..., D] without offsets and [bags, D] with them.
    """

    def __init__(self, index: Tensor, offsets: Tensor | None = None, mean: bool = False) -> None:
        self.index, self.offsets, self.mean = index, offsets, mean

    @cached_property
    def plan(self) -> tuple[Tensor, Tensor, Tensor]:
        """Live rows, ascending, int64 [1, unique]; where they stand in the flat index [live]; where each starts in that
        [unique]. On a GPU this waits for the device.
        """
        index = self.index.detach().reshape(-1)
        if index.device.type != "cpu":
            row, order = torch.sort(index.long(), stable=True)
            row, order = row[row > 0], order[row > 0]
            unique, count = torch.unique_consecutive(row, return_counts=True)
            return unique[None], order, count.cumsum(0) - count
        unique, order, first = map(torch.from_numpy, _compiled(_by_row)(index.numpy()))
        return unique, order, first

    @property
    def counts(self) -> Tensor:
        """How often each live row is asked for, int64 [unique]."""
        _, order, first = self.plan
        return torch.diff(first, append=first.new_tensor([len(order)])).long()

    def summed(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of each live row once: indices [1, unique] and sums [unique, D].

        `grad` has the shape of what was gathered. Pooling is undone here without a copy of the gradient per value.
        """
        unique, order, first = self.plan
        grad = grad.reshape(-1, grad.shape[-1])
        if self.offsets is not None:
            count = torch.diff(self.offsets)
            bags = torch.arange(len(count), dtype=order.dtype, device=count.device)
            order = torch.repeat_interleave(bags, count)[order]  # the bag of each
            if self.mean:
                live = torch.bincount(order, minlength=len(count)).clamp(min=1)
                grad = grad / live[:, None]
        if not len(first):
            return unique, grad[:0]
        return unique, F.embedding_bag(order, grad, first, mode="sum")

    def spread(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of each position, row 0 with zeros: indices [1, n] and values [n, D]. No device is waited for."""
        index = self.index.detach().reshape(-1)
        grad = grad.reshape(-1, grad.shape[-1])
        if self.offsets is not None:
            if self.mean:
                grad = grad / self.live.clamp(min=1)[:, None]
            grad = torch.repeat_interleave(grad, self.offsets.diff(), 0, output_size=len(index))
        return index.long()[None], grad * (index > 0)[:, None]

    @property
    def live(self) -> Tensor:
        """Of pooled rows: how many of each bag are there [bags]."""
        assert self.offsets is not None
        return F.pad((self.index > 0).cumsum(0), (1, 0))[self.offsets].diff()


def dense_gather(weight: Tensor, rows: Rows) -> Tensor:
    """Rows of `weight` [N, D], by plain torch: the gradient is dense, any optimiser works, and it can be exported."""
    if rows.offsets is None:
        return F.embedding(rows.index, weight, padding_idx=0)
    # Without a gradient to keep away from row 0, summing its zeros is twenty times faster than stepping round them.
    padding = 0 if torch.is_grad_enabled() and weight.requires_grad else None
    offsets = rows.offsets.to(rows.index.dtype)
    pooled = F.embedding_bag(rows.index, weight, offsets, mode="sum", include_last_offset=True, padding_idx=padding)
    if not rows.mean:
        return pooled
    return pooled / rows.live.clamp(min=1)[:, None].to(pooled.dtype)


def _ahead_gather(weight: Tensor, index: Tensor) -> Tensor:
    """`dense_gather` that asks for rows before it reads them: up to twice as fast, as tables do not fit into caches."""
    if index.numel():
        low, high = (int(x) for x in index.aminmax())
        if low < 0 or high >= len(weight):
            raise IndexError(f"Row {high if high >= len(weight) else low} of a table with {len(weight)} rows.")
    out = weight.new_empty(index.numel(), weight.shape[1])
    _run(_gather, index.detach().reshape(-1), None, out, (weight,), ())
    return out.view(*index.shape, weight.shape[1])


class Gather(torch.autograd.Function):
    """`dense_gather` whose gradient is sparse: on a CPU coalesced, with as many rows as the batch has different ids."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Rows) -> Tensor:
        ctx.rows, ctx.shape = rows, weight.shape
        return (
            _ahead_gather(weight, rows.index)
            if _native(weight) and rows.offsets is None
            else dense_gather(weight, rows)
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        once = grad.device.type == "cpu"
        rows, values = (ctx.rows.summed if once else ctx.rows.spread)(_wide(grad))
        return torch.sparse_coo_tensor(rows, values, ctx.shape, is_coalesced=once, check_invariants=False), None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize >= 4 else x.float()


_opaque_gather: Any = None


def sparse_gather(weight: Tensor, rows: Rows) -> Tensor:
    """Rows of `weight` [N, D]; its gradient is a sparse tensor, on a CPU with rows ascending and each once."""
    # Compiled through, the gradient would silently be dense. Made on first use: torch.compiler.disable imports the whole
    # compiler, which serving never needs.
    global _opaque_gather
    if _opaque_gather is None:
        _opaque_gather = torch.compiler.disable(Gather.apply)
    return _opaque_gather(weight, rows)


def coalesced(grad: Tensor) -> Tensor:
    """A sparse gradient with each row once; on a GPU, with the sum of each row at its first position.

    Autograd drops the flag on the way into `.grad`, and sums of two gradients hold rows twice. Looking whether the rows
    ascend costs a hundredth of `Tensor.coalesce`, which sorts.
    """
    if grad.is_coalesced():
        return grad
    rows = grad._indices()
    if grad.device.type != "cpu":
        return merged(grad) if len(rows) == 1 else grad.coalesce()
    if len(rows) == 1 and bool((rows[0, 1:] > rows[0, :-1]).all()):
        return grad._coalesced_(True)
    return grad.coalesce()


def merged(grad: Tensor) -> Tensor:
    """The same sparse matrix, rows ascending: the first position of a row has the sum of all, the others zeros.

    No device is waited for. Done again it changes nothing. Without Triton the order of the sums is left to the device.
    """
    rows, order = torch.sort(grad._indices()[0], stable=True)
    values = _wide(grad._values())
    cuda = _triton(values)
    if cuda is not None and values.dtype == torch.float32:
        sums = cuda.segment_sums(rows, order, values.contiguous())
    else:
        sums = torch.zeros_like(values).index_add_(0, torch.searchsorted(rows, rows), values[order])
    return torch.sparse_coo_tensor(rows[None], sums.to(grad.dtype), grad.shape, check_invariants=False)


def is_first(rows: Tensor) -> Tensor:
    """Of ascending `rows` [n], whether each is the first of its kind; of a gradient on a GPU, where its sums are."""
    return torch.cat([rows.new_ones(len(rows[:1]), dtype=torch.bool), rows[1:] != rows[:-1]])


def huge_pages(tensor: Tensor) -> Tensor:
    """The same tensor; a large new one, not yet written to, gets 2 MiB pages where Linux gives them on request.

    A table of 80 million rows is 5 GB of rows asked for at random, and with pages of 4 KiB the processor spends more
    time on finding a row than on reading it: 106,496 rows of it took 9.7 ms to gather, and 4.1 ms with large pages.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.data_ptr() + size - begin) // mmap.PAGESIZE * mmap.PAGESIZE
        # A refusal changes nothing but the speed.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return tensor


HUGE = 1 << 26  # bytes from which a tensor asks for huge pages


# -- updates of the touched rows, in place ----------------------------------------------------------------------------
# rows int64 [n] are distinct; grad at least float32 [n, D]; `weight` is as wide. The weights of rows[i] are weight[at[i]],
# by default at = rows: a bf16 table gives a copy of its rows. float32 on a CPU runs compiled loops, on a GPU some run
# Triton, and everything else runs the torch lines beside them, which are also their test. Rows are independent, so that
# the number of threads cannot change a result. On a GPU a row may come several times, with the same gradient each time:
# the torch lines then write the same values twice, the kernels look at the first only.


def rowwise_adagrad_(
    weight: Tensor, total: Tensor, rows: Tensor, grad: Tensor, lr: float, eps: float, at: Tensor | None = None
) -> None:
    r"""One accumulator per row, `total` [N]: :math:`s_r \mathrel{+}= \overline{g_r^2}`, :math:`w_r \mathrel{-}= lr\,g_r/(\sqrt{s_r}+\epsilon)`."""
    if _native(weight, grad):
        return _run(_rowwise_adagrad, rows, at, grad, (weight, total), (lr, eps))
    cuda = _triton(weight, at)
    if cuda is not None:
        return cuda.rowwise_adagrad_(weight, total, rows, grad, lr, eps)
    s = total[rows] + grad.square().mean(1)
    total[rows] = s
    _subtract(weight, rows, at, lr * grad / (s.sqrt() + eps)[:, None])


def adagrad_(
    weight: Tensor, total: Tensor, rows: Tensor, grad: Tensor, lr: float, eps: float, at: Tensor | None = None
) -> None:
    r"""One accumulator per weight, `total` [N, D]: :math:`s \mathrel{+}= g^2`, :math:`w \mathrel{-}= lr\,g/(\sqrt s+\epsilon)`."""
    if _native(weight, grad):
        return _run(_adagrad, rows, at, grad, (weight, total), (lr, eps))
    s = total[rows] + grad.square()
    total[rows] = s
    _subtract(weight, rows, at, lr * grad / (s.sqrt() + eps))


def lazy_adam_(
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    rows: Tensor,
    grad: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    at: Tensor | None = None,
) -> None:
    r"""Adam on the touched rows only; `mean` [N, D]; `square` [N, D], or [N] for one second moment per row (of the mean
    of its squared gradients); `steps` int32 [N] counts the updates of each row.

    Bias correction uses the row's own count: with the global step, the first updates of a rare id would be too small.
    """
    a, b = betas
    whole = square.dim() == 2
    if _native(weight, grad):
        rates = (lr, eps, a, b, 1 - a, 1 - b, np.float64(a), np.float64(b))
        loop = _lazy_adam if whole else _partial_rowwise_adam
        return _run(loop, rows, at, grad, (weight, mean, square, steps), rates)
    cuda = _triton(weight, at)
    if cuda is not None and whole:
        return cuda.lazy_adam_(weight, mean, square, steps, rows, grad, lr, betas, eps)
    t = steps[rows] + 1
    m = mean[rows] * a + grad * (1 - a)
    v = square[rows] * b + (grad.square() if whole else grad.square().mean(1)) * (1 - b)
    steps[rows], mean[rows], square[rows] = t, m, v
    first, second = ((1 - beta ** t.double()).to(grad.dtype)[:, None] for beta in betas)
    _subtract(weight, rows, at, lr * (m / first) / (((v if whole else v[:, None]) / second).sqrt() + eps))


def ftrl_(
    weight: Tensor,
    z: Tensor,
    n: Tensor,
    rows: Tensor,
    grad: Tensor,
    lr: float,
    beta: float,
    l1: float,
    l2: float,
    at: Tensor | None = None,
) -> None:
    r"""FTRL-proximal, `z` and `n` [N, D], :math:`\alpha` = lr:

    .. math:: z \mathrel{+}= g - \frac{\sqrt{n + g^2} - \sqrt n}{\alpha} w, \quad n \mathrel{+}= g^2, \quad
        w = \begin{cases} 0 & |z| \le \lambda_1 \\
        -\dfrac{z - \mathrm{sign}(z) \lambda_1}{(\beta + \sqrt n) / \alpha + \lambda_2} & \text{else} \end{cases}
    """
    if _native(weight, grad):
        return _run(_ftrl, rows, at, grad, (weight, z, n), (lr, beta, l1, l2))
    at = rows if at is None else at
    new = n[rows] + grad.square()
    sum_ = z[rows] + grad - (new.sqrt() - n[rows].sqrt()) / lr * weight[at]
    n[rows], z[rows] = new, sum_
    weight[at] = -sum_.sign() * (sum_.abs() - l1).clamp(min=0) / ((beta + new.sqrt()) / lr + l2)


def sgd_(weight: Tensor, rows: Tensor, grad: Tensor, lr: float, at: Tensor | None = None) -> None:
    """:math:`w_r -= lr * g_r`."""
    if _native(weight, grad):
        return _run(_sgd, rows, at, grad, (weight,), (lr,))
    cuda = _triton(weight, at)
    if cuda is not None:
        return cuda.sgd_(weight, rows, grad, lr)
    _subtract(weight, rows, at, lr * grad)


def _subtract(weight: Tensor, rows: Tensor, at: Tensor | None, step: Tensor) -> None:
    at = rows if at is None else at
    weight[at] = weight[at] - step  # not -=, which would subtract twice where a row comes twice


def widened(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table that is narrower than float32, as float32 [n, D]."""
    if table.dtype != torch.bfloat16 or table.device.type != "cpu" or not table.is_contiguous():
        return table[rows].float()
    wide = torch.empty(len(rows), table.shape[1])
    _run(_widen, rows, None, wide.view(torch.int32), (table.view(torch.int16),), ())
    return wide


def narrow_(table: Tensor, rows: Tensor, wide: Tensor, step: int) -> None:
    r"""Write float32 rows [n, D] into a narrower table [N, D]: into bf16 by stochastic rounding, others to the nearest.

    bf16 has 8 bits of mantissa: rounded to the nearest, a step smaller than :math:`2^{-9}` of the weight is lost, and so
    are all that follow. Rounded up with the probability of the part that is cut off, the weight moves as float32 would,
    in expectation. The chance is a hash of row, column and `step`, so that equal runs stay equal to the bit.
    """
    if table.dtype != torch.bfloat16:
        table[rows] = wide.to(table.dtype)
    elif table.device.type == "cpu" and table.is_contiguous() and wide.dtype == torch.float32:
        bits = wide.contiguous().view(torch.int32)
        _run(_narrow, rows, None, bits, (table.view(torch.int16),), (np.int64(step & _M),))
    else:
        bits = wide.float().view(torch.int32).long() & _M
        noise = _hashed(rows[:, None], torch.arange(table.shape[1], device=rows.device), step & _M) & 0xFFFF
        finite = bits & 0x7F800000 != 0x7F800000
        table[rows] = ((bits + noise * finite) >> 16).to(torch.int16).view(torch.bfloat16)


_M = 0xFFFFFFFF


def _hashed(row: Any, column: Any, step: Any) -> Any:
    """32 well mixed bits (the end of MurmurHash3) of three numbers, in the low bits of an int64."""
    h = (row * 0x9E3779B1 + column * 0x85EBCA77 + step * 0xC2B2AE3D) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def _native(weight: Tensor, grad: Tensor | None = None) -> bool:
    same = weight.dtype == torch.float32 and (grad is None or grad.dtype == torch.float32)
    return same and weight.device.type == "cpu" and weight.is_contiguous()


def _triton(weight: Tensor, at: Tensor | None = None) -> Any:
    """The Triton kernels if they can do it, else None."""
    if weight.device.type != "cuda" or weight.dtype != torch.float32 or at is not None or not weight.is_contiguous():
        return None
    from recstack.kernels import rows_cuda

    return rows_cuda if rows_cuda.there() else None


AHEAD = 32  # rows between asking the memory for one and using it
CHUNK = 1 << 15  # weights per thread below which a second thread costs more than it brings


def _run(
    loop: Any, rows: Tensor, at: Tensor | None, grad: Tensor, state: tuple[Tensor, ...], scalars: tuple[Any, ...]
) -> None:
    loop = _compiled(loop)
    r, g = rows.numpy(), grad.detach().contiguous().numpy()
    w = r if at is None else at.numpy()
    rest = [s.detach().numpy() for s in state] + [np.float32(s) if type(s) is float else s for s in scalars]
    threads = min(torch.get_num_threads(), 1 + g.size // CHUNK)
    if threads == 1:
        loop(r, w, g, *rest)
        return
    cut = np.linspace(0, len(r), threads + 1).astype(int)
    jobs = [_threads().submit(loop, r[a:b], w[a:b], g[a:b], *rest) for a, b in pairwise(cut[1:])]
    loop(r[: cut[1]], w[: cut[1]], g[: cut[1]], *rest)
    for job in jobs:
        job.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, torch.get_num_threads() - 1), thread_name_prefix="recstack-rows")


@cache
def _compiled(loop: Any) -> Any:
    global _prefetch
    import numba

    if _prefetch is None:
        _prefetch = _intrinsic()
    # numpy's error model: a division that asked first whether it is one by zero could not be vectorised.
    return numba.njit(loop, nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")


_prefetch: Any = None


def _intrinsic() -> Any:
    """``_prefetch(array, row)`` for compiled loops: ask the memory for the line on which a row of an array begins.

    Rows of a batch lie anywhere in a table; processors guess the next line of a stream, and here there is none. It
    halves the time of gathering and of updating.
    """
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    @intrinsic
    def prefetch(context, array, row):
        def code(context, builder, signature, args):
            view = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
            stride = builder.extract_value(view.strides, 0)
            pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            place = builder.add(builder.ptrtoint(view.data, stride.type), builder.mul(args[1], stride))
            kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            # to write, to be kept in every cache, data and not code
            builder.call(function, [builder.inttoptr(place, pointer), number(1), number(3), number(1)])
            return context.get_dummy_value()

        return types.void(array, types.int64), code

    return prefetch


def _by_row(index):
    """Rows.plan: rows and positions by radix, up to 11 bits at a time; it takes half the time of numpy's sort."""
    n, top = 0, np.int64(0)
    row, order = np.empty(len(index), index.dtype), np.empty(len(index), np.int32)
    for i in range(len(index)):
        r = index[i]
        row[n], order[n] = r, i
        n += r > 0
        top = max(top, np.int64(r))
    bits = 0
    while top >> bits:
        bits += 1
    passes = (bits + 10) // 11
    digit = -(-bits // max(passes, 1))
    row2, order2 = np.empty(n, index.dtype), np.empty(n, np.int32)
    start = np.empty(1 << digit, np.int32)
    for p in range(passes):
        shift, mask = p * digit, (1 << digit) - 1
        start[:] = 0
        for i in range(n):
            start[(row[i] >> shift) & mask] += 1
        total = 0
        for b in range(len(start)):
            count = start[b]
            start[b] = total
            total += count
        for i in range(n):
            r = row[i]
            b = (r >> shift) & mask
            k = start[b]
            start[b] = k + 1
            row2[k], order2[k] = r, order[i]
        row, row2 = row2, row
        order, order2 = order2, order
    unique, first = np.empty((1, n), np.int64), np.empty(n + 1, np.int32)
    first[0] = 0
    u, last = -1, 0
    for i in range(n):  # no branch to guess wrongly: each row's last write stays
        u += row[i] != last
        last = row[i]
        unique[0, u], first[u + 1] = last, i + 1
    return unique[:, : u + 1], order[:n], first[: u + 1]


def _gather(rows, at, out, weight):
    for i in range(len(rows)):
        _prefetch(weight, rows[min(i + AHEAD, len(rows) - 1)])
        r = rows[i]
        for d in range(out.shape[1]):
            out[i, d] = weight[r, d]


def _rowwise_adagrad(rows, at, grad, weight, total, lr, eps):
    width = grad.shape[1]
    for i in range(len(rows)):
        ahead = min(i + AHEAD, len(rows) - 1)
        _prefetch(weight, at[ahead])
        _prefetch(total, rows[ahead])
        r, w = rows[i], at[i]
        s = np.float32(0)
        for d in range(width):
            s += grad[i, d] * grad[i, d]
        s = total[r] + s / np.float32(width)
        total[r] = s
        rate = lr / (np.sqrt(s) + eps)
        for d in range(width):
            weight[w, d] -= rate * grad[i, d]


def _adagrad(rows, at, grad, weight, total, lr, eps):
    for i in range(len(rows)):
        ahead = min(i + AHEAD, len(rows) - 1)
        _prefetch(weight, at[ahead])
        _prefetch(total, rows[ahead])
        r, w = rows[i], at[i]
        for d in range(grad.shape[1]):
            s = total[r, d] + grad[i, d] * grad[i, d]
            total[r, d] = s
            weight[w, d] -= lr * grad[i, d] / (np.sqrt(s) + eps)


def _lazy_adam(rows, at, grad, weight, mean, square, steps, lr, eps, a, b, a1, b1, exact_a, exact_b):
    for i in range(len(rows)):
        ahead = min(i + AHEAD, len(rows) - 1)
        _prefetch(weight, at[ahead])
        _prefetch(mean, rows[ahead])
        _prefetch(square, rows[ahead])
        _prefetch(steps, rows[ahead])
        r, w = rows[i], at[i]
        t = steps[r] + 1
        steps[r] = t
        rate = lr / np.float32(1 - exact_a**t)
        scale = np.float32(1) / np.float32(1 - exact_b**t)
        for d in range(grad.shape[1]):
            m = a * mean[r, d] + a1 * grad[i, d]
            v = b * square[r, d] + b1 * grad[i, d] * grad[i, d]
            mean[r, d] = m
            square[r, d] = v
            weight[w, d] -= rate * m / (np.sqrt(v * scale) + eps)


def _partial_rowwise_adam(rows, at, grad, weight, mean, square, steps, lr, eps, a, b, a1, b1, exact_a, exact_b):
    width = grad.shape[1]
    for i in range(len(rows)):
        ahead = min(i + AHEAD, len(rows) - 1)
        _prefetch(weight, at[ahead])
        _prefetch(mean, rows[ahead])
        _prefetch(square, rows[ahead])
        _prefetch(steps, rows[ahead])
        r, w = rows[i], at[i]
        t = steps[r] + 1
        steps[r] = t
        s = np.float32(0)
        for d in range(width):
            s += grad[i, d] * grad[i, d]
        v = b * square[r] + b1 * s / np.float32(width)
        square[r] = v
        rate = lr / np.float32(1 - exact_a**t) / (np.sqrt(v / np.float32(1 - exact_b**t)) + eps)
        for d in range(width):
            m = a * mean[r, d] + a1 * grad[i, d]
            mean[r, d] = m
            weight[w, d] -= rate * m


def _ftrl(rows, at, grad, weight, z, n, lr, beta, l1, l2):
    for i in range(len(rows)):
        ahead = min(i + AHEAD, len(rows) - 1)
        _prefetch(weight, at[ahead])
        _prefetch(z, rows[ahead])
        _prefetch(n, rows[ahead])
        r, w = rows[i], at[i]
        for d in range(grad.shape[1]):
            g = grad[i, d]
            old = np.sqrt(n[r, d])
            new = n[r, d] + g * g
            n[r, d] = new
            new = np.sqrt(new)
            s = z[r, d] + g - (new - old) / lr * weight[w, d]
            z[r, d] = s
            size = max(abs(s) - l1, np.float32(0))
            weight[w, d] = -np.sign(s) * size / ((beta + new) / lr + l2)


def _sgd(rows, at, grad, weight, lr):
    for i in range(len(rows)):
        _prefetch(weight, at[min(i + AHEAD, len(rows) - 1)])
        w = at[i]
        for d in range(grad.shape[1]):
            weight[w, d] -= lr * grad[i, d]


def _widen(rows, at, bits, table):
    for i in range(len(rows)):
        _prefetch(table, rows[min(i + AHEAD, len(rows) - 1)])
        r = rows[i]
        for d in range(bits.shape[1]):
            bits[i, d] = np.int32(table[r, d]) << 16


def _narrow(rows, at, bits, table, step):
    for i in range(len(rows)):
        _prefetch(table, rows[min(i + AHEAD, len(rows) - 1)])
        r = rows[i]
        base = r * 0x9E3779B1 + step * 0xC2B2AE3D
        for d in range(bits.shape[1]):
            h = np.uint32(base + d * 0x85EBCA77)  # _hashed, in 32 bits
            h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
            h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
            h = (h ^ (h >> np.uint32(16))) & np.uint32(0xFFFF)
            x = bits[i, d]
            finite = (x & 0x7F800000) != 0x7F800000
            table[r, d] = np.int16((x + np.int32(h) * finite) >> 16)
