"""Gates: who among several experts is listened to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.nn.mlp import Sides, linear, split_linear


class Gate(nn.Module):
    r"""A softmax over experts: ``[..., W] → [..., E]`` in float32, :math:`g = \mathrm{softmax}(W x)`, without bias."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.score = linear(width, experts, bias=False)

    def forward(self, x: Sides) -> Tensor:
        return split_linear(self.score, x).float().softmax(-1)


def mixture(gate: Tensor, experts: Tensor) -> Tensor:
    """The experts' outputs ``[..., E, H]`` weighed by ``[..., E]``: ``[..., H]``."""
    return (gate.to(experts.dtype).unsqueeze(-2) @ experts).squeeze(-2)


def utilisation(gate: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How the experts share the work: mean weights ``[E]``, and the mean entropy of the single rows in nats.

    ``gate [..., E]``; only rows that are live in ``mask [...]`` count. Mean weights that differ little with a low entropy
    are experts that specialise; one mean weight near 1 is a gate that has collapsed.
    """
    rows = gate.flatten(0, -2) if mask is None else gate[mask]
    entropy = -(rows * rows.clamp(min=torch.finfo(rows.dtype).tiny).log()).sum(-1)
    return rows.mean(0), entropy.mean()
