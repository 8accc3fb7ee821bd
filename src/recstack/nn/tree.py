"""A binary tree with items at its leaves and vectors at its nodes, and the beam search that goes down in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.kernels.tree import balanced_order, height, slots


class ItemTree(nn.Module):
    """Where items hang, and the vectors of what is above them; a leaf's vector is its item's, and is given.

    Nodes are called by code: the root is 1, the children of c are 2 c and 2 c + 1, and the leaves of a tree of height H are
    the codes from 2^H on. Items are ids from 2; `leaves` has the item at each, 0 where there is none, and `codes` the leaf of
    each item.

    Args:
        size: N, one more than the largest id.
        dim: D, width of the vectors, from N(0, 1/D): with smaller ones inner products learn late.
    """

    codes: Tensor  # int64 [N]
    leaves: Tensor  # int64 [2^H]

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.height = height(size - 2)
        self.nodes = nn.Embedding(2**self.height, dim, padding_idx=0)
        nn.init.normal_(self.nodes.weight[1:], std=dim**-0.5)
        self.register_buffer("codes", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("leaves", torch.zeros(2**self.height, dtype=torch.int64))
        self.plant(torch.arange(2, size))

    def plant(self, order: Tensor) -> None:
        """Hang all items, ids in the order of the leaves, int64 ``[N - 2]``."""
        place = slots(len(order)).to(self.leaves.device)
        order = order.to(self.leaves.device)
        self.leaves.zero_()[place] = order
        self.codes[order] = 2**self.height + place

    @property
    def planted(self) -> bool:
        """Whether items hang elsewhere than in the order of their ids."""
        ids = torch.arange(2, len(self.codes))
        return not torch.equal(self.leaves[self.leaves > 0].cpu(), ids)

    @torch.no_grad()
    def grow(self, items: Tensor) -> None:
        """Anew, by vectors of the items from id 1 on ``[N - 1, D]``; inner nodes become the mean of their leaves'."""
        vectors = items.cpu()
        self.plant(balanced_order(vectors[1:]) + 2)
        live = (self.leaves > 0).unsqueeze(1).cpu()
        total, count = vectors[self.leaves.cpu().clamp(min=1) - 1] * live, live.float()
        for level in reversed(range(self.height)):
            total, count = (x.unflatten(0, (-1, 2)).sum(1) for x in (total, count))
            self.nodes.weight[2**level : 2 ** (level + 1)] = (total / count).to(self.nodes.weight)

    def table(self, items: Tensor) -> Tensor:
        """Vectors of the inner nodes by code, then of the items from id 1 on: what `vectors` reads."""
        return torch.cat([self.nodes.weight, items.to(self.nodes.weight)])

    def vectors(self, codes: Tensor, table: Tensor) -> Tensor:
        """Of nodes and leaves by code: ``[..., D]``. An empty leaf has the vector of some item."""
        inner = 2**self.height
        item = self.leaves[(codes - inner).clamp(min=0)].clamp(min=1) - 1
        return F.embedding(torch.where(codes < inner, codes, inner + item), table)

    def ancestors(self, items: Tensor) -> Tensor:
        """Codes of an item and of all above it but the root, from the top: ``[n] → [n, H]``."""
        level = torch.arange(self.height - 1, -1, -1, device=items.device)  # how far above the leaves
        return self.codes[items].unsqueeze(-1) >> level

    def draw(self, groups: int, negatives: int, items: int) -> tuple[Tensor, Tensor]:
        """Codes of `negatives` nodes of every level (all, of one that has no more) and of `items` items, drawn for each group
        ``[G, M]``, and how far above the leaves each lies ``[M]``."""
        codes, above, device = [], [], self.codes.device
        for level in range(1, self.height):
            first = 2**level
            if first <= negatives:  # all of them
                codes.append(torch.arange(first, 2 * first, device=device).expand(groups, -1))
            else:
                codes.append(torch.randint(first, 2 * first, (groups, negatives), device=device))
            above += [self.height - level] * codes[-1].shape[1]
        drawn = torch.randint(2, len(self.codes), (groups, items), device=device)
        return torch.cat([*codes, self.codes[drawn]], 1), torch.tensor(above + [0] * items, device=device)

    def first(self, beam: int, stride: int = 1) -> int:
        """The level that a search scores whole: up to 8 nodes for each that is kept cost what the levels above would."""
        level = min(self.height, (8 * beam).bit_length() - 1)
        return max(level - (level - self.height) % stride, min(level, 1))

    def descend(
        self,
        score: Callable[[Tensor], Tensor],
        rows: int,
        beam: int,
        leaves: Tensor,
        stride: int = 1,
        taper: float = 1.0,
        first: int = 0,
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """A beam search, for each of R rows: the levels that it meets, the codes of its nodes there, int64 ``[R, M]``, and
        their scores, -inf where no live leaf is below.

        Args:
            score: of nodes by code, ``[R, M] → [R, M]``.
            rows: R.
            beam: nodes that are kept of the last level above the leaves.
            leaves: which leaves are live, bool ``[R or 1, 2^H]``.
            stride: levels that a step goes down.
            taper: how many times fewer nodes each level keeps than the next one below that is met.
            first: the level that is scored whole; 0: as `first` says.
        """
        level = first or self.first(beam, stride)
        nodes = torch.arange(2**level, 2 ** (level + 1), device=leaves.device).expand(rows, -1)
        while True:
            live = leaves.unflatten(1, (2**level, -1)).any(-1).expand(rows, -1).gather(1, nodes - 2**level)
            found = score(nodes).masked_fill(~live, -torch.inf)
            yield level, nodes, found
            if level == self.height:
                return
            kept = max(1, round(beam / taper ** (-(-(self.height - level) // stride) - 1)))
            best = nodes.gather(1, found.topk(min(kept, found.shape[1])).indices)
            down = min(stride, self.height - level)
            nodes = ((best << down).unsqueeze(-1) + torch.arange(2**down, device=best.device)).flatten(1)
            level += down
