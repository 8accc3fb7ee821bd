"""List metrics against scikit-learn, ranx, and all orders of the ties."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch.testing import assert_close

from recstack import metrics
from recstack.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:In .* of the lists", "ignore:.*is NaN")

NAMES = ["precision", "recall", "hit_rate", "mrr", "map", "ndcg"]
MEASURE = {name: metrics.METRICS[name].measure for name in NAMES}
seeds = st.integers(0, 10_000)


def world(seed, lists=8, length=7, levels=1000, grades=2):
    random = torch.Generator().manual_seed(seed)
    score = torch.randint(levels, (lists, length), generator=random).double()
    if levels >= 1000:
        score = torch.rand(lists, length, generator=random).double().argsort(-1).double()
    label = torch.randint(grades, (lists, length), generator=random).double()
    label[:, 0] = label[:, 0].clamp(min=1)
    return score, label


def by_hand(name, label, k, n_positive):
    """The metric of one list of binary labels in ranked order, written as its definition."""
    k = len(label) if k is None else k
    top = [1 if y > 0 else 0 for y in label[:k]]
    ranks = [r for r, hit in enumerate(top, 1) if hit]
    if name == "precision":
        return sum(top) / k
    if name == "recall":
        return sum(top) / n_positive
    if name == "hit_rate":
        return float(bool(ranks))
    if name == "mrr":
        return 1 / ranks[0] if ranks else 0.0
    if name == "map":
        return sum(sum(top[:r]) / r for r in ranks) / min(k, n_positive)
    ideal = sum(1 / np.log2(1 + r) for r in range(1, min(k, n_positive) + 1))
    return sum(1 / np.log2(1 + r) for r in ranks) / ideal


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from([1, 2, 3, 7, 12, None]), st.integers(0, 5))
def test_every_metric_is_its_definition(seed, k, missing):
    score, label = world(seed)
    total = label.sum(-1).long() + missing
    for name, measure in MEASURE.items():
        each = measure(score, label, k=k, n_positive=total, reduction="none")
        ranked = label.gather(-1, score.argsort(-1, descending=True)).tolist()
        assert_close(each.tolist(), [by_hand(name, y, k, int(n)) for y, n in zip(ranked, total, strict=True)])
        assert_close(measure(score, label, k=k, n_positive=total), each.mean())
        if not missing:
            assert_close(measure(score, label, k=k), each.mean())


ORDERS = torch.tensor(list(itertools.permutations(range(5))))  # [120, 5]


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 6))
def test_average_ties_are_the_mean_over_all_orders(seed, k):
    score, label = world(seed, lists=2, length=5, levels=2)
    for measure in MEASURE.values():
        for missing in (None, 1):
            total = None if missing is None else label.sum(-1) + missing
            every = None if total is None else total[:, None]
            mean = measure(score[:, ORDERS], label[:, ORDERS], k=k, n_positive=every)
            assert_close(measure(score, label, k=k, n_positive=total, ties="average"), mean)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 6))
def test_pessimistic_ties_are_the_worst_of_all_orders(seed, k):
    score, label = world(seed, lists=2, length=5, levels=2)
    for measure in MEASURE.values():
        worst = measure(score[:, ORDERS], label[:, ORDERS], k=k, reduction="none").min(-1).values
        assert_close(measure(score, label, k=k, ties="pessimistic", reduction="none"), worst)


@pytest.mark.parametrize("ties", ["stable", "pessimistic", "average"])
def test_without_ties_the_rule_does_not_matter(ties):
    score, label = world(5, grades=4)
    for measure in MEASURE.values():
        assert_close(measure(score, label, k=3, ties=ties), measure(score, label, k=3))


def test_stable_ties_keep_the_order_of_input():
    for measure in MEASURE.values():
        zeros, label = torch.zeros(3, 6), (torch.rand(3, 6) < 0.5).float()
        label[:, 2] = 1
        assert_close(measure(zeros, label, k=3), measure(-torch.arange(6.0).expand(3, 6), label, k=3))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 9), st.sampled_from([2, 3, 1000]))
def test_ndcg_is_that_of_scikit_learn_ties_included(seed, k, levels):
    score, label = world(seed, levels=levels, grades=4)
    value = metrics.ndcg(score, label, k=k, ties="average", gain="linear")
    assert_close(value.item(), ndcg_score(label, score, k=k))
    value = metrics.ndcg(score, label, k=k, ties="average")
    assert_close(value.item(), ndcg_score(label.exp2() - 1, score, k=k))


RANX = {
    "precision": "precision",
    "recall": "recall",
    "hit_rate": "hit_rate",
    "mrr": "mrr",
    "map": "map",
    "ndcg": "ndcg",
}


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_all_are_those_of_ranx(k):
    from ranx import Qrels, Run, evaluate

    score, label = world(11, lists=20, length=10, grades=2)
    label[:, k:] = 0  # ranx divides MAP by all positives, we by min(k, positives): the same while they fit
    label[:, 0] = 1
    names = [[f"d{i}" for i in range(10)]] * 20
    qrels = Qrels({f"q{i}": {n: 1 for n, y in zip(names[i], label[i], strict=True) if y} for i in range(20)})
    run = Run({f"q{i}": dict(zip(names[i], score[i].tolist(), strict=True)) for i in range(20)})
    for name, measure in MEASURE.items():
        assert_close(measure(score, label, k=k).item(), float(evaluate(qrels, run, f"{name}@{k}")))


def test_golden_values():
    score, label = torch.tensor([[2.2, -1.3, 5.4]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert_close(metrics.ndcg(score, label).item(), 0.63092977, rtol=1e-7, atol=0)
    score, label = torch.tensor([[0.1, 0.2, 0.3, 4, 70]]), torch.tensor([[10.0, 0, 0, 1, 5]])
    assert_close(metrics.ndcg(score, label, gain="linear").item(), 0.6957, rtol=1e-4, atol=0)
    one_of_two = metrics.ndcg(torch.arange(10.0, 0, -1), torch.eye(10)[0], k=10, n_positive=torch.tensor(2))
    assert_close(one_of_two.item(), 0.613147, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ties", ["stable", "pessimistic", "average"])
@pytest.mark.parametrize("k", [3, None])
def test_a_dead_cell_is_an_absent_cell_even_if_it_holds_nan(name, ties, k):
    score, label = world(6, levels=3)
    dead = torch.full((8, 4), torch.nan, dtype=torch.float64)
    where = torch.cat([torch.zeros(8, 2), torch.ones(8, 7), torch.zeros(8, 2)], 1).bool()
    long_score, long_label = (torch.cat([dead[:, :2], x, dead[:, 2:]], 1) for x in (score, label))
    value = MEASURE[name](long_score, long_label, where=where, k=k, ties=ties)
    assert_close(value, MEASURE[name](score, label, k=k, ties=ties))


@pytest.mark.parametrize("ties", ["stable", "pessimistic", "average"])
def test_a_live_score_of_minus_infinity_stands_above_the_dead(ties):
    score, label = torch.tensor([[-torch.inf, -torch.inf]]), torch.tensor([[torch.nan, 1.0]])
    assert metrics.mrr(score, label, where=label.isfinite(), ties=ties) == 1


@pytest.mark.parametrize("name", NAMES)
def test_weight_n_is_the_list_n_times(name):
    score, label = world(7)
    times = torch.tensor([0, 1, 2, 3, 1, 1, 2, 5])
    value = MEASURE[name](score, label, weight=times, k=3)
    assert_close(value, MEASURE[name](score.repeat_interleave(times, 0), label.repeat_interleave(times, 0), k=3))
    assert_close(MEASURE[name](score, label, weight=times[:, None], k=3), value)
    assert_close(MEASURE[name](score, label, weight=times[:, None].expand(8, 7), k=3), value)


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes_are_free(name):
    score, label = world(8)
    flat = MEASURE[name](score, label, k=3, reduction="none")
    assert_close(MEASURE[name](score.view(2, 4, 7), label.view(2, 4, 7), k=3, reduction="none"), flat.view(2, 4))
    assert_close(MEASURE[name](score[0], label[0], k=3), flat[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_list_without_a_positive_is_left_out(name):
    score, label = world(9)
    blank = torch.cat([label, torch.zeros(2, 7)])
    longer = torch.cat([score, score[:2]])
    each = MEASURE[name](longer, blank, k=3, reduction="none")
    assert each.isnan().tolist() == [False] * 8 + [True] * 2
    assert_close(MEASURE[name](longer, blank, k=3), MEASURE[name](score, label, k=3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 3)])
def test_no_lists_or_no_positives_are_nan_with_a_warning(name, shape):
    with pytest.warns(RuntimeWarning, match="needs a list with a positive"):
        assert MEASURE[name](torch.rand(shape), torch.zeros(shape), k=2, ties="average").isnan()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [2, None])
def test_a_retriever_that_returns_nothing_scores_zero(name, k):
    nothing = torch.zeros(2, 0)
    assert MEASURE[name](nothing, nothing, k=k, n_positive=torch.tensor([1, 3])) == 0
    dead = torch.zeros(2, 4)
    assert MEASURE[name](dead, dead, where=dead.bool(), k=k, n_positive=torch.tensor([1, 3])) == 0


@pytest.mark.parametrize("name", NAMES)
def test_k_beyond_the_list_changes_only_precision(name):
    score, label = world(10)
    whole = MEASURE[name](score, label)
    assert_close(MEASURE[name](score, label, k=70), whole / 10 if name == "precision" else whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_model_measures_nan(name):
    score, label = world(12)
    score[2, 3] = torch.nan
    assert MEASURE[name](score, label, k=3).isnan()


def test_a_constant_scorer_is_noticed():
    score, label = torch.zeros(10, 5), torch.eye(5)[0].expand(10, 5)
    with pytest.warns(RuntimeWarning, match="In 100% of the lists a positive is tied"):
        assert metrics.ndcg(score, label, k=1) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(metrics.ndcg(score, label, k=1, ties="average").item(), 0.2)


def test_what_does_not_fit_is_one_sentence():
    score, label = world(13)
    with pytest.raises(DataError, match=r"lists of one shape"):
        metrics.ndcg(score, label[0])
    with pytest.raises(DataError, match="n_positive is less"):
        metrics.recall(score, label, n_positive=torch.zeros(8))
    with pytest.raises(DataError, match="NaN in 56 live cells"):
        metrics.recall(score, label * torch.nan)
    with pytest.raises(ConfigError, match="Did you mean 'average'"):
        metrics.ndcg(score, label, ties="averge")
    with pytest.raises(ConfigError, match="Unknown gain"):
        metrics.ndcg(score, label, gain="log")
    with pytest.raises(ConfigError, match="Unknown reduction"):
        metrics.ndcg(score, label, reduction="sum")
    with pytest.raises(ConfigError, match="cut at k = 0"):
        metrics.ndcg(score, label, k=0)


def test_a_capped_recall_can_be_one():
    score, label = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    values = {
        k: (metrics.recall(score, label, k=k), metrics.get(f"recall@{k}", capped=True)(score, label)) for k in (2, 3)
    }
    assert [[round(v.item(), 4) for v in pair] for pair in values.values()] == [[0.6667, 1.0], [0.6667, 0.6667]]
    assert metrics.recall(score, label, k=2, capped=True, n_positive=torch.tensor([9])) == 1
