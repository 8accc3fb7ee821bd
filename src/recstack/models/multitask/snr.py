"""SNR: Sub-Network Routing for Flexible Parameter Sharing in Multi-Task Learning (Ma et al., AAAI 2019).

https://doi.org/10.1609/aaai.v33i01.3301216
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.models.base import Model
from recstack.models.trunk import MultiTask
from recstack.nn.experts import Experts
from recstack.schema import Schema

Pairs = Sequence[Sequence[int]]


class _Connections(nn.Module):
    r"""What flows from J sub-networks to I: ``[..., J, A] → [..., I, B]``. A subclass says how, by z ``[I, J]``.

    z is hard-concrete (Louizos et al., ICLR 2018), drawn once a batch in training and a number in evaluation:

    .. math:: z = \mathrm{clip}\big(\sigma((\log u - \log(1 - u) + \log \alpha) / \beta) (\zeta - \gamma) + \gamma\big), \qquad
        \hat z = \mathrm{clip}\big(\sigma(\log \alpha) (\zeta - \gamma) + \gamma\big)

    Nearly all begin open. `pairs`: the connections (i, j) that there are; None is all.
    """

    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    by_pair: ClassVar[tuple[str, ...]] = (
        "log_alpha",
    )  # parameters that each connection has; others are of the targets

    def __init__(self, sources: int, targets: int, pairs: Pairs | None):
        super().__init__()
        every = [(i, j) for i in range(targets) for j in range(sources)]
        self.sources, self.targets = sources, targets
        self.pairs: list[tuple[int, int]] = every if pairs is None else [tuple(p) for p in pairs]  # type: ignore[misc]
        for pair in self.pairs:
            if pair not in every:
                raise ConfigError(
                    f"There is no connection {pair} of (to, from) between {sources} and {targets} networks."
                )
        where = torch.tensor([i * sources + j for i, j in self.pairs], dtype=torch.long)
        self.where: Tensor
        self.register_buffer("where", where, persistent=False)
        self.log_alpha = nn.Parameter(2.0 + 0.01 * torch.randn(len(self.pairs)))

    def gates(self) -> Tensor:
        """z of the connections that there are ``[n]``."""
        if self.training:
            u = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
            s = ((u.log() - (1 - u).log() + self.log_alpha) / self.beta).sigmoid()
        else:
            s = self.log_alpha.sigmoid()
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def spread(self, values: Tensor) -> Tensor:
        """``[n, ...]`` of the connections as ``[I, J, ...]``, zeros where there is none."""
        empty = values.new_zeros(self.targets * self.sources, *values.shape[1:])
        return empty.index_copy(0, self.where, values).unflatten(0, (self.targets, self.sources))

    def l0(self) -> Tensor:
        """The expected number of open connections."""
        return (self.log_alpha - self.beta * math.log(-self.gamma / self.zeta)).sigmoid().sum()


class _Transformed(_Connections):
    r""":math:`v_i = b_i + \sum_j z_{ij} W_{ij} u_j`, and ReLU where `last` is not said."""

    by_pair = ("log_alpha", "weight")

    def __init__(self, sources: int, targets: int, pairs: Pairs | None, width: int, out: int, *, last: bool):
        super().__init__(sources, targets, pairs)
        self.last = last
        self.weight = nn.Parameter(torch.empty(len(self.pairs), width, out))
        for one in self.weight:
            nn.init.xavier_normal_(one)
        self.bias = nn.Parameter(torch.zeros(targets, out))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.spread(self.gates()[:, None, None] * self.weight)  # [I, J, A, B]
        v = (x.flatten(-2) @ weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)).unflatten(-1, self.bias.shape)
        v = v + self.bias.to(v.dtype)
        return v if self.last else v.relu()


class _Averaged(_Connections):
    r""":math:`v_i = \sum_j z_{ij} u_j`, and a fully connected layer on it where `last` is not said."""

    def __init__(self, sources: int, targets: int, pairs: Pairs | None, width: int, out: int, *, last: bool):
        super().__init__(sources, targets, pairs)
        self.weight = self.bias = None
        if not last:
            self.weight = nn.Parameter(torch.empty(targets, width, out))
            for one in self.weight:
                nn.init.xavier_normal_(one)
            self.bias = nn.Parameter(torch.zeros(targets, out))

    def forward(self, x: Tensor) -> Tensor:
        v = self.spread(self.gates()).to(x.dtype) @ x
        if self.weight is None or self.bias is None:
            return v
        return (torch.einsum("...ia,iab->...ib", v, self.weight) + self.bias.to(v.dtype)).relu()


class _SNR(MultiTask):
    """Levels of sub-networks, the tasks on top; a subclass says what a connection is."""

    kind: ClassVar[type[_Transformed] | type[_Averaged]]

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
        self.dropout = nn.Dropout(dropout)
        self.towers_on(hidden[-1], towers, norm=norm, dropout=dropout, detach=detach)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, plus = self.trunk(batch)
        x = self.bottom(x)  # [R, L, J, H]
        for level in self.connections:
            x = self.dropout(level(x))
        return self.answer(x, batch, plus)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        open_ones = torch.stack([level.l0() for level in self.connections]).sum()  # type: ignore[operator]
        return {**super().losses(batch), "l0": self.l0 * open_ones}

    @torch.no_grad()
    def prune(self) -> Self:
        """A model without closed connections, and without sub-networks that nothing reads any more; it predicts the same.

        It can be trained further, saved and served. What is dropped are weights; where a sub-network keeps one connection
        of many, the product with the others is still taken, with zeros.
        """
        if self.bits is not None:
            raise ConfigError("Prune the model before its tables are quantised.")
        was, _ = self.training, self.eval()
        levels: list[_Connections] = list(self.connections)  # type: ignore[arg-type]
        kept = [[p for p, z in zip(c.pairs, c.gates().tolist(), strict=True) if z > 0] for c in levels]
        self.train(was)
        live = [list(range(len(self.names)))]  # sub-networks that are read, from the lowest level to the tasks
        for l in reversed(range(len(levels))):
            kept[l] = [p for p in kept[l] if p[0] in live[0]]
            live.insert(0, sorted({j for _, j in kept[l]}) or [0])
        renamed = tuple(tuple((live[l + 1].index(i), live[l].index(j)) for i, j in some) for l, some in enumerate(kept))
        counts = tuple(len(some) for some in live[:-1])
        new = type(self)(**{**self._arguments, "networks": counts, "connections": renamed})
        state = self.state_dict()
        for name in ("weight", "bias"):
            value = state[f"bottom.first.{name}"]
            by_network = value.unflatten(0, (self.bottom.experts, -1))
            state[f"bottom.first.{name}"] = by_network[live[0]].flatten(0, 1)
        for l, level in enumerate(levels):
            places = [level.pairs.index(p) for p in kept[l]]
            for name, value in level.named_parameters():
                state[f"connections.{l}.{name}"] = value[places if name in level.by_pair else live[l + 1]]
        new.load_state_dict(state)
        new.schema, new.fitted, new.profiles = self.schema, self.fitted, self.profiles
        return new.to(value.device).train(was)


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

    kind = _Transformed


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

    kind = _Averaged
