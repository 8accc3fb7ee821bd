"""Graph Convolutional Neural Networks for Web-Scale Recommender Systems (Ying et al., KDD 2018).

https://arxiv.org/abs/1806.01973
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError, TrainingError
from recstack.features import tasks
from recstack.features.columns import column, of_steps
from recstack.features.tables import check_ids
from recstack.kernels.cooccurrence import transpose
from recstack.kernels.topk import Sparse
from recstack.kernels.walks import most_visited
from recstack.models.base import Retriever
from recstack.models.counting import item_values, user_items
from recstack.nn.sized import Sized
from recstack.schema import Schema, Vector, is_derived, is_embedded

if TYPE_CHECKING:
    from recstack.data import Columns

Batch = Mapping[str, Tensor]


class PinSage(Sized, Retriever):
    r"""Items convolved with the items that random walks from them visit most; a user is the mean of their history.

    .. math:: n_v = \sum_{w \in N(v)} \alpha_{vw}\, \mathrm{ReLU}(Q h_w + q), \qquad
        h_v \leftarrow \frac{\mathrm{ReLU}(W [h_v; n_v] + b)}{\|\cdot\|}, \qquad z_v = G_2\, \mathrm{ReLU}(G_1 h_v + g)

    .. math:: L = \mathbb{E}_{n} \max(0,\ z_q^\top z_n - z_q^\top z_i + \Delta)

    :math:`\alpha_{vw}` is w's share of the visits to the T items visited most (importance pooling). An item begins with the
    sum of a vector of its own, if training met it, the mean of those of its values, and a matrix of its given Vectors: new
    items are answered from what they are. q is the last item of a history, i the item chosen next, n are drawn uniformly
    for the batch. Every step convolves the whole catalogue; in eval the vectors are kept until the weights change.

    Departs from the paper: no hard negatives, and a vector of each item's own, as in DGL's version.

    Args:
        schema: a fitted schema with a History; of items, every category, list, text and Vector is read.
        dim: width throughout.
        layers: convolutions.
        neighbours: T.
        steps: of the walks from an item, which begin again there after each step with probability one half.
        negatives: drawn for a batch.
        margin: :math:`\Delta`.
        seed: of the walks.

    Ying et al., KDD 2018, https://arxiv.org/abs/1806.01973

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.PinSage(rs.Encoder(train.schema).fit(train).schema, dim=8, neighbours=5, steps=100)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    sized: ClassVar[tuple[str, ...]] = ("value_ids",)
    needs: ClassVar[tuple[str, ...]] = ("history", "item")
    trainer: ClassVar[dict[str, Any]] = {"optimizer": "adam", "lr": 1e-3, "batch_size": 512, "negatives": 0}

    neighbours: Tensor  # int [N, T], 0 where there are fewer
    importance: Tensor  # [N, T]
    met: Tensor  # [N, 1]
    value_ids: Tensor  # int [N, most values of an item], 0 where there are fewer
    given: Tensor  # [N, numbers of all Vectors]

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        layers: int = 2,
        neighbours: int = 50,
        steps: int = 1000,
        negatives: int = 500,
        margin: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(schema)
        if min(layers, neighbours, steps, negatives) < 1:
            raise ConfigError(
                "layers, neighbours, steps and negatives are at least 1; "
                f"got {layers}, {neighbours}, {steps} and {negatives}."
            )
        self.item, self.history = schema.item, schema.histories[0]
        self.steps, self.negatives, self.margin, self.seed = steps, negatives, margin, seed
        size = schema.feature(self.item).size  # type: ignore[arg-type, attr-defined]
        beside = [f for f in schema.by_role("item") if f.name != self.item]
        self.values = [f for f in beside if is_embedded(f) and not is_derived(f)]
        self.vectors = [f for f in beside if isinstance(f, Vector)]
        self.own = nn.Embedding(size, dim, padding_idx=0)
        total = sum(f.size for f in self.values)  # type: ignore[attr-defined]
        self.of_values = nn.Embedding(total, dim, padding_idx=0) if total else None
        width = sum(f.size for f in self.vectors)
        self.of_vectors = nn.Linear(width, dim, bias=False) if width else None
        for table in (self.own, self.of_values):
            if table is not None:
                nn.init.normal_(table.weight[1:], std=dim**-0.5)
        self.asked = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.joined = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(layers))
        self.last = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim, bias=False))
        for name, shape, kind in (
            ("neighbours", (size, neighbours), torch.int64),
            ("importance", (size, neighbours), torch.float32),
            ("met", (size, 1), torch.float32),
            ("value_ids", (size, 0), torch.int64),
            ("given", (size, width), torch.float32),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind))
        self._convolved: tuple[Any, Tensor] | None = None

    def prepare(self, train: Columns) -> None:
        """Walk on the interactions of `train`, and read the catalogue; `fit` does so."""
        users = user_items(train)
        items = transpose(users)
        met = items.counts > 0
        steps = np.full(items.height, float(self.steps))
        every = Sparse(np.arange(items.height + 1), np.arange(items.height, dtype=np.int32), items.height, steps)
        itself = every._replace(values=None)
        k = self.neighbours.shape[1]
        ids, visits, found = most_visited(every, items, users, k, seed=self.seed, seen=itself, allowed=met)
        visits = visits * (np.arange(k) < found[:, None])
        self.neighbours = torch.from_numpy(ids * (visits > 0)).to(self.neighbours)
        share = visits / np.maximum(visits.sum(1, keepdims=True), 1e-30)
        self.importance, self.met = (
            torch.from_numpy(share).to(self.importance),
            torch.from_numpy(met[:, None]).to(self.met),
        )
        self._read()
        self._convolved = None

    def _read(self) -> None:
        """The values and Vectors of each item of the catalogue."""
        start, found = 0, []
        for f in self.values:
            values = item_values(self.catalog, f)
            place = np.arange(len(values.columns)) - np.repeat(values.offsets[:-1], values.counts)
            ids = np.zeros((values.height, int(values.counts.max(initial=0))), np.int64)
            ids[values.rows, place] = values.columns + start
            start += f.size  # type: ignore[attr-defined]
            found.append(torch.from_numpy(ids))
        if found:
            self.value_ids = torch.cat(found, 1).to(self.value_ids)
        if self.vectors:
            given = np.concatenate([self.catalog.block.column(f.name) for f in self.vectors], 1)
            self.given = torch.from_numpy(given).to(self.given)

    # -- the two sides -------------------------------------------------------------------------------------------------
    def convolve(self) -> Tensor:
        """z of each item, ``[N, dim]``."""
        h = self.own.weight * self.met
        if self.of_values is not None and self.value_ids.shape[1]:
            live = (self.value_ids > 0).to(h.dtype)
            share = live / live.sum(1, keepdim=True).clamp(min=1)
            h = h + F.embedding_bag(self.value_ids, self.of_values.weight, mode="sum", per_sample_weights=share)
        if self.of_vectors is not None:
            h = h + self.of_vectors(self.given)
        for asked, joined in zip(self.asked, self.joined, strict=True):
            said = F.relu(asked(h)).to(self.importance.dtype)
            heard = F.embedding_bag(self.neighbours, said, mode="sum", per_sample_weights=self.importance)
            h = F.normalize(F.relu(joined(torch.cat([h, heard.to(h.dtype)], -1))).float(), dim=-1, eps=1e-6)
        return self.last(h)

    def convolved(self) -> Tensor:
        """As `convolve`; without gradients, and in eval, kept until the weights change."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.training:
            self._convolved = None
            return self.convolve()
        version = [(t.data_ptr(), t._version) for t in (*self.parameters(), *self.buffers())]
        if self._convolved is None or self._convolved[0] != version:
            self._convolved = version, self.convolve()
        return self._convolved[1]

    def item_vectors(self, batch: Batch) -> Tensor:
        return F.embedding(self._checked(column(batch, self.item)), self.convolved())  # type: ignore[arg-type]

    def user_vectors(self, batch: Batch) -> Tensor:
        ids = self._steps(batch)
        live = (ids > 0).unsqueeze(-1)
        vectors = F.embedding(ids, self.convolved()) * live
        return vectors.sum(1, keepdim=True) / live.sum(1, keepdim=True).clamp(min=1)

    def _steps(self, batch: Batch) -> Tensor:
        """Item ids of the history ``[R, T]``, oldest first, left aligned."""
        return self._checked(of_steps(batch, self.item, self.history.name))  # type: ignore[arg-type]

    def _checked(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.item, self.own.num_embeddings)  # type: ignore[arg-type]
        return ids

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the candidates whose label is positive, in requests that have a history."""
        if not self.importance.any():
            raise TrainingError(
                "PinSage has no neighbours. Use model.fit(train), or model.prepare(columns) before a Trainer."
            )
        task = next(t for t in self.schema.tasks if not t.derived)
        label, where, weight = tasks.target(batch, self.schema, task)
        steps, z = self._steps(batch), self.convolve().float()
        query = steps.gather(1, ((steps > 0).sum(1, keepdim=True) - 1).clamp(min=0).long())  # [R, 1]
        pair = (label > 0) & where & (query > 0)
        items = self._checked(column(batch, self.item))[pair].long()  # type: ignore[arg-type]
        q = z[query.expand_as(label)[pair].long()]
        drawn = torch.randint(2, len(z), (self.negatives,), device=z.device)
        gap = q @ z[drawn].T - (q * z[items]).sum(-1, keepdim=True) + self.margin
        each = torch.ones_like(label)[pair] if weight is None else weight.expand_as(label)[pair]
        return {task.name: (F.relu(gap).mean(1) * each).sum() / each.sum().clamp(min=1e-12)}
