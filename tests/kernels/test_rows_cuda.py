"""The GPU's way, beside the CPU's. With TRITON_INTERPRET=1 and Triton installed the kernels run without a GPU."""

import os

import pytest
import torch

from recstack.kernels import rows as kernel
from recstack.kernels import rows_cuda as cuda
from recstack.kernels.rows import Rows, sparse_gather
from recstack.training.optimizers import OPTIMIZERS, clip

ON = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
triton = pytest.mark.skipif(
    not cuda.there() or (ON == "cuda" and not torch.cuda.is_available()),
    reason="needs Triton, and CUDA or its interpreter",
)


@triton
@pytest.mark.parametrize(("n", "d", "piece"), [(40, 4, 256), (40, 3, 4), (300, 16, 8), (1, 1, 256), (0, 4, 256)])
def test_sums_of_segments_stand_at_their_first_position(n, d, piece, monkeypatch):
    monkeypatch.setattr(cuda, "PIECE", piece)
    index, values = torch.randint(0, 6, (n,)), torch.randn(n, d)
    rows, order = torch.sort(index, stable=True)
    got = cuda.segment_sums(rows.to(ON), order.to(ON), values.to(ON)).cpu()
    want = torch.zeros(n, d)
    for i, r in enumerate(rows.tolist()):
        if i == 0 or rows[i - 1] != r:
            want[i] = values[index == r].sum(0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


STATES = {
    "sgd_": lambda n, d: ([], (0.1,)),
    "rowwise_adagrad_": lambda n, d: ([torch.rand(n)], (0.1, 1e-8)),
    "lazy_adam_": lambda n, d: (
        [torch.randn(n, d), torch.rand(n, d), torch.randint(0, 9, (n,), dtype=torch.int32)],
        (0.1, (0.9, 0.999), 1e-8),
    ),
}


@triton
@pytest.mark.parametrize("d", [1, 5, 16])
@pytest.mark.parametrize("name", STATES)
def test_the_kernel_steps_each_row_once_as_the_cpu_does(name, d):
    state, scalars = STATES[name](30, d)
    weight, rows, grad = torch.randn(30, d), torch.tensor([1, 4, 6, 29]), torch.randn(4, d)
    times = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    w, *other = (x.clone().to(ON) for x in (weight, *state))
    getattr(kernel, name)(weight, *state, rows, grad, *scalars)
    getattr(cuda, name)(w, *other, rows[times].to(ON), grad[times].to(ON), *scalars)
    for a, b in zip([weight, *state], [w, *other], strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-5, atol=1e-6)


def trained(device, name, dtype=torch.float32, limit=None):
    torch.manual_seed(0)
    start = torch.randn(50, 4)
    start[0] = 0
    w = torch.nn.Parameter(start.to(device, dtype))
    o = OPTIMIZERS[name]([w], lr=0.05)
    for _ in range(4):
        index, offsets, weight = torch.randint(0, 50, (3, 60)), torch.arange(0, 61, 5), torch.randn(60, 4)
        one = sparse_gather(w, Rows(index[:2].to(device))).float()
        two = sparse_gather(w, Rows(index[2].to(device), offsets.to(device), mean=True)).float()
        ((one * weight.to(device)).sum() + two.square().sum()).backward()
        if limit is not None:
            clip([w], limit)
        o.step()
        w.grad = None
    return w.detach().float().cpu()


@gpu
@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("name", [n for n, o in OPTIMIZERS.items() if hasattr(o, "begin")])
def test_training_on_a_gpu_is_training_on_a_cpu(name, limit):
    torch.testing.assert_close(
        trained("cuda", name, limit=limit), trained("cpu", name, limit=limit), rtol=1e-4, atol=1e-5
    )


@gpu
def test_a_step_waits_for_no_device():
    trained("cuda", "rowwise_adagrad")  # compiled before
    w = torch.nn.Parameter(torch.randn(50, 4, device="cuda"))
    o, index = OPTIMIZERS["rowwise_adagrad"]([w]), torch.randint(0, 50, (60,), device="cuda")
    o.state[w] = o.begin(w.detach(), o.param_groups[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        sparse_gather(w, Rows(index)).square().sum().backward()
        clip([w], 1.0)
        o.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
