"""A history cut by age: the mean of the newest step, of those before it, and so on, after every step at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Windows(nn.Module):
    r"""Means over windows of age: ``x [R, T, D], mask [R, T] → [R, P, W, D]``.

    .. math:: u_{t,w} = \frac{1}{|w|} \sum_{a \in w} x_{t - a}

    An age of 0 is the newest step. Sums over windows are differences of running sums, so that memory is P × W and not
    P × T. A window that begins before the first step is as large as what there is of it; one without a step gives zeros.

    Args:
        sizes: how many steps each window holds, the newest first.
    """

    newest: Tensor
    oldest: Tensor

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        ends = torch.tensor(tuple(sizes)).cumsum(0)
        self.register_buffer("newest", ends - torch.tensor(tuple(sizes)), persistent=False)
        self.register_buffer("oldest", ends, persistent=False)

    def forward(self, x: Tensor, mask: Tensor, after: Tensor | None = None) -> Tensor:
        """`after` ``[R, P]``: of how many steps; None: after each of the T."""
        total = F.pad((x * mask.unsqueeze(-1)).float().cumsum(1), (0, 0, 1, 0))  # [R, T + 1, D]
        if after is None:
            after = torch.arange(1, x.shape[1] + 1, device=x.device).expand(x.shape[0], -1)
        end, begin = ((after.unsqueeze(-1) - age).clamp(min=0) for age in (self.newest, self.oldest))
        sums = _rows(total, end) - _rows(total, begin)
        return (sums / (end - begin).clamp(min=1).unsqueeze(-1)).to(x.dtype)


def _rows(total: Tensor, at: Tensor) -> Tensor:
    """``[R, T + 1, D]`` at ``[R, P, W] → [R, P, W, D]``."""
    flat = at.flatten(1).unsqueeze(-1).expand(-1, -1, total.shape[-1])
    return total.gather(1, flat).unflatten(1, at.shape[1:])
