"""Deep Bayesian Bandits Showdown (Riquelme, Tucker and Snoek, ICLR 2018): its neural-linear bandit.

https://arxiv.org/abs/1802.09127
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from recstack.errors import ConfigError, unknown
from recstack.features import Heads, tasks
from recstack.models.base import Model
from recstack.models.trunk import Plus, Trunk
from recstack.nn.mlp import MLP
from recstack.nn.modes import evaluating
from recstack.schema import Schema


class NeuralLinear(Model):
    r"""A network learns what to look at; a Bayesian linear regression on its last hidden vector knows how sure it is.

    .. math:: \Lambda = \lambda I + \sum z z^\top, \quad \mu = \Lambda^{-1} \sum r z, \quad
              \sigma^2 \sim \mathrm{IG}(a, b), \quad w \sim N(\mu, \sigma^2 \Lambda^{-1}), \qquad \tilde r = z^\top w

    with :math:`a = a_0 + n / 2`, :math:`b = b_0 + (\sum r^2 - \mu^\top \Lambda \mu) / 2`, and z the hidden vector and a 1.
    The network is trained as any ranker, by `fit`; then `observe` adds what happened to the sums, batch by batch and as
    often as rewards come in, `draw` gives scores to explore by (Thompson sampling) and `bounds` upper confidence bounds.
    After training anew, `forget`, and observe again: the vectors are others. ``rs.Cascade(ranker=model, explore="draw")`` lets
    the draws order its candidates, and `recstack.serving.learning.learn` lets it observe the service's events.

    Binary and regression tasks are observed, each by itself, with its labels as they stand in the batch (0, 1 or a value).
    Departs from the paper: one model reads user and item, in place of one regression per arm.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        hidden: widths of the MLP, the last of which the regression reads; keep it small.
        history: how each history becomes one vector.
        trunk: None, or a model class (or `partial` of one) whose last hidden vector the MLP reads.
        ridge: λ, how sure the prior is that weights are 0.
        prior: a₀ and b₀, the prior of the noise.
        dropout: in the MLP.

    Riquelme et al., ICLR 2018, https://arxiv.org/abs/1802.09127

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> encoder = rs.Encoder(train.schema).fit(train)
    >>> model = rs.ranking.NeuralLinear(encoder.schema, hidden=(16, 4)).fit(
    ...     train, valid=valid, epochs=1, progress=False
    ... )
    >>> batch = encoder.encode(train).batch(range(500))
    >>> unsure, model = model.bounds(batch)["click"], model.observe(batch)
    >>> bool((model.bounds(batch)["click"] < unsure).all())
    True
    >>> model.draw(batch, generator=torch.Generator().manual_seed(0))["click"].shape
    torch.Size([500, 1])
    """

    gram: Tensor
    cross: Tensor
    square: Tensor
    seen: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
        ridge: float = 0.25,
        prior: tuple[float, float] = (6.0, 6.0),
        dropout: float = 0.0,
    ):
        super().__init__(schema)
        if ridge <= 0 or min(prior) <= 0:
            raise ConfigError(f"NeuralLinear needs a positive ridge and prior; got {ridge}, {prior}.")
        self.trunk = Trunk(schema, dim, history, trunk)
        if self.trunk.each:
            raise ConfigError(
                "NeuralLinear reads one vector for all tasks; take a trunk with one, such as rs.ranking.DCNv2."
            )
        self.ridge, self.prior = ridge, prior
        self.mlp = MLP(self.trunk.width, hidden, dropout=dropout)
        self.heads = Heads(schema, self.mlp.width)
        self.observed = [t.name for t in schema.tasks if t.product is None and t.kind in ("binary", "regression")]
        size, several = self.mlp.width + 1, len(self.observed)
        for name, shape in {"gram": (size, size), "cross": (size,), "square": (), "seen": ()}.items():
            self.register_buffer(name, torch.zeros(several, *shape, dtype=torch.float64))

    def hidden(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Plus]:
        """What the heads read ``[R, L, width]``, and what the trunk adds to the logits."""
        x, plus = self.trunk(batch)
        return self.mlp(x, batch.get("@mask")), plus

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.heads(*self.hidden(batch))

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.trunk.auxiliary_losses(batch)

    @torch.no_grad()
    def observe(self, batch: Mapping[str, Tensor]) -> Self:
        """Add a batch, with labels, to what the regressions know; rows that are padding or lack the label do not count."""
        z = self._vectors(batch)
        for i, name in enumerate(self.observed):
            label, where, _ = tasks.target(batch, self.schema, name)
            of, r = z[where.expand(label.shape)], label[where.expand(label.shape)].double()
            self.gram[i] += of.mT @ of
            self.cross[i] += r @ of
            self.square[i] += r @ r
            self.seen[i] += len(r)
        return self

    def forget(self) -> Self:
        """Back to the prior, as after training anew."""
        for sums in (self.gram, self.cross, self.square, self.seen):
            sums.zero_()
        return self

    def posterior(self, task: str) -> tuple[Tensor, Tensor, float, float]:
        """μ ``[width + 1]``, the lower Cholesky factor of Λ, a and b of one task. Raises ConfigError for one not observed."""
        if task not in self.observed:
            raise unknown("observed task", task, self.observed)
        i = self.observed.index(task)
        eye = torch.eye(self.gram.shape[-1], dtype=torch.float64, device=self.gram.device)
        factor = torch.linalg.cholesky(self.gram[i].double() + self.ridge * eye)
        mean = torch.cholesky_solve(self.cross[i].double().unsqueeze(-1), factor).squeeze(-1)
        left = self.square[i] - (factor.mT @ mean).square().sum()
        return mean, factor, self.prior[0] + float(self.seen[i]) / 2, self.prior[1] + max(float(left), 0.0) / 2

    @torch.no_grad()
    def draw(self, batch: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``{task: [R, L]}``: the reward by weights drawn from the posterior, one draw for each request."""
        z, out = self._vectors(batch), {}
        for name in self.observed:
            mean, factor, a, b = self.posterior(name)
            shape = torch.full((len(z),), a, dtype=torch.float64)
            noise = (b / torch._standard_gamma(shape, generator=generator)).sqrt().to(z.device)  # pyright: ignore[reportPrivateImportUsage]
            normal = torch.randn(len(mean), len(z), dtype=torch.float64, generator=generator).to(z.device)
            shift = torch.linalg.solve_triangular(factor.mT, normal, upper=True).mT  # [R, width + 1]
            out[name] = (z @ (mean + noise.unsqueeze(-1) * shift).unsqueeze(-1)).squeeze(-1).float()
        return out

    @torch.no_grad()
    def bounds(self, batch: Mapping[str, Tensor], alpha: float = 1.0) -> dict[str, Tensor]:
        r"""``{task: [R, L]}``: :math:`z^\top \mu + \alpha \sqrt{z^\top \Lambda^{-1} z \, b / a}`."""
        z, out = self._vectors(batch), {}
        for name in self.observed:
            mean, factor, a, b = self.posterior(name)
            spread = torch.linalg.solve_triangular(factor, z.flatten(0, -2).mT, upper=False).square().sum(0)
            out[name] = (z @ mean + alpha * (spread.view(z.shape[:-1]) * b / a).sqrt()).float()
        return out

    def _vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        """z, float64 ``[R, L, width + 1]``, as in evaluation."""
        with evaluating(self):
            z = self.hidden(batch)[0].double()
        return torch.cat([z, torch.ones_like(z[..., :1])], -1)
