"""Dynamic weight average: End-to-End Multi-Task Learning with Attention (Liu et al., CVPR 2019).

https://arxiv.org/abs/1803.10704
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from recstack.training.balance.base import Balance, positive


class DWA(Balance):
    r"""More weight for losses that fell less in the last epoch.

    .. math:: w_k(t) = K\, \mathrm{softmax}_k\!\left(\frac{r_k}{T}\right), \qquad r_k = \frac{L_k(t-1)}{L_k(t-2)}

    :math:`L_k(t)` is the mean over the steps of epoch t in which the task had valid rows. In the first two epochs, and for a
    task that an epoch did not meet, r is 1.

    Args:
        temperature: T, 2 in the paper.

    >>> dwa = DWA()
    >>> dwa.begin(["falls", "stays"], [], torch.device("cpu"))
    >>> live = torch.tensor([True, True])
    >>> for loss in ([1.0, 1.0], [0.5, 1.0]):
    ...     dwa.observe(torch.tensor(loss), live)
    ...     dwa.after_epoch()
    >>> [round(w, 3) for w in dwa.weights(live).tolist()]
    [0.876, 1.124]
    """

    saved = ("sums", "counts", "last", "before")

    def __init__(self, temperature: float = 2.0) -> None:
        self.temperature = positive(temperature, "temperature")

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        super().begin(names, regression, device)
        self.sums, self.counts, self.last, self.before = (
            torch.zeros(len(self.names), dtype=torch.float64, device=device) for _ in range(4)
        )

    def weights(self, live: Tensor) -> Tensor:
        known = (self.last > 0) & (self.before > 0)
        ratio = torch.where(known, self.last / self.before.clamp(min=1e-12), 1.0)
        return over_live_softmax(ratio / self.temperature, live)

    def observe(self, losses: Tensor, live: Tensor) -> None:
        self.sums = self.sums + torch.where(live, losses, 0.0)
        self.counts = self.counts + live

    def after_epoch(self) -> None:
        mean = self.sums / self.counts.clamp(min=1)
        self.last, self.before = mean, self.last
        self.sums, self.counts = torch.zeros_like(mean), torch.zeros_like(mean)


def over_live_softmax(score: Tensor, live: Tensor) -> Tensor:
    """A softmax over live losses, times their number."""
    share = score.masked_fill(~live, torch.finfo(score.dtype).min).softmax(-1) * live
    return share * live.sum()
