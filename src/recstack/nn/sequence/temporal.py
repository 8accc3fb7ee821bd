"""TIN's temporal interest: what a step means depends on when it was, and on the target."""

from __future__ import annotations

from torch import Tensor

from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import Positions, masked_softmax
from recstack.nn.sequence.pooling import POOLINGS, Pooling


class TemporalInterest(Pooling):
    r"""Target-aware attention over target-aware representations of steps that know their distance from the target.

    .. math::
        \tilde h_t = h_t + p_t, \quad \tilde e = e + p_0, \qquad
        u(e) = \sum_t \mathrm{softmax}_t\Big(\frac{\langle Q\tilde e, K\tilde h_t \rangle}{\sqrt d}\Big)\,
        (V\tilde h_t \odot Q\tilde e)

    (Zhou et al., WWW 2024, https://arxiv.org/abs/2308.08808.) The target leaves the sum, so that nothing of shape
    ``[R, L, T, W]`` is built.

    Args:
        width: of queries and steps.
        heads: each with its own weights; they need not divide the width, and `width` out is the next multiple.
        steps: positions told apart.
    """

    targeted = True

    def __init__(self, width: int, heads: int = 1, steps: int = 50):
        self_width = heads * -(-width // heads)
        super().__init__(self_width)
        self.heads = heads
        self.positions = Positions(width, steps)
        self.query, self.value = linear(width, self_width), linear(width, self_width)
        self.key = linear(width, self_width, bias=False)

    def forward(self, query: Tensor, sequence: Tensor, mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        steps = sequence + self.positions(mask)
        q, k, v = self.query(query + self.positions.target), self.key(steps), self.value(steps)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for x in (q, k, v))  # [R, heads, L or T, d]
        score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weight = masked_softmax(score, mask[:, None, None, :]).to(v.dtype)
        return ((weight @ v) * q).transpose(-2, -3).flatten(-2)


POOLINGS["temporal"] = TemporalInterest
