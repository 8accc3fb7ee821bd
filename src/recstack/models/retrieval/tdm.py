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
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import tasks
from recstack.features.columns import column
from recstack.kernels.tree import balanced_order
from recstack.models.base import Model
from recstack.models.counting import item_values
from recstack.models.next_item import SHARING, NextItem
from recstack.models.structure import CELLS, Structured, factors
from recstack.nn.mlp import MLP, linear, make_activation
from recstack.nn.sequence.windows import Windows
from recstack.nn.tree import ItemTree
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
        beam: nodes kept of each level (with `taper`, of the last above the leaves).
        tree: an item feature: the first tree keeps items of one value together; None: it is grown from singular vectors.
        agree: steps of a batch for which the levels learn to lead to the network's own best leaves; 0 for none.
        rounds: trainings, each but the first on a tree grown anew.
        sample: share of a batch's steps that are trained, drawn each time.
        stride: levels that the search goes down at a time: 2 scores as many nodes, and decides half as often.
        taper: how many times fewer nodes each level keeps than the next below; among few large branches it is easier to tell.

    Zhu et al., KDD 2018, https://arxiv.org/abs/1801.02294

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.TDM(rs.Encoder(train.schema).fit(train).schema, dim=16, beam=20)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 16, "negatives": 0}

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
        stride: int = 1,
        taper: float = 1.0,
    ):
        super().__init__(schema, dim, std=dim**-0.5)  # inner products of smaller vectors learn late
        if min(*windows, negatives, leaf_negatives, beam, rounds, agree + 1, stride, taper) < 1 or not 0 < sample <= 1:
            raise ConfigError(
                "windows, negatives, leaf_negatives, beam, rounds, stride and taper are at least 1, agree at least 0, and sample lies in "
                f"(0, 1]; got {tuple(windows)}, {negatives}, {leaf_negatives}, {beam}, {rounds}, {stride}, {taper:g}, {agree} and {sample:g}."
            )
        self.negatives, self.leaf_negatives, self.beam, self.sample = negatives, leaf_negatives, beam, sample
        self.taper = taper
        self.category, self.rounds, self.parts, self.agree, self.stride = tree, rounds, len(windows), agree, stride
        self.item = schema.feature(schema.item)  # type: ignore[arg-type]  # a History cannot be declared without
        self.windows = Windows(windows)
        size = self.item.size  # type: ignore[attr-defined]
        self.tree = ItemTree(size, dim)
        self.first = linear(self.parts * dim + dim + self.parts, hidden[0])
        self.activation = make_activation("prelu", hidden[0])
        self.rest = MLP(hidden[0], hidden[1:], "prelu")
        self.out = linear(self.rest.width, 1)

    # -- the tree ------------------------------------------------------------------------------------------------------
    def prepare(self, train: Any) -> None:
        """Grow the first tree, where none was grown yet; `fit` does so."""
        if self.tree.planted:
            return
        ids = torch.arange(2, len(self.tree.codes))
        if self.category is None:
            self.tree.plant(ids[balanced_order(factors(train, 32)[2:])])
            return
        values = item_values(self.catalog, self.schema.feature(self.category))
        rng, value = np.random.default_rng(0), np.zeros(len(self.tree.codes), np.int64)
        value[values.rows[::-1]] = values.columns[::-1]  # the first of several
        self.tree.plant(ids[np.lexsort((rng.random(len(ids)), rng.permutation(values.width)[value[2:]]))])

    def recluster(self) -> None:
        """Grow the tree anew from the vectors of the items; inner nodes become the mean of their leaves'."""
        self.tree.grow(self._items())

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
        return tasks.of_score(score, self.schema)

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
        table = self._table()
        drawn, above = self.tree.draw(groups, self.negatives, self.leaf_negatives)
        own = self.tree.vectors(self.tree.ancestors(ids), table)
        positive = self.score(state.unsqueeze(1), own).squeeze(1)  # [n, H]
        more = groups * size - n
        asked = F.pad(state, (0, 0, 0, more)).view(groups, size, -1)
        negative = self.score(asked, self.tree.vectors(drawn, table))  # [G, S, M]
        ancestor = F.pad(self.tree.codes[ids].unsqueeze(-1) >> above, (0, 0, 0, more)).view(groups, size, -1)
        where = F.pad(torch.ones_like(ids), (0, more)).view(groups, size, 1).bool() & (ancestor != drawn.unsqueeze(1))
        loss = (F.softplus(-positive).sum() + (F.softplus(negative) * where).sum()) / max(n, 1)
        if self.training and self.agree and n:
            loss = loss + self.agreement(state[torch.randperm(n, device=state.device)[: self.agree]], table)
        return loss

    def agreement(self, state: Tensor, table: Tensor | None = None) -> Tensor:
        """How far the levels are from leading to the best leaves of a wide search, for states ``[n, W · D]``."""
        table, users = self._table() if table is None else table, state.unsqueeze(1)
        with torch.no_grad():
            live, first = self.tree.leaves.unsqueeze(0) > 0, self.tree.first(self.beam, self.stride)
            *inner, (_, nodes, score) = self.descend(users, 4 * self.beam, live, first)
            best = nodes.gather(1, score.topk(min(self.beam, score.shape[1])).indices)  # [n, K]
        loss = state.new_zeros((), dtype=torch.float32)
        for level, nodes, found in inner:
            above = (best >> (self.tree.height - level)).unsqueeze(1)
            right = (nodes.unsqueeze(-1) == above).any(-1) & found.isfinite()
            score = self.score(users, self.tree.vectors(nodes, table)).squeeze(1)
            chance = score.masked_fill(found == -torch.inf, -torch.inf).log_softmax(-1).masked_fill(~right, 0.0)
            loss = loss - (chance.sum(1) / right.sum(1).clamp(min=1)).mean()
        return loss

    def _table(self) -> Tensor:
        return self.tree.table(self._items())

    # -- the search ----------------------------------------------------------------------------------------------------
    def descend(self, users: Tensor, beam: int, leaves: Tensor, first: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """A search of R users ``[R, 1, W · D]`` for live `leaves`, bool ``[R or 1, 2^H]``; see `ItemTree.descend`."""
        table = self._table()

        def score(nodes: Tensor) -> Tensor:
            return self.score(users, self.tree.vectors(nodes, table)).squeeze(1)

        return self.tree.descend(score, len(users), beam, leaves, self.stride, self.taper, first)

    def walk(self, requests: Any, k: int, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # row 0 of the items is no item, and never alive
        levels = list(self.descend(self._users(requests), max(self.beam, k), alive[:, self.tree.leaves]))
        _, nodes, score = levels[-1]
        return (
            self.tree.leaves[nodes - 2**self.tree.height],
            score,
            torch.stack([found.isfinite().sum(1) for _, _, found in levels]).sum(0),
        )

    @torch.no_grad()
    def every_score(self, requests: Any) -> Tensor:
        users, items = self._users(requests).transpose(0, 1), self.catalog_vectors()
        size = max(1, CELLS // 8 // max(len(requests), 1))
        return torch.cat([self.score(users, part.unsqueeze(0)).squeeze(0) for part in items.split(size)], 1)

    @torch.no_grad()
    def pair_scores(self, requests: Any, ids: Tensor) -> Tensor:
        """ids ``[R, K]`` → float32 ``[R, K]``"""
        return self.score(self._users(requests), self.catalog_vectors()[ids]).squeeze(1)
