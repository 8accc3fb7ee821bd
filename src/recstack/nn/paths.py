"""Paths through layers of nodes: how likely each is for a state, and which are likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.mlp import MLP, linear


class PathNetwork(nn.Module):
    r"""D layers of K nodes, each chosen by the state and the nodes before.

    .. math:: P(c_1, \dots, c_D \mid x) = \prod_d \mathrm{softmax}\big(\mathrm{MLP}_d([x; e_{c_1}; \dots; e_{c_{d-1}}])\big)_{c_d}

    A path is a number to the base K, its first node the highest digit.

    Args:
        dim: width of states and nodes.
        depth: D.
        width: K.
        hidden: widths of each layer's MLP.

    Gao et al., CIKM 2021, https://arxiv.org/abs/2007.07203
    """

    def __init__(self, dim: int, depth: int, width: int, hidden: Sequence[int]):
        super().__init__()
        self.depth, self.width = depth, width
        self.nodes = nn.Embedding(1 + (depth - 1) * width, dim, padding_idx=0)
        nn.init.normal_(self.nodes.weight[1:], std=dim**-0.5)
        self.layers = nn.ModuleList(MLP(dim * (d + 1), hidden) for d in range(depth))
        self.heads = nn.ModuleList(linear(layer.width, width) for layer in self.layers)  # type: ignore[arg-type]

    def forward(self, state: Tensor, paths: Tensor) -> Tensor:
        r""":math:`\log P(c \mid x)` of given paths: ``[n, dim], [n, J] → [n, J]`` float32."""
        total: Any = 0.0
        for d in range(self.depth):
            step = paths // self.width ** (self.depth - 1 - d)
            logit = self._logits(d, state, step // self.width)
            total = total + logit.log_softmax(-1).gather(-1, (step % self.width).unsqueeze(-1)).squeeze(-1)
        return total

    def _logits(self, d: int, state: Tensor, before: Tensor) -> Tensor:
        """Of the nodes of layer d after paths of d nodes ``[n, J]``: ``[n, J, K]`` float32."""
        if not d:
            logit = self.heads[0](self.layers[0](state)).unsqueeze(1)
            return logit.float().expand(-1, before.shape[1], -1)
        nodes = [before // self.width ** (d - 1 - i) % self.width + 1 + i * self.width for i in range(d)]
        x = F.embedding(torch.stack(nodes, -1), self.nodes.weight, padding_idx=0).flatten(-2)
        return self.heads[d](self.layers[d]((state, x))).float()

    @torch.no_grad()
    def likeliest(self, state: Tensor, beam: int) -> tuple[Tensor, Tensor]:
        """Beam search: the likeliest paths of states ``[n, dim]``, best first, with the logarithm of their probability ``[n, B]``."""
        codes, chance = state.new_zeros(len(state), 1, dtype=torch.int64), state.new_zeros(len(state), 1).float()
        for d in range(self.depth):
            chance = (chance.unsqueeze(-1) + self._logits(d, state, codes).log_softmax(-1)).flatten(1)
            chance, at = chance.topk(min(beam, chance.shape[1]))
            codes = codes.gather(1, at // self.width) * self.width + at % self.width
        return codes, chance

    def asked(self, beam: int) -> int:
        """How many nodes such a search scores."""
        return sum(min(beam, self.width**d) * self.width for d in range(self.depth))
