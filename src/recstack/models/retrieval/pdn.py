"""Path-based Deep Network for Candidate Item Matching in Recommenders (Li et al., SIGIR 2021).

https://arxiv.org/abs/2105.08246
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import Inputs, tasks
from recstack.features.columns import column
from recstack.kernels.cooccurrence import co_counts
from recstack.losses import rate_logit
from recstack.models.base import Retriever
from recstack.models.counting import user_items, value_table
from recstack.models.scored import best_of_all
from recstack.nn.graph.edges import ItemEdges
from recstack.nn.mlp import MLP, linear
from recstack.nn.sequence.attention import Positions, age
from recstack.schema import Categorical, Schema

if TYPE_CHECKING:
    from recstack.data import Columns, Requests

Batch = Mapping[str, Tensor]
ASKS = ("user", "context", "domain")
BLOCK = 1 << 16  # edges that are worked on at once
START = -2.0  # s of an edge before training


class PDN(Retriever):
    r"""Paths of two hops, user → item of the history → item, and one direct way; each may bring the click about.

    .. math:: p(u, i) = 1 - e^{-y_{ui}}, \qquad y_{ui} = \mathrm{softplus}\big(\langle f(u), g(i) \rangle\big)
        + \sum_{j \in I_u,\ j \to i} \mathrm{softplus}\big(t(u, a_{uj}, x_j) + s(x_j, c_{ji}, x_i)\big)

    t, the TriggerNet, says how much j stands for the user; s, the SimNet, how near i is to j. An edge j → i leads to each of
    the `neighbours` that share most users with j (by cosine), counted once by `fit`; c holds that cosine, the number of
    common users and, for each category of the items, whether they share it; a how long ago j was met and how often. The
    logit ``[R, L]`` is that of p, :math:`\log(e^y - 1)`; `user_vectors` and `item_vectors` are the direct way's f and g.

    `recommend` is exact: s is computed once for all edges, t once for each item of a history, and all paths are summed into
    the direct scores of all items. Features named in `bias` (a position, say) add a softplus of their own to y in training
    and are left out afterwards. Whoever has a history or attributes is answered, met in training or not.

    Trained on what was shown, clicked or not; of a log that holds clicks only, on items drawn beside them.

    Departs from the paper: no event types.

    Args:
        schema: a fitted schema with user and item features and a History.
        dim: embedding width.
        hidden: widths of both towers; the last is that of f and g.
        path_hidden: widths of TriggerNet and SimNet.
        triggers: how many items of the history, the newest, begin paths.
        neighbours: edges of each item.
        bias: features of the bias net.

    Li et al., SIGIR 2021, https://arxiv.org/abs/2105.08246

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.retrieval.PDN(schema, dim=8, hidden=(16,), path_hidden=(16,), neighbours=20)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    needs: ClassVar[tuple[str, ...]] = ("user", "history", "item")
    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 256}

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 32,
        hidden: Sequence[int] = (128, 64),
        path_hidden: Sequence[int] = (64, 32),
        triggers: int = 50,
        neighbours: int = 100,
        bias: Sequence[str] = (),
    ):
        super().__init__(schema)
        if min(triggers, neighbours) < 1:
            raise ConfigError(f"triggers and neighbours are at least 1; got {triggers} and {neighbours}.")
        self.history, self.triggers, self.neighbours = schema.histories[0], triggers, neighbours
        self.size = schema.feature(schema.item).size  # type: ignore[arg-type, attr-defined]
        self.alike = [f for f in schema.by_role("item") if isinstance(f, Categorical) and f.name != schema.item]
        own = schema.without(*[f.name for f in schema.fields if f.role == "pair" or f.name in bias])
        others = [h.name for h in own.histories if h.name != self.history.name]
        self.inputs = Inputs(own.without(*others), dim, history=None, std=0.02)
        steps = sum(self.inputs.widths[name] for name in self.history.of)
        asks, item, clues = self.inputs.width(*ASKS), self.inputs.width("item"), 2 + len(self.alike)
        self.user_tower, self.item_tower = MLP(asks, hidden[:-1]), MLP(item, hidden[:-1])
        self.user_out = linear(self.user_tower.width, hidden[-1])
        self.item_out = linear(self.item_tower.width, hidden[-1])
        self.ago = Positions(dim, triggers)
        self.trigger_net = MLP(asks + steps + dim + 1, path_hidden)
        self.trigger_out = linear(self.trigger_net.width, 1, bias=False)  # s has the bias of their sum
        self.of_trigger = linear(steps, path_hidden[0], bias=False)  # the SimNet's first layer, in its three parts
        self.of_item, self.of_clues = linear(item, path_hidden[0]), linear(clues, path_hidden[0], bias=False)
        self.sim_net = MLP(path_hidden[0], path_hidden[1:])
        self.sim_out = linear(self.sim_net.width, 1)
        torch.nn.init.constant_(self.sim_out.bias, START)  # many paths lead to an item: each begins as a little
        self.bias_inputs = Inputs(Schema([schema.feature(n) for n in bias]), dim, std=0.02) if bias else None
        self.bias_net = None if self.bias_inputs is None else MLP(self.bias_inputs.width(), (*path_hidden, 1))
        self.edges = ItemEdges(self.size, clues)
        self._walked: tuple[Tensor, Tensor, Tensor] | None = None

    # -- the parts of y ------------------------------------------------------------------------------------------------
    def user_vectors(self, batch: Batch) -> Tensor:
        return self.user_out(self.user_tower(self.inputs(batch, *ASKS).flat())).unsqueeze(1)

    def item_vectors(self, batch: Batch) -> Tensor:
        return self.item_out(self.item_tower(self.inputs(batch, "item").flat()))

    def begun(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where paths begin: item ids ``[R, T]``, which are live, x_j ``[R, T, W]`` and t ``[R, T]``; each item once."""
        slots = self.inputs(batch, *ASKS, "history")
        x, mask = slots.sequence(self.history.name)
        ids = self.inputs.history_ids(batch, self.history.name)
        same = (ids.unsqueeze(-1) == ids.unsqueeze(-2)) & mask.unsqueeze(-2)
        live = mask & (age(mask) <= self.triggers) & ~same.triu(1).any(-1)  # where it was met last
        often = same.sum(-1, keepdim=True).to(x.dtype).log1p()
        t = self.trigger_out(
            self.trigger_net((slots.flat(*ASKS), torch.cat([x, self.ago(mask).to(x.dtype), often], -1)))
        )
        return ids, live, x, t.squeeze(-1)

    def _similar(self, trigger: Tensor, item: Tensor, clues: Tensor) -> Tensor:
        """s of pairs, from the two sides' parts of the first layer."""
        return self.sim_out(self.sim_net(F.relu(trigger + item + self.of_clues(clues)))).squeeze(-1)

    def strength(self, batch: Batch, bias: bool = False) -> Tensor:
        """y ``[R, L]``, float32."""
        slots = self.inputs(batch, "item")
        ids, live, x, t = self.begun(batch)
        place, there = self.edges.find(ids, column(batch, self.schema.item))  # type: ignore[arg-type]
        item = slots.flat("item")
        users, items = self.user_vectors(batch), self.item_out(self.item_tower(item))
        s = self._similar(self.of_trigger(x).unsqueeze(-2), self.of_item(item).unsqueeze(-3), self.edges.clues[place])
        with torch.autocast(users.device.type, enabled=False):
            y = F.softplus((users.float() * items.float()).sum(-1))
            y = y + (F.softplus(t.float().unsqueeze(-1) + s.float()) * (there & live.unsqueeze(-1))).sum(-2)
        if bias and self.bias_inputs is not None and self.bias_net is not None:
            y = y + F.softplus(self.bias_net(self.bias_inputs(batch).flat()).float().view(len(y), -1))
        return y

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return tasks.of_score(rate_logit(self.strength(batch)), self.schema)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each task's own; the bias takes part."""
        return tasks.losses(
            tasks.of_score(rate_logit(self.strength(batch, bias=True)), self.schema), batch, self.schema
        )

    # -- the edges -----------------------------------------------------------------------------------------------------
    def prepare(self, train: Columns) -> None:
        """Take the edges from the interactions of `train`; `fit` does so."""
        users = user_items(train)
        near = co_counts(users, np.ones(users.height), k=self.neighbours)
        source, target = near.rows, near.columns.astype(np.int64)
        cosine, met = near.values, np.bincount(users.columns, minlength=users.width)
        clues = np.zeros((len(source), 2 + len(self.alike)), np.float32)
        clues[:, 0] = cosine
        clues[:, 1] = np.log1p(cosine * np.sqrt(met[source] * met[target]))  # type: ignore[operator]
        for f, feature in enumerate(self.alike):
            values = value_table(self.catalog, feature)
            for at in range(0, len(source), BLOCK):
                one, other = values[source[at : at + BLOCK], :, None], values[target[at : at + BLOCK], None, :]
                clues[at : at + len(one), 2 + f] = ((one == other) & (one > 0)).any((1, 2))
        self.edges.connect(*(torch.from_numpy(x) for x in (source, target, clues)))
        self._walked = None

    @torch.no_grad()
    def walked(self) -> tuple[Tensor, Tensor]:
        """Where the edges of each item begin ``[N + 1]``, and s of each edge ``[E]``; kept until the weights change."""
        vectors = self.catalog_vectors()
        if self._walked is None or self._walked[0] is not vectors:
            ids = torch.arange(2, self.catalog.size)
            trigger, item = [], []
            for part in ids.split(BLOCK):
                slots = self.inputs(self._here(self.catalog.batch(part)), "item")
                trigger.append(self.of_trigger(torch.cat([slots[name] for name in self.history.of], -1)))
                item.append(self.of_item(slots.flat("item")))
            whole = [F.pad(torch.cat(side), (0, 0, 2, 0)) for side in (trigger, item)]
            ends = (x.split(BLOCK) for x in (self.edges.sources, self.edges.targets, self.edges.clues[:-1]))
            s = [self._similar(whole[0][j], whole[1][i], c).float().cpu() for j, i, c in zip(*ends, strict=True)]
            self._walked = vectors, self.edges.starts().cpu(), torch.cat([*s, torch.zeros(1)])
        return self._walked[1:]

    # -- answers -------------------------------------------------------------------------------------------------------
    def search(self, requests: Requests, k: int, exclude_seen: bool, allowed: Tensor) -> tuple[Tensor, Tensor]:
        return best_of_all(self._of_all, requests, k, exclude_seen, allowed, cells=1 << 22)

    @torch.no_grad()
    def _of_all(self, requests: Requests) -> Tensor:
        """The logit of each item, ``[R, N]``."""
        starts, s = self.walked()
        y = F.softplus(self._users(requests)[:, 0] @ self.catalog_vectors().T)
        ids, live, _, t = (x.cpu() for x in self.begun(self._here(requests.batch)))
        row, begin = live.nonzero()[:, 0], ids[live].long()
        count = starts[begin + 1] - starts[begin]
        path = torch.repeat_interleave(starts[begin] - (count.cumsum(0) - count), count) + torch.arange(
            int(count.sum())
        )
        place = torch.repeat_interleave(row, count) * self.size + self.edges.keys.cpu()[path] % self.size
        y.view(-1).index_add_(0, place, F.softplus(torch.repeat_interleave(t[live].float(), count) + s[path]))
        return rate_logit(y)

    @torch.no_grad()
    def pair_scores(self, requests: Requests, ids: Tensor) -> Tensor:
        """The logit of given items: ids ``[R, K]`` → float32 ``[R, K]``."""
        s = self.walked()[1]
        y = F.softplus(torch.einsum("rd,rkd->rk", self._users(requests)[:, 0], self.catalog_vectors()[ids]))
        begun, live, _, t = self.begun(self._here(requests.batch))
        place, there = (x.cpu() for x in self.edges.find(begun, ids.to(begun.device)))
        paths = F.softplus(t.float().cpu().unsqueeze(-1) + s[place]) * (there & live.cpu().unsqueeze(-1))
        return rate_logit(y + paths.sum(-2))
