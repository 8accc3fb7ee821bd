"""Several interests of one history by dynamic routing: what steps vote for, and how far the interests agree with them."""

from __future__ import annotations

import torch
from torch import Tensor


def squash(x: Tensor) -> Tensor:
    r"""Length below one, direction kept: :math:`\frac{\|x\|^2}{1 + \|x\|^2} \frac{x}{\|x\|}`; zeros stay zeros.

    >>> squash(torch.tensor([3.0, 4.0]))  # of length 5: 25/26
    tensor([0.5769, 0.7692])
    """
    square = x.float().square().sum(-1, keepdim=True)
    return x * square / ((1 + square) * (square + 1e-12).sqrt())


def routed(votes: Tensor, prefix: Tensor, logits: Tensor, alive: Tensor | None = None, iterations: int = 3) -> Tensor:
    r"""Interests of every prefix, ``[R, P, K, D]``, by behaviour-to-interest routing.

    .. math::
        w_{ki} = \mathrm{softmax}_k(b_{ki}), \qquad u_k = \mathrm{squash}\Big(\sum_i w_{ki} \hat e_{ki}\Big), \qquad
        b_{ki} \leftarrow b_{ki} + \langle u_k, \hat e_{ki} \rangle

    (Sabour et al., NeurIPS 2017; Li et al., CIKM 2019, https://arxiv.org/abs/1904.08030.) Only the last round has a
    gradient. Votes are made once for all prefixes, so that a prefix costs what a row of attention costs. In float32.

    Args:
        votes: ê ``[R, K, T, D]``, or ``[R, 1, T, D]`` where all interests read the same.
        prefix: the steps of each prefix ``[R, P, T]``.
        logits: b at the start ``[K, T]``.
        alive: which interests a prefix has ``[R, P, K]``; the others get no votes and come out as zeros.
        iterations: rounds, at least one.
    """
    with torch.autocast(votes.device.type, enabled=False):
        votes = votes.float()
        b = logits.float().unsqueeze(1).unsqueeze(0)  # [1, K, 1, T]; [R, K, P, T] from the first round on
        dead = None if alive is None else ~alive.transpose(1, 2).unsqueeze(-1)  # [R, K, P, 1]
        live = prefix.unsqueeze(1)

        def interests(b: Tensor) -> Tensor:
            if dead is not None:
                b = b.masked_fill(dead, torch.finfo(b.dtype).min)
            return squash((b.softmax(1) * live) @ votes)  # [R, K, P, D]

        with torch.no_grad():
            for _ in range(iterations - 1):
                b = b + interests(b) @ votes.transpose(-1, -2)
        return interests(b).transpose(1, 2)
