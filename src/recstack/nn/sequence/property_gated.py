"""A user as an LSTM over behaviours whose gates look at what kind of behaviour each was, read by attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recstack.nn.mlp import linear
from recstack.nn.sequence.attention import masked_softmax
from recstack.nn.sequence.recurrent import lstm_step, unroll


class PropertyGatedLSTM(nn.Module):
    r"""An LSTM's states ``[R, T, hidden]`` of steps e ``[R, T, W]`` with properties p ``[R, T, P]``; in float32.

    .. math:: (i_t, f_t, o_t) = \sigma(W e_t + V p_t + U h_{t-1} + b), \qquad
        c_t = f_t \odot c_{t-1} + i_t \odot \tanh(W_c e_t + U_c h_{t-1} + b_c), \qquad h_t = o_t \odot \tanh(c_t)

    Properties (what the user did, where, when) decide what is kept, and are no part of it (Ni et al., KDD 2018,
    https://arxiv.org/abs/1805.10727). Without peepholes.

    Args:
        width: W.
        properties: P; 0 for none.
        hidden: of the states.
    """

    def __init__(self, width: int, properties: int, hidden: int):
        super().__init__()
        self.cell = nn.LSTMCell(width, hidden)
        self.of_property = linear(properties, 3 * hidden, bias=False) if properties else None

    def forward(self, sequence: Tensor, properties: Tensor) -> Tensor:
        cell = self.cell
        with torch.autocast(sequence.device.type, enabled=False):
            gates = F.linear(sequence.float(), cell.weight_ih, cell.bias_ih)  # [R, T, 4 H]: i, f, what is new, o
            if self.of_property is not None:
                i, f, o = self.of_property(properties.float()).chunk(3, -1)
                gates = gates + torch.cat([i, f, torch.zeros_like(o), o], -1)
            gates = gates.transpose(0, 1)
            start = gates.new_zeros(gates.shape[1], 2 * cell.hidden_size)
            states = unroll(lstm_step, start, (gates, torch.ones_like(gates[..., :1])), (cell.weight_hh, cell.bias_hh))
            return states.chunk(2, -1)[0].transpose(0, 1)


class PropertyGated(nn.Module):
    r"""What several tasks know of a user: the states of a `PropertyGatedLSTM`, weighed by what is known beside.

    .. math:: a_t \propto \exp\big(w^\top \tanh(W [h_t; p_t; q] + b)\big), \qquad \sum_t a_t h_t

    q is everything that is known without the history: the user, the request, a query.

    Args:
        width, properties, hidden: as in `PropertyGatedLSTM`.
        side: width of q; 0 for none.
        attention: width of the attention's layer.
    """

    def __init__(self, width: int, properties: int, hidden: int, side: int = 0, attention: int = 64):
        super().__init__()
        self.lstm = PropertyGatedLSTM(width, properties, hidden)
        self.first, self.last = linear(hidden + properties + side, attention), linear(attention, 1, bias=False)

    def forward(self, sequence: Tensor, properties: Tensor, side: Tensor, where: Tensor) -> Tensor:
        """Steps ``[R, T, W]``, properties ``[R, T, P]``, q ``[R, S]`` to ``[R, hidden]``, over the live of ``where [R, T]``.

        With ``where [R, P, T]``, of several sets of steps: ``[R, P, hidden]``. Nothing live gives zeros.
        """
        states = self.lstm(sequence, properties)
        q = side.unsqueeze(1).expand(-1, states.shape[1], -1)
        score = self.last(self.first(torch.cat([states, properties.float(), q.float()], -1)).tanh()).squeeze(-1)
        several = where if where.dim() == 3 else where.unsqueeze(1)
        read = masked_softmax(score.unsqueeze(1), several) @ states
        return read if where.dim() == 3 else read.squeeze(1)
