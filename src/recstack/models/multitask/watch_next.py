"""Recommending What Video to Watch Next: A Multitask Ranking System (Zhao et al., RecSys 2019).

https://doi.org/10.1145/3298689.3346997
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from recstack.errors import unknown
from recstack.models.base import Model
from recstack.models.position import ShallowTower, check_place
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.nn.gates import Gates, mixtures
from recstack.nn.mlp import MLP
from recstack.schema import Schema


class WatchNext(MultiTask):
    r"""A shared layer, experts and gates on it, and a shallow tower that takes the position's part of a click away.

    .. math:: h = \mathrm{ReLU}(W x + b), \qquad z_k = \sum_e g^k_e(h)\, f_e(h), \qquad
        \mathrm{logit}_k = \mathrm{MLP}_k(z_k) + s_k(\text{position})

    Tasks of engagement (clicks, watch time) and of satisfaction (likes, ratings) may be binary or regressions, as their
    `Task` says. Where an item was shown is known of what was logged and not of what is to be ranked. So the features in
    `position` are read by the shallow tower s alone: in training each is unknown with the chance `position_dropout`,
    and in evaluation, serving and exported graphs always: batches need no such column then. Logits ``[R, L]``. Departs
    from the paper: nothing; sizes are not given there.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        shared: widths of the shared layers.
        experts: E.
        hidden: widths of each expert.
        towers: widths of each task's tower.
        position: Categorical (or bucketised) features of where an item was shown, of the device with it; none: no such tower.
        position_tasks: tasks to whose logits the shallow tower adds; None: all that are binary.
        position_dropout: chance that a position is unknown in training.
        gate_dropout: chance that an expert is out for a row and a task while training, against gates that collapse.
        norm: "batch", "layer" or None, in shared layers and towers.
        dropout: in shared layers, experts and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what the shared layer reads in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: a position that is not declared or has no ids, or a task that is not there.

    Zhao et al., RecSys 2019, https://doi.org/10.1145/3298689.3346997

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.multitask.WatchNext(schema, shared=(32,), hidden=(16,), position=("position",))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        shared: Sequence[int] = (256,),
        experts: int = 8,
        hidden: Sequence[int] = (128,),
        towers: Sequence[int] = (64,),
        position: Sequence[str] = (),
        position_tasks: Sequence[str] | None = None,
        position_dropout: float = 0.1,
        gate_dropout: float = 0.1,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        for name in position:
            check_place(schema, name)
        super().__init__(schema.without(*position), dim, history, trunk, together=True)
        self.schema = schema  # of which the rest of the model reads all but the position
        for name in position_tasks or ():
            if name not in self.names:
                raise unknown("task in position_tasks=", name, self.names)
        binary = [name for name in self.names if schema.task(name).kind == "binary"]
        self.biased = list(binary if position_tasks is None else position_tasks)
        self.shallow = (
            ShallowTower(schema, position, dim, len(self.biased), position_dropout)
            if position and self.biased
            else None
        )
        self.bottom = MLP(self.trunk.width, shared, norm=norm, dropout=dropout)
        self.experts = Experts(self.bottom.width, hidden, experts, dropout)
        self.gates = Gates(self.bottom.width, experts, len(self.names), gate_dropout)
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        h = self.bottom(x, batch.get("@mask"))
        z = mixtures(self.gates(h), self.experts(h))
        if self.shallow is not None:
            of_position = dict(zip(self.biased, self.shallow(batch).unbind(-1), strict=True))
            plus = {name: _sum(plus, of_position.get(name), name) for name in self.names}
        return self.answer(z, batch, plus)  # type: ignore[arg-type]


def _sum(plus: Tensor | Mapping[str, Tensor] | None, more: Tensor | None, task: str) -> Tensor | None:
    one = plus[task] if isinstance(plus, Mapping) else plus
    return more if one is None else one if more is None else one + more
