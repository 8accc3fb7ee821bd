"""Deep Retrieval: Learning A Retrievable Structure for Large-Scale Recommendations (Gao et al., CIKM 2021).

https://arxiv.org/abs/2007.07203
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.kernels.paths import PathCounts, assign
from recstack.kernels.tree import balanced_order
from recstack.models.next_item import NextItem
from recstack.models.structure import Structured, factors
from recstack.nn.mlp import MLP, linear
from recstack.nn.paths import PathNetwork
from recstack.nn.sequence.windows import Windows
from recstack.schema import Schema

Batch = Mapping[str, Tensor]
COUNTED = 16  # likeliest paths that are counted of a request, and kept of an item


class DeepRetrieval(Structured, NextItem):
    r"""Items lie at the ends of paths through D layers of K nodes, and users are led there by a beam search.

    .. math:: P(c_1, \dots, c_D \mid x) = \prod_d \mathrm{softmax}\big(\mathrm{MLP}_d([x; e_{c_1}; \dots; e_{c_{d-1}}])\big)_{c_d},
        \qquad L = -\log \sum_{j=1}^{J} P(\pi_j(y) \mid x) - \log \frac{e^{\langle x, e_y \rangle}}{\sum_i e^{\langle x, e_i \rangle}}

    with x an MLP of the means of the history over windows of age, :math:`\pi_1(y), \dots, \pi_J(y)` the paths of an item, and the
    second loss that of the re-ranker, which scores the items at the ends of the `beam` likeliest paths. Every step of a history
    is trained, in one pass.

    EM: an epoch moves the weights and counts how likely each path was for those who wanted an item; after it (the last one
    aside) items get new paths, by coordinate ascent with a penalty for crowded ones. Paths start from balanced 2-means of
    truncated singular vectors, each of the J from half of the directions, and are part of the bundle.

    Departs from the paper: x, and where the paths start.

    Args:
        schema: a fitted schema with a History.
        dim: width of x, items and nodes.
        hidden: widths of the MLP of x before the last, which is `dim`, and of each layer's.
        windows: how many steps each window holds, the newest first.
        depth: D.
        nodes: K.
        paths: J.
        beam: paths that are followed.
        penalty: α, for n items on a path :math:`n^4 / 4`, in the unit of an item's log-likelihood summed over its requests.
        decay: of what earlier epochs counted.
        loss: of the re-ranker: "softmax", "sampled_softmax", "bpr_max", "bce" or "gbce".
        negatives: items drawn for a step; the softmax draws none.

    Gao et al., CIKM 2021, https://arxiv.org/abs/2007.07203

    >>> import recstack as rs
    >>> train, valid, test = rs.split.leave_last_out(rs.simulator.small())
    >>> model = rs.retrieval.DeepRetrieval(rs.Encoder(train.schema).fit(train).schema, dim=16, nodes=8, depth=2)
    >>> model = model.fit(train, epochs=2, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    paths: Tensor  # int64 [N, J], as numbers to the base K

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        hidden: Sequence[int] = (128,),
        windows: Sequence[int] = (1, 1, 1, 2, 2, 2, 10, 10, 20, 20),
        depth: int = 3,
        nodes: int = 100,
        paths: int = 3,
        beam: int = 50,
        penalty: float = 0.01,
        decay: float = 0.5,
        loss: str = "softmax",
        negatives: int = 256,
    ):
        super().__init__(schema, dim, loss=loss, negatives=negatives)
        if min(*windows, paths, beam) < 1 or min(depth, nodes) < 2 or penalty < 0 or not 0 < decay <= 1:
            raise ConfigError(
                "windows, paths and beam are at least 1, depth and nodes at least 2, penalty is not negative and decay lies in "
                f"(0, 1]; got {tuple(windows)}, {paths}, {beam}, {depth}, {nodes}, {penalty:g} and {decay:g}."
            )
        if nodes**depth >= 2**31 or nodes**depth < paths:
            raise ConfigError(f"{nodes} nodes in {depth} layers are {nodes**depth} paths; give {paths} to 2^31.")
        self.beam, self.penalty, self.decay, self.every = beam, penalty, decay, nodes**depth
        self.windows = Windows(windows)
        self.mlp = MLP(len(windows) * dim, hidden)
        self.state = linear(self.mlp.width, dim)
        self.net = PathNetwork(dim, depth, nodes, hidden)
        size = schema.feature(schema.item).size  # type: ignore[arg-type, attr-defined]
        self.register_buffer("paths", self._spread(torch.arange(size).expand(paths, -1)))
        self._counts: PathCounts | None = None
        self._ends: tuple[Tensor, int, Tensor, Tensor] | None = None

    # -- the paths of items --------------------------------------------------------------------------------------------
    def _spread(self, rank: Tensor) -> Tensor:
        """J ranks of the N items ``[J, N]``, as paths ``[N, J]``, distinct in each row."""
        found = rank.T * self.every // rank.shape[1]
        for j in range(1, found.shape[1]):
            while bool((taken := (found[:, :j] == found[:, j : j + 1]).any(1)).any()):
                found[:, j] = (found[:, j] + taken) % self.every
        return found

    def prepare(self, train: Any) -> None:
        """The first paths, where items have none of their own yet; `fit` does so."""
        super().prepare(train)
        size, many = self.paths.shape
        if not torch.equal(self.paths.cpu(), self._spread(torch.arange(size).expand(many, -1))):
            return
        x, rank = factors(train, 32), torch.arange(size).repeat(many, 1)
        for j in range(many):
            half = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(j)).argsort()[: -(-x.shape[1] // 2)]
            rank[j, balanced_order(x[2:, half if many > 1 else slice(None)], seed=j) + 2] = torch.arange(2, size)
        self.paths = self._spread(rank).to(self.paths)

    def fit(self, train: Any, valid: Any = None, *, callbacks: Sequence[Any] = (), **options: Any) -> Self:
        """As `Retriever.fit`; after each epoch but the last, items get new paths."""
        from recstack.training.callbacks import BetweenEpochs

        self._counts = PathCounts(len(self.paths), self.every, COUNTED, self.decay)
        try:
            return super().fit(train, valid, callbacks=[*callbacks, BetweenEpochs(self.assign)], **options)
        finally:
            self._counts = None

    def assign(self) -> None:
        """New paths by what was counted since the last time; `fit` does so after each epoch."""
        assert self._counts is not None
        counts, wanted = self._counts.take()
        found = assign(counts, wanted, self.paths.cpu().numpy(), self.penalty)
        self.paths = torch.from_numpy(found).to(self.paths)

    # -- the network ---------------------------------------------------------------------------------------------------
    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        return self._state(self.windows(x, mask)), mask

    def user_vectors(self, batch: Batch) -> Tensor:
        """x ``[R, 1, dim]``, which the re-ranker multiplies with items."""
        x, mask = self.inputs(batch, "history").sequence(self.history.name)
        return self._state(self.windows(x, mask, mask.sum(-1, keepdim=True)))

    def _state(self, windows: Tensor) -> Tensor:
        return self.state(self.mlp(windows.flatten(-2)))

    def item_loss(self, state: Tensor, ids: Tensor) -> Tensor:
        """That of the paths and the re-ranker's, of states ``[n, dim]`` that look for items ``[n]``."""
        if self.training and self._counts is not None and len(ids):
            codes, chance = self.net.likeliest(state.detach(), COUNTED)
            self._counts.add(ids.cpu().numpy().astype("int64"), codes.cpu().numpy(), chance.exp().cpu().numpy())
        found = torch.logsumexp(self.net(state, self.paths[ids.long()]), -1)
        return super().item_loss(state, ids) - found.sum() / max(len(ids), 1)

    # -- the search ----------------------------------------------------------------------------------------------------
    def walk(self, requests: Any, k: int, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        users = self._users(requests)[:, 0]
        codes, _ = self.net.likeliest(users, self.beam)
        ends, items = self._sorted()
        first, stop = torch.searchsorted(ends, codes), torch.searchsorted(ends, codes, right=True)
        count = stop - first
        place = torch.arange(int(count.max())).expand(*codes.shape, -1)
        ids = torch.where(
            place < count.unsqueeze(-1), items[(first.unsqueeze(-1) + place).clamp(max=len(items) - 1)], 0
        )
        ids = ids.flatten(1).sort(1, descending=True).values
        ids = ids[:, : max(int((ids > 0).sum(1).max()), 1)]
        live = alive.gather(1, ids)
        live[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        score = (self.catalog_vectors()[ids] @ users.unsqueeze(-1)).squeeze(-1).masked_fill(~live, -torch.inf)
        return ids, score, live.sum(1) + self.net.asked(self.beam)

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """All ends of paths, ascending, and the item at each."""
        if self._ends is None or self._ends[0] is not self.paths or self._ends[1] != self.paths._version:
            ends, order = self.paths[2:].cpu().flatten().sort(stable=True)
            self._ends = self.paths, self.paths._version, ends, order // self.paths.shape[1] + 2
        return self._ends[2:]

    @torch.no_grad()
    def every_score(self, requests: Any) -> Tensor:
        return self._users(requests)[:, 0] @ self.catalog_vectors().T
