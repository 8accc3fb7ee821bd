"""Dropout by a counter: how much, where, its gradient, and attention with it."""

import pytest
import torch

import recstack.nn.dropout as own
from recstack.kernels.dropout import drop
from recstack.nn.dropout import Dropout, attention


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_mean_stays(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1000)
    y = Dropout(p)(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1.0).mul(1 / (1 - p)).item()}
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)
    for axis in (
        0,
        1,
    ):  # no row and no column has more than its share: 5.5 deviations of a thousand draws, in 1,000 of them
        assert ((y == 0).float().mean(axis) - p).abs().max() < 5.5 * (p * (1 - p) / 1000) ** 0.5


def test_places_and_keys_are_independent():
    torch.manual_seed(0)
    dropped = torch.stack([Dropout(0.5)(torch.ones(200_000)) == 0 for _ in range(4)]).float() - 0.5
    for lag in (0, 1, 2, 7, 64, 1024):
        ahead = dropped[:, lag:]
        alike = dropped[:, : ahead.shape[1]] @ ahead.T / ahead.shape[1] * 4  # correlations
        if lag == 0:
            alike.fill_diagonal_(0)
        assert alike.abs().max() < 5 / ahead.shape[1] ** 0.5


def test_a_key_says_the_places_in_any_number_of_threads(monkeypatch):
    bits = torch.arange(1, 600_001, dtype=torch.int32).numpy()
    one = drop(bits, 0.3, 12345 << 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert (drop(bits, 0.3, 12345 << 20) == one).all()
    assert (drop(bits, 0.3, 12346 << 20) != one).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_is_of_what_was_kept(dtype):
    layer = Dropout(0.4)
    x = torch.randn(33, 7, dtype=dtype).T.requires_grad_()  # not contiguous
    y = layer(x)
    (slope,) = torch.autograd.grad(y, x, torch.full_like(y, 3))
    assert y.shape == x.shape
    assert torch.equal(slope == 0, y == 0)
    torch.testing.assert_close(slope[y != 0], torch.full_like(slope[y != 0], 3 / 0.6))


def test_the_gradient_has_one():
    def dropped(x):
        torch.manual_seed(3)
        return Dropout(0.4)(x).square()

    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(dropped, x)
    assert torch.autograd.gradgradcheck(dropped, x)


def test_evaluation_and_nothing_to_drop_change_nothing():
    x = torch.randn(5, 3)
    assert Dropout(0.0)(x) is x or torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()
    assert Dropout(0.5)(x[:0]).shape == (0, 3)
    assert Dropout(0.5)(torch.tensor(2.0)) in (0, 4)


def test_a_seed_says_what_is_dropped():
    x, layer = torch.randn(64, 64), Dropout(0.5)
    torch.manual_seed(7)
    first, second = layer(x), layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("given", ["mask", "causal", "nothing"])
def test_attention_drops_weights_of_the_softmax(given, monkeypatch):
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    v = torch.eye(6).expand(2, 3, 6, 6)  # what comes out are the weights
    allowed = torch.rand(2, 1, 6, 6) < 0.6
    allowed |= torch.eye(6, dtype=torch.bool)
    options = {"mask": (allowed,), "causal": (None,), "nothing": (None,)}[given]
    causal = given == "causal"
    weight = attention(q, k, v, *options, Dropout(0.25), causal)
    whole = attention(q, k, v, *options, Dropout(0.25).eval(), causal)
    kept = weight != 0
    torch.testing.assert_close(weight[kept], whole[kept] / 0.75)
    assert 0.1 < 1 - kept[whole > 0].float().mean() < 0.4
    with monkeypatch.context() as patch:  # without what is dropped, torch's own
        patch.setattr(own, "drop", lambda bits, *_: bits.copy())
        torch.testing.assert_close(attention(q, k, v, *options, Dropout(0.25), causal) * 0.75, whole)
