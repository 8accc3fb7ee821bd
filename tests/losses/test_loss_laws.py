"""Laws that every loss of the common signature keeps."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from recstack import losses

R, L, C = 6, 5, 4
BINS = (0.0, 0.5, 0.75, 2.0)  # the last is never a label
CASES = {
    **losses.LOSSES,
    "gbce": partial(losses.gbce, n_items=20),
    "huber_2": partial(losses.huber, delta=2.0),
    "bce_smooth": partial(losses.bce, label_smoothing=0.2),
    "cross_entropy_smooth": partial(losses.cross_entropy, label_smoothing=0.2),
    "focal_classes": partial(losses.focal, gamma=1.5, alpha=(0.5, 1.0, 2.0, 0.0)),
    "focal": partial(losses.focal, gamma=1.5, alpha=0.25),
    "ghm": partial(losses.ghm, bins=3),
    **{name: partial(losses.LOSSES[name], values=BINS) for name in ("kl", "js", "wasserstein")},
}
NAMES = sorted(CASES)
CLASSES = {"cross_entropy", "cross_entropy_smooth", "focal_classes"}
OUTPUTS = dict.fromkeys(CLASSES | {"kl", "js", "wasserstein"}, C) | {"jrc": 2}


def world(name, seed=0, lists=R, length=L):
    """Score and label in float64: every list has a positive and a negative, classes for the multiclass loss."""
    random = torch.Generator().manual_seed(seed)
    shape = (lists, length, OUTPUTS[name]) if name in OUTPUTS else (lists, length)
    score = torch.randn(shape, generator=random, dtype=torch.float64)
    if name in CLASSES:
        return score, torch.randint(C, (lists, length), generator=random).double()
    label = (torch.rand(lists, length, generator=random) < 0.4).double()
    label[:, 0], label[:, -1] = 1, 0
    return score, label


def value_and_gradient(loss, score, label, **options):
    score = score.clone().requires_grad_()
    value = loss(score, label, **options)
    return value.detach(), torch.autograd.grad(value, score)[0]


def pad(x, size, axis, value):
    shape = list(x.shape)
    shape[axis] = size
    return torch.cat([x, x.new_full(shape, value)], axis)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [0, 1], ids=["list", "candidate"])
def test_a_dead_cell_is_an_absent_cell_even_if_it_holds_nan(name, axis):
    loss, (score, label) = CASES[name], world(name)
    weight = torch.rand(R, L, dtype=torch.float64) + 0.5
    value, gradient = value_and_gradient(loss, score, label, weight=weight)
    nan = torch.nan
    padded, slope = value_and_gradient(
        loss,
        pad(score, 3, axis, nan),
        pad(label, 3, axis, nan),
        where=pad(torch.ones(R, L, dtype=torch.bool), 3, axis, False),
        weight=pad(weight, 3, axis, nan),
    )
    assert_close(padded, value)
    assert_close(slope, pad(gradient, 3, axis, 0.0))


@pytest.mark.parametrize("name", NAMES)
def test_weight_n_is_the_list_n_times(name):
    loss, (score, label) = CASES[name], world(name)
    times = torch.tensor([1, 2, 3, 1, 0, 2])
    value = loss(score, label, weight=times.double().unsqueeze(-1))
    assert_close(value, loss(score.repeat_interleave(times, 0), label.repeat_interleave(times, 0)))


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_of_weight_does_not_matter(name):
    loss, (score, label) = CASES[name], world(name)
    weight = torch.rand(R, L, dtype=torch.float64)
    assert_close(loss(score, label, weight=weight), loss(score, label, weight=1000 * weight))


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes_are_free(name):
    loss, (score, label) = CASES[name], world(name)
    where = torch.rand(R, L) < 0.8
    folded = [x.unflatten(0, (2, R // 2)).unsqueeze(0) for x in (score, label, where)]
    assert_close(loss(*folded[:2], where=folded[2]), loss(score, label, where=where))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_live_gives_zero_with_zero_gradients(name):
    score, label = world(name)
    dead = torch.zeros(R, L, dtype=torch.bool)
    value, gradient = value_and_gradient(CASES[name], score * torch.nan, label * torch.nan, where=dead)
    assert value == 0
    assert_close(gradient, torch.zeros_like(score))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_zero(name):
    score, label = world(name)
    assert CASES[name](score[:0], label[:0]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_order_of_lists_and_of_candidates_changes_nothing(name):
    loss, (score, label) = CASES[name], world(name)
    lists, places = torch.randperm(R), torch.randperm(L)
    assert_close(loss(score[lists][:, places], label[lists][:, places]), loss(score, label))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fake_negative_weighted"])  # its weights are held
def test_the_gradient_is_that_of_the_value(name):
    score, label = world(name, lists=2)
    where = torch.rand(2, L) < 0.9
    assert torch.autograd.gradcheck(lambda s: CASES[name](s, label, where=where), score.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_comes_in_and_float32_comes_out(name):
    score, label = world(name)
    half = score.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CASES[name](half, label)
    assert value.dtype == torch.float32
    assert_close(value, CASES[name](half.float(), label))


@pytest.mark.parametrize("name", NAMES)
def test_great_scores_stay_finite(name):
    score, label = world(name)
    value, gradient = value_and_gradient(CASES[name], (1e4 * score).float(), label)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_a_hundred_right_or_wrong_stay_finite(name):
    score, label = world(name)
    value, gradient = value_and_gradient(CASES[name], 100 * score.float().sign(), label.float())
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(OUTPUTS)))
def test_a_forgotten_axis_is_an_error_and_not_a_broadcast(name):
    with pytest.raises(ValueError, match=r"Score has shape \[6, 1\] and label \[6\]"):
        CASES[name](torch.zeros(6, 1), torch.zeros(6))
