"""HSTU: attention through SiLU instead of a softmax, over a history that never sees the candidates that read it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import age
from recstack.nn.sequence.pooling import POOLINGS, Pooling

BUCKETS = 64  # of time differences, each 1.35 times as wide as the one before: 64 reach over seven years of seconds


def time_bucket(gap: Tensor) -> Tensor:
    r""":math:`\lfloor \ln(\max(|\Delta|, 1)) / 0.301 \rfloor`, at most the last bucket; int64, of any shape.

    >>> time_bucket(torch.tensor([0, 1, 2, 3600, -3600])).tolist()
    [0, 0, 2, 27, 27]
    """
    return (gap.abs().clamp(min=1).float().log() / 0.301).long().clamp(max=BUCKETS - 1)


class TargetHSTU(Pooling):
    r"""A stack of hierarchical sequential transduction units; each target reads the history, and itself.

    .. math::
        U, V, Q, K = \mathrm{SiLU}(W_1\,\mathrm{LN}(X)), \qquad
        A_{ij} = \tfrac1N\,\mathrm{SiLU}(\langle q_i, k_j \rangle + p_{i-j} + b_{t_i - t_j}), \quad j \le i, \qquad
        X \leftarrow X + W_2 (\mathrm{LN}(A V) \odot U)

    (Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152.) Nothing is normalised over steps, so that the strength
    of an interest survives; N is `steps`, whatever the padding. Steps see steps before them, and never a target: they
    are read once for all targets, and targets do not see one another.

    Args:
        width: of queries and steps.
        layers: units, at least one.
        heads: need not divide the width; each is as wide as the next larger part.
        steps: N, and the distances told apart.
        dropout: of what a unit adds.
    """

    targeted = True

    def __init__(self, width: int, layers: int = 2, heads: int = 1, steps: int = 50, dropout: float = 0.0):
        super().__init__(width)
        self.layers = nn.ModuleList(_Unit(width, heads, steps, dropout) for _ in range(layers))

    def forward(
        self,
        query: Tensor,
        sequence: Tensor,
        mask: Tensor,
        candidates: Tensor | None = None,
        times: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`times`: of the steps ``[R, T]`` and of the request ``[R]``, in seconds; where None, all fall into one bucket."""
        past = gaps = None
        if times is not None:
            of_step, now = times
            past = time_bucket(of_step.unsqueeze(-1) - of_step.unsqueeze(-2))  # [R, T, T]
            gaps = time_bucket(now.unsqueeze(-1) - of_step)  # [R, T]
        layer: _Unit
        for i, layer in enumerate(self.layers):  # type: ignore[assignment]
            steps = layer.parts(sequence)
            query = layer.of_targets(query, steps, mask, gaps)
            if i < len(self.layers) - 1:
                sequence = layer.of_steps(sequence, steps, mask, past)
        return query * mask.any(-1)[:, None, None]


class CausalHSTU(nn.Module):
    """The same stack over a history alone: each step reads those before it, and itself.

    Args:
        width: of steps.
        layers, heads, steps, dropout: as of `TargetHSTU`.
    """

    def __init__(self, width: int, layers: int = 2, heads: int = 1, steps: int = 50, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(_Unit(width, heads, steps, dropout) for _ in range(layers))

    def forward(self, sequence: Tensor, mask: Tensor, times: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """``sequence [R, T, W], mask [R, T] → [R, T, W]``.

        `times`: of the steps, and of what follows each of them, ``[R, T]`` in seconds; where None, all fall into one bucket.
        """
        gaps = None
        if times is not None:
            of_step, following = times
            gaps = time_bucket(following.unsqueeze(-1) - of_step.unsqueeze(-2))
        layer: _Unit
        for layer in self.layers:  # type: ignore[assignment]
            sequence = layer.of_steps(sequence, layer.parts(sequence), mask, gaps)
        return sequence * mask.unsqueeze(-1)


class _Unit(nn.Module):
    """One transduction unit, whose weights serve steps and targets alike."""

    def __init__(self, width: int, heads: int, steps: int, dropout: float):
        super().__init__()
        self.heads, self.steps, inner = heads, steps, heads * -(-width // heads)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(inner)
        self.project, self.out = linear(width, 4 * inner), linear(inner, width)
        self.position = nn.Parameter(0.02 * torch.randn(steps + 1))  # by distance, 0 is oneself
        self.time = nn.Parameter(0.02 * torch.randn(BUCKETS))
        self.dropout = Dropout(dropout)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[R, n, W]`` → U ``[R, n, inner]`` and V, Q, K ``[R, heads, n, d]``."""
        u, *rest = F.silu(self.project(self.before(x))).chunk(4, -1)
        return u, *(y.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for y in rest)

    def _added(self, x: Tensor, u: Tensor, read: Tensor) -> Tensor:
        y = self.after(read.transpose(-2, -3).flatten(-2) / self.steps)
        return x + self.dropout(self.out(y * u))

    def of_steps(self, x: Tensor, parts: tuple[Tensor, ...], mask: Tensor, buckets: Tensor | None) -> Tensor:
        """Each step with those before it, and itself: ``[R, T, W]``."""
        u, v, q, k = parts
        step = torch.arange(x.shape[1], device=x.device)
        distance = step.unsqueeze(-1) - step
        bias = self.position[distance.clamp(0, self.steps)]
        bias = bias + (self.time[0] if buckets is None else self.time[buckets].unsqueeze(1))
        weight = F.silu((q @ k.transpose(-1, -2)).float() + bias) * ((distance >= 0) & mask[:, None, None])
        return self._added(x, u, weight.to(v.dtype) @ v)

    def of_targets(self, x: Tensor, steps: tuple[Tensor, ...], mask: Tensor, buckets: Tensor | None) -> Tensor:
        """Each target with all steps, and itself: ``[R, L, W]``."""
        u, v, q, k = self.parts(x)
        bias = self.position[age(mask).clamp(0, self.steps)]
        bias = bias + (self.time[0] if buckets is None else self.time[buckets])
        weight = F.silu((q @ steps[3].transpose(-1, -2)).float() + bias[:, None, None]) * mask[:, None, None]
        own = F.silu((q * k).float().sum(-1, keepdim=True) + self.position[0] + self.time[0])
        return self._added(x, u, weight.to(v.dtype) @ steps[1] + own.to(v.dtype) * v)


POOLINGS["hstu"] = TargetHSTU
