"""Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for Personalized Recommendations (Tang et al., RecSys 2020).

https://doi.org/10.1145/3383313.3412236
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.extraction import Extraction
from recstack.schema import Schema


class PLE(MultiTask):
    r"""Experts of each task beside shared ones, in levels: what tasks have in common is separated step by step.

    .. math:: g_{k,j} = \mathrm{softmax}(W_{k,j}\, g_{k,j-1})\, [E_{k,j}(g_{k,j-1}); E_{s,j}(g_{s,j-1})], \qquad
        g_{s,j} = \mathrm{softmax}(W_{s,j}\, g_{s,j-1})\, [E_{1,j}; \dots; E_{T,j}; E_{s,j}], \qquad
        \mathrm{logit}_k = \mathrm{MLP}_k(g_{k,N})

    At level 1 all read x; afterwards the experts and the gate of a task read what the task's gate gave, ``[R, L, T, H]``.
    A task's gate sees its own experts and the shared ones, the shared gate all experts of its level; the last level has no
    shared gate, since nothing would read it. The experts of a level ``[R, L, T m + s, H]`` are computed together. Departs
    from the paper: every task has as many experts, and every level the same sizes; the weights of tasks that fall with
    time are the Trainer's (``balance=``). Experts have one layer of 256 units under towers of 128 and 64, as in the
    paper's experiments; their numbers were tuned there.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        levels: N.
        shared: s, shared experts in each level.
        specific: m, experts of each task in each level.
        hidden: widths of each expert.
        towers: widths of each task's tower.
        gate_dropout: chance that an expert is out for a row and a gate while training, against gates that collapse.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what level 1 reads in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: no level, no shared expert or none of a task.

    Tang et al., RecSys 2020, https://doi.org/10.1145/3383313.3412236

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> model = rs.multitask.PLE(rs.Encoder(train.schema).fit(train).schema, levels=3, hidden=(16,), towers=(8,))
    >>> sorted(model.fit(train, valid=valid, epochs=1, progress=False).score(test))
    ['cart', 'carted', 'click', 'order', 'ordered']
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        levels: int = 2,
        shared: int = 2,
        specific: int = 2,
        hidden: Sequence[int] = (256,),
        towers: Sequence[int] = (128, 64),
        gate_dropout: float = 0.0,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if min(levels, shared, specific) < 1 or not hidden:
            raise ConfigError(
                f"{type(self).__name__} needs a level, a shared expert, an expert of each task and widths of experts; got "
                f"levels={levels}, shared={shared}, specific={specific}, hidden={tuple(hidden)}."
            )
        super().__init__(schema, dim, history, trunk, together=True)
        width, sizes = self.trunk.width, (len(self.names), specific, shared)
        self.levels = nn.ModuleList(
            Extraction(
                hidden[-1] if j else width, hidden, *sizes, gate_dropout, dropout, each=j > 0, last=j == levels - 1
            )
            for j in range(levels)
        )
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        for level in self.levels:
            x = level(x)
        return self.answer(x, batch, plus)


class CGC(PLE):
    r"""Customised gate control: experts of each task beside shared ones, in one level.

    .. math:: z_k = \mathrm{softmax}(W_k x)\, [E_k(x); E_s(x)], \qquad \mathrm{logit}_k = \mathrm{MLP}_k(z_k)

    It is `PLE` with one level.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        shared: shared experts.
        specific: experts of each task.
        hidden: widths of each expert.
        towers: widths of each task's tower.
        gate_dropout: chance that an expert is out for a row and a gate while training, against gates that collapse.
        norm: "batch", "layer" or None, in the towers.
        dropout: in experts and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: no shared expert or none of a task.

    Tang et al., RecSys 2020, https://doi.org/10.1145/3383313.3412236

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.multitask.CGC(rs.Encoder(train.schema).fit(train).schema, specific=1, hidden=(16,), towers=(8,))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.score(test)["click"].shape == (len(test),)
    True
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        shared: int = 2,
        specific: int = 2,
        hidden: Sequence[int] = (256,),
        towers: Sequence[int] = (128, 64),
        gate_dropout: float = 0.0,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(
            schema,
            dim=dim,
            levels=1,
            shared=shared,
            specific=specific,
            hidden=hidden,
            towers=towers,
            gate_dropout=gate_dropout,
            norm=norm,
            dropout=dropout,
            detach=detach,
            history=history,
            trunk=trunk,
        )
