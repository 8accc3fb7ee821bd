"""What each domain has of its own: rows met by their domain's matrices, and normalised by its statistics.

A domain is a number: 0 is none (padding, or not met in training), then 1 to P.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear

Domain = int | Tensor  # of all rows [n, W], or [R] of each request [R, L, W]
Network = Callable[[list[Tensor], Sequence[Domain]], list[Tensor]]
_opaque: Any = None


def by_domain(network: Network, x: Tensor, domain: Tensor, mask: Tensor | None = None) -> Tensor:
    """`network` on the rows of ``x [R, L, W]``, each by its domain: ``[R, L, H]``.

    It is called once, with one part ``[n, W]`` for each domain that is there, so that nothing of size [rows, in, out] is
    built. In an exported graph, which cannot branch on the data, it is called with x as it is and all requests' domains: few
    requests are served at a time, and a matrix for each is cheap.

    Args:
        domain: ``[R]``, or ``[R, L]`` where it differs between candidates.
        mask: live rows ``[R, L]``; the others are left out, and are zeros.
    """
    if torch.compiler.is_exporting():
        if domain.dim() == 1:
            return network([x], [domain])[0]
        return network([x.flatten(0, 1).unsqueeze(1)], [domain.flatten()])[0].view(*x.shape[:-1], -1)
    if not torch.compiler.is_compiling():
        return _grouped(network, x, domain, mask)
    # How many parts there are depends on the data: traced, every other number would be traced anew. Made on first use:
    # torch.compiler.disable imports the whole compiler, which serving never needs.
    global _opaque
    if _opaque is None:
        _opaque = torch.compiler.disable(_grouped)
    return _opaque(network, x, domain, mask)


def _grouped(network: Network, x: Tensor, domain: Tensor, mask: Tensor | None) -> Tensor:
    rows = x.flatten(0, -2)
    of_row = (domain if domain.dim() > 1 else domain.unsqueeze(-1).expand(x.shape[:-1])).reshape(-1)
    live = torch.arange(rows.shape[0], device=x.device) if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    order = live[of_row[live].argsort(stable=True)]
    found, counts = of_row[order].unique_consecutive(return_counts=True)
    parts = list(rows[order].split(counts.tolist()))
    y = torch.cat(network(parts or [rows[:0]], found.tolist() or [0]))
    return y.new_zeros(rows.shape[0], y.shape[-1]).index_copy(0, order, y).view(*x.shape[:-1], -1)


def own(parameter: Tensor, domains: Sequence[Domain], nothing: Tensor | float | None) -> list[Tensor]:
    """Each domain's row of ``parameter [P, ...]``; where there is no domain, `nothing`, or the mean of all where None."""
    some = domains[0]
    if nothing is None and (isinstance(some, Tensor) or 0 in domains) and len(parameter):
        nothing = parameter.mean(0)
    elif not isinstance(nothing, Tensor):
        nothing = parameter.new_full(parameter.shape[1:], nothing or 0.0)
    if isinstance(some, Tensor):
        if not len(parameter):
            return [nothing.expand(*some.shape, *nothing.shape)]
        row = parameter.index_select(0, (some - 1).clamp(min=0))
        return [torch.where((some > 0).view(-1, *[1] * nothing.dim()), row, nothing)]
    rows = parameter.unbind()  # once, so that backward makes one gradient and not one per domain
    return [rows[p - 1] if p else nothing for p in domains]  # type: ignore[index]


class StarLinear(nn.Module):
    r"""A linear layer with the parameters :math:`W_p \odot W` and :math:`b_p + b` (Sheng et al., CIKM 2021).

    The domains' own parameters start neutral (ones and zeros), so that all begin as the shared layer, which is also what
    rows without a domain meet.
    """

    def __init__(self, width: int, outputs: int, domains: int):
        super().__init__()
        self.shared = linear(width, outputs)
        self.weight = nn.Parameter(torch.ones(domains, outputs, width))
        self.bias = nn.Parameter(torch.zeros(domains, outputs))

    def forward(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        out = []
        for x, w, b in zip(parts, own(self.weight, domains, 1.0), own(self.bias, domains, 0.0), strict=True):
            weight, bias = self.shared.weight * w, self.shared.bias + b
            out.append(F.linear(x, weight, bias) if x.dim() == 2 else x @ weight.mT + bias.unsqueeze(-2))
        return out


class DomainNetworks(nn.Module):
    """N multi-layer perceptrons for each of P domains: parts ``[n, W]`` → ``[n, N · H]``, H the last of `hidden`.

    Each is linear → ReLU → dropout, once per width. All domains begin with the same weights; a row without a domain meets the
    mean of the domains' parameters.

    Args:
        width: W.
        hidden: widths of each network, at least one.
        networks: N.
        domains: P.
        dropout: after each activation.
        each: every network has an input of its own, parts ``[n, N · W]``.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        networks: int,
        domains: int,
        dropout: float = 0.0,
        *,
        each: bool = False,
    ):
        super().__init__()
        self.networks, self.each, self.width = networks, each, hidden[-1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise((width, *hidden)):
            first = torch.stack([linear(a, b).weight.detach().T for _ in range(networks)])  # [N, in, out]
            self.weights.append(nn.Parameter(first.expand(domains, -1, -1, -1).clone()))
            self.biases.append(nn.Parameter(torch.zeros(domains, networks, b)))
        self.dropout = Dropout(dropout)

    def forward(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        n = self.networks
        hidden = [x.unflatten(-1, (n, -1)) if self.each else x.unsqueeze(-2) for x in parts]  # [..., N or 1, W]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            own_parameters = zip(hidden, own(weight, domains, None), own(bias, domains, None), strict=True)
            hidden = [self.dropout(_product(x, w, b).relu()) for x, w, b in own_parameters]
        return [x.flatten(-2) for x in hidden]


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x [n, N, in]`` by ``[N, in, out]``, or ``[R, L, N, in]`` by each request's ``[R, N, in, out]``; N of x may be 1."""
    y = x.transpose(-3, -2) @ weight  # [..., N, n, out]
    return y.transpose(-3, -2) + bias.unsqueeze(-3).to(y.dtype)


class PartitionedNorm(nn.Module):
    r"""Batch normalisation with statistics, and a share of scale and shift, for each domain, of parts ``[n, W]``. In float32.

    .. math:: (\gamma \gamma_p) \frac{z - \mu_p}{\sqrt{\sigma_p^2 + \epsilon}} + (\beta + \beta_p)

    (Sheng et al., CIKM 2021.) A domain's running statistics move only on batches that hold at least two of its rows; fewer are
    normalised by them. The first such batch sets them, so that a rare domain does not start from made-up numbers. A domain
    that training has not met takes the mean and variance of all rows, worked out from the domains'.
    """

    def __init__(self, width: int, domains: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.shared_scale = nn.Parameter(torch.ones(width))
        self.shared_shift = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(domains, width))
        self.shift = nn.Parameter(torch.zeros(domains, width))
        self.mean: Tensor
        self.var: Tensor
        self.rows: Tensor
        self.register_buffer("mean", torch.zeros(domains + 1, width))
        self.register_buffer("var", torch.ones(domains + 1, width))
        self.register_buffer("rows", torch.zeros(domains + 1, dtype=torch.long))

    def forward(self, parts: list[Tensor], domains: Sequence[Domain]) -> list[Tensor]:
        scales = own(self.shared_scale * self.scale, domains, self.shared_scale)
        shifts = own(self.shared_shift + self.shift, domains, self.shared_shift)
        if isinstance(domains[0], Tensor):
            of_request = (*self.statistics(domains[0]), scales[0], shifts[0])
            return [self._by(parts[0], *(t.unsqueeze(-2) for t in of_request))]
        ids = torch.tensor(domains, device=self.mean.device)
        enough = [self.training and len(x) > 1 for x in parts]
        known = [(None, None)] * len(parts)
        if not all(enough):
            known = list(zip(*(t.unbind() for t in self.statistics(ids)), strict=True))
        if any(enough):
            self._move(ids, [x for x, there in zip(parts, enough, strict=True) if there], enough)
        out = []
        for x, there, (mean, var), scale, shift in zip(parts, enough, known, scales, shifts, strict=True):
            if there:
                out.append(F.batch_norm(x.float(), None, None, scale, shift, True, 0.0, self.eps).to(x.dtype))
            else:
                out.append(self._by(x, mean, var, scale, shift))  # type: ignore[arg-type]
        return out

    def _by(self, x: Tensor, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return ((x.float() - mean) * ((var + self.eps).rsqrt() * scale) + shift).to(x.dtype)

    @torch.no_grad()
    def _move(self, ids: Tensor, parts: list[Tensor], enough: list[bool]) -> None:
        """The running statistics of these domains, by the rows of each."""
        ids = ids[torch.tensor(enough, device=ids.device)]
        var, mean = (torch.stack(found) for found in zip(*(torch.var_mean(x.float(), 0) for x in parts), strict=True))
        rate = torch.where(self.rows[ids] > 0, self.momentum, 1.0).unsqueeze(-1)
        self.mean[ids] = torch.lerp(self.mean[ids], mean, rate.expand_as(mean))
        self.var[ids] = torch.lerp(self.var[ids], var, rate.expand_as(var))
        self.rows[ids] += torch.tensor([len(x) for x in parts], device=ids.device)

    def statistics(self, domain: Tensor) -> tuple[Tensor, Tensor]:
        """Running mean and variance ``[R, W]`` of ``domain [R]``; those of all rows together for one not met yet."""
        share = (self.rows / self.rows.sum().clamp(min=1)).float().unsqueeze(-1)  # [P + 1, 1]
        mean = (share * self.mean).sum(0)
        var = (share * (self.var + (self.mean - mean).square())).sum(0) + (self.rows.sum() == 0)
        met = (self.rows[domain] > 0).unsqueeze(-1)
        return torch.where(met, self.mean[domain], mean), torch.where(met, self.var[domain], var)
