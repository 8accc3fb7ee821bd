"""Multi-Task Learning Using Uncertainty to Weigh Losses (Kendall et al., CVPR 2018).

https://arxiv.org/abs/1705.07115
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from recstack.errors import unknown
from recstack.training.balance.base import Adam, Balance, choice, positive


class Uncertainty(Balance):
    r"""Weights learned with the model, from the noise :math:`\sigma_k` that each task is taken to have; :math:`s = \log \sigma^2`.

    .. math:: \sum_k \tfrac{1}{2} e^{-s_k} L_k + \tfrac{1}{2} s_k \;\text{(regression)}, \qquad
        \sum_k e^{-s_k} L_k + \tfrac{1}{2} s_k \;\text{(classification)}

    The "seed" form has :math:`s_k` in place of :math:`\tfrac{1}{2} s_k`. At rest a loss of the seed form has the weight
    :math:`1 / L_k`, of Kendall's :math:`1 / (2 L_k)`: the same but for a common factor. s has an optimiser of its own (Adam,
    no weight decay), moves after the step, and stays where a task has no valid row. The loss that is logged has neither the
    weights nor s in it.

    Args:
        form: "kendall" or "seed".
        lr: of s.
        first: s at the beginning.
        limit: s stays in [-limit, limit]; 6 lets a weight grow to 400.
        regression: losses of squared error; None: those of tasks of kind "regression" whose loss is an error of the value.
        frozen: {loss: weight}: weights that are not learned.

    >>> balance = Uncertainty("seed", lr=0.1)
    >>> balance.begin(["click"], [], torch.device("cpu"))
    >>> live = torch.tensor([True])
    >>> for _ in range(300):
    ...     balance.observe(torch.tensor([0.05]), live)
    >>> round(balance.weights(live).item(), 2)
    20.0
    """

    saved = ("s",)

    def __init__(
        self,
        form: str = "kendall",
        lr: float = 0.01,
        first: float = 0.0,
        limit: float = 6.0,
        regression: Sequence[str] | None = None,
        frozen: Mapping[str, float] | None = None,
    ) -> None:
        self.form = choice(form, ("kendall", "seed"), "form")
        self.lr, self.first, self.limit = positive(lr, "lr"), first, positive(limit, "limit")
        self.regression, self.frozen = regression, dict(frozen or {})

    def begin(self, names: Iterable[str], regression: Iterable[str], device: torch.device) -> None:
        super().begin(names, regression, device)
        kinds = set(regression if self.regression is None else self.regression)
        for name in kinds - set(self.names) if self.regression is not None else ():
            raise unknown("loss in regression of balance=", name, self.names)
        self.factor = self.given(dict.fromkeys(kinds & set(self.names), 0.5), 1.0, "regression")
        self.fixed = self.given(self.frozen, -1.0, "frozen")
        self.s = torch.full_like(self.factor, self.first)
        self.adam = Adam(len(self.names), self.lr, device)

    def weights(self, live: Tensor) -> Tensor:
        return torch.where(self.fixed >= 0, self.fixed, self.factor * (-self.s).exp())

    def observe(self, losses: Tensor, live: Tensor) -> None:
        assert self.adam is not None
        share = 0.5 if self.form == "kendall" else 1.0
        grad = share - self.factor * (-self.s).exp() * losses
        self.s = self.adam.step(self.s, grad, live & (self.fixed < 0)).clamp(-self.limit, self.limit)
