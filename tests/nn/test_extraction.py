"""A level of own and shared experts is the loop over tasks that the paper writes."""

import pytest
import torch

from recstack.nn.extraction import Extraction

T, M, S, W, H = 3, 2, 1, 5, 4


@pytest.mark.parametrize("each", [False, True])
def test_a_task_mixes_its_own_experts_and_the_shared_ones_and_the_shared_gate_mixes_all(each):
    torch.manual_seed(0)
    level = Extraction(W, (H,), T, M, S, each=each)
    x = torch.randn(7, T + 1, W) if each else torch.randn(7, W)
    streams = list(x.unbind(-2)) if each else [x] * (T + 1)
    (weight,), (bias,) = level.experts.stacked(), level.experts.stacked_biases()
    of = [k for k in range(T) for _ in range(M)] + [T] * S  # the stream of each expert
    experts = [(streams[k] @ weight[e] + bias[e]).relu() for e, k in enumerate(of)]
    out = level(x)
    for k in range(T):
        seen = [e for e, stream in enumerate(of) if stream in (k, T)]
        assert level.gates.numbers[k] == seen
        gate = (streams[k] @ level.gates.weight[k].T).softmax(-1)
        torch.testing.assert_close(out[:, k], sum(gate[:, i, None] * experts[e] for i, e in enumerate(seen)))
    gate = (streams[T] @ level.shared_gate.weight[0].T).softmax(-1)
    torch.testing.assert_close(out[:, T], sum(gate[:, e, None] * experts[e] for e in range(len(of))))
    assert Extraction(W, (H,), T, M, S, each=each, last=True)(x).shape == (7, T, H)
