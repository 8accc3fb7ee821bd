"""Multitask Learning (Caruana, Machine Learning 28, 1997): one bottom for all tasks.

https://doi.org/10.1023/A:1007379606734
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.mlp import MLP
from recstack.schema import Schema


class SharedBottom(MultiTask):
    r"""All tasks share one network, and each has a tower on it.

    .. math:: z = f(x), \qquad \mathrm{logit}_k = \mathrm{MLP}_k(z)

    z ``[R, L, H]``. With ``hidden=()`` only the embeddings (or the `trunk`) are shared. Departs from the paper: nothing; the
    default sizes are those of the comparison in MMoE's synthetic experiment.

    Args:
        schema: a fitted schema; one task is allowed, and is the single-task baseline.
        dim: embedding width.
        hidden: widths of the bottom.
        towers: widths of each task's tower.
        norm: "batch", "layer" or None.
        dropout: in bottom and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what the bottom reads in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Caruana, 1997, https://doi.org/10.1023/A:1007379606734

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.multitask.SharedBottom(rs.Encoder(train.schema).fit(train).schema, hidden=(32,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (113,),
        towers: Sequence[int] = (8,),
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk, together=True)
        self.bottom = MLP(self.trunk.width, hidden, norm=norm, dropout=dropout)
        self.towers_on(self.bottom.width, towers, each=False, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        return self.answer(self.bottom(x, batch.get("@mask")), batch, plus)
