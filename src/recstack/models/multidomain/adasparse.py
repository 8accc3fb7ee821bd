"""AdaSparse: Learning Adaptively Sparse Structures for Multi-Domain Click-Through Rate Prediction (Yang et al., CIKM 2022).

https://arxiv.org/abs/2206.13108
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.features import Heads, tasks
from recstack.losses.rows import weighted_mean
from recstack.models.base import Model
from recstack.models.domains import MultiDomain, once
from recstack.models.trunk import Plus
from recstack.nn.mlp import MLP, linear, split_linear
from recstack.schema import Schema

FORMS = ("binary", "scaling", "fusion")
EPSILON, BETA, GROWTH = 1e-2, 2.0, 1e-4


class AdaSparse(MultiDomain):
    r"""A pruner by domain scales the units of a shared network, and cuts out those that a domain does not need.

    .. math:: v = W [s; h^l], \qquad h^l \leftarrow \pi \odot h^l, \qquad
        \pi = \begin{cases} [\sigma(\alpha v) > \epsilon] & \text{binary} \\ \beta\, \sigma(v) & \text{scaling} \\
        p\, [p > \epsilon],\ p = \beta\, \sigma(\alpha v) & \text{fusion} \end{cases}

    .. math:: L = \sum_k L_k + \frac{\lambda}{N} \sum_l (r^l - r)^2 \, [r^l \notin [r_{\min}, r_{\max}]], \qquad
        r = \tfrac12 (r_{\min} + r_{\max})

    s ``[R, W]`` are the vectors of the domain's features. ε is 0.01 and β 2; α grows by 0.0001 with each batch of training, so
    that units are cut step by step, and λ with it. :math:`r^l` is the share of units that are cut in layer l of N (loss
    "sparsity"; a scaling π cuts none). A domain that training has not met has the embedding of what is out of vocabulary,
    nearly zero: the units themselves decide. Departs from the paper: α begins at 1 and has no end, where the paper takes it
    from 0.1 to 5 and does not say how; nor how λ grows; what is cut passes on the gradient of its sigmoid.

    Args:
        schema: a fitted schema with a feature of role "domain".
        dim: embedding width.
        hidden: widths of the network, at least one.
        form: "binary", "scaling" or "fusion".
        sparsity: r_min and r_max, between which the share of units that are cut has no loss.
        strength: λ at α = 1; 0 leaves the loss out.
        dropout: in the network.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: another form, a network without a layer, or bounds that are no shares in order.

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
        sparsity: tuple[float, float] = (0.15, 0.25),
        strength: float = 0.01,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        if not hidden:
            raise ConfigError("AdaSparse needs hidden= with at least one layer.")
        if not 0 <= sparsity[0] <= sparsity[1] <= 1:
            raise ConfigError(
                f"AdaSparse's sparsity= is the least and the greatest share of units to cut; got {sparsity}."
            )
        super().__init__(schema, dim, history, trunk)
        self.form, self.sparsity, self.strength = form, sparsity, 0.0 if form == "scaling" else strength
        self.alpha: Tensor
        self.register_buffer("alpha", torch.ones(()))
        scene = self.width_of(*self.steering)
        self.layers = nn.ModuleList(MLP(a, (b,), dropout=dropout) for a, b in pairwise((self.trunk.width, *hidden)))
        self.pruners = nn.ModuleList(linear(scene + b, b) for b in hidden)
        self.heads = Heads(schema, hidden[-1])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._answer(batch)[0]

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, scores = self._answer(batch)
        return tasks.losses(logits, batch, self.schema) | super().auxiliary_losses(batch) | self._cut(scores, batch)

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().auxiliary_losses(batch) | (self._cut(self._pruned(batch)[-1], batch) if self.strength else {})

    def kept(self, score: Tensor) -> Tensor:
        """π, by what the pruner says of each unit."""
        score = score.float()
        if self.form == "scaling":
            return BETA * score.sigmoid()
        p = (self.alpha * score).sigmoid()
        return self.open(score) if self.form == "binary" else BETA * p * (BETA * p > EPSILON)

    def open(self, score: Tensor) -> Tensor:
        """1 for units that are kept, 0 for those that are cut, with the gradient of their sigmoid."""
        p = (self.alpha * score.float()).sigmoid()
        least = EPSILON if self.form == "binary" else EPSILON / BETA
        return (p > least).float() + p - p.detach()

    def _answer(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        if self.training:
            self.alpha += GROWTH
        h, plus, scores = self._pruned(batch)
        return self.heads(h, plus), scores

    def _pruned(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Plus, list[Tensor]]:
        """The last layer, what is added to the logits, and what the pruners say of each layer."""
        h, slots, plus = self.read(batch)
        scene, scores = once(slots, self.steering), []
        for layer, pruner in zip(self.layers, self.pruners, strict=True):
            h = layer(h)
            scores.append(split_linear(pruner, (scene.to(h.dtype), h)))  # type: ignore[arg-type]
            h = h * self.kept(scores[-1]).to(h.dtype)
        return h, plus, scores

    def _cut(self, scores: list[Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.strength:
            return {}
        low, high = self.sparsity
        live = batch.get("@mask", torch.ones_like(scores[0][..., 0])).float()
        cut = torch.stack([1 - weighted_mean(self.open(score).mean(-1), live) for score in scores])
        gap = torch.where((cut < low) | (cut > high), (cut - (low + high) / 2).square(), 0)
        return {"sparsity": self.strength * self.alpha * gap.mean()}
