"""Experts chosen by what they say: MMoE with the pooling by attention of the Set Transformer (Lee et al., ICML 2019).

https://arxiv.org/abs/1810.00825
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.nn.gates import TaskQueries
from recstack.schema import Schema


class AttentionMMoE(MultiTask):
    r"""Shared experts, and a learned query for each task that attends to the experts' outputs.

    .. math:: a^k_{he} = \mathrm{softmax}_e\Big(\frac{q_{kh}^\top K_h f_e(x)}{\sqrt{d}}\Big), \qquad
        z_k = O\, \big[\textstyle\sum_e a^k_{he} V_h f_e(x)\big]_h, \qquad \mathrm{logit}_k = \mathrm{MLP}_k(z_k)

    Where MMoE's gate looks at the input, and knows an expert by its number, these weights look at the expert's content: the
    experts may stand in any order. Experts ``[R, L, E, H]``, weights ``[R, L, heads, T, E]``. Departs from the paper: of the
    Set Transformer only the pooling by learned seeds, without residual and normalisation; the tasks' queries are the seeds.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        experts: E.
        hidden: widths of each expert; the last is divided among the heads.
        heads: how many.
        towers: widths of each task's tower.
        gate_dropout: chance that an expert is out for a row, a task and a head while training.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what experts read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: a width of experts that the heads do not divide.

    Lee et al., ICML 2019, https://arxiv.org/abs/1810.00825

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.multitask.AttentionMMoE(rs.Encoder(train.schema).fit(train).schema, experts=4, heads=4)
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
        heads: int = 2,
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
        self.queries = TaskQueries(hidden[-1], len(self.names), heads, gate_dropout)
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        return self.answer(self.queries(self.experts(x)), batch, plus)
