"""Linear propagation over a graph of users and items, by two sparse products a layer, forward and backward."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.nn.sized import Sized

Half = tuple[Tensor, Tensor, Tensor]
"""One direction of the edges as sparse rows: where rows begin [rows + 1], columns [edges], weights [edges]."""


class Propagation(Sized):
    r"""Neighbours' embeddings, symmetrically normalised, averaged over the layers (LightGCN, He et al., SIGIR 2020).

    .. math:: U^{l+1} = \hat R V^l, \quad V^{l+1} = \hat R^\top U^l, \qquad
        \hat R_{ui} = \frac{R_{ui}}{\sqrt{|I_u|}\sqrt{|U_i|}}, \qquad U = \tfrac{1}{L+1} \sum_{l=0}^{L} U^l

    `link` adds edges S between users, of one weight λ: then :math:`U^{l+1} = \hat R V^l + \hat S U^l`, each entry divided by the
    roots of both degrees, and the degree of a user is :math:`|I_u| + \lambda |S_u|`.

    Without self-loops. A node without edges gets zeros from every layer but its own. The edges are part of the state
    (their number may differ from one checkpoint to the next); `connect` sets them.

    The product of a sparse row and a dense matrix is a weighted bag of embeddings. On Gowalla (810,128 edges, D = 64,
    2 cores) `embedding_bag` takes 12 ms, compiled loops 16, `torch.sparse` 36 in CSR and 126 in COO. Under autocast the
    vectors that are read are of its dtype, forward and backward, and sums are float32: memory is what a product waits for.

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
    link_offsets: Tensor
    link_columns: Tensor
    link_weights: Tensor
    link_strength: Tensor

    sized: ClassVar[tuple[str, ...]] = ("columns", "link_columns")

    def __init__(self, users: int, items: int, layers: int = 3) -> None:
        super().__init__()
        self.users, self.items, self.layers = users, items, layers
        self.register_buffer("offsets", torch.zeros(users + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("link_offsets", torch.zeros(users + 1, dtype=torch.int32))
        self.register_buffer("link_columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("link_strength", torch.zeros(()))
        for name in (
            "weights",
            "back_offsets",
            "back_columns",
            "back_weights",
            "link_weights",
        ):  # follow from the edges
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

    def link(self, one: Tensor, other: Tensor, strength: float) -> Propagation:
        """Set the edges between users: ids ``[n]`` and ``[n]``, each pair in both directions and once; λ is `strength`."""
        key = torch.cat([one, other]).long() * self.users + torch.cat([other, one]).long()
        key = key[torch.cat([one != other] * 2)].unique()
        count, device = torch.bincount(key // self.users, minlength=self.users), self.offsets.device
        self.link_offsets = F.pad(count.cumsum(0), (1, 0)).to(device, torch.int32)
        self.link_columns = (key % self.users).to(device, torch.int32)
        self.link_strength.fill_(strength)
        self._weigh()
        return self

    def _weigh(self) -> None:
        """The weight of each edge, and the edges from the items' side."""
        degree, column = self.offsets.diff().long(), self.columns.long()
        node = torch.arange(self.users, device=column.device)
        row = torch.repeat_interleave(node, degree)
        other = torch.bincount(column, minlength=self.items)
        links, friend = self.link_offsets.diff().long(), self.link_columns.long()
        whole = degree.float() + self.link_strength * links
        self.link_weights = self.link_strength * (whole[torch.repeat_interleave(node, links)] * whole[friend]).rsqrt()
        self.link_weights = self.link_weights.nan_to_num(0.0)  # of no strength, between users without items
        self.weights = (whole[row] * other[column].float()).rsqrt()
        order = torch.argsort(column, stable=True)
        self.back_offsets = F.pad(other.cumsum(0), (1, 0)).int()
        self.back_columns, self.back_weights = row[order].int(), self.weights[order]

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the nodes, [U, D] and [N, D], to averages of the same shapes."""
        forth = self.offsets, self.columns, self.weights
        back = self.back_offsets, self.back_columns, self.back_weights
        return _Average.apply(users, items, forth, back, self._links(), _read_as(users), self.layers)

    def hop(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """One step alone: what comes from the neighbours, R̂V + ŜU and R̂ᵀU."""
        forth = self.offsets, self.columns, self.weights
        back = self.back_offsets, self.back_columns, self.back_weights
        return _Hop.apply(users, items, forth, back, self._links(), _read_as(users))

    def _links(self) -> Half | None:
        return (self.link_offsets, self.link_columns, self.link_weights) if self.link_columns.numel() else None

    def to_users(self, items: Tensor) -> Tensor:
        """R̂V of item vectors ``[N, D]``: ``[U, D]``, without gradients."""
        return _times((self.offsets, self.columns, self.weights), items.detach())

    def to_items(self, users: Tensor) -> Tensor:
        """R̂ᵀU of user vectors ``[U, D]``: ``[N, D]``, without gradients."""
        return _times((self.back_offsets, self.back_columns, self.back_weights), users.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = prefix + "columns" in state_dict
        if saved:  # before there were links, none were saved
            for name in ("link_offsets", "link_columns", "link_strength"):
                state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if saved:
            self._weigh()


class _Average(torch.autograd.Function):
    """The average is one symmetric matrix over all nodes, so the gradient is the same average of the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        forth: Half,
        back: Half,
        links: Half | None,
        dtype: torch.dtype,
        layers: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.graph = forth, back, links, dtype, layers
        whole = users.detach(), items.detach()  # without gradients of their own: a cheaper bag
        base = whole[0].to(dtype), whole[1].to(dtype)
        now = base if layers else whole
        for left in reversed(range(layers)):  # 1 + A + A² + A³ = 1 + A(1 + A(1 + A))
            heard, own = _heard(*now, forth, back, links), base if left else whole
            now = heard[0].to(own[0].dtype).add_(own[0]), heard[1].to(own[1].dtype).add_(own[1])
        return now[0] / (layers + 1), now[1] / (layers + 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Average.apply(*(g.contiguous() for g in grads), *ctx.graph), *(None,) * 5)


class _Hop(torch.autograd.Function):
    """One symmetric matrix over all nodes too."""

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, forth: Half, back: Half, links: Half | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.graph = forth, back, links, dtype
        heard = _heard(users.detach().to(dtype), items.detach().to(dtype), forth, back, links)
        return heard[0].to(users.dtype), heard[1].to(items.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Hop.apply(*(g.contiguous() for g in grads), *ctx.graph), *(None,) * 4)


def _read_as(vectors: Tensor) -> torch.dtype:
    """What the vectors of a product are stored as: autocast's dtype, or their own."""
    device = vectors.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else vectors.dtype


def _heard(users: Tensor, items: Tensor, forth: Half, back: Half, links: Half | None) -> tuple[Tensor, Tensor]:
    heard = _times(forth, items)
    return (heard if links is None else heard + _times(links, users)), _times(back, users)


def _times(matrix: Half, dense: Tensor) -> Tensor:
    offsets, columns, weights = matrix
    weights = weights.to(dense.dtype)
    return F.embedding_bag(columns, dense, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
