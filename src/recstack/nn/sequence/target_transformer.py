"""A transformer over a history with the target appended (BST)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.nn.sequence.attention import AttentionLayer, Positions
from recstack.nn.sequence.pooling import POOLINGS, Pooling

REDUCTIONS = ("target", "mean", "concat")


class TargetTransformer(Pooling):
    r"""Past steps and the target attend to each other, with positions that count from the target.

    .. math:: S = \mathrm{Transformer}([h_1 + p_T; \dots; h_T + p_1; e + p_0])

    (Chen et al., DLP-KDD 2019, https://arxiv.org/abs/1905.06874.) With one layer and reduction "target" the steps are
    read once per request; otherwise what each step becomes depends on the target, and ``[R, L, T + 1, W]`` is built.

    Args:
        width: of queries and steps.
        layers, heads: of the transformer; heads need not divide the width.
        steps: positions told apart.
        reduction: "target": what the target becomes ``[R, L, W]``; "mean": of all that are there; "concat": all of the
            last `steps` and the target behind each other, by position, ``[R, L, (steps + 1) W]``.
        dropout: in the layers.
    """

    targeted = True

    def __init__(
        self,
        width: int,
        layers: int = 1,
        heads: int = 1,
        steps: int = 50,
        reduction: str = "target",
        dropout: float = 0.0,
    ):
        super().__init__(width)
        if reduction not in REDUCTIONS:
            raise unknown("reduction", reduction, REDUCTIONS)
        self.reduction, self.steps = reduction, steps
        self.positions = Positions(width, steps)
        self.layers = nn.ModuleList(AttentionLayer(width, heads, dropout) for _ in range(layers))
        if reduction == "concat":
            self.width = (steps + 1) * width

    def forward(self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        target, steps = query + self.positions.target, sequence + self.positions(mask)
        if self.reduction == "target" and len(self.layers) == 1:
            out = self.layers[0](target, steps, mask, own=True)
            return out * mask.any(-1)[:, None, None]
        cells = query.shape[:2]
        every = torch.cat([steps.unsqueeze(1).expand(*cells, *steps.shape[1:]), target.unsqueeze(2)], 2)
        live = torch.cat([mask, torch.ones_like(mask[:, :1])], -1).unsqueeze(1).expand(*cells, -1)  # [R, L, T + 1]
        for layer in self.layers:
            every = layer(every, every, live)
        return self._reduced(every, live, mask) * mask.any(-1)[:, None, None]

    def _reduced(self, every: Tensor, live: Tensor, mask: Tensor) -> Tensor:
        if self.reduction == "target":
            return every[:, :, -1]
        if self.reduction == "mean":
            return (every * live.unsqueeze(-1)).sum(-2) / live.sum(-1, keepdim=True)
        past, target = every[:, :, :-1], every[:, :, -1:]
        back = torch.arange(1, self.steps + 1, device=mask.device)  # 1: the most recent
        at = mask.sum(-1, keepdim=True) - back  # [R, steps]
        at, there = at.clamp(min=0)[:, None, :, None], (at >= 0)[:, None, :, None]
        past = past.gather(2, at.expand(-1, past.shape[1], -1, past.shape[-1])) * there
        return torch.cat([target, past], 2).flatten(-2)


POOLINGS["transformer"] = TargetTransformer
