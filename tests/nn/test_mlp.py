"""The perceptron and its norms, against the layers of torch written out."""

import pytest
import torch
from torch import nn

from recstack.errors import ConfigError
from recstack.nn.mlp import MLP, BatchNorm, Dice, flat, linear, make_activation, on_live_rows, split_linear


def test_mlp_is_its_layers_one_after_the_other():
    mlp = MLP(5, (4, 3), "tanh").eval()
    x = torch.randn(2, 6, 5)
    first, second = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    slow = torch.tanh(second(torch.tanh(first(x))))
    torch.testing.assert_close(mlp(x), slow)


def test_without_hidden_layers_it_is_the_identity():
    x = torch.randn(3, 2, 5)
    mlp = MLP(5, ())
    assert mlp.width == 5
    assert torch.equal(mlp(x), x)
    request, candidate = torch.randn(3, 2), torch.randn(3, 4, 3)
    assert torch.equal(mlp((request, candidate)), flat((request, candidate)))


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_two_sides_are_one_concatenation(norm):
    mlp = MLP(7, (6, 3), norm=norm).train()
    request, candidate = torch.randn(5, 3), torch.randn(5, 2, 4)
    whole = torch.cat([request.unsqueeze(1).expand(5, 2, 3), candidate], -1)
    torch.testing.assert_close(mlp((request, candidate)), mlp(whole))


def test_split_linear_takes_an_empty_candidate_side():
    layer = linear(3, 2)
    request, candidate = torch.randn(4, 3), torch.randn(4, 5, 0)
    torch.testing.assert_close(split_linear(layer, (request, candidate)), layer(request).unsqueeze(1).expand(4, 5, 2))


def test_batch_norm_is_torchs_over_all_leading_axes():
    ours, theirs = BatchNorm(4), nn.BatchNorm1d(4)
    x = torch.randn(3, 5, 4) * 2 + 1
    torch.testing.assert_close(ours(x), theirs(x.reshape(15, 4)).view(3, 5, 4))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x.reshape(15, 4)).view(3, 5, 4))


def test_a_single_row_has_no_variance_so_batch_norm_uses_what_it_knows():
    norm = BatchNorm(3).train()
    x = torch.randn(1, 1, 3)
    torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_batch_norm_counts_in_float32_under_autocast():
    norm = BatchNorm(2).train()
    x = 1000 + torch.randn(64, 2)
    y = norm(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    assert norm.running_var.isfinite().all()


def test_dice_by_hand():
    dice = Dice(1)
    dice.alpha.data.fill_(0.25)
    s = torch.tensor([[1.0], [3.0]])  # mean 2, deviation 1
    p = torch.tensor([[-1.0], [1.0]]).sigmoid()
    torch.testing.assert_close(dice.train()(s), p * s + (1 - p) * 0.25 * s)


@pytest.mark.parametrize("what", ["batch", "dice"])
def test_dead_rows_touch_no_statistic_and_are_zeros(what):
    make = {"batch": lambda: BatchNorm(4), "dice": lambda: Dice(4)}[what]
    live = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.randn(2, 3, 4)
    full, packed = make().train(), make().train()
    wanted = full(x[live])
    x[~live] = 1e6
    y = on_live_rows(packed, x, live, 4)
    torch.testing.assert_close(y[live], wanted)
    assert not y[~live].any()
    for (name, a), (_, b) in zip(packed.named_buffers(), full.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_nothing_live_is_zeros_with_zero_gradients():
    mlp = MLP(3, (4,), norm="batch").train()
    x = torch.randn(2, 2, 3, requires_grad=True)
    y = mlp(x, torch.zeros(2, 2, dtype=torch.bool))
    y.sum().backward()
    assert not y.any()
    assert not x.grad.any()


def test_dropout_follows_every_activation_and_stops_in_evaluation():
    mlp = MLP(4, (50, 50), dropout=0.5)
    x = torch.randn(20, 4)
    assert sum(isinstance(m, nn.Dropout) for m in mlp.modules()) == 2
    assert not torch.equal(mlp.train()(x), mlp(x))
    assert torch.equal(mlp.eval()(x), mlp(x))


def test_unknown_names_are_guessed():
    with pytest.raises(ConfigError, match="Did you mean 'prelu'"):
        make_activation("prelo", 3)
    with pytest.raises(ConfigError, match="Known: batch, layer"):
        MLP(3, (2,), norm="bach")


def test_linear_is_xavier_normal_with_zero_bias():
    torch.manual_seed(0)
    layer = linear(300, 100)
    assert layer.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert not layer.bias.any()
