"""A GRU over a few sequences, without a call of torch for each of their steps (Cho et al., EMNLP 2014)."""

from __future__ import annotations

import numpy as np

from recstack.kernels.topk import compiled

FEW = 4  # sequences; more are faster side by side, one matrix product a step


def gru(gates: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    r"""The states after each step [R, T, H], from zero; all float32, as ``torch.nn.GRU`` has them.

    .. math:: h' = n + z \odot (h - n), \qquad n = \tanh(x_n + r \odot (U_n h + b_n))

    Args:
        gates: what r, z and n take from the input, [R, T, 3 H].
        weight: U of the state, [3 H, H].
        bias: of the state, [3 H].
    """
    states = np.empty((*gates.shape[:2], weight.shape[1]), np.float32)
    across = np.ascontiguousarray(weight.T)
    for r in range(len(gates)):
        compiled(_gru)(gates[r], across, bias, states[r])
    return states


# --- loops: plain Python that numba compiles -------------------------------------------------------------------------
def _gru(gates, across, bias, states):
    steps, width = states.shape
    one, now, given = np.float32(1), np.zeros(width, np.float32), np.empty(3 * width, np.float32)
    for t in range(steps):
        given[:] = bias
        for k in range(width):
            h = now[k]
            for j in range(3 * width):
                given[j] += h * across[k, j]
        for j in range(width):
            reset = one / (one + np.exp(-gates[t, j] - given[j]))
            keep = one / (one + np.exp(-gates[t, width + j] - given[width + j]))
            new = np.tanh(gates[t, 2 * width + j] + reset * given[2 * width + j])
            now[j] = new + keep * (now[j] - new)
            states[t, j] = now[j]
