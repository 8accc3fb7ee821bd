"""Are Graph Augmentations Necessary? Simple Graph Contrastive Learning for Recommendation (Yu et al., SIGIR 2022).

https://arxiv.org/abs/2112.08679
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack import losses
from recstack.features import tasks
from recstack.models.graph import Smoothed
from recstack.schema import Schema

CHUNK = 256  # users or items whose contrasts are held at once


class SimGCL(Smoothed):
    r"""LightGCN without its own layer 0, and two noisy views of each node that should find each other.

    .. math:: \bar e = \tfrac{1}{L} \sum_{l=1}^L e^l, \qquad
        L = L_{\mathrm{BPR}} + \lambda \sum_{i \in B} -\log
        \frac{e^{\cos(\bar e'_i, \bar e''_i) / \tau}}{\sum_{j \in B} e^{\cos(\bar e'_i, \bar e''_j) / \tau}}

    In a view, :math:`\varepsilon\, \mathrm{sign}(e^l) \odot r / \|r\|` is added after each layer, r uniform in (0, 1). The
    contrast is the mean over the batch's users, each once, plus that over its positive items. Three propagations a step.

    Trained with Adam, learning rate 0.001, batches of 2048 and one negative, unless `fit` is told otherwise. A user is an id
    here: a user whom training has not met is refused, in one sentence. Who has no interaction has zeros.

    Args:
        schema: a fitted schema with a user and an item key; other features are not read.
        dim: embedding width.
        layers: L.
        contrast: :math:`\lambda`; 0.2 to 2.
        noise: :math:`\varepsilon`, the length of what is added.
        temperature: :math:`\tau`.
        weight_decay: of the batch's initial vectors, as in LightGCN.

    Yu et al., SIGIR 2022, https://arxiv.org/abs/2112.08679

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.retrieval.SimGCL(rs.Encoder(train.schema).fit(train).schema, dim=8, layers=2)
    >>> model = model.fit(train, epochs=1, progress=False)
    >>> model.recommend(train.events["user_id"][:3].to_list(), k=5).ids.shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        layers: int = 3,
        contrast: float = 0.5,
        noise: float = 0.1,
        temperature: float = 0.2,
        weight_decay: float = 1e-4,
    ):
        super().__init__(schema, dim, layers, weight_decay)
        for table in (self.users, self.items):
            nn.init.xavier_uniform_(table.weight[1:])  # short vectors: the noise has a length of its own
        self.layers, self.contrast, self.noise, self.temperature = layers, contrast, noise, temperature

    def propagate(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        return self.view(users, items, 0.0)

    def view(self, users: Tensor, items: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """The mean of the layers, each moved by `noise` in a direction drawn anew."""
        totals = [torch.zeros_like(users), torch.zeros_like(items)]
        for _ in range(self.layers):
            users, items = self.propagation.hop(users, items)
            if noise:
                users, items = (x + _push(x.detach(), noise) for x in (users, items))
            totals = [total + x for total, x in zip(totals, (users, items), strict=True)]
        return totals[0] / self.layers, totals[1] / self.layers

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        label, where, _ = tasks.target(batch, self.schema, self.task)
        positive = (label > 0) & where
        ids = self._ids(batch, self.user)[positive.any(-1)], self._ids(batch, self.item)[positive]
        views = [self.view(self.users.weight, self.items.weight, self.noise) for _ in range(2)]
        contrast = torch.zeros((), device=label.device)
        for side, of_side in enumerate(ids):
            met = of_side.unique().long()
            one, other = (F.normalize(view[side][met].float(), dim=-1, eps=1e-6) for view in views)
            own = torch.arange(len(met), device=met.device)
            contrast = contrast + losses.full_softmax(one, other, own, temperature=self.temperature, chunk=CHUNK)
        return super().losses(batch) | {"contrast": self.contrast * contrast}


def _push(x: Tensor, length: float) -> Tensor:
    """Of that length, in a direction drawn from the orthant of each row of x; zeros stay zeros."""
    drawn = torch.rand_like(x)
    scale = length / drawn.norm(dim=-1, keepdim=True)
    return drawn.mul_(x.sign()).mul_(scale)
