"""Cross-stitch units: networks of several tasks that read from one another, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError


class Stitch(nn.Module):
    r"""A learned mixture across T tasks, ``[..., T, H] → [..., T, H]`` (Misra et al., CVPR 2016, https://arxiv.org/abs/1604.03539).

    .. math:: \tilde{x}_t = \sum_s \alpha_{ts} x_s

    With several subspaces, every task's H units are cut into as many equal parts, and each part of each task mixes with all
    (Ruder et al., AAAI 2019, https://arxiv.org/abs/1705.08142).

    Args:
        tasks: T.
        width: H.
        subspaces: parts of each task's units.
        own: what α starts with for itself; the others share the rest.

    Raises:
        ConfigError: a width that the subspaces do not divide.
    """

    def __init__(self, tasks: int, width: int, subspaces: int = 1, own: float = 0.9):
        super().__init__()
        if subspaces < 1 or width % subspaces:
            raise ConfigError(f"A layer of width {width} cannot be cut into {subspaces} subspaces.")
        self.tasks, self.subspaces, n = tasks, subspaces, tasks * subspaces
        alpha = torch.full((n, n), (1 - own) / (n - 1) if n > 1 else 0.0)
        self.alpha = nn.Parameter(alpha.fill_diagonal_(own if n > 1 else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.subspaces, -1)).flatten(-3, -2)  # [..., T S, H / S]
        return (self.alpha @ parts).unflatten(-2, (self.tasks, self.subspaces)).flatten(-2)
