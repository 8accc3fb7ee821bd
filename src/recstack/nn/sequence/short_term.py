"""STAMP's two memories: all of a history as the last step and its mean see it, and the last step itself."""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.nn.mlp import linear
from recstack.nn.sequence.pooling import POOLINGS, Pooling


class ShortTermMemory(Pooling):
    r"""Attention by the last step and the mean, then one hidden layer for each memory.

    .. math::
        a_t = w_0^\top \sigma(W_1 h_t + W_2 h_T + W_3 \bar h + b), \qquad
        u = \big[\tanh(W_s \textstyle\sum_t a_t h_t + b_s);\; \tanh(W_t h_T + b_t)\big]

    (Liu et al., KDD 2018, https://doi.org/10.1145/3219819.3219950.) Weights are not normalised. Comes out ``[R, 2 W]``.
    """

    def __init__(self, width: int):
        super().__init__(2 * width)
        self.of_step, self.of_last = linear(width, width), linear(width, width, bias=False)
        self.of_mean, self.score = linear(width, width, bias=False), linear(width, 1, bias=False)
        self.general, self.current = linear(width, width), linear(width, width)

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        return self.of_prefixes(sequence, mask.unsqueeze(-2)).squeeze(-2)

    def of_prefixes(self, sequence: Tensor, prefix: Tensor) -> Tensor:
        """Of several sets of steps at once: ``[..., T, W]`` and ``prefix [..., P, T] → [..., P, 2 W]``."""
        live = prefix.to(sequence.dtype)
        mean = live @ sequence / live.sum(-1, keepdim=True).clamp(min=1)
        newest = (prefix.sum(-1, keepdim=True) - 1).clamp(min=0).expand(*prefix.shape[:-1], sequence.shape[-1])
        last = sequence.gather(-2, newest) * prefix.any(-1, keepdim=True)  # steps stand left
        both = (self.of_last(last) + self.of_mean(mean)).unsqueeze(-2)
        weight = self.score((self.of_step(sequence).unsqueeze(-3) + both).sigmoid()).squeeze(-1) * live  # [..., P, T]
        hidden = torch.cat([self.general(weight @ sequence), self.current(last)], -1).tanh()
        return hidden * prefix.any(-1, keepdim=True)


POOLINGS["short_term"] = ShortTermMemory
