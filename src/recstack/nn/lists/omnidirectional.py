"""Attention of a list in every direction: along its items, and along their attributes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.nn.sequence.transformer import SelfAttention


class Omnidirectional(nn.Module):
    r"""A list of items of several attributes: ``[..., L, F, D], mask [..., L] → (list [..., D], items [..., L, D])``.

    .. math:: y_{\cdot f} = x_{\cdot f} + \mathrm{SA}_1(x_{\cdot f}), \qquad a_f = \tfrac1L \sum_t y_{tf}, \qquad
        g = \tfrac1F \sum_f \big(a + \mathrm{SA}_2(a)\big)_f, \qquad z_t = \tfrac1F \sum_f \big(y_t + \mathrm{SA}_3(y_t)\big)_f

    Items attend to each other attribute by attribute, a list's attributes to each other, and each item's. Places are known
    by a vector that is added to x. Any number of places and attributes can be read; what stands where `mask` is False is
    read by nobody. (Shi et al., KDD 2023, https://arxiv.org/abs/2302.03487.)

    Args:
        dim: D.
        max_list: places that have a vector; later ones share the last.
    """

    def __init__(self, dim: int, max_list: int):
        super().__init__()
        self.places = nn.Parameter(0.1 * torch.randn(max_list, dim))
        self.along_items, self.along_list, self.along_item = (SelfAttention(dim) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(x.shape[-3], device=x.device).clamp(max=len(self.places) - 1)
        x = (x + self.places[place].unsqueeze(1)).transpose(-3, -2)  # [..., F, L, D]
        live = mask.unsqueeze(-2).expand(x.shape[:-1])
        y = x + self.along_items(x.flatten(0, -3), live.flatten(0, -2)).view(x.shape)
        y = y * live.unsqueeze(-1)
        a = y.sum(-2) / mask.sum(-1).clamp(min=1)[..., None, None]  # [..., F, D]
        rows = a.flatten(0, -3)
        whole = (a + self.along_list(rows, None).view(a.shape)).mean(-2)
        y = y.transpose(-3, -2)
        rows = y.flatten(0, -3)
        items = (y + self.along_item(rows, None).view(y.shape)).mean(-2)
        return whole, items * mask.unsqueeze(-1)
