"""Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural Network Parser (Duong et al., ACL 2015).

https://doi.org/10.3115/v1/P15-2139
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.schema import Schema


class SoftSharing(MultiTask):
    r"""A network for each task, and a loss that keeps the networks near each other.

    .. math:: \mathrm{logit}_k = \mathrm{MLP}_k(f_k(x)), \qquad
        L = \sum_k L_k + \lambda \sum_{j<k} \lVert \theta_j - \theta_k \rVert_2^2

    θ are weights and biases of f ``[R, L, T, H]``, not of the towers on them; the distance is the loss "distance". All
    start apart. Departs from the paper: tasks of one table in the place of parsers of two languages, as "L2-constrained" in
    the comparison of MMoE; the embeddings (or the `trunk`) are shared.

    Args:
        schema: a fitted schema; one task is allowed, and has no distance.
        dim: embedding width.
        hidden: widths of the networks that are kept near.
        towers: widths of each task's own layers on top.
        l2: λ.
        norm: "batch", "layer" or None, in the towers.
        dropout: in all layers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Duong et al., ACL 2015, https://doi.org/10.3115/v1/P15-2139

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> model = rs.multitask.SoftSharing(rs.Encoder(train.schema).fit(train).schema, hidden=(16,), towers=(8,))
    >>> before = float(model.distance())
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> float(model.distance()) < before
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (113,),
        towers: Sequence[int] = (8,),
        l2: float = 1e-3,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk)
        self.l2 = l2
        self.networks = Experts(self.trunk.width, hidden, len(self.names), dropout, each=self.trunk.each)
        self.towers_on(self.networks.width, towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        return self.answer(self.networks(x), batch, plus)

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().auxiliary_losses(batch) | {"distance": self.l2 * self.distance()}

    def distance(self) -> Tensor:
        """The squared distance of the networks' weights, summed over pairs of tasks."""
        tasks, total = len(self.names), next(self.parameters()).new_zeros(())
        for some in (*self.networks.stacked(), *self.networks.stacked_biases()):
            # Σ over pairs of (a - b)² is T times the sum of squares about the mean.
            total = total + tasks * (some - some.mean(0)).float().square().sum()
        return total
