"""ADL: Adaptive Distribution Learning Framework for Multi-Scenario CTR Prediction (Li et al., SIGIR 2023).

https://doi.org/10.1145/3539618.3591944
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads
from recstack.models.base import Model
from recstack.models.domains import added
from recstack.models.trunk import MultiTask
from recstack.nn.domains import Domain, StarLinear, by_domain, own
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import flat
from recstack.schema import Schema


class ADL(MultiTask):
    r"""Rows are clustered while training, and each cluster has its own parameters, multiplied into the shared ones.

    .. math:: r_{ic} = \mathrm{softmax}_c\big(\hat x_i^\top m_c / \tau\big), \qquad
        m_c \leftarrow \mathrm{norm}\Big(\beta\, m_c + (1 - \beta)\, \mathrm{norm}\big(\textstyle\sum_i r_{ic} \hat x_i\big)\Big),
        \qquad W_c^\star = W_c \odot W, \quad c = \arg\max_c r_{ic}

    Which domains are alike is found, not declared: the domain is a feature like others, and none is needed. x ``[R, L, W]``
    are the embeddings, normed and without gradient. In training the centres m ``[C, W]`` move `rounds` times with each
    batch's live rows; afterwards they stand, so that a row's cluster, and with it its prediction, is its own affair. Sums over a
    batch are normed before they are averaged in, else β would depend on its size; the preprint averages the sums themselves.
    Departs from the paper: rows are normed, and the softmax has a temperature τ, without which all centres become the mean of
    all rows.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        clusters: C.
        hidden: widths of the network, at least one.
        rounds: of routing for each batch.
        momentum: β.
        temperature: τ.
        dropout: in the network.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is clustered and read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: no cluster, or a network without a layer.

    Li et al., SIGIR 2023, https://doi.org/10.1145/3539618.3591944; their preprint AdaptDHM, https://arxiv.org/abs/2211.12105

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.ADL(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    one_vector = True

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        clusters: int = 3,
        hidden: Sequence[int] = (256, 128, 64),
        rounds: int = 3,
        momentum: float = 0.9,
        temperature: float = 0.1,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if clusters < 1 or not hidden:
            raise ConfigError("ADL needs a cluster, and hidden= with at least one layer.")
        super().__init__(schema, dim, history, trunk, together=True)
        self.rounds, self.momentum, self.temperature = rounds, momentum, temperature
        width = self.trunk.width
        self.centres: Tensor
        self.register_buffer("centres", F.normalize(torch.randn(clusters, width), dim=-1))
        self.network = nn.ModuleList(StarLinear(a, b, clusters) for a, b in pairwise((width, *hidden)))
        self.dropout = Dropout(dropout)
        self.scale = nn.Parameter(torch.ones(clusters, hidden[-1]))
        self.bias = nn.Parameter(torch.zeros(clusters, len(self.names)))
        self.heads = Heads(schema, hidden[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (x, plus), mask = self.trunk(batch), batch.get("@mask") if self.training else None
        x = flat(x)
        cluster = self.cluster(x, mask) + 1  # [R, L], from 1
        h = by_domain(self._network, x, cluster, mask)
        flattened = cluster.flatten()
        (scale,), (bias,) = own(self.scale, [flattened], 1.0), own(self.bias, [flattened], 0.0)
        h = h * scale.view(h.shape).to(h.dtype)
        return self.heads(h, added(self.names, bias.view(*cluster.shape, -1), plus))

    @torch.no_grad()
    def cluster(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The cluster of each row, from 0: ``[R, L, W] → [R, L]``. In training the centres move with the live rows first."""
        x = F.normalize(x.detach().float(), dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            if self.training:
                rows = x.flatten(0, -2) if mask is None else x[mask]
                for _ in range(self.rounds):
                    near = (rows @ self.centres.T / self.temperature).softmax(-1)  # [n, C]
                    seen = F.normalize(near.T @ rows, dim=-1)
                    self.centres.copy_(F.normalize(self.momentum * self.centres + (1 - self.momentum) * seen, dim=-1))
            return (x @ self.centres.T).argmax(-1)

    def _network(self, parts: list[Tensor], clusters: Sequence[Domain]) -> list[Tensor]:
        for layer in self.network:
            parts = [self.dropout(x.relu()) for x in layer(parts, clusters)]
        return parts
