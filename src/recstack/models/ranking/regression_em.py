"""Position Bias Estimation for Unbiased Learning to Rank in Personal Search (Wang et al., WSDM 2018).

https://doi.org/10.1145/3159652.3159732
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack import losses
from recstack.features import tasks
from recstack.models.base import Model
from recstack.models.position import Examined
from recstack.schema import Schema


class RegressionEM(Examined):
    r"""The position-based click model by expectation-maximisation, its relevance a regression on all features.

    .. math:: p(y = 1) = \theta_k\, \gamma(x), \qquad
        P(E, \bar R \mid y = 0) = \frac{\theta_k (1 - \gamma)}{1 - \theta_k \gamma}, \quad
        P(\bar E, R \mid y = 0) = \frac{(1 - \theta_k)\, \gamma}{1 - \theta_k \gamma}

    A row without a click was not looked at, or not relevant: the E-step says how likely each is. :math:`\gamma = \sigma(f(x))` learns
    relevance as a soft label, :math:`y + (1 - y) P(\bar E, R)`; :math:`\theta_k` is the mean of :math:`y + (1 - y) P(E, \bar R)`.
    Logits ``[R, L]`` are those of γ, in training too: batches need a position in `losses` of a model that trains, and nowhere else. It
    holds for binary tasks that are given no other; the rest learn as ever. `examination()` is θ.

    Departs from the paper: a step of both after each batch, not after the whole log (online EM; Cappé and Moulines, 2009,
    https://arxiv.org/abs/0712.4273), with step :math:`t^{-0.6}`; soft labels in the place of drawn ones; the greatest θ is 1.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the layers of f.
        position: the Categorical (or bucketised) feature of where an item was shown; nothing else reads it.
        norm: "batch", "layer" or None, in the layers of f.
        dropout: in the layers of f.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what f's layers read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: a position that is not declared or has no ids.

    Wang et al., WSDM 2018, https://doi.org/10.1145/3159652.3159732

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.ranking.RegressionEM(schema, hidden=(16,), position=("position",))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> max(model.examination().values())
    1.0
    """

    theta: Tensor
    steps: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (128, 64),
        position: Sequence[str] = (),
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, hidden, position[:1], norm, dropout, history, trunk)
        size = schema.feature(position[0]).size if self.biased else 0  # type: ignore[attr-defined]
        self.register_buffer("theta", torch.full((len(self.biased), size), 0.5))
        self.register_buffer("steps", torch.zeros(()))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the soft label; while training, also a step of θ."""
        logits = self(batch)
        out = tasks.losses(logits, batch, self.schema) | self.auxiliary_losses(batch)
        if not self.training:
            return out
        self.steps += 1
        for i, name in enumerate(self.biased):
            if name not in out:
                continue
            label, where, weight = tasks.target(batch, self.schema, name)
            ids, gamma = self.place(batch, label.shape), logits[name].detach().sigmoid()
            theta = self.theta[i][ids]
            click = label + (1 - label) * (1 - theta) * gamma / (1 - theta * gamma).clamp(min=1e-6)
            out[name] = losses.bce(logits[name], click, where=where, weight=weight) * self.schema.task(name).weight
            seen = label + (1 - label) * theta * (1 - gamma) / (1 - theta * gamma).clamp(min=1e-6)
            each = where.float() if weight is None else torch.where(where, weight, 0.0)
            self._step(i, ids, torch.where(where, seen, 0.0), each)
        return out

    @torch.no_grad()
    def _step(self, i: int, ids: Tensor, seen: Tensor, weight: Tensor) -> None:
        n = self.theta.shape[1]
        weight = weight.float().flatten()
        mass = torch.zeros(n, device=ids.device).scatter_add_(0, ids.flatten(), weight)
        mean = torch.zeros(n, device=ids.device).scatter_add_(0, ids.flatten(), weight * seen.flatten())
        mean = mean / mass.clamp(min=1e-6)
        theta = self.theta[i] + (1 + self.steps) ** -0.6 * torch.where(mass > 0, mean - self.theta[i], 0)
        self.theta[i] = (theta / torch.where(mass > 0, theta, 0).max().clamp(min=1e-6)).clamp(1e-3, 1)

    def curve(self, task: str) -> Tensor:
        return self.theta[self.biased.index(task)]
