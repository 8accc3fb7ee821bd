"""Rows of an embedding arena: gathering them, the sparse gradient that comes back, and updates in place.

A step costs what the batch costs, never what the table costs. Row 0 of an arena is padding: it is read as it is (zeros)
and never receives a gradient. Duplicate rows are summed *before* any optimiser sees them, so that updates are exact.
"""

from __future__ import annotations

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
        """Live rows in ascending order [1, unique], where they stand in the flat index [live], where each starts [unique]."""
        index = self.index.detach().reshape(-1)
        if index.device.type != "cpu":
            row, order = torch.sort(index.long(), stable=True)
            row, order = row[row > 0], order[row > 0]
            unique, count = torch.unique_consecutive(row, return_counts=True)
            return unique[None], order, count.cumsum(0) - count
        # One sort of packed (row, position) integers is several times faster than an argsort or a coalesce.
        key = (index.numpy().astype(np.int64) << 32) | np.arange(index.numel(), dtype=np.int64)
        key.sort()
        key = key[np.searchsorted(key, 1 << 32) :]  # padding sorts first
        row, order = key >> 32, key & 0xFFFFFFFF
        first = np.flatnonzero(np.diff(row, prepend=-1))
        return torch.from_numpy(row[first])[None], torch.from_numpy(order), torch.from_numpy(first)

    def summed(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of each live row once: indices [1, unique] and sums [unique, D].

        `grad` has the shape of what was gathered. Pooling is undone here without a copy of the gradient per value.
        """
        unique, order, first = self.plan
        grad = grad.reshape(-1, grad.shape[-1])
        if self.offsets is not None:
            count = torch.diff(self.offsets)
            order = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)[order]  # bag of each
            if self.mean:
                live = torch.bincount(order, minlength=len(count)).clamp(min=1)
                grad = grad / live[:, None]
        if not len(first):
            return unique, grad[:0]
        return unique, F.embedding_bag(order, grad, first, mode="sum")


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
    live = F.pad((rows.index > 0).cumsum(0), (1, 0))[rows.offsets].diff()
    return pooled / live.clamp(min=1)[:, None].to(pooled.dtype)


class Gather(torch.autograd.Function):
    """`dense_gather` whose gradient is a coalesced sparse tensor with as many rows as the batch has different ids."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Rows) -> Tensor:
        ctx.rows, ctx.shape = rows, weight.shape
        return dense_gather(weight, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unique, sums = ctx.rows.summed(grad.float() if grad.dtype.itemsize < 4 else grad)
        return torch.sparse_coo_tensor(unique, sums, ctx.shape, is_coalesced=True, check_invariants=False), None


_opaque_gather: Any = None


def sparse_gather(weight: Tensor, rows: Rows) -> Tensor:
    """Rows of `weight` [N, D]; its gradient is a sparse tensor, rows ascending and each once."""
    # Compiled through, the gradient would silently be dense. Made on first use: torch.compiler.disable imports the whole
    # compiler, which serving never needs.
    global _opaque_gather
    if _opaque_gather is None:
        _opaque_gather = torch.compiler.disable(Gather.apply)
    return _opaque_gather(weight, rows)


def coalesced(grad: Tensor) -> Tensor:
    """A sparse gradient with each row once.

    Autograd drops the flag on the way into `.grad`, and sums of two gradients hold rows twice. Looking whether the rows
    ascend costs a hundredth of `Tensor.coalesce`, which sorts.
    """
    if grad.is_coalesced():
        return grad
    rows = grad._indices()
    if len(rows) == 1 and bool((rows[0, 1:] > rows[0, :-1]).all()):
        return grad._coalesced_(True)
    return grad.coalesce()


# -- updates of the touched rows, in place ----------------------------------------------------------------------------
# rows int64 [n] are distinct; grad float32 [n, D]. float32 on a CPU runs compiled loops, everything else the torch lines
# beside them, which are also their test. Rows are independent, so that the number of threads cannot change a result.


def rowwise_adagrad_(weight: Tensor, total: Tensor, rows: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    r"""One accumulator per row, `total` [N]: :math:`s_r \mathrel{+}= \overline{g_r^2}`, :math:`w_r \mathrel{-}= lr\,g_r/(\sqrt{s_r}+\epsilon)`."""
    if _native(weight, grad):
        return _run(_rowwise_adagrad, rows, grad, (weight, total), (lr, eps))
    s = total[rows] + grad.square().mean(1)
    total[rows] = s
    _subtract(weight, rows, grad, (s.sqrt() + eps)[:, None], lr)


def adagrad_(weight: Tensor, total: Tensor, rows: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    r"""One accumulator per weight, `total` [N, D]: :math:`s \mathrel{+}= g^2`, :math:`w \mathrel{-}= lr\,g/(\sqrt s+\epsilon)`."""
    if _native(weight, grad):
        return _run(_adagrad, rows, grad, (weight, total), (lr, eps))
    s = total[rows] + grad.square()
    total[rows] = s
    _subtract(weight, rows, grad, s.sqrt() + eps, lr)


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
) -> None:
    r"""Adam on the touched rows only; `mean`, `square` [N, D]; `steps` int32 [N] counts the updates of each row.

    Bias correction uses the row's own count: with the global step, the first updates of a rare id would be too small.
    """
    a, b = betas
    if _native(weight, grad):
        return _run(
            _lazy_adam,
            rows,
            grad,
            (weight, mean, square, steps),
            (lr, eps, a, b, 1 - a, 1 - b, np.float64(a), np.float64(b)),
        )
    t = steps[rows] + 1
    m = mean[rows] * a + grad * (1 - a)
    v = square[rows] * b + grad.square() * (1 - b)
    steps[rows], mean[rows], square[rows] = t, m, v
    first, second = ((1 - beta ** t.double()).float()[:, None] for beta in betas)
    _subtract(weight, rows, m / first, (v / second).sqrt() + eps, lr)


def sgd_(weight: Tensor, rows: Tensor, grad: Tensor, lr: float) -> None:
    """:math:`w_r -= lr * g_r`."""
    if _native(weight, grad):
        return _run(_sgd, rows, grad, (weight,), (lr,))
    _subtract(weight, rows, grad, torch.ones((), device=grad.device), lr)


def _subtract(weight: Tensor, rows: Tensor, step: Tensor, scale: Tensor, lr: float) -> None:
    weight[rows] = (weight[rows].to(step.dtype) - lr * (step / scale)).to(weight.dtype)


def _native(weight: Tensor, grad: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == grad.dtype == torch.float32 and weight.is_contiguous()


CHUNK = 1 << 15  # weights per thread below which a second thread costs more than it brings


def _run(loop: Any, rows: Tensor, grad: Tensor, state: tuple[Tensor, ...], scalars: tuple[float, ...]) -> None:
    loop = _compiled(loop)
    r, g = rows.numpy(), grad.detach().contiguous().numpy()
    rest = [s.detach().numpy() for s in state] + [np.float32(s) if type(s) is float else s for s in scalars]
    threads = min(torch.get_num_threads(), 1 + g.size // CHUNK)
    if threads == 1:
        loop(r, g, *rest)
        return
    cut = np.linspace(0, len(r), threads + 1).astype(int)
    jobs = [_threads().submit(loop, r[a:b], g[a:b], *rest) for a, b in pairwise(cut[1:])]
    loop(r[: cut[1]], g[: cut[1]], *rest)
    for job in jobs:
        job.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, torch.get_num_threads() - 1), thread_name_prefix="recstack-rows")


@cache
def _compiled(loop: Any) -> Any:
    import numba

    return numba.njit(loop, nogil=True, cache=True, fastmath={"reassoc", "contract"})


def _rowwise_adagrad(rows, grad, weight, total, lr, eps):
    width = grad.shape[1]
    for i in range(len(rows)):
        r = rows[i]
        s = np.float32(0)
        for d in range(width):
            s += grad[i, d] * grad[i, d]
        s = total[r] + s / np.float32(width)
        total[r] = s
        rate = lr / (np.sqrt(s) + eps)
        for d in range(width):
            weight[r, d] -= rate * grad[i, d]


def _adagrad(rows, grad, weight, total, lr, eps):
    for i in range(len(rows)):
        r = rows[i]
        for d in range(grad.shape[1]):
            s = total[r, d] + grad[i, d] * grad[i, d]
            total[r, d] = s
            weight[r, d] -= lr * grad[i, d] / (np.sqrt(s) + eps)


def _lazy_adam(rows, grad, weight, mean, square, steps, lr, eps, a, b, a1, b1, exact_a, exact_b):
    for i in range(len(rows)):
        r = rows[i]
        t = steps[r] + 1
        steps[r] = t
        rate = lr / np.float32(1 - exact_a**t)
        scale = np.float32(1) / np.float32(1 - exact_b**t)
        for d in range(grad.shape[1]):
            m = a * mean[r, d] + a1 * grad[i, d]
            v = b * square[r, d] + b1 * grad[i, d] * grad[i, d]
            mean[r, d] = m
            square[r, d] = v
            weight[r, d] -= rate * m / (np.sqrt(v * scale) + eps)


def _sgd(rows, grad, weight, lr):
    for i in range(len(rows)):
        r = rows[i]
        for d in range(grad.shape[1]):
            weight[r, d] -= lr * grad[i, d]
