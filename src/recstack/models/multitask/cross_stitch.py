"""Cross-stitch Networks for Multi-task Learning (Misra et al., CVPR 2016).

https://arxiv.org/abs/1604.03539
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.nn.stitch import Stitch
from recstack.schema import Schema


class CrossStitch(MultiTask):
    r"""A network for each task, whose layers read a learned mixture of all tasks' layers below.

    .. math:: \tilde{x}_t = \sum_s \alpha_{ts} x_s, \qquad x_t \leftarrow \mathrm{ReLU}(W_t \tilde{x}_t + b_t)

    The tasks' layers ``[R, L, T, H]`` are computed together, one unit α ``[T, T]`` behind each. α starts with 0.9 for the
    task itself and 0.1 for all others together. Departs from the paper: one α a layer in the place of one a channel, and
    any number of tasks; the embeddings (or the `trunk`) are shared.

    Args:
        schema: a fitted schema; one task is allowed, and has nobody to read from.
        dim: embedding width.
        hidden: widths of the layers with a unit behind them.
        towers: widths of each task's layers on top, without units.
        norm: "batch", "layer" or None, in the towers.
        dropout: in all layers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Misra et al., CVPR 2016, https://arxiv.org/abs/1604.03539

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> model = rs.multitask.CrossStitch(rs.Encoder(train.schema).fit(train).schema, hidden=(16, 8), towers=())
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.stitches[0].alpha.shape  # click, cart and order
    torch.Size([3, 3])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        hidden: Sequence[int] = (256, 128),
        towers: Sequence[int] = (64,),
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk)
        width, tasks, each = self.trunk.width, len(self.names), self.trunk.each
        self.layers, self.stitches = nn.ModuleList(), nn.ModuleList()
        for size in hidden:
            self.layers.append(Experts(width, (size,), tasks, dropout, each=each))
            self.stitches.append(Stitch(tasks, size))
            width, each = size, True
        self.towers_on(width, towers, each=each, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        for layer, stitch in zip(self.layers, self.stitches, strict=True):
            x = stitch(layer(x))
        return self.answer(x, batch, plus)
