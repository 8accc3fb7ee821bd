"""DIN's activation unit: the history weighed anew for each target item."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.mlp import has_statistics, linear, make_activation, on_live_rows
from recstack.nn.sequence.pooling import POOLINGS, Pooling


class TargetAttention(Pooling):
    r"""Weights by a small MLP of target and step; without softmax, so that the strength of interest survives.

    .. math:: u(q) = \sum_t a(q, h_t)\, h_t, \qquad a = \mathrm{MLP}([q; h_t; q - h_t; q \odot h_t])

    (Zhou et al., KDD 2018, https://arxiv.org/abs/1706.06978.) The first layer is split into a part of q, a part of h and
    a part of the product, so that nothing of width 4W is built; the parameters are those of one matrix.

    Args:
        width: of queries and steps.
        hidden: of the MLP; (36,) in the paper.
        activation: "dice" in the paper; its statistics are taken over live pairs of candidate and step only.
        softmax: normalise the weights over the live steps.
    """

    targeted = True

    def __init__(self, width: int, hidden: Sequence[int] = (36,), activation: str = "dice", softmax: bool = False):
        super().__init__(width)
        self.softmax = softmax
        self.first = linear(4 * width, hidden[0])
        layers: list[nn.Module] = [make_activation(activation, hidden[0])]
        for before, size in itertools.pairwise(hidden):
            layers += [linear(before, size), make_activation(activation, size)]
        self.score = nn.Sequential(*layers, linear(hidden[-1], 1))

    def forward(self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        """``query [..., L, W], sequence [..., T, W], mask [..., T], candidates [..., L] → [..., L, W]``."""
        return self.weights(query, sequence, mask, candidates) @ sequence

    def weights(self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        """What each step weighs for each query, ``[..., L, T]``; 0 where nothing is."""
        wq, wh, wd, wp = self.first.weight.split(self.width, 1)
        of_query = F.linear(query, wq + wd, self.first.bias).unsqueeze(-2)  # [..., L, 1, H]
        of_step = F.linear(sequence, wh - wd).unsqueeze(-3)  # [..., 1, T, H]
        of_both = F.linear(query.unsqueeze(-2) * sequence.unsqueeze(-3), wp)  # [..., L, T, H]
        hidden = of_query + of_step + of_both
        live = mask.unsqueeze(-2).expand(hidden.shape[:-1])
        packed = None
        if has_statistics(self.score):
            packed = live if candidates is None else live & candidates.unsqueeze(-1)
        score = on_live_rows(self.score, hidden, packed, 1).squeeze(-1)  # [..., L, T]
        if self.softmax:
            score = score.masked_fill(~live, torch.finfo(score.dtype).min).softmax(-1)
        return score * live


POOLINGS["attention"] = POOLINGS["target_attention"] = TargetAttention
