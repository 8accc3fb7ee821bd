"""What `kernels.rows` does to touched rows, for a GPU, in Triton: summing duplicates, and three updates.

Nothing here waits for the device: how many different rows a batch has is never asked. Rows are sorted; each position has a
program, and the first position of a row does the row's work. A row that fills half a batch (a feature of two values) would
keep one program busy while all others wait, so it is summed in pieces of `PIECE` positions, and then the pieces.

The sums are made in a fixed order: equal runs are equal to the bit.
"""

# pyright: reportInvalidTypeForm=false
# Triton reads the annotations of a kernel, and `tl` is there only once one was asked for.

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

PIECE = 256  # of n positions of one row: n / 256 pieces of 256, so 65,536 take 2 x 256 steps

tl: Any = None  # triton.language, once a kernel was asked for


def there() -> bool:
    return find_spec("triton") is not None


@cache
def _compiled(kernel: Any) -> Any:
    global tl
    tl = import_module("triton.language")
    return import_module("triton").jit(kernel)


def _run(kernel: Any, rows: Tensor, width: int, *arguments: Any) -> None:
    if len(rows):
        block = 1 << (width - 1).bit_length()
        _compiled(kernel)[(len(rows),)](rows, *arguments, D=width, BLOCK=block, num_warps=max(1, min(block // 32, 8)))


def segment_sums(rows: Tensor, order: Tensor, values: Tensor) -> Tensor:
    """Ascending `rows` [n] and where each stood [n] in `values` [n, D]: the sum of a row at its first position, else zeros."""
    ends = torch.searchsorted(rows, rows, right=True)
    pieces, sums = torch.empty_like(values), torch.empty_like(values)
    _run(_sum_pieces, rows, values.shape[1], ends, order, values, pieces, PIECE)
    _run(_sum_rows, rows, values.shape[1], ends, pieces, sums, PIECE)
    return sums


def sgd_(weight: Tensor, rows: Tensor, grad: Tensor, lr: float) -> None:
    _run(_sgd, rows, weight.shape[1], grad.contiguous(), weight, float(lr))


def rowwise_adagrad_(weight: Tensor, total: Tensor, rows: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    _run(_rowwise_adagrad, rows, weight.shape[1], grad.contiguous(), weight, total, float(lr), float(eps))


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
    # 1 - b ** t loses digits where b is near 1: two small tensors by torch, in float64
    t = steps[rows].double() + 1
    first, second = ((1 - b**t).float() for b in betas)
    state = grad.contiguous(), weight, mean, square, steps, first, second
    _run(_lazy_adam, rows, weight.shape[1], *state, float(lr), float(betas[0]), float(betas[1]), float(eps))


# -- the kernels: program i has position i ---------------------------------------------------------------------------------
# `before` is the row of the position before, -1 for none; i is 64 bits wide, as i * D may pass 2 ** 31.


def _sum_pieces(rows, ends, order, values, pieces, size, D: tl.constexpr, BLOCK: tl.constexpr):
    """A piece begins where a row does and at every multiple of `size`; its first position gets its sum."""
    i = tl.program_id(0).to(tl.int64)
    before = tl.load(rows + i - 1, mask=i > 0, other=-1)
    if (before != tl.load(rows + i)) | (i % size == 0):
        d = tl.arange(0, BLOCK)
        end = tl.minimum(tl.load(ends + i), (i // size + 1) * size)
        total = tl.zeros([BLOCK], tl.float32)
        for k in range(i, end):
            total += tl.load(values + tl.load(order + k) * D + d, mask=d < D, other=0.0)
        tl.store(pieces + i * D + d, total, mask=d < D)


def _sum_rows(rows, ends, pieces, sums, size, D: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    before = tl.load(rows + i - 1, mask=i > 0, other=-1)
    d = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    if before != tl.load(rows + i):
        total += tl.load(pieces + i * D + d, mask=d < D, other=0.0)
        for k in range((i // size + 1) * size, tl.load(ends + i), size):
            total += tl.load(pieces + k * D + d, mask=d < D, other=0.0)
    tl.store(sums + i * D + d, total, mask=d < D)


def _sgd(rows, grad, weight, lr, D: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    before = tl.load(rows + i - 1, mask=i > 0, other=-1)
    r = tl.load(rows + i)
    if before != r:
        d = tl.arange(0, BLOCK)
        g = tl.load(grad + i * D + d, mask=d < D, other=0.0)
        w = tl.load(weight + r * D + d, mask=d < D, other=0.0)
        tl.store(weight + r * D + d, w - lr * g, mask=d < D)


def _rowwise_adagrad(rows, grad, weight, total, lr, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    before = tl.load(rows + i - 1, mask=i > 0, other=-1)
    r = tl.load(rows + i)
    if before != r:
        d = tl.arange(0, BLOCK)
        g = tl.load(grad + i * D + d, mask=d < D, other=0.0)
        w = tl.load(weight + r * D + d, mask=d < D, other=0.0)
        s = tl.load(total + r) + tl.sum(g * g, 0) / D
        tl.store(total + r, s)
        tl.store(weight + r * D + d, w - lr * g / (tl.sqrt(s) + eps), mask=d < D)


def _lazy_adam(
    rows, grad, weight, mean, square, steps, first, second, lr, a, b, eps, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    before = tl.load(rows + i - 1, mask=i > 0, other=-1)
    r = tl.load(rows + i)
    if before != r:
        d = tl.arange(0, BLOCK)
        at = r * D + d
        g = tl.load(grad + i * D + d, mask=d < D, other=0.0)
        m = a * tl.load(mean + at, mask=d < D, other=0.0) + (1 - a) * g
        v = b * tl.load(square + at, mask=d < D, other=0.0) + (1 - b) * g * g
        w = tl.load(weight + at, mask=d < D, other=0.0)
        tl.store(steps + r, tl.load(steps + r) + 1)
        tl.store(mean + at, m, mask=d < D)
        tl.store(square + at, v, mask=d < D)
        step = lr * (m / tl.load(first + i)) / (tl.sqrt(v / tl.load(second + i)) + eps)
        tl.store(weight + at, w - step, mask=d < D)
