"""Connections between sub-networks, which training opens and closes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError

Pairs = Sequence[Sequence[int]]


class Connections(nn.Module):
    r"""What flows from J sub-networks to I: ``[..., J, A] → [..., I, B]``. A subclass says how, by z ``[I, J]``.

    z is hard-concrete (Louizos et al., ICLR 2018), drawn once a batch in training and a number in evaluation:

    .. math:: z = \mathrm{clip}\big(\sigma((\log u - \log(1 - u) + \log \alpha) / \beta) (\zeta - \gamma) + \gamma\big), \qquad
        \hat z = \mathrm{clip}\big(\sigma(\log \alpha) (\zeta - \gamma) + \gamma\big)

    Nearly all begin open.

    Args:
        sources: J.
        targets: I.
        pairs: the connections (i, j) that there are; None is all.

    Raises:
        ConfigError: a connection between networks that there are not.

    Ma et al., AAAI 2019, https://doi.org/10.1609/aaai.v33i01.3301216
    """

    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    by_pair: ClassVar[tuple[str, ...]] = ("log_alpha",)  # parameters of each connection; others are of the targets

    def __init__(self, sources: int, targets: int, pairs: Pairs | None):
        super().__init__()
        every = [(i, j) for i in range(targets) for j in range(sources)]
        self.sources, self.targets = sources, targets
        self.pairs: list[tuple[int, int]] = every if pairs is None else [tuple(p) for p in pairs]  # type: ignore[misc]
        for pair in self.pairs:
            if pair not in every:
                raise ConfigError(
                    f"There is no connection {pair} of (to, from) between {sources} and {targets} networks."
                )
        where = torch.tensor([i * sources + j for i, j in self.pairs], dtype=torch.long)
        self.where: Tensor
        self.register_buffer("where", where, persistent=False)
        self.log_alpha = nn.Parameter(2.0 + 0.01 * torch.randn(len(self.pairs)))

    def gates(self) -> Tensor:
        """z of the connections that there are ``[n]``."""
        if self.training:
            u = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
            s = ((u.log() - (1 - u).log() + self.log_alpha) / self.beta).sigmoid()
        else:
            s = self.log_alpha.sigmoid()
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def spread(self, values: Tensor) -> Tensor:
        """``[n, ...]`` of the connections as ``[I, J, ...]``, zeros where there is none."""
        empty = values.new_zeros(self.targets * self.sources, *values.shape[1:])
        return empty.index_copy(0, self.where, values).unflatten(0, (self.targets, self.sources))

    def l0(self) -> Tensor:
        """The expected number of open connections."""
        return (self.log_alpha - self.beta * math.log(-self.gamma / self.zeta)).sigmoid().sum()

    def cut(self, pairs: Pairs, targets: Sequence[int]) -> dict[str, Tensor]:
        """{name: parameter} of these connections and networks alone."""
        places = [self.pairs.index((i, j)) for i, j in pairs]
        return {name: p[places if name in self.by_pair else list(targets)] for name, p in self.named_parameters()}


class Transformed(Connections):
    r"""SNR-Trans: :math:`v_i = b_i + \sum_j z_{ij} W_{ij} u_j`, from `width` to `out`; ReLU where `last` is not said."""

    by_pair = ("log_alpha", "weight")

    def __init__(self, sources: int, targets: int, pairs: Pairs | None, width: int, out: int, *, last: bool):
        super().__init__(sources, targets, pairs)
        self.last = last
        self.weight = nn.Parameter(torch.empty(len(self.pairs), width, out))
        for one in self.weight:
            nn.init.xavier_normal_(one)
        self.bias = nn.Parameter(torch.zeros(targets, out))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.spread(self.gates()[:, None, None] * self.weight)  # [I, J, A, B]
        v = (x.flatten(-2) @ weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)).unflatten(-1, self.bias.shape)
        v = v + self.bias.to(v.dtype)
        return v if self.last else v.relu()


class Averaged(Connections):
    r"""SNR-Aver: :math:`v_i = \sum_j z_{ij} u_j`; a fully connected layer, `width` to `out`, where `last` is not said."""

    def __init__(self, sources: int, targets: int, pairs: Pairs | None, width: int, out: int, *, last: bool):
        super().__init__(sources, targets, pairs)
        self.weight = self.bias = None
        if not last:
            self.weight = nn.Parameter(torch.empty(targets, width, out))
            for one in self.weight:
                nn.init.xavier_normal_(one)
            self.bias = nn.Parameter(torch.zeros(targets, out))

    def forward(self, x: Tensor) -> Tensor:
        v = self.spread(self.gates()).to(x.dtype) @ x
        if self.weight is None or self.bias is None:
            return v
        return (torch.einsum("...ia,iab->...ib", v, self.weight) + self.bias.to(v.dtype)).relu()


def surviving(levels: Sequence[Connections]) -> tuple[list[list[tuple[int, int]]], list[list[int]]]:
    """What is left, in evaluation, without closed connections and without networks that nothing reads any more.

    Returns:
        the connections (to, from) of each level, and the networks between: those that the first level reads, ..., those that
        the last one makes, all of which stay; at least one is left in each place.
    """
    kept = [[p for p, z in zip(c.pairs, c.gates().tolist(), strict=True) if z > 0] for c in levels]
    live = [list(range(levels[-1].targets))]
    for l in reversed(range(len(levels))):
        kept[l] = [p for p in kept[l] if p[0] in live[0]]
        live.insert(0, sorted({j for _, j in kept[l]}) or [0])
    return kept, live
