"""A level of experts of which each task has some of its own, beside those of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recstack.nn.experts import Experts
from recstack.nn.gates import Gates, mixtures
from recstack.nn.mlp import Sides


class Extraction(nn.Module):
    r"""One level of PLE (Tang et al., RecSys 2020, https://doi.org/10.1145/3383313.3412236).

    .. math:: g_k = \mathrm{softmax}(W_k x_k)\, [E_k(x_k); E_s(x_s)], \qquad
        g_s = \mathrm{softmax}(W_s x_s)\, [E_1(x_1); \dots; E_T(x_T); E_s(x_s)]

    ``x [..., W]``, or with `each` a stream for each task and the shared one, ``[..., T + 1, W]``, to ``[..., T + 1, H]``; the
    shared stream is the last. All experts are computed together, those of the tasks first.

    Args:
        width: W.
        hidden: widths of each expert; H is the last.
        tasks: T.
        specific: experts of each task.
        shared: experts of all.
        gate_dropout: chance that an expert is out for a row and a gate while training.
        dropout: in the experts.
        each: every stream has a vector of its own.
        last: no shared stream comes out, ``[..., T, H]``, since nothing would read it.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        tasks: int,
        specific: int,
        shared: int,
        gate_dropout: float = 0.0,
        dropout: float = 0.0,
        *,
        each: bool = False,
        last: bool = False,
    ):
        super().__init__()
        self.tasks, self.specific, self.each = tasks, specific, each
        experts = tasks * specific + shared
        stream = torch.arange(tasks + 1).repeat_interleave(torch.tensor([specific] * tasks + [shared]))
        self.stream: Tensor  # what each expert reads
        self.register_buffer("stream", stream, persistent=False)
        self.experts = Experts(width, hidden, experts, dropout, each=each)
        self.gates = Gates(width, specific + shared, tasks, gate_dropout, each=each)
        self.gates.numbers = [
            [*range(k * specific, (k + 1) * specific), *range(tasks * specific, experts)] for k in range(tasks)
        ]
        self.shared_gate = None if last else Gates(width, experts, 1, gate_dropout, each=each)

    def forward(self, x: Sides) -> Tensor:
        x_tasks = x_shared = x_experts = x
        if self.each:
            assert isinstance(x, Tensor)
            x_tasks, x_shared = x[..., :-1, :], x[..., -1:, :]
            x_experts = x.movedim(-2, 0).index_select(0, self.stream).movedim(0, -2)  # as experts lay it out
        gate = self.gates(x_tasks)  # [..., T, m + s]
        # As weights of all experts, zero for those of other tasks: one product of a few larger matrices is much faster.
        mine = torch.eye(self.tasks, device=gate.device).unsqueeze(-1)  # [T, T, 1]
        of_own = (gate[..., : self.specific].unsqueeze(-2) * mine).flatten(-2)
        gate = torch.cat([of_own, gate[..., self.specific :]], -1)  # [..., T, T m + s]
        if self.shared_gate is not None:
            gate = torch.cat([gate, self.shared_gate(x_shared)], -2)
        return mixtures(gate, self.experts(x_experts))
