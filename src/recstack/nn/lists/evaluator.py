"""What a whole ordered list does to each of its items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recstack.nn.lists.encoder import ListEncoder
from recstack.nn.mlp import MLP


class ListEvaluator(nn.Module):
    r"""Reads items in the order in which they would be shown: ``x [..., L, W], mask [..., L] → [..., L, hidden[-1]]``.

    .. math:: z_t = \mathrm{MLP}\big([x_t;\, \mathrm{Encoder}(x_1 + e_1, \dots, x_L + e_L)_t]\big)

    The place t belongs to the order that is evaluated, so another order of the same items is another list; what stands where
    `mask` is False is read by nobody. (Huzhang et al., 2020, https://arxiv.org/abs/2003.11941.)

    Args:
        encoder: how the items see each other, as `ListEncoder` takes it.
        width: W.
        hidden: widths of the MLP.
        layers, heads: of the encoder.
        max_list: places that have a vector; later ones share the last.
        dropout: in the encoder and the MLP.
    """

    def __init__(
        self,
        encoder: str,
        width: int,
        hidden: Sequence[int],
        *,
        layers: int = 1,
        heads: int = 1,
        max_list: int = 100,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.encoder = ListEncoder(encoder, width, layers, heads, 2 * width, max_list=max_list, dropout=dropout)
        self.mlp = MLP(2 * width, hidden, dropout=dropout)
        self.width = self.mlp.width

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, self.encoder(x, mask)], -1))
