"""Adaptive Mixtures of Local Experts (Jacobs et al., Neural Computation 1991): one gate for all tasks.

https://doi.org/10.1162/neco.1991.3.1.79
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.nn.gates import Gates, mixtures
from recstack.schema import Schema


class MoE(MultiTask):
    r"""Experts and one gate, whose mixture all tasks read; what MMoE calls OMoE.

    .. math:: z = \sum_e g_e(x)\, f_e(x), \qquad g(x) = \mathrm{softmax}(W x), \qquad \mathrm{logit}_k = \mathrm{MLP}_k(z)

    Experts ``[R, L, E, H]`` are computed together. Departs from the paper: experts are mixed before the towers, and not
    the likelihoods of what each would answer, as in the comparison of MMoE (Ma et al., KDD 2018), whose sizes are the
    defaults.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        experts: E.
        hidden: widths of each expert.
        towers: widths of each task's tower.
        gate_dropout: chance that an expert is out for a row while training, against a gate that collapses.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what experts and gate read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Jacobs et al., 1991, https://doi.org/10.1162/neco.1991.3.1.79

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.multitask.MoE(rs.Encoder(train.schema).fit(train).schema, experts=4)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        experts: int = 8,
        hidden: Sequence[int] = (16,),
        towers: Sequence[int] = (8,),
        gate_dropout: float = 0.0,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk, together=True)
        self.experts = Experts(self.trunk.width, hidden, experts, dropout)
        self.gate = Gates(self.trunk.width, experts, 1, gate_dropout)
        self.towers_on(hidden[-1], towers, each=False, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        z = mixtures(self.gate(x), self.experts(x)).squeeze(-2)  # [R, L, H]
        return self.answer(z, batch, plus)
