"""Self-attention over a history or a list."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.dropout import Dropout, attention
from recstack.nn.mlp import linear, make_activation
from recstack.nn.sequence.lengths import longest, of_like_length, rounded


class SelfAttention(nn.Module):
    r"""Multi-head scaled dot-product attention of a sequence with itself: ``[R, T, W] → [R, T, W]``.

    .. math:: \mathrm{softmax}\big(QK^\top / \sqrt{d}\big) V

    (Vaswani et al., NeurIPS 2017.) Steps that are not live are attended by nobody and come out as zeros. With places
    ``at [R, H]`` only the steps that stand there attend, and come out: ``[R, H, W]``, zeros where a place is below 0.
    """

    def __init__(self, width: int, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads must divide the width; got {heads} heads for a width of {width}.")
        self.heads, self.dropout = heads, Dropout(dropout)
        self.project = linear(width, 3 * width)
        self.out = linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool = False, at: Tensor | None = None) -> Tensor:
        """``mask [R, T]``; None: every step is live."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.projected(x, at))  # [R, heads, ., d]
        allowed = None
        if mask is not None and causal:
            # Who may attend to nothing would be 0/0: it attends to itself, and is zeroed below.
            step = torch.arange(x.shape[1], device=x.device)
            own = (step if at is None else at.clamp(min=0).unsqueeze(1)).unsqueeze(-1)  # [T, 1] or [R, 1, H, 1]
            allowed = (mask[:, None, None, :] & (own >= step)) | (own == step)
        elif mask is not None:  # the same for every step, so no T × T; where nothing is live, to all
            allowed = (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]
        causal = causal and mask is None
        y = attention(q, k, v, allowed, self.dropout, causal)
        y = self.out(y.transpose(1, 2).flatten(-2))
        live = mask if at is None else at >= 0
        return y if live is None else y * live.unsqueeze(-1)

    def projected(self, x: Tensor, at: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys and values, ``[R, T or H, W]`` each."""
        if at is None:
            return self.project(x).chunk(3, -1)
        width, (weight, bias) = x.shape[-1], (self.project.weight, self.project.bias)
        others = F.linear(x, weight[width:], bias[width:])
        return F.linear(taken(x, at), weight[:width], bias[:width]), *others.chunk(2, -1)


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

    def forward(self, x: Tensor, mask: Tensor, causal: bool = False, at: Tensor | None = None) -> Tensor:
        """``x [R, T, W], mask [R, T] → [R, T, W]``; of the steps at the places ``at [R, H]`` alone, ``[R, H, W]``."""
        first, second = self.norms
        own, live = (x, mask) if at is None else (taken(x, at), at >= 0)
        if self.before:
            own = own + self.dropout(self.attention(first(x), mask, causal, at))
            own = own + self.dropout(self.feed(second(own)))
        else:
            own = first(own + self.dropout(self.attention(x, mask, causal, at)))
            own = second(own + self.dropout(self.feed(own)))
        return own * live.unsqueeze(-1)


class Transformer(nn.ModuleList):
    """Layers one after another: ``x [R, T, W], mask [R, T] → [R, T, W]``.

    With places ``at [R, H]`` only the steps that stand there come out, ``[R, H, W]``, and nothing else of the last layer is
    computed but keys and values. A place below 0 comes out as zeros; those stand at the end.

    On a CPU sequences of like length go through them together, each group as long as its longest, and not each
    as long as the longest of all: the same, for two thirds of the work where lengths differ as on MovieLens-1M.
    """

    def forward(self, x: Tensor, mask: Tensor, causal: bool = False, at: Tensor | None = None) -> Tensor:
        groups = of_like_length(mask)
        if len(groups) < 2:
            return self._through(x, mask, causal, at)
        done, size = [], x.shape[1] if at is None else at.shape[1]
        for rows in groups:
            end = rounded(max(int(longest(mask[rows[-1:]])), 1), mask.shape[1])
            read = None if at is None else at[rows, : rounded(int((at[rows] >= 0).sum(1).amax()), size)]
            some = self._through(x[rows, :end], mask[rows, :end], causal, read)
            done.append(F.pad(some, (0, 0, 0, size - some.shape[1])))
        return torch.cat(done)[torch.cat(groups).argsort()]

    def _through(self, x: Tensor, mask: Tensor, causal: bool, at: Tensor | None) -> Tensor:
        if at is not None and not len(self):
            return taken(x, at) * (at >= 0).unsqueeze(-1)
        for n, layer in enumerate(self, 1):
            x = layer(x, mask, causal, at if n == len(self) else None)
        return x


def taken(x: Tensor, at: Tensor) -> Tensor:
    """The steps of ``x [R, T, W]`` at places ``at [R, H]``: ``[R, H, W]``; a place below 0 takes the first."""
    return x.gather(1, at.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1]))
