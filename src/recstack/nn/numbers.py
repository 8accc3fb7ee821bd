"""Vectors for numbers: x ``[...]`` becomes ``[..., D]``, each feature with weights of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the initial weights of numbers. Xavier's deviation is 1 for their first-order weight and .34 for their vector at dim
# 16, so that in the first steps they drown the ids: after one epoch of a Criteo-like set a logloss of .80 against .53.
NUMBER_STD = 0.02


class AutoDis(nn.Module):
    r"""A soft choice among H meta-embeddings, as the number says.

    .. math:: h = \mathrm{LeakyReLU}(w x), \qquad s = \mathrm{softmax}\big((W h + \alpha h) / \tau\big), \qquad
        e = \sum_k s_k M_k

    (Guo et al., KDD 2021, https://arxiv.org/abs/2012.08986.) x is expected about [0, 1] or standardised. The temperature is
    learned, from 1; the softmax is in float32.

    Args:
        width: D.
    """

    META, SKIP = 20, 0.5  # H, α

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.randn(self.META))
        self.mix = nn.Parameter(torch.empty(self.META, self.META))
        self.meta = nn.Parameter(NUMBER_STD * torch.randn(self.META, width))
        self.log_temperature = nn.Parameter(torch.zeros(()))
        nn.init.xavier_normal_(self.mix)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            h = F.leaky_relu(x.float().unsqueeze(-1) * self.weight)
            choice = ((F.linear(h, self.mix) + self.SKIP * h) / self.log_temperature.exp()).softmax(-1)
            return choice @ self.meta


class PiecewiseLinear(nn.Module):
    r"""Piecewise-linear encoding over bins of equal mass, then a linear layer.

    .. math:: p_t = \mathrm{clip}\Big(\frac{x - b_{t-1}}{b_t - b_{t-1}}, 0, 1\Big), \qquad e = W p + b

    (Gorishniy et al., NeurIPS 2022, https://arxiv.org/abs/2203.05556.) It is given the value of the empirical distribution
    function with T quantiles, u ∈ [0, 1], which is linear between them: so :math:`p_t = \mathrm{clip}(T u - (t - 1), 0, 1)`.

    Args:
        width: D.
        bins: T.
    """

    def __init__(self, width: int, bins: int):
        super().__init__()
        self.width, self.bins = width, bins
        self.linear = nn.Linear(bins, width)
        nn.init.normal_(self.linear.weight, 0.0, NUMBER_STD)
        nn.init.zeros_(self.linear.bias)

    def encode(self, u: Tensor) -> Tensor:
        """p ``[..., T]``."""
        return (u.unsqueeze(-1) * self.bins - torch.arange(self.bins, device=u.device)).clamp(0, 1)

    def forward(self, u: Tensor) -> Tensor:
        return self.linear(self.encode(u))


class Missing(nn.Module):
    r"""What a number that is missing (NaN) stands for, learned: :math:`(1 - m) x + m v`, from v = 0; ``[...] → [...]``."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.isnan(), self.value.to(x.dtype), x)


NUMBERS = {"autodis": lambda width, bins: AutoDis(width), "piecewise": PiecewiseLinear}
