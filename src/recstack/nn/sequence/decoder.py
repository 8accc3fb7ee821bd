"""A transformer's decoder: short sequences that are written one code after the other, while a long one is read."""

from __future__ import annotations

from torch import Tensor, nn

from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import MultiHead
from recstack.nn.sequence.transformer import SelfAttention


class DecoderLayer(nn.Module):
    r"""What was written so far, what is read, then a position-wise network; each normalised first, with a residual.

    .. math:: x \leftarrow x + \mathrm{SelfAttention}(\mathrm{LN}(x)), \quad
        x \leftarrow x + \mathrm{MultiHead}(\mathrm{LN}(x), m), \quad x \leftarrow x + W_2\,\mathrm{ReLU}(W_1 \mathrm{LN}(x))

    ``x [R, G, C, W]``: G sequences of C codes for each of R memories ``m [R, S, W]``, of which sequence g reads where ``mask
    [R, G, S]`` says so. Code c sees the codes of its own sequence up to itself. Keys and values of a memory are made once.

    Args:
        width: W.
        heads: of both attentions.
        hidden: width of the network.
        dropout: of each part.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.written, self.read = SelfAttention(width, heads, dropout), MultiHead(width, heads)
        self.feed = nn.Sequential(linear(width, hidden), nn.ReLU(), Dropout(dropout), linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        first, second, third = self.norms
        live = mask.new_ones(x.shape[0] * x.shape[1], x.shape[2])
        x = x + self.dropout(self.written(first(x).flatten(0, 1), live, causal=True)).view(x.shape)
        asked = mask.unsqueeze(2).expand(*x.shape[:3], -1).flatten(1, 2)
        x = x + self.dropout(self.read(second(x).flatten(1, 2), memory, asked)).view(x.shape)
        return x + self.dropout(self.feed(third(x)))
