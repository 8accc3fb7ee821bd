"""A transformer over things that are written as several codes: it reads many of them and writes the codes of one more."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.dropout import Dropout
from recstack.nn.sequence.decoder import DecoderLayer
from recstack.nn.sequence.transformer import Transformer, TransformerLayer


class CodeTransformer(nn.Module):
    r"""An encoder reads the codes of a history from left to right, a decoder writes those of an item, one after the other.

    .. math:: \log p(c_1, \dots, c_C \mid h) = \sum_{l=1}^{C} \log p(c_l \mid c_{<l}, h)

    Each level has its own vectors of codes, and they are also what a state is compared with. As the encoder sees no later item,
    one pass over a history serves every prefix of it. Codes count from 1; 0 is none, and what begins with 0 is masked.

    Args:
        length: C, codes of a thing.
        codes: K, values of a code.
        dim: D, the width.
        layers, heads: of the encoder, and again of the decoder.
        hidden: width of the position-wise networks.
        steps: T, of the longest history.
        dropout: of embeddings and layers.
    """

    def __init__(
        self, length: int, codes: int, dim: int, layers: int, heads: int, hidden: int, steps: int, dropout: float = 0.0
    ):
        super().__init__()
        self.length, self.codes, self.steps = length, codes, steps
        self.table = nn.Embedding(1 + length * codes, dim, padding_idx=0)
        nn.init.normal_(self.table.weight[1:], std=0.02)
        self.begin = nn.Parameter(0.02 * torch.randn(dim))
        self.read_places, self.written_places = (
            nn.Parameter(0.02 * torch.randn(length, dim)),
            nn.Parameter(0.02 * torch.randn(length, dim)),
        )
        self.positions = nn.Parameter(0.02 * torch.randn(steps, dim))
        self.dropout, self.scale = Dropout(dropout), dim**0.5
        self.encoder = Transformer(
            TransformerLayer(dim, heads, hidden, dropout=dropout, before=True) for _ in range(layers)
        )
        self.decoder = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout) for _ in range(layers))
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])

    def vectors(self, codes: Tensor) -> Tensor:
        """Of the first l codes of items, from 1 and 0 for none, ``[..., l]``: ``[..., l, D]``."""
        first = self.codes * torch.arange(codes.shape[-1], device=codes.device)
        return F.embedding(codes + first * (codes > 0), self.table.weight) * self.scale

    def read(self, codes: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """Histories of codes ``[R, T, C]``, live ``[R, T]``: what the decoder reads ``[R, 1 + T · C, D]``, and which of it is live.

        The first place is that of the beginning, so that an empty history can be read; positions count from the newest step.
        """
        back = live.sum(-1, keepdim=True) - 1 - torch.arange(live.shape[1], device=live.device)
        place = F.embedding(back.clamp(0, self.steps - 1), self.positions).unsqueeze(-2) + self.read_places
        x = (self.vectors(codes) + place).flatten(1, 2)
        x = torch.cat([self.begin.expand(x.shape[0], 1, -1).to(x.dtype), x], 1)
        there = F.pad((codes > 0).flatten(1), (1, 0), value=True)
        x = self.encoder(self.dropout(x) * there.unsqueeze(-1), there, causal=True)
        return self.norms[0](x) * there.unsqueeze(-1), there

    def written(self, codes: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """States behind the beginning and each of codes ``[R, G, l]``, of which the next is told: ``[R, G, l + 1, D]``.

        G items are written for each memory ``[R, S, D]``, which item g reads where ``mask [R, G, S]``.
        """
        x = F.pad(self.vectors(codes), (0, 0, 1, 0)) + self.written_places[: codes.shape[-1] + 1]
        x = self.dropout(x)
        for layer in self.decoder:
            x = layer(x, memory, mask)
        return self.norms[1](x)

    def log_p(self, states: Tensor, level: int = 0) -> Tensor:
        """Of each value of the codes from `level` on, by states ``[..., l, D]``: float32 ``[..., l, K]``."""
        tables = self.table.weight[1:].view(self.length, self.codes, -1)[level : level + states.shape[-2]]
        with torch.autocast(states.device.type, enabled=False):
            return torch.einsum("...ld,lkd->...lk", states.float(), tables.float()).log_softmax(-1)

    def log_likelihood(self, states: Tensor, codes: Tensor) -> Tensor:
        """Of whole codes ``[..., C]`` by their states ``[..., C, D]``: float32 ``[...]``; of none, that of codes drawn blindly."""
        found = self.log_p(states).gather(-1, (codes - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1).sum(-1)
        return torch.where(codes[..., 0] > 0, found, -self.length * math.log(self.codes))
