"""ESCM²: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion Rate Estimation (Wang et al., SIGIR 2022).

https://arxiv.org/abs/2204.05125
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import unknown
from recstack.features import tasks
from recstack.losses import doubly_robust, inverse_propensity
from recstack.models.base import Model
from recstack.models.entire_space import asked, conversions, cross_entropy
from recstack.models.trunk import MultiTask
from recstack.nn.experts import TaskTowers
from recstack.nn.mlp import linear
from recstack.nn.names import ByName
from recstack.schema import Schema

METHODS = ("dr", "ips")


class ESCM2(MultiTask):
    r"""The conversion rate of all impressions from the clicked ones, each weighed by how unlikely its click was.

    .. math:: L = \mathrm{BCE}(click, p_{ctr}) + \lambda_c R(p_{cvr}) + \lambda_g \mathrm{BCE}(click \wedge order, p_{ctr} p_{cvr})

    .. math:: R_{IPS} = \frac1N \sum_i \frac{o_i e_i}{\hat p_i}, \qquad
        R_{DR} = \frac1N \sum_i \hat e_i + \frac{o_i (e_i - \hat e_i)}{\hat p_i}

    e is the cross entropy of the conversion, o the click, and the propensity :math:`\hat p` the click's own head (with all
    that it is given), through which no gradient goes. Every binary task that is `given` another is learned so; its weight is
    λ_c, and that of a product, if there is one, λ_g::

        Task("click"), Task("order", given="click", weight=0.1), Task("ordered", product=("click", "order"), weight=1)

    Without the product this is Multi-IPW and Multi-DR (Zhang et al., WWW 2020). Rows whose click is known and whose
    conversion is not yet have no part in R.

    Departs from the paper in what is imputed: a label :math:`\tilde y`, learned from the clicked rows with the same weights,
    and :math:`\hat e = \mathrm{CE}(\tilde y, p_{cvr})`, as in the joint learning of Wang et al. (ICML 2019). An error
    that does not depend on the prediction would leave it with the gradient of IPS.

    Args:
        schema: a fitted schema with a binary task given another.
        dim: embedding width.
        hidden: widths of each task's tower, and of each imputation's.
        method: "dr" or "ips".
        floor: least propensity, of each row: bounds its weight at the price of a little bias.
        self_normalised: over the sum of the weights in the place of N.
        norm: "batch", "layer" or None.
        dropout: in the towers.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what towers read in the place of all embeddings; a model class, such as ``rs.multitask.PLE``.

    Raises:
        SchemaError: no binary task with a loss is given another, or one has a loss other than "bce".

    Wang et al., SIGIR 2022, https://arxiv.org/abs/2204.05125; Zhang et al., WWW 2020, https://arxiv.org/abs/1910.09337

    >>> import recstack as rs
    >>> tasks = [rs.Task("click"), rs.Task("order", given="click", weight=0.1)]
    >>> tasks.append(rs.Task("ordered", product=("click", "order")))
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=tasks))
    >>> model = rs.multitask.ESCM2(rs.Encoder(train.schema).fit(train).schema, hidden=(16,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['click', 'order', 'ordered']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        method: str = "dr",
        floor: float = 0.02,
        self_normalised: bool = False,
        norm: str | None = None,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        after = conversions(schema, type(self).__name__, 'Task("order", given="click", weight=0.1)')
        super().__init__(schema, dim, history, trunk)
        self.after = [t.name for t in after]
        self.floor, self.self_normalised = floor, self_normalised
        options = {"each": self.trunk.each, "norm": norm, "dropout": dropout}
        self.towers_on(self.trunk.width, hidden, **options)
        self.imputers = None
        if method == "dr":
            self.imputers = TaskTowers(self.after, self.trunk.width, hidden, **options)
            self.imputed = ByName({name: linear(self.imputers.width, 1) for name in self.after})

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        return self.answer(x, batch, plus)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        logits = self.answer(x, batch, plus)
        out = tasks.losses(logits, batch, self.schema) | self.auxiliary_losses(batch)
        imputed = self._imputed(x, batch.get("@mask"))
        for name in self.after:
            task = self.schema.task(name)
            label, seen, missed, weight, propensity = asked(logits, batch, self.schema, task)
            options = {"where": seen | missed, "weight": weight, "floor": self.floor}
            options["self_normalised"] = self.self_normalised
            error = cross_entropy(logits[name], label)
            if imputed is None:
                out[name] = task.weight * inverse_propensity(error, seen, propensity, **options)
                continue
            guess = imputed[name]
            risk = doubly_robust(
                error, cross_entropy(logits[name], guess.detach().sigmoid()), seen, propensity, **options
            )
            out[name] = task.weight * risk
            out[f"{name}/imputation"] = task.weight * inverse_propensity(
                cross_entropy(guess, label), seen, propensity, **options
            )
        return out

    def _imputed(self, x, mask: Tensor | None) -> dict[str, Tensor] | None:
        """Logits of the labels that are imputed."""
        if self.imputers is None:
            return None
        if self.trunk.each:
            x = x[..., [self.names.index(name) for name in self.after], :]
        h = self.imputers(x, mask)
        with torch.autocast(h.device.type, enabled=False):
            return {n: self.imputed[n](v).squeeze(-1) for n, v in zip(self.after, h.float().unbind(-2), strict=True)}
