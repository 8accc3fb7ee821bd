"""Gates: who among several experts is listened to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.mlp import Sides, linear, split_linear, split_product


class Gate(nn.Module):
    r"""A softmax over experts: ``[..., W] → [..., E]`` in float32, :math:`g = \mathrm{softmax}(W x)`, without bias."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.score = linear(width, experts, bias=False)

    def forward(self, x: Sides) -> Tensor:
        return split_linear(self.score, x).float().softmax(-1)


class Gates(nn.Module):
    r"""A gate for each of T tasks, computed together: ``[..., W] → [..., T, E]`` in float32, :math:`\mathrm{softmax}(W_k x)`.

    Args:
        width: W.
        experts: E.
        tasks: T.
        dropout: chance that an expert is out for a row and a task while training; the others' weights are scaled up to 1
            again, and where all are out the strongest stays. It keeps gates from collapsing (Zhao et al., RecSys 2019).
        each: every task's gate has an input of its own, ``[..., T, W]``.

    `numbers` is set by a model whose tasks choose among different experts: for each task, which of all its E are.
    """

    numbers: list[list[int]] | None = None

    def __init__(self, width: int, experts: int, tasks: int, dropout: float = 0.0, *, each: bool = False):
        super().__init__()
        self.tasks, self.experts, self.dropout, self.each = tasks, experts, dropout, each
        self.weight = nn.Parameter(torch.empty(tasks, experts, width))
        for one in self.weight:
            nn.init.xavier_normal_(one)

    def forward(self, x: Sides) -> Tensor:
        if self.each:
            score = torch.einsum("...ti,tei->...te", x, self.weight)
        else:
            score = split_product(x, self.weight.flatten(0, 1)).unflatten(-1, (self.tasks, self.experts))
        gate = score.float().softmax(-1)
        return dropped(gate, self.dropout) if self.training and self.dropout else gate


class ContentGates(nn.Module):
    r"""The weights that a query of each task gives to experts by their keys, ``[..., E, heads, D] → [..., heads, T, E]``, float32.

    .. math:: \mathrm{softmax}_e(q_{kh}^\top k_{eh} / \sqrt{D})

    Args:
        width: D, of each head.
        tasks: T.
        heads: how many.
        dropout: as in `Gates`.
    """

    def __init__(self, width: int, tasks: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        # Small and different: queries that begin at zero would be uniform, and all move alike.
        self.queries = nn.Parameter(torch.randn(heads, tasks, width) * width**-0.5)

    def forward(self, keys: Tensor) -> Tensor:
        score = self.queries.to(keys.dtype) @ keys.movedim(-2, -3).mT  # [..., heads, T, E]
        gate = (score.float() * keys.shape[-1] ** -0.5).softmax(-1)
        return dropped(gate, self.dropout) if self.training and self.dropout else gate


class TaskQueries(nn.Module):
    r"""Attention of a learned query for each of T tasks over experts: ``[..., E, H] → [..., T, H]``.

    .. math:: z_k = O\, \big[\textstyle\sum_e a^k_{he} V_h f_e\big]_h, \qquad
        a^k_{he} = \mathrm{softmax}_e(q_{kh}^\top K_h f_e / \sqrt{d})

    Args:
        width: H.
        tasks: T.
        heads: each has keys and values of H / heads.
        dropout: of the weights, as in `Gates`.

    Raises:
        ConfigError: a width that the heads do not divide.
    """

    def __init__(self, width: int, tasks: int, heads: int = 1, dropout: float = 0.0):
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"Experts of width {width} cannot be divided among {heads} heads.")
        self.heads = heads
        self.keys = linear(width, width, bias=False)
        self.values = linear(width, width, bias=False)
        self.gates = ContentGates(width // heads, tasks, heads, dropout)
        self.out = linear(width, width)

    def forward(self, experts: Tensor) -> Tensor:
        values = self.values(experts).unflatten(-1, (self.heads, -1)).movedim(-2, -3)  # [..., heads, E, D]
        gate = self.gates(self.keys(experts).unflatten(-1, (self.heads, -1)))
        read = mixtures(gate, values)  # [..., heads, T, D]
        return self.out(read.movedim(-3, -2).flatten(-2))


def dropped(gate: Tensor, chance: float) -> Tensor:
    """Weights ``[..., E]`` of which some are out, scaled to sum to 1; where all would be out, the greatest stays."""
    stays = torch.rand_like(gate) >= chance
    stays = stays | ~stays.any(-1, keepdim=True) & (gate == gate.amax(-1, keepdim=True))
    kept = gate * stays
    return kept / kept.sum(-1, keepdim=True).clamp(min=torch.finfo(gate.dtype).tiny)


def mixture(gate: Tensor, experts: Tensor) -> Tensor:
    """The experts' outputs ``[..., E, H]`` weighed by ``[..., E]``: ``[..., H]``. For weights ``[..., T, E]`` see `mixtures`."""
    return (gate.to(experts.dtype).unsqueeze(-2) @ experts).squeeze(-2)


def mixtures(gates: Tensor, experts: Tensor) -> Tensor:
    """The experts' outputs ``[..., E, H]`` weighed by each task's ``[..., T, E]``: ``[..., T, H]``."""
    return gates.to(experts.dtype) @ experts


def utilisation(gate: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How the experts share the work: mean weights ``[E]``, and the mean entropy of the single rows in nats.

    ``gate [..., E]``; only rows that are live in ``mask [...]`` count, heads behind them alike. Mean weights that differ little with a low entropy
    are experts that specialise; one mean weight near 1 is a gate that has collapsed.
    """
    rows = (gate if mask is None else gate[mask]).flatten(0, -2)
    entropy = -(rows * rows.clamp(min=torch.finfo(rows.dtype).tiny).log()).sum(-1)
    return rows.mean(0), entropy.mean()
