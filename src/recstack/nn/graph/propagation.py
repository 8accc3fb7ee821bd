"""Linear propagation over a graph of users and items, by two sparse products a layer, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Half = tuple[Tensor, Tensor, Tensor]
"""One direction of the edges as sparse rows: where rows begin [rows + 1], columns [edges], weights [edges]."""


class Propagation(nn.Module):
    r"""Neighbours' embeddings, symmetrically normalised, averaged over the layers (LightGCN, He et al., SIGIR 2020).

    .. math:: U^{l+1} = \hat R V^l, \quad V^{l+1} = \hat R^\top U^l, \qquad
        \hat R_{ui} = \frac{R_{ui}}{\sqrt{|I_u|}\sqrt{|U_i|}}, \qquad U = \tfrac{1}{L+1} \sum_{l=0}^{L} U^l

    Without self-loops. A node without edges gets zeros from every layer but its own. The edges are part of the state
    (their number may differ from one checkpoint to the next); `connect` sets them.

    The product of a sparse row and a dense matrix is a weighted bag of embeddings. On Gowalla (810,128 edges, D = 64,
    2 cores) `embedding_bag` takes 12 ms, compiled loops 16, `torch.sparse` 36 in CSR and 126 in COO.

    Args:
        users: number of user nodes U.
        items: number of item nodes N.
        layers: L; 0 leaves the embeddings as they are.
    """

    offsets: Tensor
    columns: Tensor
    weights: Tensor
    back_offsets: Tensor
    back_columns: Tensor
    back_weights: Tensor

    def __init__(self, users: int, items: int, layers: int = 3) -> None:
        super().__init__()
        self.users, self.items, self.layers = users, items, layers
        self.register_buffer("offsets", torch.zeros(users + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        for name in ("weights", "back_offsets", "back_columns", "back_weights"):  # follow from the edges
            self.register_buffer(name, None, persistent=False)
        self._weigh()

    def connect(self, offsets: Tensor, columns: Tensor) -> Propagation:
        """Set the edges: user u is joined to `columns[offsets[u]:offsets[u + 1]]`, each item once. Integers of any width."""
        assert offsets.shape == (self.users + 1,)
        assert columns.numel() == 0 or 0 <= int(columns.min()) <= int(columns.max()) < self.items
        device = self.offsets.device
        self.offsets, self.columns = offsets.to(device, torch.int32), columns.to(device, torch.int32)
        self._weigh()
        return self

    def _weigh(self) -> None:
        """The weight of each edge, and the edges from the items' side."""
        degree, column = self.offsets.diff().long(), self.columns.long()
        row = torch.repeat_interleave(torch.arange(self.users, device=column.device), degree)
        other = torch.bincount(column, minlength=self.items)
        self.weights = (degree[row].float() * other[column].float()).rsqrt()
        order = torch.argsort(column, stable=True)
        self.back_offsets = F.pad(other.cumsum(0), (1, 0)).int()
        self.back_columns, self.back_weights = row[order].int(), self.weights[order]

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the nodes, [U, D] and [N, D], to averages of the same shapes."""
        forth = self.offsets, self.columns, self.weights
        back = self.back_offsets, self.back_columns, self.back_weights
        return _Average.apply(users, items, forth, back, self.layers)

    def hop(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """One step alone: what comes from the neighbours, R̂V and R̂ᵀU."""
        forth = self.offsets, self.columns, self.weights
        back = self.back_offsets, self.back_columns, self.back_weights
        return _Hop.apply(users, items, forth, back)

    def to_users(self, items: Tensor) -> Tensor:
        """R̂V of item vectors ``[N, D]``: ``[U, D]``, without gradients."""
        return _times((self.offsets, self.columns, self.weights), items.detach())

    def to_items(self, users: Tensor) -> Tensor:
        """R̂ᵀU of user vectors ``[U, D]``: ``[N, D]``, without gradients."""
        return _times((self.back_offsets, self.back_columns, self.back_weights), users.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        columns = state_dict.get(prefix + "columns")
        if columns is not None:  # as many edges as were saved
            self.columns = columns.new_empty(columns.shape, device=self.columns.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if columns is not None:
            self._weigh()


class _Average(torch.autograd.Function):
    """The average is one symmetric matrix over all nodes, so the gradient is the same average of the gradients."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, forth: Half, back: Half, layers: int) -> tuple[Tensor, Tensor]:
        ctx.graph = forth, back, layers
        users, items = users.detach(), items.detach()  # a bag that needs no gradient of its own is cheaper
        user_sum, item_sum = users.clone(), items.clone()
        for _ in range(layers):
            users, items = _times(forth, items), _times(back, users)
            user_sum += users
            item_sum += items
        return user_sum.div_(layers + 1), item_sum.div_(layers + 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Average.apply(*(g.contiguous() for g in grads), *ctx.graph), None, None, None)


class _Hop(torch.autograd.Function):
    """One symmetric matrix over all nodes too."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, forth: Half, back: Half) -> tuple[Tensor, Tensor]:
        ctx.graph = forth, back
        return _times(forth, items.detach()), _times(back, users.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Hop.apply(*(g.contiguous() for g in grads), *ctx.graph), None, None)


def _times(matrix: Half, dense: Tensor) -> Tensor:
    offsets, columns, weights = matrix
    weights = weights.to(dense.dtype)
    return F.embedding_bag(columns, dense, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
