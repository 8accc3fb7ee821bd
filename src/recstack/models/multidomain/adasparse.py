"""AdaSparse: Learning Adaptively Sparse Structures for Multi-Domain Click-Through Rate Prediction (Yang et al., CIKM 2022).

https://arxiv.org/abs/2206.13108
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Heads
from recstack.models.base import Model
from recstack.models.domains import MultiDomain, once
from recstack.nn.mlp import MLP, linear, split_linear
from recstack.schema import Schema

FORMS = ("binary", "scaling", "fusion")
EPSILON, BETA, GROWTH = 1e-2, 2.0, 1e-4


class AdaSparse(MultiDomain):
    r"""A pruner by domain scales the units of a shared network, and cuts out those that a domain does not need.

    .. math:: v = W [s; h^l], \qquad h^l \leftarrow \pi \odot h^l, \qquad
        \pi = \begin{cases} [\sigma(\alpha v) > \epsilon] & \text{binary} \\ \beta\, \sigma(v) & \text{scaling} \\
        p\, [p > \epsilon],\ p = \beta\, \sigma(\alpha v) & \text{fusion} \end{cases}

    s ``[R, W]`` are the vectors of the domain's features. ε is 0.01 and β 2; α begins at 1 and grows by 0.0001 with each
    batch of training, so that units are cut step by step. A domain that training has not met has the embedding of what is out
    of vocabulary, nearly zero: the units themselves decide. Departs from the paper: no loss holds the share of units that
    are cut within bounds; a binary π passes the gradient of its sigmoid on.

    Args:
        schema: a fitted schema with a feature of role "domain".
        dim: embedding width.
        hidden: widths of the network, at least one.
        form: "binary", "scaling" or "fusion".
        dropout: in the network.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: another form, or a network without a layer.

    Yang et al., CIKM 2022, https://arxiv.org/abs/2206.13108

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(domains=2))
    >>> model = rs.multidomain.AdaSparse(rs.Encoder(train.schema).fit(train).schema, hidden=(32, 16))
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
        hidden: Sequence[int] = (256, 128, 64),
        form: str = "fusion",
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        if not hidden:
            raise ConfigError("AdaSparse needs hidden= with at least one layer.")
        super().__init__(schema, dim, history, trunk)
        self.form = form
        self.alpha: Tensor
        self.register_buffer("alpha", torch.ones(()))
        scene = self.width_of(*self.steering)
        self.layers = nn.ModuleList(MLP(a, (b,), dropout=dropout) for a, b in pairwise((self.trunk.width, *hidden)))
        self.pruners = nn.ModuleList(linear(scene + b, b) for b in hidden)
        self.heads = Heads(schema, hidden[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, slots, plus = self.read(batch)
        scene, h = once(slots, self.steering), x
        if self.training:
            self.alpha += GROWTH
        for layer, pruner in zip(self.layers, self.pruners, strict=True):
            h = layer(h)
            h = h * self.kept(split_linear(pruner, (scene.to(h.dtype), h))).to(h.dtype)  # type: ignore[arg-type]
        return self.heads(h, plus)

    def kept(self, score: Tensor) -> Tensor:
        """π, by what the pruner says of each unit."""
        score = score.float()
        if self.form == "scaling":
            return BETA * score.sigmoid()
        p = (self.alpha * score).sigmoid()
        if self.form == "binary":
            return (p > EPSILON).float() + p - p.detach()
        return BETA * p * (BETA * p > EPSILON)
