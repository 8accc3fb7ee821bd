"""Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts (Ma et al., KDD 2018).

https://doi.org/10.1145/3219819.3220007
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.nn.gates import Gates, mixtures
from recstack.schema import Schema


class MMoE(MultiTask):
    r"""Shared experts, and a gate for each task that chooses among them.

    .. math:: z_k = \sum_e g^k_e(x)\, f_e(x), \qquad g^k(x) = \mathrm{softmax}(W_k x), \qquad
        \mathrm{logit}_k = \mathrm{MLP}_k(z_k)

    Experts ``[R, L, E, H]`` are computed together, gates ``[R, L, E]`` have no bias. Departs from the paper: nothing; the
    default sizes are those of its synthetic experiment.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        experts: E.
        hidden: widths of each expert.
        towers: widths of each task's tower.
        gate_dropout: chance that an expert is out for a row and a task while training, against gates that collapse.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what experts and gates read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Ma et al., KDD 2018, https://doi.org/10.1145/3219819.3220007

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.multitask.MMoE(rs.Encoder(train.schema).fit(train).schema, experts=4)
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
        self.gates = Gates(self.trunk.width, experts, len(self.names), gate_dropout)
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        shared = self.experts(x)  # [R, L, E, H]
        return self.answer(mixtures(self.gates(x), shared), batch, plus)
