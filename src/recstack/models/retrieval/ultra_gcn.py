"""UltraGCN: Ultra Simplification of Graph Convolutional Networks for Recommendation (Mao et al., CIKM 2021).

https://arxiv.org/abs/2110.15114
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recstack.errors import ConfigError, TrainingError
from recstack.features import tasks
from recstack.kernels.cooccurrence import scaled_counts
from recstack.models.counting import user_items
from recstack.models.id_tables import IdTables
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data import Columns

SHARING = 128  # interactions that share the items drawn for them


class UltraGCN(IdTables):
    r"""Ids without a graph: what endless propagation would end at is a weight of each term of the loss.

    .. math:: L = \sum_{(u, i)} \Big[ (w_1 + w_2 \beta_{ui})\, \mathrm{softplus}(-s_{ui})
        + \frac{W}{M} \sum_{j=1}^{M} (w_3 + w_4 \beta_{uj})\, \mathrm{softplus}(s_{uj})
        + \lambda \sum_{k \in \mathrm{top}(i)} \omega_{ik}\, \mathrm{softplus}(-s_{uk}) \Big]
        + \tfrac{\gamma}{2} \|\Theta\|^2

    .. math:: s_{ui} = \langle e_u, e_i \rangle, \quad \beta_{ui} = \frac{1}{d_u} \sqrt{\frac{d_u + 1}{d_i + 1}}, \quad
        \omega_{ik} = \frac{G_{ik}}{g_i - G_{ii}} \sqrt{\frac{g_i}{g_k}}, \quad G = R^\top R, \quad g = G 1

    with the sums over the batch's interactions, the M items drawn uniformly, the neighbours of largest ω kept, and all
    vectors in the last term. G is counted row by row and never held.

    The defaults are those of the published run on Gowalla: Adam, learning rate 0.0001, batches of 512, unless `fit` is told
    otherwise. A user is an id here: a user whom training has not met is refused, in one sentence.

    Departs from the authors' code: an item is not its own neighbour (as in the paper), and SHARING interactions share the
    items drawn for them, so that a step is a product of matrices. As there, what is drawn may be a positive.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: width of the vectors.
        negatives: M.
        negative_weight: W.
        constraints: :math:`(w_1, w_2, w_3, w_4)`.
        neighbours: of an item, those of the largest ω.
        item_weight: :math:`\lambda`; 0 is the paper's UltraGCN base.
        l2: :math:`\gamma`.

    Mao et al., CIKM 2021, https://arxiv.org/abs/2110.15114

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.UltraGCN(rs.Encoder(train.schema).fit(train).schema, dim=8, negatives=50)
    >>> model = model.fit(train, epochs=1, lr=0.01, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    trainer: ClassVar[dict[str, Any]] = {
        "optimizer": ("adam", {"fused": True}),
        "lr": 1e-4,
        "batch_size": 512,
        "negatives": 0,  # it draws its own
    }

    of_user: Tensor  # the two factors of β, by id
    of_item: Tensor
    neighbours: Tensor  # int [N, K], 0 where there are fewer
    omega: Tensor  # [N, K]

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        negatives: int = 1500,
        negative_weight: float = 300.0,
        constraints: tuple[float, float, float, float] = (1e-6, 1.0, 1e-6, 1.0),
        neighbours: int = 10,
        item_weight: float = 5e-4,
        l2: float = 1e-4,
    ):
        super().__init__(schema, dim, std=1e-4)
        if min(negatives, neighbours) < 1 or len(constraints) != 4:
            raise ConfigError(
                "negatives and neighbours are at least 1, and constraints are four weights; "
                f"got {negatives}, {neighbours} and {len(constraints)}."
            )
        self.negatives, self.negative_weight, self.constraints = negatives, negative_weight, tuple(constraints)
        self.item_weight, self.l2 = item_weight, l2
        users, items = self.users.num_embeddings, self.items.num_embeddings
        self.register_buffer("of_user", torch.zeros(users))
        self.register_buffer("of_item", torch.zeros(items))
        self.register_buffer("neighbours", torch.zeros(items, neighbours, dtype=torch.int64))
        self.register_buffer("omega", torch.zeros(items, neighbours))

    def prepare(self, train: Columns) -> None:
        """Count the weights in the interactions of `train`; `fit` does so."""
        rows = user_items(train)
        users, items = rows.counts, np.bincount(rows.columns, minlength=rows.width)
        self.of_user = torch.from_numpy(np.sqrt(users + 1) / np.maximum(users, 1)).to(self.of_user)
        self.of_item = torch.from_numpy(1 / np.sqrt(items + 1)).to(self.of_item)
        total = np.maximum(np.bincount(rows.columns, np.repeat(users, users), minlength=rows.width), 1)
        source = np.maximum(total - items, 1) / np.sqrt(total)
        found = scaled_counts(rows, source, np.sqrt(total), self.neighbours.shape[1])
        place = np.arange(len(found.columns)) - np.repeat(found.offsets[:-1], found.counts)
        self.neighbours.zero_()[found.rows, place] = torch.from_numpy(found.columns).to(self.neighbours)
        self.omega.zero_()[found.rows, place] = torch.from_numpy(found.values).to(self.omega)  # type: ignore[arg-type]

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the candidates whose label is positive; what else a request holds is not read."""
        if not self.of_user.any():
            raise TrainingError(
                "UltraGCN has counted no weights. Use model.fit(train), or model.prepare(columns) before a Trainer."
            )
        label, where, weight = tasks.target(batch, self.schema, self.task)
        positive = (label > 0) & where
        items = self._ids(batch, self.item)[positive].long()
        users = self._ids(batch, self.user).unsqueeze(-1).expand_as(label)[positive].long()
        each = torch.ones_like(label)[positive] if weight is None else weight.expand_as(label)[positive]
        groups = max(-(-len(items) // SHARING), 1)
        drawn = torch.randint(2, len(self.of_item), (groups, self.negatives), device=items.device)
        met = items, drawn, self.neighbours[items]  # looked up at once: one gradient as large as the table, not three
        e = F.embedding(users, self.users.weight).float()
        at_once = F.embedding(torch.cat([ids.flatten() for ids in met]), self.items.weight).float()
        parts = at_once.split([ids.numel() for ids in met])
        own, others, near = (x.view(*ids.shape, e.shape[-1]) for x, ids in zip(parts, met, strict=True))

        w1, w2, w3, w4 = self.constraints
        beta = self.of_user[users] * self.of_item[items]
        chosen = (w1 + w2 * beta) * F.softplus(-(e * own).sum(-1))
        size = max(-(-len(items) // groups), 1)
        rows = F.pad(e, (0, 0, 0, groups * size - len(items))).view(groups, size, -1)
        high = F.softplus(rows @ others.transpose(1, 2))
        # β is the user's factor times the item's: no weight of each pair is ever held
        weights = torch.stack([torch.full(drawn.shape, w3, device=e.device), w4 * self.of_item[drawn]], -1)
        plain, weighed = (high @ weights).flatten(0, 1)[: len(items)].unbind(-1)
        unknown = (plain + self.of_user[users] * weighed) / self.negatives
        alike = (self.omega[items] * F.softplus(-(near @ e.unsqueeze(-1)).squeeze(-1))).sum(1)
        return {
            self.task.name: (each * (chosen + self.negative_weight * unknown)).sum(),
            "items": self.item_weight * (each * alike).sum(),
            "l2": self.l2 / 2 * sum(_SquaredLength.apply(p) for p in self.parameters()),  # type: ignore[dict-item]
        }


class _SquaredLength(torch.autograd.Function):
    """Of a whole table, each step: autograd goes over it seven times, this twice."""

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return torch.linalg.vecdot(table.flatten().float(), table.flatten().float())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * (2 * grad)
