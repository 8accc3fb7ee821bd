"""STAMP's two memories: all of a history as the last step and its mean see it, and the last step itself."""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.nn.mlp import linear
from recstack.nn.sequence.pooling import POOLINGS, Last, Mean, Pooling


class ShortTermMemory(Pooling):
    r"""Attention by the last step and the mean, then one hidden layer for each memory.

    .. math::
        a_t = w_0^\top \sigma(W_1 h_t + W_2 h_T + W_3 \bar h + b), \qquad
        u = \big[\tanh(W_s \textstyle\sum_t a_t h_t + b_s);\; \tanh(W_t h_T + b_t)\big]

    (Liu et al., KDD 2018, https://doi.org/10.1145/3219819.3219950.) Weights are not normalised. Comes out ``[R, 2 W]``.
    """

    def __init__(self, width: int):
        super().__init__(2 * width)
        self.mean, self.last = Mean(width), Last(width)
        self.of_step, self.of_last = linear(width, width), linear(width, width, bias=False)
        self.of_mean, self.score = linear(width, width, bias=False), linear(width, 1, bias=False)
        self.general, self.current = linear(width, width), linear(width, width)

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        last, mean = self.last(None, sequence, mask), self.mean(None, sequence, mask)
        both = (self.of_last(last) + self.of_mean(mean)).unsqueeze(-2)
        weight = self.score((self.of_step(sequence) + both).sigmoid()) * mask.unsqueeze(-1)  # [R, T, 1]
        memory = (weight * sequence).sum(-2)
        hidden = torch.cat([self.general(memory), self.current(last)], -1).tanh()
        return hidden * mask.any(-1, keepdim=True)


POOLINGS["short_term"] = ShortTermMemory
