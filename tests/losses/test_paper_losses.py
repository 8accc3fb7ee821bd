"""Losses of papers against loops in plain numbers, and what they are equal to at the ends of their options."""

import math

import pytest
import torch
from torch.testing import assert_close

from recstack import losses
from recstack.errors import ConfigError, DataError

R, L = 4, 5


def world(seed=0, outputs=None):
    """Score, label, where and weight in float64; the first list has one live cell, the last one class."""
    random = torch.Generator().manual_seed(seed)
    score = torch.randn((R, L) if outputs is None else (R, L, outputs), generator=random, dtype=torch.float64) * 2
    label = (torch.rand(R, L, generator=random) < 0.4).double()
    label[-1] = 0
    where = torch.rand(R, L, generator=random) < 0.8
    where[0] = torch.tensor([False, True, False, False, False])
    return score, label, where, torch.rand(R, L, generator=random, dtype=torch.float64)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def softmax(row):
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


def mean_by_hand(value, where, weight):
    """Σ w·value(r, l) / Σ w over live cells."""
    live = [(r, c) for r in range(R) for c in range(L) if where[r, c]]
    return sum(float(weight[at]) * value(*at) for at in live) / sum(float(weight[at]) for at in live)


def close(found, by_hand):
    assert float(found) == pytest.approx(by_hand, rel=1e-10)


# -- one cell at a time -----------------------------------------------------------------------------------------------
def test_watch_time_is_the_weight_of_what_was_watched():
    score, _, where, weight = world()
    time = torch.where(torch.rand(R, L) < 0.5, 60 * torch.rand(R, L, dtype=torch.float64), 0)

    def value(r, c):
        p, t = sigmoid(float(score[r, c])), float(time[r, c])
        return -t * math.log(p) if t > 0 else -math.log(1 - p)

    close(losses.weighted_logistic(score, time, where=where, weight=weight), mean_by_hand(value, where, weight))


def test_the_odds_of_watch_time_are_the_sum_over_the_unwatched():
    """The paper's argument: N rows, k watched; the best odds are ΣT / (N - k) = mean T / (1 - p)."""
    time = torch.tensor([30.0, 60.0, 90.0] + [0.0] * 57, dtype=torch.float64)
    score = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(30):  # Newton's steps
        slope = torch.autograd.grad(losses.weighted_logistic(score.expand(60), time), score, create_graph=True)[0]
        score = (score - slope / torch.autograd.grad(slope, score)[0]).detach().requires_grad_()
    mean, p = 180 / 60, 3 / 60
    assert_close(score.exp().item(), 180 / 57)
    assert_close(score.exp().item(), mean / (1 - p))
    assert score.exp().item() == pytest.approx(mean * (1 + p), rel=2 * p**2)


def test_focal_by_hand():
    score, label, where, weight = world()

    def value(r, c, alpha):
        p, positive = sigmoid(float(score[r, c])), label[r, c] == 1
        p_t, alpha_t = (p, alpha) if positive else (1 - p, 1 - alpha)
        return -alpha_t * (1 - p_t) ** 2 * math.log(p_t)

    found = losses.focal(score, label, where=where, weight=weight, gamma=2, alpha=0.25)
    close(found, mean_by_hand(lambda r, c: value(r, c, 0.25), where, weight))
    even = losses.focal(score, label, where=where, weight=weight)
    close(even, mean_by_hand(lambda r, c: 2 * value(r, c, 0.5), where, weight))


def test_focal_of_classes_by_hand():
    score, _, where, weight = world(outputs=3)
    label, alpha = torch.randint(3, (R, L)), (0.5, 1.0, 2.0)

    def value(r, c):
        y = int(label[r, c])
        p = softmax(score[r, c].tolist())[y]
        return -alpha[y] * (1 - p) ** 1.5 * math.log(p)

    found = losses.focal(score, label.double(), where=where, weight=weight, gamma=1.5, alpha=alpha)
    close(found, mean_by_hand(value, where, weight))
    two = torch.stack([torch.zeros(R, L, dtype=torch.float64), score[..., 0]], -1)
    y = (label > 0).double()
    assert_close(losses.focal(two, y, gamma=1.5), losses.focal(score[..., 0], y, gamma=1.5))


def test_without_gamma_focal_is_cross_entropy():
    score, label, where, weight = world()
    soft = label * 0.7 + 0.1
    options = {"where": where, "weight": weight}
    assert_close(losses.focal(score, soft, gamma=0, **options), losses.bce(score, soft, **options))
    score, classes = torch.randn(R, L, 3), torch.randint(3, (R, L)).float()
    assert_close(losses.focal(score, classes, gamma=0), losses.cross_entropy(score, classes))


def test_label_smoothing_mixes_the_label_with_all_classes():
    score, label, where, weight = world()

    def value(r, c):
        p, y = sigmoid(float(score[r, c])), 0.9 * float(label[r, c]) + 0.05
        return -y * math.log(p) - (1 - y) * math.log(1 - p)

    found = losses.bce(score, label, where=where, weight=weight, label_smoothing=0.1)
    close(found, mean_by_hand(value, where, weight))
    score, classes = torch.randn(7, 4), torch.randint(4, (7,))
    assert_close(
        losses.cross_entropy(score, classes.float(), label_smoothing=0.1),
        torch.nn.functional.cross_entropy(score, classes, label_smoothing=0.1),
    )


def test_no_label_smoothing_is_none():
    score, label, *_ = world()
    assert torch.equal(losses.bce(score, label, label_smoothing=0.0), losses.bce(score, label))


@pytest.mark.parametrize("bins", [1, 4, 30])
def test_harmonised_gradients_by_hand(bins):
    score, label, where, weight = world()
    gradient = {
        (r, c): abs(sigmoid(float(score[r, c])) - float(label[r, c])) for r in range(R) for c in range(L) if where[r, c]
    }
    total, n = 0.0, sum(float(weight[at]) for at in gradient)
    for at, g in gradient.items():
        count = sum(float(weight[o]) for o, h in gradient.items() if int(h * bins) == int(g * bins))
        density = count * bins  # of unit regions of width 1 / bins
        total += float(weight[at]) * n / density * -math.log(1 - g)
    close(losses.ghm(score, label, where=where, weight=weight, bins=bins), total / n)
    found = losses.gradient_counts(score, label, where=where, weight=weight, bins=bins)
    assert_close(found.sum().item(), n)
    again = losses.ghm(score, label, where=where, weight=weight, bins=bins, counts=found)
    close(again, total / n)
    twice = losses.ghm(score, label, where=where, weight=weight, bins=bins, counts=2 * found)
    close(twice, total / n / 2)


def test_one_bin_of_harmonised_gradients_is_bce():
    score, label, where, weight = world()
    options = {"where": where, "weight": weight}
    assert_close(losses.ghm(score, label, bins=1, **options), losses.bce(score, label, **options))


# -- order and probability at once ------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_bce_and_pairs_by_hand(alpha):
    score, label, where, weight = world()

    def point(r, c):
        p = sigmoid(float(score[r, c]))
        return -math.log(p if label[r, c] == 1 else 1 - p)

    total = votes = 0.0
    for r in range(R):
        live = [c for c in range(L) if where[r, c]]
        pairs = [(i, j) for i in live for j in live if label[r, i] > label[r, j]]
        for i, j in pairs:
            total += float(weight[r, i]) / len(pairs) * math.log1p(math.exp(float(score[r, j] - score[r, i])))
            votes += float(weight[r, i]) / len(pairs)
    found = losses.bce_pairwise(score, label, where=where, weight=weight, alpha=alpha)
    close(found, alpha * mean_by_hand(point, where, weight) + (1 - alpha) * total / votes)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_jrc_by_hand(alpha):
    score, label, where, weight = world(outputs=2)

    def value(r, c):
        y, f = int(label[r, c]), score[r].tolist()
        live = [j for j in range(L) if where[r, j]]
        discriminative = math.exp(f[c][y]) / (math.exp(f[c][0]) + math.exp(f[c][1]))
        generative = math.exp(f[c][y]) / sum(math.exp(f[j][y]) for j in live)
        return -alpha * math.log(discriminative) - (1 - alpha) * math.log(generative)

    close(losses.jrc(score, label, where=where, weight=weight, alpha=alpha), mean_by_hand(value, where, weight))


def test_the_discriminative_half_of_jrc_is_bce_of_the_difference():
    score, label, where, weight = world(outputs=2)
    options = {"where": where, "weight": weight}
    difference = score[..., 1] - score[..., 0]
    assert_close(losses.jrc(score, label, alpha=1.0, **options), losses.bce(difference, label, **options))


def test_the_generative_half_of_jrc_knows_no_level():
    """What is added to one logit of a whole list changes its order nowhere; the discriminative half sees it."""
    score, label, where, _ = world(outputs=2)
    moved = score + torch.randn(R, 1, 2, dtype=torch.float64)
    assert_close(losses.jrc(moved, label, where=where, alpha=0.0), losses.jrc(score, label, where=where, alpha=0.0))
    assert losses.jrc(moved, label, where=where) != losses.jrc(score, label, where=where)


# -- histograms -------------------------------------------------------------------------------------------------------
VALUES = (0.0, 10.0, 15.0, 60.0)


def by_hand(y):
    """All of a number's mass on the two values beside it, so that the mean is the number."""
    y = min(max(y, VALUES[0]), VALUES[-1])
    q = [0.0] * 4
    for k in range(3):
        if VALUES[k] <= y <= VALUES[k + 1]:
            right = (y - VALUES[k]) / (VALUES[k + 1] - VALUES[k])
            q[k], q[k + 1] = 1 - right, right
            return q
    raise AssertionError


def kl(q, p):
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)


def js(q, p):
    m = [(a + b) / 2 for a, b in zip(q, p, strict=True)]
    return (kl(q, m) + kl(p, m)) / 2


def wasserstein(q, p):
    return sum(abs(sum(q[: k + 1]) - sum(p[: k + 1])) * (VALUES[k + 1] - VALUES[k]) for k in range(3))


@pytest.mark.parametrize("slow", [kl, js, wasserstein])
def test_divergences_of_numbers_and_of_histograms_by_hand(slow):
    score, _, where, weight = world(outputs=4)
    label = 80 * torch.rand(R, L, dtype=torch.float64) - 10
    label[1, 0], label[2, 2] = 15.0, 60.0
    where[1, 0] = where[2, 2] = True
    loss, options = losses.get(slow.__name__), {"where": where, "weight": weight, "values": VALUES}

    def value(r, c):
        return slow(by_hand(float(label[r, c])), softmax(score[r, c].tolist()))

    close(loss(score, label, **options), mean_by_hand(value, where, weight))
    q = torch.tensor([[by_hand(float(y)) for y in row] for row in label], dtype=torch.float64)
    assert_close(losses.spread(label, VALUES), q)
    q[~where] = torch.nan
    close(loss(score, q, **options), mean_by_hand(value, where, weight))


def test_spreading_keeps_the_mean():
    label = torch.linspace(0, 60, 50, dtype=torch.float64)
    q = losses.spread(label, VALUES)
    assert_close(q.sum(-1), torch.ones_like(label))
    assert_close(q @ torch.tensor(VALUES, dtype=torch.float64), label)
    assert_close(losses.expected_value(q.log(), VALUES), label)


def test_kl_of_two_bins_is_bce_less_what_a_soft_label_cannot_lose():
    score, label, where, weight = world(outputs=2)
    soft = label * 0.7 + 0.1
    entropy = -(soft * soft.log() + (1 - soft) * (1 - soft).log())
    floor = (entropy * weight * where).sum() / (weight * where).sum()
    options = {"where": where, "weight": weight}
    bce = losses.bce(score[..., 1] - score[..., 0], soft, **options)
    assert_close(losses.kl(score, 20 * soft, values=(0, 20), **options), bce - floor)
    assert_close(losses.kl(score, 20 * label, values=(0, 20)), losses.bce(score[..., 1] - score[..., 0], label))


def test_far_apart_only_wasserstein_says_where_to_go():
    """Nothing in common: KL has no end, JS is log 2 with no slope, W1 is the distance and points to the label."""
    far, label = torch.tensor([[100.0, 0.0, 0.0, -100.0]], requires_grad=True), torch.tensor([60.0])
    value = {name: losses.get(name)(far, label, values=VALUES) for name in ("kl", "js", "wasserstein")}
    slope = {name: torch.autograd.grad(one, far)[0] for name, one in value.items()}
    assert_close(value["kl"].item(), 200.0)
    assert_close(value["js"].item(), math.log(2))
    assert_close(value["wasserstein"].item(), 60.0)
    assert slope["js"].abs().max() < 1e-6
    near = losses.wasserstein(torch.tensor([[0.0, 0.0, 100.0, 0.0]]), label, values=VALUES)
    assert_close(near.item(), 45.0)
    moving = torch.tensor([[2.0, 0.0, 0.0, -2.0]], requires_grad=True)
    pull = -torch.autograd.grad(losses.wasserstein(moving, label, values=VALUES), moving)[0][0]
    assert pull[0] < 0 < pull[-1]


def test_what_each_divergence_learns_of_labels_that_differ():
    """Half of the rows 0, of the others 10 and 60: KL answers the mean, Wasserstein a median."""
    label = torch.tensor([0.0, 0.0, 0.0, 10.0, 60.0])
    found = {}
    for name in ("kl", "wasserstein"):
        score = torch.zeros(4, requires_grad=True)
        optimizer = torch.optim.Adam([score], 0.1)
        for _ in range(400):
            optimizer.zero_grad()
            losses.get(name)(score.expand(5, 4), label, values=VALUES).backward()
            optimizer.step()
        found[name] = losses.expected_value(score.detach(), VALUES).item()
    assert found["kl"] == pytest.approx(14.0, abs=0.1)
    assert found["wasserstein"] < 1.0


# -- names and options ------------------------------------------------------------------------------------------------
def test_a_name_and_its_options_find_a_loss():
    score, label, *_ = world()
    found = losses.get(("focal", {"gamma": 1.0, "alpha": 0.3}))
    assert found(score, label) == losses.focal(score, label, gamma=1.0, alpha=0.3)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (("focal", {"gama": 2.0}), "Unknown option of the loss 'focal' 'gama'. Did you mean 'gamma'"),
        (("mse", {"weight": 2.0}), "Unknown option of the loss 'mse' 'weight'"),
        (("focal",), "A loss is a name, or a name and its options"),
        (("focal", {"gamma": -1}), "Option gamma of the loss 'focal' is a number from 0; got -1"),
        (("focal", {"alpha": 2}), "Option alpha of the loss 'focal' is a number from 0 to 1; got 2"),
        (("bce", {"label_smoothing": "much"}), "label_smoothing of the loss 'bce' is a number from 0 to 1; got 'much'"),
        (("ghm", {"bins": 0}), "Option bins of the loss 'ghm' is a whole number from 1; got 0"),
        (
            ("bce_pairwise", {"alpha": math.nan}),
            "Option alpha of the loss 'bce_pairwise' is a number from 0 to 1; got nan",
        ),
        (("jrc", {"alpha": True}), "Option alpha of the loss 'jrc' is a number from 0 to 1; got True"),
    ],
)
def test_a_bad_option_is_one_sentence(loss, said):
    score = torch.zeros(1, 1, 2) if loss[0] == "jrc" else torch.zeros(1, 1)
    with pytest.raises(ConfigError, match=said.replace("'", ".").replace("(", r"\(")) as error:
        losses.get(loss)(score, torch.zeros(1, 1))
    assert "\n" not in str(error.value)


def test_alpha_of_classes_is_one_number_each():
    with pytest.raises(ConfigError, match="alpha of the loss 'focal' is a tuple of 3 numbers"):
        losses.focal(torch.zeros(1, 3), torch.zeros(1), alpha=0.25)


def test_scores_that_do_not_fit_are_named():
    with pytest.raises(DataError, match=r"two logits a row, \[..., L, 2\], and the score has shape \[3, 4\]"):
        losses.jrc(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(DataError, match=r"Score has shape \[3, 2\] and label \[3\]"):
        losses.kl(torch.zeros(3, 2), torch.zeros(3), values=VALUES)
