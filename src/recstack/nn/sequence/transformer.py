"""Self-attention over a history or a list."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.dropout import Dropout, attention
from recstack.nn.mlp import linear, make_activation
from recstack.nn.sequence.lengths import longest, of_like_length


class SelfAttention(nn.Module):
    r"""Multi-head scaled dot-product attention of a sequence with itself: ``[R, T, W] → [R, T, W]``.

    .. math:: \mathrm{softmax}\big(QK^\top / \sqrt{d}\big) V

    (Vaswani et al., NeurIPS 2017.) Steps that are not live are attended by nobody and come out as zeros.
    """

    def __init__(self, width: int, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads must divide the width; got {heads} heads for a width of {width}.")
        self.heads, self.dropout = heads, Dropout(dropout)
        self.project = linear(width, 3 * width)
        self.out = linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """``mask [R, T]``; None: every step is live."""
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [R, heads, T, d] each
        allowed = None
        if mask is not None and causal:
            # Who may attend to nothing would be 0/0: it attends to itself, and is zeroed below.
            step = torch.arange(x.shape[1], device=x.device)
            allowed = mask[:, None, None, :] & (step[:, None] >= step)
            allowed = allowed | torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        elif mask is not None:  # the same for every step, so no T × T; where nothing is live, to all
            allowed = (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]
        causal = causal and mask is None
        y = attention(q, k, v, allowed, self.dropout, causal)
        y = self.out(y.transpose(1, 2).flatten(-2))
        return y if mask is None else y * mask.unsqueeze(-1)


class TransformerLayer(nn.Module):
    r"""Self-attention, then a position-wise network, each with dropout, a residual and layer normalisation.

    `before` normalises what goes in, ``x + f(LN(x))`` (SASRec); otherwise what comes out, ``LN(x + f(x))``.
    """

    def __init__(
        self,
        width: int,
        heads: int = 1,
        hidden: int | None = None,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        before: bool = False,
    ):
        super().__init__()
        hidden = hidden or width
        self.before = before
        self.attention = SelfAttention(width, heads, dropout)
        self.feed = nn.Sequential(
            linear(width, hidden), make_activation(activation, hidden), Dropout(dropout), linear(hidden, width)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
        """``x [R, T, W], mask [R, T] → [R, T, W]``."""
        first, second = self.norms
        if self.before:
            x = x + self.dropout(self.attention(first(x), mask, causal))
            x = x + self.dropout(self.feed(second(x)))
        else:
            x = first(x + self.dropout(self.attention(x, mask, causal)))
            x = second(x + self.dropout(self.feed(x)))
        return x * mask.unsqueeze(-1)


class Transformer(nn.ModuleList):
    """Layers one after another: ``x [R, T, W], mask [R, T] → [R, T, W]``.

    In training on a CPU sequences of like length go through them together, each group as long as its longest, and not each
    as long as the longest of all: the same, for two thirds of the work where lengths differ as on MovieLens-1M.
    """

    def forward(self, x: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
        groups = of_like_length(mask) if self.training else []
        if len(groups) < 2:
            return self._through(x, mask, causal)
        done = []
        for rows in groups:
            end = max(int(longest(mask[rows[-1:]])), 1)
            some = self._through(x[rows, :end], mask[rows, :end], causal)
            done.append(F.pad(some, (0, 0, 0, x.shape[1] - end)))
        return torch.cat(done)[torch.cat(groups).argsort()]

    def _through(self, x: Tensor, mask: Tensor, causal: bool) -> Tensor:
        for layer in self:
            x = layer(x, mask, causal)
        return x
