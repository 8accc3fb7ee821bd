"""Recurrent encoders of a history: GRU, one step after another, and SRU, all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.kernels import recurrent
from recstack.nn.mlp import linear
from recstack.nn.sequence.pooling import POOLINGS, Last, Pooling

_disabled: Any = None


def unroll(
    step: Callable[..., Tensor],
    state: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    last: bool = False,
) -> Tensor:
    """The states after each step ``[T, ...]``, or the `last`: ``state = step(state, *(x[t] for x in inputs), *weights)``.

    A loop, which a compiler does not look into (it would compile one graph for each T); in an exported graph a scan, so
    that T stays free.
    """
    global _disabled
    if torch.compiler.is_exporting():
        return _scanned(step, state, inputs, weights, last)
    if torch.compiler.is_compiling():
        if _disabled is None:
            _disabled = torch.compiler.disable(_looped)
        return _disabled(step, state, inputs, weights, last)
    return _looped(step, state, inputs, weights, last)


def _looped(
    step: Callable[..., Tensor], state: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor], last: bool
) -> Tensor:
    states = []
    for now in zip(*(x.unbind(0) for x in inputs), strict=True):
        state = step(state, *now, *weights)
        states.append(state)
    return state if last else torch.stack(states)


def _scanned(
    step: Callable[..., Tensor], state: Tensor, inputs: Sequence[Tensor], weights: Sequence[Tensor], last: bool
) -> Tensor:
    from torch._higher_order_ops.scan import scan_op

    def combine(state: Tensor, *rest: Tensor) -> list[Tensor]:
        new = step(state, *rest)
        return [new, new.clone()]

    return scan_op(combine, [state], list(inputs), tuple(weights))[0 if last else 1]


def gru_step(state: Tensor, gates: Tensor, update: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""One step of a GRU whose update is scaled: by 0 the state stays, by 1 it is torch's.

    .. math:: h' = h + a\,(1 - z) \odot (n - h), \qquad n = \tanh(x_n + r \odot h_n)

    Args:
        state: h ``[..., H]``.
        gates: what r, z and n take from the input, ``[..., 3 H]``.
        update: a ``[..., 1]``.
        weight, bias: of the state, ``[3 H, H]`` and ``[3 H]``.
    """
    of_input, of_state = gates.chunk(3, -1), F.linear(state, weight, bias).chunk(3, -1)
    reset, keep = (of_input[0] + of_state[0]).sigmoid(), of_input[1] + of_state[1]
    new = (of_input[2] + reset * of_state[2]).tanh()
    return state + update * (-keep).sigmoid() * (new - state)


class GRU(nn.Module):
    """A GRU's states: ``sequence [R, T, W], mask [R, T] → [R, T, hidden]``, zeros where nothing is; in float32.

    (Cho et al., EMNLP 2014, https://arxiv.org/abs/1406.1078.)
    """

    def __init__(self, width: int, hidden: int | None = None):
        super().__init__()
        self.cell = nn.GRU(width, hidden or width, batch_first=True)

    def forward(self, sequence: Tensor, mask: Tensor) -> Tensor:
        live = mask.unsqueeze(-1)
        with torch.autocast(sequence.device.type, enabled=False):
            sequence = sequence.float()
            if torch.compiler.is_compiling():
                return self._unrolled(sequence, live) * live
            if len(sequence) > recurrent.FEW or sequence.device.type != "cpu" or torch.is_grad_enabled():
                return self.cell(sequence)[0] * live  # steps stand left: padding comes after what counts
            return self._few(sequence) * live

    def _unrolled(self, sequence: Tensor, live: Tensor) -> Tensor:
        of_input, of_state, *bias = self._weights()
        gates = F.linear(sequence, of_input, bias[0]).transpose(0, 1)  # [T, R, 3 H]
        start = gates.new_zeros(gates.shape[1], self.cell.hidden_size)
        inputs = (gates, live.to(gates.dtype).transpose(0, 1))
        return unroll(gru_step, start, inputs, (of_state, bias[1])).transpose(0, 1)

    def _few(self, sequence: Tensor) -> Tensor:
        """Live requests come one by one: there torch's loop is slow, some 20 µs a step."""
        of_input, of_state, *bias = self._weights()
        gates = F.linear(sequence, of_input, bias[0])
        return torch.from_numpy(recurrent.gru(*(x.detach().numpy() for x in (gates, of_state, bias[1]))))

    def _weights(self) -> list[Tensor]:
        """Of the inputs, of the state, and their biases."""
        return list(self.cell.parameters())


def lstm_step(state: Tensor, gates: Tensor, keep: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One step of an LSTM whose state ``[..., 2 H]``, h beside c, is multiplied by `keep` ``[..., 1]`` before."""
    h, c = (state * keep).chunk(2, -1)
    i, f, g, o = (gates + F.linear(h, weight, bias)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return torch.cat([o.sigmoid() * c.tanh(), c], -1)


class LSTM(nn.Module):
    """An LSTM's states, from nothing again where told: ``sequence [R, T, W], begin [R, T] → [R, T, hidden]``; in float32.

    (Hochreiter & Schmidhuber, 1997, https://doi.org/10.1162/neco.1997.9.8.1735.)
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.cell = nn.LSTMCell(width, hidden)

    def forward(self, sequence: Tensor, begin: Tensor) -> Tensor:
        cell = self.cell
        with torch.autocast(sequence.device.type, enabled=False):
            gates = F.linear(sequence.float(), cell.weight_ih, cell.bias_ih).transpose(0, 1)  # [T, R, 4 H]
            keep = (~begin).to(gates.dtype).t().unsqueeze(-1)
            start = gates.new_zeros(gates.shape[1], 2 * cell.hidden_size)
            states = unroll(lstm_step, start, (gates, keep), (cell.weight_hh, cell.bias_hh))
            return states.chunk(2, -1)[0].transpose(0, 1)


class GRUState(Pooling):
    """A GRU's state after the most recent step (GRU4Rec; Hidasi et al., ICLR 2016, https://arxiv.org/abs/1511.06939)."""

    def __init__(self, width: int):
        super().__init__(width)
        self.gru, self.last = GRU(width), Last(width)

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        return self.last(None, self.gru(sequence, mask), mask)


class SRU(Pooling):
    r"""The state of a simple recurrent unit after the most recent step, without a loop.

    .. math:: c_t = f_t \odot c_{t-1} + (1 - f_t) \odot W x_t, \qquad h = r \odot \tanh(c) + (1 - r) \odot x

    (Lei et al., EMNLP 2018, https://arxiv.org/abs/1709.02755; f and r read the input only, as in its first edition.)
    Then :math:`c_T = \sum_t (\prod_{u > t} f_u)(1 - f_t) \odot W x_t`, a sum over steps.
    """

    def __init__(self, width: int):
        super().__init__(width)
        self.project = linear(width, width, bias=False)
        self.gates = linear(width, 2 * width)
        self.last = Last(width)

    def forward(self, query: Tensor | None, sequence: Tensor, mask: Tensor) -> Tensor:
        live = mask.unsqueeze(-1)
        forget, reset = self.gates(sequence).float().chunk(2, -1)  # float32: products over many steps
        kept = F.logsigmoid(forget) * live
        after = kept.flip(-2).cumsum(-2).flip(-2) - kept  # log of what is kept by all later steps
        state = (after.exp() * (1 - forget.sigmoid()) * self.project(sequence) * live).sum(-2)
        now, reset = self.last(None, sequence, mask), self.last(None, reset.sigmoid(), mask)
        return (reset * state.tanh() + (1 - reset) * now) * mask.any(-1, keepdim=True)


POOLINGS["gru"] = GRUState
POOLINGS["sru"] = SRU
