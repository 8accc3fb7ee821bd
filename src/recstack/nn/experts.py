"""Several small networks computed together: experts over one input, towers over an input each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import unknown
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import BatchNorm, Sides, flat, has_statistics, linear, split_linear


class Experts(nn.Module):
    """E multi-layer perceptrons side by side: ``[..., W] → [..., E, H]``, H the last of `hidden`.

    Each is linear → norm → ReLU → dropout, once per width. The first layer of all is one matrix product,
    further layers one product over stacked weights ``[E, in, out]``. Every expert is initialised as if it stood alone.

    Args:
        width: W; of both sides together where a pair (request, candidate) is given.
        hidden: widths of each expert; empty makes it the identity.
        experts: E.
        dropout: after each activation.
        each: every expert has an input of its own, ``[..., E, W]``.
        norm: None, "batch" or "layer"; each expert has its own.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        experts: int,
        dropout: float = 0.0,
        *,
        each: bool = False,
        norm: str | None = None,
    ):
        super().__init__()
        if norm not in (None, *_NORMS):
            raise unknown("norm", norm, _NORMS)
        self.experts, self.each, self.width = experts, each, hidden[-1] if hidden else width
        self.first = linear(width, experts * hidden[0]) if hidden and not each else None
        stacked = [(width, hidden[0]), *pairwise(hidden)] if hidden and each else list(pairwise(hidden))
        self.weights = nn.ParameterList(torch.empty(experts, a, b) for a, b in stacked)
        self.biases = nn.ParameterList(torch.zeros(experts, b) for _, b in stacked)
        first = [] if self.first is None else [self.first.weight.view(experts, hidden[0], width)]
        for one in (*first, *self.weights):
            for weight in one:
                nn.init.xavier_normal_(weight)
        self.norms = nn.ModuleList(_NORMS[norm](experts, h) if norm else nn.Identity() for h in hidden)
        self.dropout, self.normed = Dropout(dropout), norm is not None

    def forward(self, x: Sides, mask: Tensor | None = None) -> Tensor:
        """`mask [...]`: live rows, needed where batch statistics are and lists are padded."""
        if self.first is not None:
            hidden = self._active(split_linear(self.first, x)).unflatten(-1, (self.experts, -1))
        elif not len(self.norms):
            x = flat(x)
            return x if self.each else x.unsqueeze(-2).expand(*x.shape[:-1], self.experts, -1)
        else:
            hidden = self._product(0, flat(x))
        if mask is None or not self.training or not has_statistics(self):
            return self._rest(hidden)
        live = mask.reshape(-1).nonzero().squeeze(1)
        rows = self._rest(hidden.flatten(0, -3).index_select(0, live))
        out = rows.new_zeros(mask.numel(), *rows.shape[1:]).index_copy(0, live, rows)
        return out.view(*mask.shape, *rows.shape[1:])

    def stacked(self) -> list[Tensor]:
        """The weights ``[E, in, out]`` of each layer."""
        if self.first is None:
            return list(self.weights)
        return [self.first.weight.unflatten(0, (self.experts, -1)).mT, *self.weights]

    def stacked_biases(self) -> list[Tensor]:
        """The biases ``[E, out]`` of each layer."""
        first = [] if self.first is None else [self.first.bias.unflatten(0, (self.experts, -1))]
        return [*first, *self.biases]

    def _product(self, i: int, x: Tensor) -> Tensor:
        rows = x.flatten(0, -3).transpose(0, 1)  # [E, N, I], and so are the results laid out
        out = self._active(torch.baddbmm(self.biases[i].unsqueeze(1), rows, self.weights[i]))
        return out.transpose(0, 1).unflatten(0, x.shape[:-2])

    def _active(self, x: Tensor) -> Tensor:
        """Without a norm the ReLU is at once and in place: of many experts another copy is large, and its pages are slow."""
        return x if self.normed else x.relu_()

    def _rest(self, hidden: Tensor) -> Tensor:
        """All after the first linear layer."""
        for i, norm in enumerate(self.norms):
            if i:
                hidden = self._product(i if self.each else i - 1, hidden)
            hidden = self.dropout(norm(hidden).relu() if self.normed else hidden)
        return hidden


class TaskTowers(nn.Module):
    """An MLP for each task, computed together: ``[..., T, W] → [..., T, H]``, or ``[..., W]`` where all read the same.

    Args:
        tasks: their names, in order.
        width: W.
        hidden: widths of each tower; empty makes it the identity.
        each: each task has an input of its own.
        norm: None, "batch" or "layer".
        dropout: after each activation.
        detach: tasks whose loss does not reach below their tower: they read what the others shape.

    Raises:
        ConfigError: a task in `detach` that is not among `tasks`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        width: int,
        hidden: Sequence[int],
        *,
        each: bool,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
    ):
        super().__init__()
        for name in detach:
            if name not in tasks:
                raise unknown("task in detach=", name, tasks)
        self.detached = [task in detach for task in tasks]
        self.networks = Experts(width, hidden, len(tasks), dropout, each=each, norm=norm)
        self.width = self.networks.width

    def forward(self, x: Sides, mask: Tensor | None = None) -> Tensor:
        out = self.networks(x, mask)
        if not any(self.detached):
            return out
        still = x.detach() if isinstance(x, Tensor) else (x[0].detach(), x[1].detach())
        which = torch.tensor(self.detached, device=out.device).unsqueeze(-1)  # [T, 1]
        return torch.where(which, self.networks(still, mask), out)


class _BatchNorms(BatchNorm):
    """Batch normalisation of ``[N, E, H]``, each expert's units by themselves."""

    def __init__(self, experts: int, width: int):
        super().__init__(experts * width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(-2)).view(x.shape)


class _LayerNorms(nn.Module):
    """Layer normalisation of ``[..., E, H]`` over H, with a scale and shift for each expert."""

    def __init__(self, experts: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(experts, width))
        self.bias = nn.Parameter(torch.zeros(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


_NORMS = {"batch": _BatchNorms, "layer": _LayerNorms}
