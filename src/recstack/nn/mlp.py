"""The multi-layer perceptron, with norms and activations that know which rows are live."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.nn.dropout import Dropout

Sides = Tensor | tuple[Tensor, Tensor]  # a candidate-wise input, or (request side [R, U], candidate side [R, L, W])


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all leading axes, in float32.

    With fewer than two rows there is no variance: the running statistics are used, and kept as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2) if x.dim() != 2 else x
        batch = self.training and rows.shape[0] > 1
        if batch and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            rows.float(),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            batch,
            self.momentum or 0.0,
            self.eps,
        )
        return y.to(x.dtype).view(x.shape)


class Dice(nn.Module):
    r"""Data-adaptive activation (Zhou et al., KDD 2018): PReLU whose turning point is the batch's mean.

    .. math:: f(s) = p\,s + (1 - p)\,\alpha s, \qquad p = \sigma(\mathrm{BN}(s))
    """

    def __init__(self, width: int, eps: float = 1e-8):
        super().__init__()
        self.norm = BatchNorm(width, eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor) -> Tensor:
        p = self.norm(s).sigmoid()
        return s * (p + (1 - p) * self.alpha)


ACTIVATIONS = {
    "relu": lambda width: nn.ReLU(),
    "leaky_relu": lambda width: nn.LeakyReLU(0.1),
    "gelu": lambda width: nn.GELU(),
    "silu": lambda width: nn.SiLU(),
    "tanh": lambda width: nn.Tanh(),
    "sigmoid": lambda width: nn.Sigmoid(),
    "prelu": lambda width: nn.PReLU(width),
    "dice": Dice,
    "none": lambda width: nn.Identity(),
}
NORMS = {"batch": BatchNorm, "layer": nn.LayerNorm}


def make_activation(name: str, width: int) -> nn.Module:
    """An activation by name: relu, leaky_relu, gelu, silu, tanh, sigmoid, prelu, dice or none."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name](width)


def has_statistics(module: nn.Module) -> bool:
    """Whether it computes statistics over the batch, so that padding must be kept out in training."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def on_live_rows(module: nn.Module, x: Tensor, mask: Tensor | None, width: int) -> Tensor:
    """`module` on the live rows of ``x [..., W]`` only; zeros elsewhere: ``[..., width]``.

    How lists were padded must not change batch statistics, so towers with statistics pack their rows in training.
    In evaluation nothing is packed, so that an exported graph has no shape that depends on data.
    """
    if mask is None or not module.training or not has_statistics(module):
        return module(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    live = mask.reshape(-1).nonzero().squeeze(1)
    y = module(x.flatten(0, -2).index_select(0, live))
    return y.new_zeros(mask.numel(), width).index_copy(0, live, y).view(*mask.shape, width)


class MLP(nn.Module):
    """Linear → norm → activation → dropout, once per hidden width; ``[..., width] → [..., hidden[-1]]``.

    Args:
        width: of the input; of both sides together where a pair is given.
        hidden: the widths; empty makes it the identity.
        activation: relu, leaky_relu, gelu, silu, tanh, sigmoid, prelu, dice or none.
        norm: None, "batch" or "layer".
        dropout: after each activation.

    Called with a pair ``(request [R, U], candidate [R, L, W - U])`` the first layer works on the request once, not once
    per candidate; the parameters are those of one matrix over the concatenation, and so is the result.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        activation: str = "relu",
        *,
        norm: str | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.width = hidden[-1] if hidden else width
        if norm is not None and norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        self.first = linear(width, hidden[0]) if hidden else None
        layers: list[nn.Module] = []
        for i, size in enumerate(hidden):
            if i:
                layers.append(linear(hidden[i - 1], size))
            if norm is not None:
                layers.append(NORMS[norm](size))
            layers.append(make_activation(activation, size))
            if dropout:
                layers.append(Dropout(dropout))
        self.rest = nn.Sequential(*layers)

    def forward(self, x: Sides, mask: Tensor | None = None) -> Tensor:
        """`mask [...]`: live rows, needed where batch statistics are and lists are padded."""
        if self.first is None:
            return flat(x)
        return on_live_rows(self.rest, split_linear(self.first, x), mask, self.width)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A Linear with Xavier-normal weights and zero bias, as the published CTR benchmarks use."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def flat(x: Sides) -> Tensor:
    """Both sides as one tensor ``[R, L, U + W]``."""
    if isinstance(x, Tensor):
        return x
    request, candidate = x
    return torch.cat([request.unsqueeze(-2).expand(*candidate.shape[:-1], -1), candidate], -1)


def split_linear(layer: nn.Linear, x: Sides) -> Tensor:
    """``layer(flat(x))`` without repeating the request side for every candidate."""
    return split_product(x, layer.weight, layer.bias)


def split_product(x: Sides, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `split_linear`, of a weight ``[out, in]`` and a bias ``[out]``."""
    if isinstance(x, Tensor) or not x[1].shape[-1]:
        return F.linear(flat(x), weight, bias)
    request, candidate = x
    cut = request.shape[-1]
    return F.linear(request, weight[:, :cut]).unsqueeze(-2) + F.linear(candidate, weight[:, cut:], bias)
