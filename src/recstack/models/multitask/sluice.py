"""Latent Multi-task Architecture Learning (sluice networks; Ruder et al., AAAI 2019).

https://arxiv.org/abs/1705.08142
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.nn.stitch import Stitch
from recstack.schema import Schema


class Sluice(MultiTask):
    r"""Networks of the tasks that learn which parts of a layer to share, and which layers to read.

    .. math:: \tilde{h}_{l} = \alpha_l\, [h_{1,l,1}; h_{1,l,2}; \dots; h_{T,l,2}], \qquad
        z_t = \sum_l \beta_{tl} \tilde{h}_{tl}, \qquad
        L = \sum_t L_t + \lambda \sum_{t,l,i<j} \lVert G_{tli}^\top G_{tlj} \rVert_F^2

    Each task's layer ``[R, L, H]`` is cut into subspaces, each with a row of α; G are the weights that make them, kept
    orthogonal so that one may hold what is shared and another what is not (loss "subspaces"). β mixes all layers, which
    are therefore equally wide. α starts as in cross-stitch networks, β at the last layer, 0.9 and 0.1. Departs from the
    paper: feed-forward layers in the place of recurrent ones, all of whose weights are kept orthogonal; their code begins
    with equal α.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        layers: how many.
        width: of each.
        subspaces: parts of each layer.
        orthogonality: λ.
        dropout: in all layers.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what is read in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: a width that the subspaces do not divide.

    Ruder et al., AAAI 2019, https://arxiv.org/abs/1705.08142

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> model = rs.multitask.Sluice(rs.Encoder(train.schema).fit(train).schema, layers=3, width=16)
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.beta.shape  # click, cart and order, three layers
    torch.Size([3, 3])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        layers: int = 2,
        width: int = 64,
        subspaces: int = 2,
        orthogonality: float = 0.01,
        dropout: float = 0.0,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__(schema, dim, history, trunk)
        tasks = len(self.names)
        self.subspaces, self.orthogonality = subspaces, orthogonality
        first = Experts(self.trunk.width, (width,), tasks, dropout, each=self.trunk.each)
        further = (Experts(width, (width,), tasks, dropout, each=True) for _ in range(layers - 1))
        self.layers = nn.ModuleList([first, *further])
        self.stitches = nn.ModuleList(Stitch(tasks, width, subspaces) for _ in range(layers))
        beta = torch.full((tasks, layers), 0.1 / max(layers - 1, 1))
        beta[:, -1] = 0.9
        self.beta = nn.Parameter(beta)
        self.towers_on(width, ())

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        total = 0.0
        for layer, stitch, beta in zip(self.layers, self.stitches, self.beta.unbind(-1), strict=True):
            x = stitch(layer(x))
            total = total + beta.unsqueeze(-1) * x
        return self.answer(total, batch, plus)  # type: ignore[arg-type]

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().auxiliary_losses(batch) | {"subspaces": self.orthogonality * self.overlap()}

    def overlap(self) -> Tensor:
        """The squared inner products of the weights of different subspaces, of all tasks and layers."""
        total = self.beta.new_zeros(())
        with torch.autocast(total.device.type, enabled=False):
            for layer in self.layers:
                (weight,) = layer.stacked()  # type: ignore[operator]  # [T, in, H]
                parts = weight.float().unflatten(-1, (self.subspaces, -1)).movedim(-2, 1)  # [T, S, in, H / S]
                inner = torch.einsum("tsia,tuib->tsuab", parts, parts).square().sum((0, 3, 4))  # [S, S]
                total = total + inner.triu(1).sum()
        return total
