"""All places of a page ask for their items at once, and pages are made of what they ask for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.kernels.pages import beam
from recstack.nn.lists.encoder import ListEncoder
from recstack.nn.lists.orders import chosen_first
from recstack.nn.sequence.attention import AttentionLayer
from recstack.nn.sequence.transformer import TransformerLayer


class PlaceMatching(nn.Module):
    r"""Learned vectors of P places see each other and read the candidates, which saw each other without positions.

    .. math:: P_{ti} = \mathrm{softmax}_i\big(\langle h_i, q_t \rangle / \sqrt d\big)

    ``x [R, L, W], mask [R, L]`` give h ``[R, L, W]`` and log P ``[R, P, L]``, next to nothing for the dead.
    (Ren et al., KDD 2024, https://arxiv.org/abs/2402.06871.)

    Args:
        width: W.
        layers, heads: of both encoders.
        places: P.
        dropout: in both.
    """

    def __init__(self, width: int, layers: int, heads: int, places: int, dropout: float = 0.0):
        super().__init__()
        self.candidates = ListEncoder("transformer", width, layers, heads, 2 * width, dropout=dropout)
        self.queries = nn.Parameter(torch.randn(places, width))
        self.among = nn.ModuleList(TransformerLayer(width, heads, 2 * width, dropout=dropout) for _ in range(layers))
        self.ask = nn.ModuleList(AttentionLayer(width, heads, dropout) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        h = self.candidates(x, mask)
        q = self.queries.expand(x.shape[0], -1, -1)
        every = torch.ones_like(q[..., 0], dtype=torch.bool)
        for among, ask in zip(self.among, self.ask, strict=True):
            q = ask(among(q, every), h, mask)
        logit = q @ h.transpose(1, 2) / h.shape[-1] ** 0.5
        return h, logit.masked_fill(~mask.unsqueeze(1), -1e9).log_softmax(-1)


def contrastive_pages(h: Tensor, log_chance: Tensor, mask: Tensor, alpha: float, pages: int) -> Tensor:
    r"""The best pages by contrastive decoding, a beam: orders ``[R, pages, L]``; where there are fewer, the best again.

    .. math:: \mathrm{score}(y) = \sum_t (1 - \alpha) P_{t y_t} - \alpha \max_{j \in y_{<t}} \cos(h_{y_t}, h_j)

    Of `h` and `log_chance` as `PlaceMatching` gives them. (Su et al., NeurIPS 2022, https://arxiv.org/abs/2202.06417.)
    """
    chance, unit = log_chance.exp(), F.normalize(h, dim=-1)
    alike = unit @ unit.transpose(1, 2)
    if h.device.type == "cpu" and not torch.compiler.is_compiling():
        found = beam(chance.detach().numpy(), alike.detach().numpy(), mask.numpy(), alpha, pages)
        turn, total = map(torch.from_numpy, found)
    else:
        turn, total = _beam(chance, alike, mask, alpha, pages)
    first, there = (x.unsqueeze(1).expand(turn.shape) for x in (log_chance[:, 0], mask))
    orders = chosen_first(turn, first, there)
    return torch.where(total.isinf().unsqueeze(-1), orders[:, :1], orders)


def _beam(chance: Tensor, alike: Tensor, mask: Tensor, alpha: float, pages: int) -> tuple[Tensor, Tensor]:
    """`kernels.pages.beam` of tensors on any device, and in a graph."""
    length = mask.shape[1]
    left = mask.unsqueeze(1).expand(-1, pages, -1)
    turn, near = torch.zeros_like(left, dtype=torch.int64), torch.zeros_like(left, dtype=chance.dtype)
    total = torch.full_like(near[..., 0], -torch.inf)
    total[:, 0] = 0  # one empty page to begin with
    for place in range(chance.shape[1]):
        score = (1 - alpha) * chance[:, place].unsqueeze(1) - alpha * near
        full = ~left.any(-1, keepdim=True) & (torch.arange(length, device=mask.device) == 0)  # such a page stays
        score = torch.where(full, 0.0, score.masked_fill(~left, -torch.inf)) + total.unsqueeze(-1)
        value, at = score.flatten(1).sort(dim=-1, descending=True, stable=True)
        at, total = at[:, :pages], value[:, :pages]
        page, best = (at // length).unsqueeze(-1), (at % length).unsqueeze(-1)
        left, turn, near = (t.gather(1, page.expand(t.shape)) for t in (left, turn, near))
        here = torch.zeros_like(left).scatter(-1, best, True) & left
        turn, left = torch.where(here, chance.shape[1] - place, turn), left & ~here
        of_it = alike.gather(1, best.expand(near.shape))
        near = of_it if place == 0 else torch.maximum(near, of_it)
    return turn, total
