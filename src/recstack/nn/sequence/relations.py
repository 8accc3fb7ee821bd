"""RCF's relations: which values items share, and two attentions, over kinds of relations and over the steps that have each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.mlp import linear
from recstack.nn.sized import Sized


class SharedValues(Sized):
    """The values of items, kind by kind, as numbers from 1: whose are shared, and which other items have them.

    Args:
        size: N, one more than the largest id.
        sizes: of the vocabulary of each kind.
    """

    sized: ClassVar[tuple[str, ...]] = ("of_items", "members")

    of_items: Tensor  # of each item, 0 behind the last: int64 [N, kinds, V]
    members: Tensor  # the items of each value, value by value
    starts: Tensor  # where they begin

    def __init__(self, size: int, sizes: Sequence[int]):
        super().__init__()
        self.first = [1 + sum(sizes[:t]) for t in range(len(sizes))]
        self.rows = 1 + sum(sizes)  # of a table of all values
        self.register_buffer("of_items", torch.zeros(size, len(sizes), 0, dtype=torch.int64))
        self.register_buffer("members", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("starts", torch.zeros(self.rows + 1, dtype=torch.int64))

    def read(self, tables: Sequence[Tensor]) -> None:
        """The ids of each kind, 0 where nothing is: ``[N, V of the kind]``."""
        width = max((table.shape[1] for table in tables), default=0)
        values = self.of_items.new_zeros(len(self.of_items), len(tables), width)
        for t, table in enumerate(tables):
            values[:, t, : table.shape[1]] = torch.where(table > 0, table + self.first[t], 0)
        item, value = values.nonzero()[:, 0], values[values > 0]
        self.of_items, self.members = values, item[value.argsort(stable=True)]
        self.starts = F.pad(value.bincount(minlength=self.rows).cumsum(0), (1, 0))

    def same(self, steps: Tensor, targets: Tensor) -> Tensor:
        """Which values of targets ``[R, L]`` the steps ``[R, T]`` have: bool ``[R, L, T, kinds, V]``."""
        own, others = self.of_items[targets].unsqueeze(2), self.of_items[steps].unsqueeze(1)  # [R, L or T, kinds, V]
        return ((own.unsqueeze(-1) == others.unsqueeze(-2)) & (own > 0).unsqueeze(-1)).any(-1)

    def draw(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For items ``[n]`` and each kind: one of their values, an item that has it, an item drawn uniformly, ``[n, kinds]``
        each, and whether the first is another one that shares it and the second does not have it."""
        values = self.of_items[items]
        chance = torch.rand(values.shape, device=items.device).masked_fill(values == 0, -1.0)
        value = values.take_along_dim(chance.argmax(-1, keepdim=True), -1)[..., 0]
        count = self.starts[value + 1] - self.starts[value]
        place = self.starts[value] + (torch.rand(value.shape, device=items.device) * count).long()
        related = self.members[place.clamp(max=len(self.members) - 1)]
        other = torch.randint(2, len(self.of_items), value.shape, device=items.device)
        kind = torch.arange(value.shape[1], device=items.device)
        live = (value > 0) & (related != items[:, None])
        return value, related, other, live & (self.of_items[other, kind] != value.unsqueeze(-1)).all(-1)


class RelationPooling(nn.Module):
    r"""What a history says for each kind of relation to a target, and all kinds together as one vector.

    .. math:: s_t = \sum_{j \in I^t} \frac{e^{b_j}}{\big(\sum_{k \in I^t} e^{b_k}\big)^{\rho}}\, q_j, \qquad
        b_j = z_t^\top \tanh(W_t^1 q_i + W_t^2 q_j + W_t^3 z_v), \qquad
        \sum_t \mathrm{softmax}_t\big(h^\top \mathrm{ReLU}(W (p \odot x_t) + c)\big)\, s_t

    :math:`I^t` are the steps that share a value v of kind t with the target (several: the mean of their z), :math:`I^0` those
    that share nothing, which have no z. (Xin et al., SIGIR 2019, https://arxiv.org/abs/1904.12796.)

    Args:
        dim: D, width of all vectors.
        types: kinds of relations, without kind 0.
        attention: A, width of both attentions.
        smoothing: ρ; 1 is a softmax.
    """

    def __init__(self, dim: int, types: int, attention: int, smoothing: float):
        super().__init__()
        self.types, self.smoothing, kinds = types, smoothing, 1 + types
        self.of_types = nn.Parameter(0.05 * torch.randn(kinds, dim))
        self.type_layer, self.type_out = linear(dim, attention), linear(attention, 1, bias=False)
        self.of_target, self.of_step = (linear(dim, kinds * attention, bias=False) for _ in range(2))
        self.of_shared = nn.Parameter(torch.empty(types, dim, attention))
        self.step_out = nn.Parameter(torch.empty(kinds, attention))
        for p in (self.of_shared, self.step_out):
            nn.init.normal_(p, std=(2 / (dim + attention)) ** 0.5)

    def forward(
        self, user: Tensor, target: Tensor, steps: Tensor, live: Tensor, same: Tensor, values: Tensor
    ) -> Tensor:
        """``[R, D]`` users, ``[R, L, D]`` targets, ``[R, T, D]`` steps, live ``[R, T]``, which of its values each target shares with
        each step ``[R, L, T, types, V]``, and their vectors ``[R, L, types, V, D]``: ``[R, L, D]``."""
        alpha = self.type_out(F.relu(self.type_layer(user.unsqueeze(-2) * self.of_types))).squeeze(-1)
        alpha = alpha.float().softmax(-1).to(user.dtype)
        return torch.einsum("ra,rlad->rld", alpha, self.by_kind(target, steps, live, same, values).to(user.dtype))

    def by_kind(self, target: Tensor, steps: Tensor, live: Tensor, same: Tensor, values: Tensor) -> Tensor:
        """All s_t, as in `forward`: ``[R, L, 1 + types, D]``."""
        kinds, width = self.step_out.shape
        b = self.of_target(target).unflatten(-1, (kinds, width)).unsqueeze(2)
        b = b + self.of_step(steps).unflatten(-1, (kinds, width)).unsqueeze(1)  # [R, L, T, 1 + types, A]
        weight = same / same.sum(-1, keepdim=True).clamp(min=1)
        z = torch.einsum("rlavd,adw->rlavw", values, self.of_shared.to(values.dtype))
        z = torch.einsum("rltav,rlavw->rltaw", weight.to(z.dtype), z)
        b = torch.tanh(b + torch.cat([torch.zeros_like(z[..., :1, :]), z], -2) if self.types else b)
        related = same.any(-1)
        related = torch.cat([~related.any(-1, keepdim=True), related], -1) & live[:, None, :, None]
        with torch.autocast(b.device.type, enabled=False):
            b = (b.float() * self.step_out).sum(-1).masked_fill(~related, torch.finfo(torch.float32).min)
            beta = (b - self.smoothing * b.logsumexp(2, keepdim=True)).masked_fill(~related, -torch.inf).exp()
        return torch.einsum("rlta,rtd->rlad", beta.to(steps.dtype), steps)
