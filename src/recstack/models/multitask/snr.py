"""SNR: Sub-Network Routing for Flexible Parameter Sharing in Multi-Task Learning (Ma et al., AAAI 2019).

https://doi.org/10.1609/aaai.v33i01.3301216
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.dropout import Dropout
from recstack.nn.experts import Experts
from recstack.nn.modes import evaluating
from recstack.nn.routing import Averaged, Connections, Pairs, Transformed, surviving
from recstack.schema import Schema


class _SNR(MultiTask):
    """Levels of sub-networks, the tasks on top; a subclass says what a connection is."""

    kind: ClassVar[type[Transformed] | type[Averaged]]

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        networks: Sequence[int] = (4, 4),
        hidden: Sequence[int] = (16, 16),
        towers: Sequence[int] = (16,),
        l0: float = 1e-4,
        connections: Sequence[Pairs] | None = None,
        norm: str | None = None,
        dropout: float = 0.0,
        detach: Sequence[str] = (),
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        if not networks or len(networks) != len(hidden) or min(networks) < 1:
            raise ConfigError(
                f"networks= and hidden= say how many and how wide, level by level; got {tuple(networks)} and {tuple(hidden)}."
            )
        if connections is not None and len(connections) != len(networks):
            raise ConfigError(f"connections= has one part for each of {len(networks)} levels; got {len(connections)}.")
        super().__init__(schema, dim, history, trunk, together=True)
        self.l0 = l0
        counts, widths = (*networks, len(self.names)), (*hidden, hidden[-1])
        pairs = connections or [None] * len(networks)
        self.bottom = Experts(self.trunk.width, hidden[:1], networks[0], dropout)
        self.connections = nn.ModuleList(
            self.kind(*some, pairs[l], *sizes, last=l == len(networks) - 1)
            for l, (some, sizes) in enumerate(zip(pairwise(counts), pairwise(widths), strict=True))
        )
        self.dropout = Dropout(dropout)
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        x = self.bottom(x)  # [R, L, J, H]
        for level in self.connections:
            x = self.dropout(level(x))
        return self.answer(x, batch, plus)

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        open_ones = torch.stack([level.l0() for level in self.connections]).sum()  # type: ignore[operator]
        return super().auxiliary_losses(batch) | {"l0": self.l0 * open_ones}

    @torch.no_grad()
    def prune(self) -> Self:
        """A model without closed connections, and without sub-networks that nothing reads any more; it predicts the same.

        It can be trained further, saved and served. What is dropped are weights; where a sub-network keeps one connection
        of many, the product with the others is still taken, with zeros.
        """
        if self.bits is not None:
            raise ConfigError("Prune the model before its tables are quantised.")
        levels: list[Connections] = list(self.connections)  # type: ignore[arg-type]
        with evaluating(self):
            kept, live = surviving(levels)
        renamed = tuple(tuple((live[l + 1].index(i), live[l].index(j)) for i, j in some) for l, some in enumerate(kept))
        counts = tuple(len(some) for some in live[:-1])
        new = type(self)(**{**self._arguments, "networks": counts, "connections": renamed})
        state = self.state_dict()
        for name in ("weight", "bias"):
            value = state[f"bottom.first.{name}"]
            by_network = value.unflatten(0, (self.bottom.experts, -1))
            state[f"bottom.first.{name}"] = by_network[live[0]].flatten(0, 1)
        for l, level in enumerate(levels):
            state |= {f"connections.{l}.{n}": value for n, value in level.cut(kept[l], live[l + 1]).items()}
        new.load_state_dict(state)
        new.schema, new.fitted, new.profiles = self.schema, self.fitted, self.profiles
        return new.to(value.device).train(self.training)


class SNRTrans(_SNR):
    r"""Sub-networks whose connections, and a matrix in each connection, are learned; closed ones can be cut.

    .. math:: v_i = \mathrm{ReLU}\Big(b_i + \sum_j z_{ij} W_{ij} u_j\Big), \qquad z_{ij} \in [0, 1], \qquad
        L = \sum_k L_k + \lambda\, \mathbb{E}\lVert z \rVert_0

    Level by level, from sub-networks that read x ``[R, L, J, H]`` to the tasks ``[R, L, T, H]``; all connections of a level
    are one product. z is hard-concrete, sampled once a batch (each process draws its own), and clipped to a number in
    evaluation. The expected number of open connections is the loss "l0". `prune` drops the closed ones. Departs from the
    paper: the temperature divides the whole logarithm, as in Louizos et al. (ICLR 2018), where the paper's line divides
    log α alone; a bias.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        networks: how many sub-networks in each level.
        hidden: their widths, level by level.
        towers: widths of each task's tower.
        l0: λ; 1e-5 stays nearly dense, 1e-4 is sparse in the paper.
        connections: for each level the pairs (to, from) that there are, as `prune` leaves them; None is all.
        norm: "batch", "layer" or None, in the towers.
        dropout: in sub-networks and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what the lowest level reads in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: networks and hidden of different lengths, or a connection between networks that there are not.

    Ma et al., AAAI 2019, https://doi.org/10.1609/aaai.v33i01.3301216

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks="funnel"))
    >>> model = rs.multitask.SNRTrans(rs.Encoder(train.schema).fit(train).schema, networks=(3, 2), l0=1e-3)
    >>> small = model.fit(train, valid=valid, epochs=1, progress=False).prune()
    >>> sorted(small.score(test))
    ['cart', 'carted', 'click', 'order', 'ordered']
    """

    kind = Transformed


class SNRAver(_SNR):
    r"""Sub-networks whose connections are learned, and weigh what is handed on; closed ones can be cut.

    .. math:: v_i = \sum_j z_{ij} u_j, \qquad u_i = \mathrm{ReLU}(W_i v_i + b_i), \qquad z_{ij} \in [0, 1], \qquad
        L = \sum_k L_k + \lambda\, \mathbb{E}\lVert z \rVert_0

    As `SNRTrans`, without matrices in the connections ``[I, J]``: each sub-network ``[R, L, J, H]`` is a layer on the sum
    that it is given, and each task's tower reads such a sum.

    Args:
        schema: a fitted schema; one task is allowed.
        dim: embedding width.
        networks: how many sub-networks in each level.
        hidden: their widths, level by level.
        towers: widths of each task's tower.
        l0: λ.
        connections: for each level the pairs (to, from) that there are, as `prune` leaves them; None is all.
        norm: "batch", "layer" or None, in the towers.
        dropout: in sub-networks and towers.
        detach: tasks whose loss does not reach below their tower.
        history: how histories become vectors: "mean", "attention", ...
        trunk: what the lowest level reads in the place of all embeddings; a model class, such as ``rs.ranking.DCNv2``.

    Raises:
        ConfigError: networks and hidden of different lengths, or a connection between networks that there are not.

    Ma et al., AAAI 2019, https://doi.org/10.1609/aaai.v33i01.3301216

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.multitask.SNRAver(rs.Encoder(train.schema).fit(train).schema, networks=(3, 2))
    >>> model = model.fit(train, valid=valid, epochs=1, progress=False)
    >>> model.prune().score(test)["click"].shape == (len(test),)
    True
    """

    kind = Averaged
