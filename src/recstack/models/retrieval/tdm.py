"""Learning Tree-based Deep Model for Recommender Systems (Zhu et al., KDD 2018).

https://arxiv.org/abs/1801.02294
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import tasks
from recstack.features.columns import column
from recstack.kernels.tree import balanced_order, height, slots
from recstack.models.base import Model
from recstack.models.counting import item_values
from recstack.models.next_item import SHARING, NextItem
from recstack.models.structure import CELLS, Structured, factors
from recstack.nn.mlp import MLP, linear, make_activation
from recstack.nn.sequence.windows import Windows
from recstack.schema import Schema

Batch = Mapping[str, Tensor]


class TDM(Structured, NextItem):
    r"""Items are the leaves of a binary tree, and a network looks for them from the root down.

    .. math:: s(u, n) = \mathrm{MLP}\big([u_1; \dots; u_W;\, e_n;\, \langle u_1, e_n \rangle; \dots; \langle u_W, e_n \rangle]\big),
        \qquad P_j(n \mid u) \propto \max_{c \,\in\, \mathrm{children}(n)} P_{j+1}(c \mid u)

    with :math:`u_w` the mean of the steps of the history in a window of age, and :math:`e_n` the vector of a node, a leaf's being
    its item's. The ancestors of the item that follows are positives of their levels and nodes drawn from each level
    negatives, of a binary loss: every step of a history is trained, in one pass. `recommend` keeps, of each level, the best
    `beam` nodes and scores their children, of all users at once.

    True ancestors alone leave inner nodes below the best of their children, and the search misses leaves it would have
    scored highest. So for `agree` steps of a batch a wider search (4 `beam`) is made, and in each level that it meets,
    :math:`V_j`, the ancestors :math:`A_j` of the `beam` best leaves it found are to stand before the others:

    .. math:: \mathcal{L}_j = -\frac{1}{|A_j|} \sum_{n \in A_j} \log \frac{e^{s(u, n)}}{\sum_{m \in V_j} e^{s(u, m)}}

    The tree is grown from truncated singular vectors of who met what, or from a category, by balanced 2-means. With
    `rounds` it is grown again from the item vectors that were learned, and training goes on, inner nodes starting as the
    mean of their leaves; `recluster` does so by hand. It is part of the bundle.

    Departs from the paper: `agree` (0: as published; after Zhuo et al., https://arxiv.org/abs/2006.15408, who train for the
    search with the labels' leaves instead of the network's own best); within a window steps are not weighed by the node, the inner products compare node and window;
    no batch normalisation; the first tree.

    Args:
        schema: a fitted schema with a History.
        dim: width of items and nodes.
        hidden: widths of the MLP.
        windows: how many steps each window holds, the newest first.
        negatives: drawn in each level, where it has as many; `leaf_negatives` among the items.
        leaf_negatives: items drawn.
        beam: nodes kept of each level.
        tree: an item feature: the first tree keeps items of one value together; None: it is grown from singular vectors.
        agree: steps of a batch for which the levels learn to lead to the network's own best leaves; 0 for none.
        rounds: trainings, each but the first on a tree grown anew.
        sample: share of a batch's steps that are trained, drawn each time.

    Zhu et al., KDD 2018, https://arxiv.org/abs/1801.02294

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.TDM(rs.Encoder(train.schema).fit(train).schema, dim=16, beam=20)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 16, "negatives": 0}

    codes: Tensor  # int64 [N]: where an item hangs; the root is 1, the children of c are 2 c and 2 c + 1
    leaves: Tensor  # int64 [2^H]: the item at each leaf, 0 where there is none

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 24,
        hidden: Sequence[int] = (64, 32),
        windows: Sequence[int] = (1, 1, 1, 2, 2, 2, 10, 10, 20, 20),
        negatives: int = 8,
        leaf_negatives: int = 64,
        beam: int = 100,
        tree: str | None = None,
        agree: int = 16,
        rounds: int = 1,
        sample: float = 1.0,
    ):
        super().__init__(schema, dim, std=dim**-0.5)  # inner products of smaller vectors learn late
        if min(*windows, negatives, leaf_negatives, beam, rounds, agree + 1) < 1 or not 0 < sample <= 1:
            raise ConfigError(
                "windows, negatives, leaf_negatives, beam and rounds are at least 1, agree at least 0, and sample lies in "
                f"(0, 1]; got {tuple(windows)}, {negatives}, {leaf_negatives}, {beam}, {rounds}, {agree} and {sample:g}."
            )
        self.negatives, self.leaf_negatives, self.beam, self.sample = negatives, leaf_negatives, beam, sample
        self.category, self.rounds, self.parts, self.agree = tree, rounds, len(windows), agree
        self.item = schema.feature(schema.item)  # type: ignore[arg-type]  # a History cannot be declared without
        self.windows = Windows(windows)
        size = self.item.size  # type: ignore[attr-defined]
        self.height = height(size - 2)
        self.nodes = nn.Embedding(2**self.height, dim, padding_idx=0)
        nn.init.normal_(self.nodes.weight[1:], std=dim**-0.5)
        self.first = linear(self.parts * dim + dim + self.parts, hidden[0])
        self.activation = make_activation("prelu", hidden[0])
        self.rest = MLP(hidden[0], hidden[1:], "prelu")
        self.out = linear(self.rest.width, 1)
        self.register_buffer("codes", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("leaves", torch.zeros(2**self.height, dtype=torch.int64))
        self.plant(torch.arange(2, size))

    # -- the tree ------------------------------------------------------------------------------------------------------
    def plant(self, order: Tensor) -> None:
        """Hang all items, ids in the order of the leaves, int64 ``[N - 2]``."""
        place = slots(len(order)).to(self.leaves.device)
        order = order.to(self.leaves.device)
        self.leaves.zero_()[place] = order
        self.codes[order] = 2**self.height + place

    def prepare(self, train: Any) -> None:
        """Grow the first tree, where none was grown yet; `fit` does so."""
        ids = torch.arange(2, len(self.codes))
        if not torch.equal(self.leaves[self.leaves > 0].cpu(), ids):
            return
        if self.category is None:
            self.plant(ids[balanced_order(factors(train, 32)[2:])])
            return
        values = item_values(self.catalog, self.schema.feature(self.category))
        rng, value = np.random.default_rng(0), np.zeros(len(self.codes), np.int64)
        value[values.rows[::-1]] = values.columns[::-1]  # the first of several
        self.plant(ids[np.lexsort((rng.random(len(ids)), rng.permutation(values.width)[value[2:]]))])

    @torch.no_grad()
    def recluster(self) -> None:
        """Grow the tree anew from the vectors of the items; inner nodes become the mean of their leaves'."""
        vectors = self._items().cpu()
        self.plant(balanced_order(vectors[1:]) + 2)
        live = (self.leaves > 0).unsqueeze(1).cpu()
        total, count = vectors[self.leaves.cpu().clamp(min=1) - 1] * live, live.float()
        for level in reversed(range(self.height)):
            total, count = (x.unflatten(0, (-1, 2)).sum(1) for x in (total, count))
            self.nodes.weight[2**level : 2 ** (level + 1)] = (total / count).to(self.nodes.weight)

    def fit(self, train: Any, valid: Any = None, **options: Any) -> Self:
        """As `Retriever.fit`, `rounds` times."""
        train = self._encoded(train)
        super().fit(train, valid, **options)
        for _ in range(self.rounds - 1):
            self.recluster()
            Model.fit(self, self.training_columns(train), valid, **options)
        return self

    # -- the network ---------------------------------------------------------------------------------------------------
    def score(self, users: Tensor, nodes: Tensor) -> Tensor:
        """G times S users and M nodes that they share: ``[G, S, U], [G, M, D] → [G, S, M]`` float32."""
        of_users, of_nodes, of_both = self.first.weight.split((users.shape[-1], nodes.shape[-1], self.parts), 1)
        products = torch.einsum("gswd,gmd->gsmw", users.unflatten(-1, (self.parts, -1)), nodes)
        x = F.linear(products, of_both) + F.linear(nodes, of_nodes).unsqueeze(1)
        x = x + F.linear(users, of_users, self.first.bias).unsqueeze(2)
        x = self.out(self.rest(self.activation(x.flatten(0, -2))))
        return x.float().view(products.shape[:-1])

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The windows after each step, side by side: ``[R, T, W · D]``, and which steps are live ``[R, T]``."""
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        return self.windows(x, mask).flatten(-2), mask

    def user_vectors(self, batch: Batch) -> Tensor:
        """``[R, 1, W · D]``: what the network reads of a user; its inner product with an item says nothing."""
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        return self.windows(x, mask, mask.sum(-1, keepdim=True)).flatten(-2)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ids = column(batch, self.item.name)
        score = self.score(self.user_vectors(batch), self.item_vectors(batch).view(*ids.shape, -1)).squeeze(1)
        return {t.name: tasks.lifted(score, t) for t in self.schema.tasks} or {"score": score}

    def _items(self) -> Tensor:
        """Vectors of the items, id 1 first."""
        return self.inputs.tables.weight(self.item.table_name)  # type: ignore[attr-defined]

    def item_loss(self, state: Tensor, ids: Tensor) -> Tensor:
        """The ancestors of each item ``[n]`` against nodes drawn from their levels, for states ``[n, W · D]``."""
        ids = ids.long()
        if self.training and self.sample < 1:
            kept = torch.randperm(len(ids), device=ids.device)[: math.ceil(len(ids) * self.sample)]
            state, ids = state[kept], ids[kept]
        n, groups = len(ids), max(-(-len(ids) // SHARING), 1)
        size = max(-(-n // groups), 1)
        (drawn, above), table = self._draw(groups, ids.device), self._table()
        level = torch.arange(self.height - 1, -1, -1, device=ids.device)  # how far above the leaves
        own = self.codes[ids].unsqueeze(-1)
        positive = self.score(state.unsqueeze(1), self._vectors(own >> level, table)).squeeze(1)  # [n, H]
        more = groups * size - n
        asked = F.pad(state, (0, 0, 0, more)).view(groups, size, -1)
        negative = self.score(asked, self._vectors(drawn, table))  # [G, S, M]
        ancestor = F.pad(own >> above, (0, 0, 0, more)).view(groups, size, -1)
        where = F.pad(torch.ones_like(ids), (0, more)).view(groups, size, 1).bool() & (ancestor != drawn.unsqueeze(1))
        loss = (F.softplus(-positive).sum() + (F.softplus(negative) * where).sum()) / max(n, 1)
        if self.training and self.agree and n:
            loss = loss + self.agreement(state[torch.randperm(n, device=state.device)[: self.agree]], table)
        return loss

    def agreement(self, state: Tensor, table: Tensor | None = None) -> Tensor:
        """How far the levels are from leading to the best leaves of a wide search, for states ``[n, W · D]``."""
        table = self._table() if table is None else table
        with torch.no_grad():
            *inner, (_, nodes, score) = self.descend(state.unsqueeze(1), 4 * self.beam, self.leaves.unsqueeze(0) > 0)
            best = nodes.gather(1, score.topk(min(self.beam, score.shape[1])).indices)  # [n, K]
        loss = state.new_zeros((), dtype=torch.float32)
        for level, nodes, found in inner:
            right = (nodes.unsqueeze(-1) == (best >> (self.height - level)).unsqueeze(1)).any(-1) & found.isfinite()
            score = self.score(state.unsqueeze(1), self._vectors(2**level + nodes, table)).squeeze(1)
            chance = score.masked_fill(found == -torch.inf, -torch.inf).log_softmax(-1).masked_fill(~right, 0.0)
            loss = loss - (chance.sum(1) / right.sum(1).clamp(min=1)).mean()
        return loss

    def _draw(self, groups: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Codes of nodes of every level ``[G, M]``, and how far above the leaves each lies ``[M]``."""
        codes, above = [], []
        for level in range(1, self.height):
            first = 2**level
            if first <= self.negatives:  # all of them
                codes.append(torch.arange(first, 2 * first, device=device).expand(groups, -1))
            else:
                codes.append(torch.randint(first, 2 * first, (groups, self.negatives), device=device))
            above += [self.height - level] * codes[-1].shape[1]
        items = torch.randint(2, len(self.codes), (groups, self.leaf_negatives), device=device)
        return torch.cat([*codes, self.codes[items]], 1), torch.tensor(above + [0] * items.shape[1], device=device)

    def _table(self) -> Tensor:
        """Vectors of the inner nodes by code, then of the items."""
        return torch.cat([self.nodes.weight, self._items().to(self.nodes.weight)])

    def _vectors(self, codes: Tensor, table: Tensor | None = None) -> Tensor:
        """Vectors of nodes and leaves by code ``[..., D]``, of a `_table` at hand; an empty leaf has that of some item."""
        inner, table = 2**self.height, self._table() if table is None else table
        item = self.leaves[(codes - inner).clamp(min=0)].clamp(min=1) - 1
        return F.embedding(torch.where(codes < inner, codes, inner + item), table)

    # -- the search ----------------------------------------------------------------------------------------------------
    def descend(self, users: Tensor, beam: int, leaves: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """A search of R users ``[R, 1, W · D]`` for live `leaves`, bool ``[R or 1, 2^H]``: each level that it meets, its
        nodes int64 ``[R, M]`` in their order within the level, and their scores, -inf where no live leaf is below."""
        # The first level is scored whole: 4 to 8 nodes for each that is kept cost what the levels above them would.
        level = min(self.height, (8 * beam).bit_length() - 1)
        nodes, table = torch.arange(2**level, device=users.device).expand(len(users), -1), self._table()
        while True:
            live = leaves.unflatten(1, (2**level, -1)).any(-1).expand(len(users), -1).gather(1, nodes)
            score = self.score(users, self._vectors(2**level + nodes, table)).squeeze(1).masked_fill(~live, -torch.inf)
            yield level, nodes, score
            if level == self.height:
                return
            best = nodes.gather(1, score.topk(min(beam, score.shape[1])).indices)
            nodes, level = torch.stack([2 * best, 2 * best + 1], -1).flatten(1), level + 1

    def walk(self, requests: Any, k: int, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # row 0 of the items is no item, and never alive
        levels = list(self.descend(self._users(requests), max(self.beam, k), alive[:, self.leaves]))
        _, nodes, score = levels[-1]
        return self.leaves[nodes], score, torch.stack([found.isfinite().sum(1) for _, _, found in levels]).sum(0)

    @torch.no_grad()
    def every_score(self, requests: Any) -> Tensor:
        users, items = self._users(requests).transpose(0, 1), self.catalog_vectors()
        size = max(1, CELLS // 8 // max(len(requests), 1))
        return torch.cat([self.score(users, part.unsqueeze(0)).squeeze(0) for part in items.split(size)], 1)

    @torch.no_grad()
    def pair_scores(self, requests: Any, ids: Tensor) -> Tensor:
        """ids ``[R, K]`` → float32 ``[R, K]``"""
        return self.score(self._users(requests), self.catalog_vectors()[ids]).squeeze(1)
