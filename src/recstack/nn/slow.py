"""A copy of a network that follows it slowly: what a value is learned towards must not run away from itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Slow(nn.Module):
    r"""The network as it was a while ago, which learns nothing itself: :math:`\theta^- \leftarrow \theta^- + \tau (\theta - \theta^-)`.

    Args:
        network: what is followed.
        rate: τ.

    Lillicrap et al., ICLR 2016, https://arxiv.org/abs/1509.02971

    >>> layer = nn.Linear(1, 1)
    >>> slow, before = Slow(layer, 0.25), layer.weight.item()
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(4)
    >>> slow.follow(layer)
    >>> round(slow.network.weight.item() - before, 5)
    1.0
    """

    def __init__(self, network: nn.Module, rate: float):
        super().__init__()
        kept = {id(s): s for s in (getattr(m, "schema", None) for m in network.modules()) if s is not None}
        self.network, self.rate = copy.deepcopy(network, kept).requires_grad_(False), rate

    def forward(self, *given: Any) -> Any:
        return self.network(*given)

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """One step towards the network."""
        for behind, ahead in zip(self.network.parameters(), network.parameters(), strict=True):
            behind.lerp_(ahead, self.rate)
