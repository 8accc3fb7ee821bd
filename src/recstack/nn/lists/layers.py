"""Layers of a list that mix its items by convolution, by attention beside convolution, or step by step.

All take ``x [R, L, W], mask [R, L] → [R, L, W]``: what stands where `mask` is False is read by nobody, and comes out as
zeros. They are built as ``Layer(width, heads, hidden, kernel, dropout)``; one that has no use for an argument ignores it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.errors import ConfigError
from recstack.nn.dropout import Dropout
from recstack.nn.mlp import linear
from recstack.nn.sequence.recurrent import GRU, unroll
from recstack.nn.sequence.transformer import SelfAttention, TransformerLayer


def neighbours(x: Tensor, kernel: int) -> Iterator[Tensor]:
    """``x[t + j - kernel // 2]`` for j of 0 … kernel - 1, zeros beyond the ends: `kernel` views ``[R, L, W]``."""
    padded = F.pad(x, (0, 0, kernel // 2, kernel - 1 - kernel // 2))
    return (padded.narrow(1, j, x.shape[1]) for j in range(kernel))


class _Convolution(nn.Module):
    """A gated projection, a convolution of each channel with weights that sum to 1, a projection."""

    def __init__(self, width: int, heads: int, kernel: int, dropout: float):
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads must divide the width; got {heads} heads for a width of {width}.")
        self.heads, self.kernel, self.dropout = heads, kernel, Dropout(dropout)
        self.project = linear(width, 2 * width)
        self.out = linear(width, width)

    def weights(self, x: Tensor) -> Tensor:
        """Logits of the weights, ``[..., heads, kernel]``."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        live = mask.unsqueeze(-1)
        x = F.glu(self.project(x), -1) * live
        weight = self.dropout(self.weights(x).float().softmax(-1)).to(x.dtype)
        y = torch.zeros_like(x).unflatten(-1, (self.heads, -1))
        for j, near in enumerate(neighbours(x, self.kernel)):
            y = y + near.unflatten(-1, (self.heads, -1)) * weight[..., j, None]
        return self.out(y.flatten(-2)) * live


class LightConv(_Convolution):
    r"""A convolution over places whose weights the channels of a head share, and which sum to 1.

    .. math:: y_{t,c} = \sum_j \mathrm{softmax}(W_{h(c)})_j \, x_{t + j - \lfloor k/2 \rfloor, c}

    Between a gated projection (GLU) and another; `dropout` drops weights after the softmax (DropConnect). What is dead
    or beyond the ends counts as zero. (Wu et al., ICLR 2019, https://arxiv.org/abs/1901.10430.)
    """

    def __init__(self, width: int, heads: int, kernel: int = 3, dropout: float = 0.0):
        super().__init__(width, heads, kernel, dropout)
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, kernel)))

    def weights(self, x: Tensor) -> Tensor:
        return self.weight


class DynamicConv(_Convolution):
    r"""A light convolution whose weights each place makes itself: :math:`\mathrm{softmax}(x_t W^Q)`.

    (Wu et al., ICLR 2019, https://arxiv.org/abs/1901.10430.)
    """

    def __init__(self, width: int, heads: int, kernel: int = 3, dropout: float = 0.0):
        super().__init__(width, heads, kernel, dropout)
        self.of_place = linear(width, heads * kernel, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        return self.of_place(x).unflatten(-1, (self.heads, self.kernel))


class LongShortRange(nn.Module):
    r"""Half of the channels go through attention, half through a light convolution, side by side.

    .. math:: [\mathrm{MHA}(x_{:d/2}); \mathrm{LightConv}(x_{d/2:})]

    (Wu et al., ICLR 2020, https://arxiv.org/abs/2004.11886.)
    """

    def __init__(self, width: int, heads: int, kernel: int = 3, dropout: float = 0.0):
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(f"heads must divide half the width; got {heads} heads for a width of {width}.")
        self.far = SelfAttention(width // 2, heads, dropout)
        self.near = LightConv(width // 2, heads, kernel, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        far, near = x.chunk(2, -1)
        return torch.cat([self.far(far, mask), self.near(near, mask)], -1)


class _Mixed(nn.Module):
    """A mixer of places, then (if `hidden`) a position-wise network, each with dropout, residual, normalisation."""

    def __init__(self, mix: nn.Module, width: int, hidden: int, dropout: float):
        super().__init__()
        self.mix = mix
        self.feed = (
            nn.Sequential(linear(width, hidden), nn.ReLU(), Dropout(dropout), linear(hidden, width)) if hidden else None
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 if hidden else 1))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norms[0](x + self.dropout(self.mix(x, mask)))
        if self.feed is not None:
            x = self.norms[1](x + self.dropout(self.feed(x)))
        return x * mask.unsqueeze(-1)


class LightConvLayer(_Mixed):
    """`LightConv` in the place of attention; ``hidden=0`` leaves the position-wise network out."""

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__(LightConv(width, heads, kernel, dropout), width, hidden, dropout)


class DynamicConvLayer(_Mixed):
    """`DynamicConv` in the place of attention; ``hidden=0`` leaves the position-wise network out."""

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__(DynamicConv(width, heads, kernel, dropout), width, hidden, dropout)


class LiteLayer(_Mixed):
    """`LongShortRange` in the place of attention. The paper's position-wise network is flattened: ``hidden = width``."""

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__(LongShortRange(width, heads, kernel, dropout), width, hidden, dropout)


class FullLayer(TransformerLayer):
    """`TransformerLayer`, built as the other layers are."""

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        if not hidden:
            raise ConfigError("A transformer needs its position-wise network: give hidden= at least 1.")
        super().__init__(width, heads, hidden, dropout=dropout)


class FlattenedLayer(FullLayer):
    """A transformer's layer whose position-wise network is as wide as its input: `hidden` is not read.

    (Wu et al., ICLR 2020, https://arxiv.org/abs/2004.11886.)
    """

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__(width, heads, width, kernel, dropout)


class GatedConvLayer(nn.Module):
    r"""A full convolution, gated: :math:`\sqrt{1/2}\,(x + \mathrm{GLU}(\mathrm{Conv}(x)))`; what is dead counts as zero.

    Departs from the paper: no weight normalisation. (Gehring et al., ICML 2017, https://arxiv.org/abs/1705.03122.)
    """

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__()
        self.kernel, self.dropout = kernel, Dropout(dropout)
        self.conv = linear(kernel * width, 2 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        live = mask.unsqueeze(-1)
        x = x * live
        y = F.glu(self.conv(torch.cat(list(neighbours(self.dropout(x), self.kernel)), -1)), -1)
        return 0.5**0.5 * (x + y) * live


def sru_step(state: Tensor, forget: Tensor, new: Tensor) -> Tensor:
    """``c = f ⊙ c' + (1 - f) ⊙ W x``, where `new` is the second summand."""
    return forget * state + new


class SRULayer(nn.Module):
    r"""Simple recurrent units from both ends, each half as wide; all that is not elementwise happens at once.

    .. math:: c_t = f_t \odot c_{t-1} + (1 - f_t) \odot W x_t, \qquad h_t = r_t \odot \tanh(c_t) + (1 - r_t) \odot W' x_t

    Gates f and r read the input only, as in the paper's first edition; a dead item leaves c as it is. States are float32.
    (Lei et al., EMNLP 2018, https://arxiv.org/abs/1709.02755.)
    """

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__()
        self.cut = width - width // 2  # the downward half
        self.project = linear(width, 4 * width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        live = mask.unsqueeze(-1)
        value, forget, reset, skip = self.project(self.dropout(x)).float().chunk(4, -1)
        forget = torch.where(live, forget.sigmoid(), 1.0)
        new = (1 - forget) * value  # 0 where nothing is
        steps = [self._turned(part.transpose(0, 1)) for part in (forget, new)]
        state = self._turned(unroll(sru_step, torch.zeros_like(new[:, 0]), steps, ())).transpose(0, 1)
        reset = reset.sigmoid()
        return ((reset * state.tanh() + (1 - reset) * skip) * live).to(x.dtype)

    def _turned(self, x: Tensor) -> Tensor:
        """``[L, R, W]`` with the upward half of the channels in the opposite order of places."""
        return torch.cat([x[..., : self.cut], x[..., self.cut :].flip(0)], -1)


def live_order(mask: Tensor, upward: bool = False) -> Tensor:
    """Places ``[R, L]``, the live ones first: from the top of the list, or from its end."""
    place = torch.arange(mask.shape[1], device=mask.device)
    n = mask.shape[1]
    return torch.where(mask, n - place if upward else place, 2 * n + place).argsort(-1)


def states_in_order(gru: GRU, x: Tensor, mask: Tensor, upward: bool = False) -> Tensor:
    """A GRU's states after each live item ``[R, L, H]``, read from the top of the list or (`upward`) from its end."""
    order = live_order(mask, upward).unsqueeze(-1)
    states = gru(x.gather(1, order.expand(*order.shape[:2], x.shape[-1])), mask.gather(1, order.squeeze(-1)))
    back = order.argsort(1)
    return states.gather(1, back.expand(*back.shape[:2], states.shape[-1]))


class BiGRULayer(nn.Module):
    """Two GRUs, from the top and from the end of the list, each half as wide: no GRU starts in the padding.

    (Cho et al., EMNLP 2014, https://arxiv.org/abs/1406.1078.)
    """

    def __init__(self, width: int, heads: int, hidden: int, kernel: int, dropout: float):
        super().__init__()
        if width < 2:
            raise ConfigError(f"Two directions need a width of at least 2; got {width}.")
        self.down, self.up = GRU(width, width - width // 2), GRU(width, width // 2)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.dropout(x)
        y = torch.cat([states_in_order(self.down, y, mask), states_in_order(self.up, y, mask, upward=True)], -1)
        return y.to(x.dtype)
