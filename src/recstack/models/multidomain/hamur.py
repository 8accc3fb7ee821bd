"""HAMUR: Hyper Adapter for Multi-Domain Recommendation (Li et al., CIKM 2023).

https://arxiv.org/abs/2309.06217
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.features import Heads
from recstack.models.base import Model
from recstack.models.domains import DomainColumn
from recstack.models.trunk import MultiTask
from recstack.nn.domains import PartitionedNorm, by_domain
from recstack.nn.mlp import MLP, flat, linear
from recstack.schema import Schema


class HAMUR(MultiTask):
    r"""A hyper-network writes a small matrix for each row, and adapters in a shared network are made of it.

    .. math:: K = \mathrm{Reshape}(\mathrm{MLP}(x)), \qquad
        A_p(h) = \mathrm{DN}_p\big(U_2 K V_2\, \sigma(U_1 K V_1 h + b_1) + b_2\big), \qquad h \leftarrow h + A_p(h)

    K ``[R, L, k, k]`` is never multiplied out. DN normalises with each domain's own statistics, scale and shift: those of
    the batch in training and running ones afterwards, so that a prediction never depends on who else is in the batch. A
    domain that training has not met takes the statistics of all rows and the shared scale and shift. Departs from the paper:
    the network below is one for all domains, whose features, the domain's among them, the hyper-network reads. The authors'
    code gives each domain a network of its own, takes the statistics of DN over all rows of a batch, also when it serves,
    and has a ReLU above K; here K has both signs.

    Args:
        schema: a fitted schema; its first feature of role "domain" is a Categorical that names the domain.
        dim: embedding width.
        hidden: widths of the shared network.
        adapters: how many of its last layers are followed by an adapter.
        rank: k.
        bottleneck: width inside of an adapter.
        hyper: widths of the hyper-network.
        dropout: in the shared network.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: no adapter, or more than layers.

    Li et al., CIKM 2023, https://arxiv.org/abs/2309.06217

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.HAMUR(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16), rank=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    needs = ("domain",)
    one_vector = True

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (256, 128),
        adapters: int = 1,
        rank: int = 35,
        bottleneck: int = 32,
        hyper: Sequence[int] = (64,),
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if not 1 <= adapters <= len(hidden):
            raise ConfigError(f"HAMUR has adapters after 1 to {len(hidden)} of its layers; got adapters={adapters}.")
        super().__init__(schema, dim, history, trunk, together=True)
        self.domain = DomainColumn(schema, "HAMUR")
        self.rank = rank
        width = self.trunk.width
        self.hyper = MLP(width, hyper)
        self.matrix = linear(self.hyper.width, rank * rank)
        self.layers = nn.ModuleList(MLP(a, (b,), dropout=dropout) for a, b in pairwise((width, *hidden)))
        self.adapters = nn.ModuleList(_Adapter(b, rank, bottleneck, self.domain.count) for b in hidden[-adapters:])
        self.heads = Heads(schema, hidden[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (x, plus), domain, mask = self.trunk(batch), self.domain(batch), batch.get("@mask") if self.training else None
        matrix = self.matrix(self.hyper(x)).unflatten(-1, (self.rank, self.rank))
        h, plain = x, len(self.layers) - len(self.adapters)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i >= plain:
                h = self.adapters[i - plain](h, matrix, domain, mask)
        return self.heads(flat(h), plus)


class _Adapter(nn.Module):
    """``h [R, L, H], matrix [R, L, k, k] → [R, L, H]``."""

    def __init__(self, width: int, rank: int, bottleneck: int, domains: int):
        super().__init__()
        self.down = nn.ModuleList([linear(width, rank, bias=False), linear(rank, bottleneck)])
        self.up = nn.ModuleList([linear(bottleneck, rank, bias=False), linear(rank, width)])
        self.norm = PartitionedNorm(width, domains)

    def forward(self, h: Tensor, matrix: Tensor, domain: Tensor, mask: Tensor | None) -> Tensor:
        small = _between(self.down, h, matrix).sigmoid()
        return h + by_domain(self.norm, _between(self.up, small, matrix), domain, mask)


def _between(layers: nn.ModuleList, x: Tensor, matrix: Tensor) -> Tensor:
    """The first layer, each row's own matrix, the second."""
    first, second = layers
    return second(torch.einsum("...ij,...j->...i", matrix, first(x)))
