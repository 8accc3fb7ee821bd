"""CAN's co-action: an item's parameters are a small network, and what it meets are that network's inputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def size(widths: Sequence[int]) -> int:
    """How many parameters a network of these widths has, biases included.

    >>> size((16, 8, 4))
    172
    """
    return sum(i * o + o for i, o in itertools.pairwise(widths))


def co_action(networks: Tensor, inputs: Tensor, mask: Tensor, widths: Sequence[int], orders: int = 1) -> Tensor:
    r"""Every layer's output for every power of the input, summed over live steps.

    .. math:: \Big\Vert_{c, k} \sum_t h_k(x_t^c), \qquad h_k(x) = \tanh(W_k h_{k-1}(x) + b_k), \quad h_0(x) = x

    (Bian et al., WSDM 2022, https://arxiv.org/abs/2011.05625.) The steps are not repeated for each candidate.

    Args:
        networks: W and b of each candidate, ``[R, L, size(widths)]``, layer by layer.
        inputs: ``[R, T, widths[0]]``.
        mask: which steps are live, ``[R, T]``; with a bias, a padded step would not be zero.
        widths: of the input and of each layer.
        orders: powers 1 to `orders`, taken element by element.

    Returns:
        ``[R, L, orders · sum(widths[1:])]``.
    """
    live = mask[:, None, :, None]
    out = []
    for order in range(1, orders + 1):
        x, at, pattern = inputs**order, 0, "rti,rlio->rlto"
        for before, after in itertools.pairwise(widths):
            weight = networks[..., at : at + before * after].unflatten(-1, (before, after))
            at += before * after
            bias = networks[..., at : at + after].unsqueeze(-2)
            at += after
            x, pattern = (torch.einsum(pattern, x, weight) + bias).tanh(), "rlti,rlio->rlto"
            out.append((x * live).sum(-2))
    return torch.cat(out, -1)
