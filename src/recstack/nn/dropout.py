"""Dropout that draws by a counter on a CPU, and keeps a key where torch keeps a mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.kernels.dropout import drop

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(nn.Dropout):
    r"""Each element is 0 with probability p, else multiplied by :math:`1 / (1 - p)`; in evaluation all stay as they are.

    (Srivastava et al., JMLR 2014.) In place of `torch.nn.Dropout`, whose generator is what a small network on a CPU waits
    for: here a hash of the place and of a key, which torch's generator draws, says what is dropped. Elsewhere, and where
    a compiler reads, it is torch's.

    >>> Dropout(0.5)(torch.ones(1000)).unique()
    tensor([0., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and by_counter(x):
            return _Drop.apply(x, self.p, int(torch.randint(2**63 - 1, ())))  # type: ignore[no-any-return]
        return super().forward(x)


def by_counter(x: Tensor) -> bool:
    """Whether `Dropout` draws for `x` itself."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Drop(torch.autograd.Function):
    """The backward pass drops the same places again, and so needs no mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float, key: int) -> Tensor:
        ctx.drawn = probability, key
        bits = x.detach().contiguous().view(BITS[x.element_size()])
        left = torch.from_numpy(drop(bits.numpy().reshape(-1), probability, key)).view(x.dtype).view(x.shape)
        return left.mul_(1 / (1 - probability))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _Drop.apply(slope, *ctx.drawn), None, None


def attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: Dropout, causal: bool = False
) -> Tensor:
    r"""Scaled dot-product attention with dropout of its weights: q [..., T, d], k, v [..., S, d], allowed [..., T, S].

    .. math:: \mathrm{dropout}\big(\mathrm{softmax}(QK^\top / \sqrt{d})\big) V

    Of torch where it has a kernel; a CPU's has none with dropout, and what it does instead is done here for less.
    `causal` is for no `allowed`: who may attend to nothing has no answer.
    """
    p = dropout.p if dropout.training else 0.0
    if p in (0, 1) or not by_counter(q):
        return F.scaled_dot_product_attention(q, k, v, allowed, p, causal)
    if causal:
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if allowed is not None:
        score = score.masked_fill(~allowed, -torch.inf)
    return dropout(score.float().softmax(-1)).to(v.dtype) @ v
