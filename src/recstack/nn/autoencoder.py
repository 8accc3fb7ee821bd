"""An autoencoder of table rows: some categorical columns and some numbers in, one short vector out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.mlp import BatchNorm, linear


class RowAutoencoder(nn.Module):
    r"""A denoising autoencoder (Vincent et al., ICML 2008) whose noise is another row's value.

    .. math:: z = \mathrm{BN}(W_2\, \mathrm{ReLU}(W_1 \tilde x + b_1) + b_2), \qquad
        L = \sum_c \frac{\mathrm{CE}(o_c(z), x_c)}{\ln |V_c|} + \sum_n (o_n(z) - x_n)^2

    x is the one-hots of the ids and the numbers of a row, :math:`\tilde x` has a share `noise` of its cells taken from
    other rows of the batch; o is one more hidden layer with a head per column. A uniform guess costs 1 per categorical
    column, the mean of a standardised number costs 1. Each dimension of z has mean 0 and deviation 1.

    Args:
        sizes: for each categorical column, how many ids it has, padding (0) included.
        numbers: how many numbers a row has.
        size: width of z.
        hidden: width of both hidden layers.
        noise: share of cells that are swapped in training.

    Called with ids ``[R, C]`` and numbers ``[R, M]`` it gives z ``[R, size]``. An id that training never had adds
    nothing to the first layer.
    """

    def __init__(self, sizes: Sequence[int], numbers: int, size: int, *, hidden: int = 128, noise: float = 0.15):
        super().__init__()
        self.sizes, self.noise = tuple(sizes), noise
        start = torch.tensor([0, *self.sizes]).cumsum(0)
        self.start: Tensor
        self.register_buffer("start", start[:-1], persistent=False)
        self.first = nn.Embedding(int(start[-1]), hidden)  # a one-hot times a matrix is a row of it
        nn.init.normal_(self.first.weight, 0.0, math.sqrt(2 / max(1, len(self.sizes) + numbers)))
        with torch.no_grad():
            for row in start[:-1].tolist():
                self.first.weight[row : row + 2] = 0.0  # padding and out-of-vocabulary
        self.first_numbers = linear(numbers, hidden, bias=False) if numbers else None
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.code = nn.Sequential(nn.ReLU(), linear(hidden, size), BatchNorm(size, affine=False))
        self.back = nn.Sequential(linear(size, hidden), nn.ReLU())
        self.heads = nn.ModuleList([linear(hidden, n - 1) for n in self.sizes])  # nothing has to guess padding
        self.number_head = linear(hidden, numbers) if numbers else None

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        x = self.first(ids + self.start).sum(-2) + self.bias
        return self.code(x if self.first_numbers is None else x + self.first_numbers(numbers))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a batch {"ids": int64 [R, C], "numbers": float32 [R, M]}: what the Trainer minimises."""
        ids, numbers = batch["ids"], batch["numbers"]
        hidden = self.back(self(self._swapped(ids), self._swapped(numbers)))
        losses = {}
        if self.sizes:
            parts = [
                F.cross_entropy(head(hidden), value - 1) / math.log(max(2, n - 1))
                for head, value, n in zip(self.heads, ids.unbind(1), self.sizes, strict=True)
            ]
            losses["categorical"] = torch.stack(parts).sum()
        if self.number_head is not None:
            losses["numeric"] = (self.number_head(hidden) - numbers).square().mean(0).sum()
        return losses

    def _swapped(self, x: Tensor) -> Tensor:
        """`x [R, K]` with a share of its cells from other rows of their column."""
        if not self.training or not x.shape[1]:
            return x
        own = torch.arange(x.shape[0], device=x.device)[:, None]
        swap = torch.rand(x.shape, device=x.device) < self.noise
        return x.gather(0, torch.where(swap, torch.randint(x.shape[0], x.shape, device=x.device), own))
