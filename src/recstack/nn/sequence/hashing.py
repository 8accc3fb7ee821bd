"""SDIM's attention by hashing: a step counts where it falls into the target's bucket, so that no pair is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from recstack.nn.sequence.pooling import Pooling
from recstack.nn.sequence.search import newest
from recstack.nn.sequence.target_attention import TargetAttention


class HashAttention(Pooling):
    r"""The mean over groups of hashes of what lies in the target's bucket, beside target attention over the newest steps.

    .. math:: u(e) = \frac{1}{G} \sum_g \mathrm{norm}\Big(\sum_{j:\, b_g(h_j) = b_g(e)} h_j\Big)

    (Cao et al., CIKM 2022, https://arxiv.org/abs/2205.10249.) A group is `bits` random hyperplanes, so that a step and a
    target at angle θ meet with probability :math:`(1 - \theta / \pi)^{\mathrm{bits}}`. Buckets
    ``[R, G, 2^bits, W]`` are filled once per request; a candidate looks G of them up, however long the history is. Comes
    out ``[R, L, 2 W]``.

    Args:
        width: of queries and steps.
        hashes: in all; 48 in the paper.
        bits: hashes in a group, which must divide `hashes`; 3 in the paper.
        recent: steps that target attention reads.
    """

    targeted = True
    directions: Tensor

    def __init__(self, width: int, hashes: int = 48, bits: int = 3, recent: int = 20):
        super().__init__(2 * width)
        self.groups, self.bits, self.recent = hashes // bits, bits, recent
        self.register_buffer("directions", torch.randn(width, self.groups * bits))  # saved with the model
        self.short = TargetAttention(width)

    def buckets(self, x: Tensor) -> Tensor:
        """Which bucket of each group: ``[..., W] → [..., G, 2^bits]``, one 1 in each group; without gradient."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            above = (x.detach().float() @ self.directions.float() > 0).float().unflatten(-1, (self.groups, self.bits))
            number = (above @ 2.0 ** torch.arange(self.bits, device=x.device)).unsqueeze(-1)
            return (number == torch.arange(1 << self.bits, device=x.device)).float()

    def forward(self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        short = self.short(query, *newest(sequence, mask, self.recent), candidates)
        with torch.autocast(query.device.type, enabled=False):
            live = sequence.float() * mask.unsqueeze(-1)
            sums = torch.einsum("rtgb,rtw->rgbw", self.buckets(sequence), live)
            norm = sums / (sums.square().sum(-1, keepdim=True) + 1e-12).sqrt()
            long = torch.einsum("rlgb,rgbw->rlw", self.buckets(query), norm) / self.groups
        return torch.cat([long.to(short.dtype), short], -1)
