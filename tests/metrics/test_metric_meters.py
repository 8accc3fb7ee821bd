"""Metrics by name, and their meters: a stream answers what one call on all rows answers."""

import time

import pytest
import torch
from torch.testing import assert_close

from recstack import metrics
from recstack.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:In .* of the lists", "ignore:.*is NaN")

NAMES = [f"{n}@3" if e.kind == "list" and n != "pair_inversions" else n for n, e in metrics.METRICS.items()]
OPTIONS = {"gauc": {"weights": "clicks"}, "ndcg@3": {"ties": "average", "gain": "linear"}}


def batches(count=5):
    random = torch.Generator().manual_seed(0)
    for size in (4, 1, 7, 3, 2)[:count]:
        score = torch.randn(size, 6, generator=random)
        label = (torch.rand(size, 6, generator=random) < 0.4).float()
        label[torch.rand(size, 6, generator=random) < 0.1] = torch.nan
        yield {
            "score": score,
            "label": label,
            "where": label.isfinite(),
            "weight": torch.rand(size, 1, generator=random).expand(size, 6),
            "group": torch.randint(4, (size,), generator=random),
        }


def together():
    parts = list(batches())
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_one_great_batch(name):
    metric = metrics.get(name, **OPTIONS.get(name, {}))
    meter = metric.meter()
    for batch in batches():
        meter.update(**batch)
    assert_close(meter.compute(), metric.function(**together()))
    meter.reset()
    assert meter.compute().isnan()


@pytest.mark.parametrize("name", NAMES)
def test_merged_and_restored_meters_know_all_rows(name):
    metric = metrics.get(name, **OPTIONS.get(name, {}))
    left, right, restored = metric.meter(), metric.meter(), metric.meter()
    for i, batch in enumerate(batches()):
        (left if i % 2 else right).update(**batch)
    left.merge(right)
    state = left.state_dict()
    assert all(isinstance(x, torch.Tensor) for x in state.values())
    restored.load_state_dict(state)
    left.reset()
    assert_close(restored.compute(), metric.function(**together()))
    restored.update(**next(batches()))
    assert_close(metric.meter().compute(), left.compute(), equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_batches_without_a_weight_or_a_mask_stream_too(name):
    metric = metrics.get(name)
    meter = metric.meter()
    parts = [{**b, "label": b["label"].nan_to_num()} for b in batches()]
    for part in parts:
        meter.update(part["score"], part["label"], group=part["group"])
    score, label, group = (torch.cat([p[key] for p in parts]) for key in ("score", "label", "group"))
    assert_close(meter.compute(), metric(score, label, group=group))


def test_a_stream_is_not_the_mean_of_its_batches():
    """The classic mistake: per-batch AUC, averaged."""
    meter = metrics.get("auc").meter()
    for score, label in (([0.9, 0.8], [1.0, 0.0]), ([0.2, 0.1], [1.0, 0.0])):
        meter.update(torch.tensor(score), torch.tensor(label))
    assert meter.compute() == 0.75


def test_groups_may_return_in_a_later_batch():
    meter = metrics.get("gauc").meter()
    meter.update(torch.tensor([0.9]), torch.tensor([1.0]), group=torch.tensor([5]))
    meter.update(torch.tensor([0.1]), torch.tensor([0.0]), group=torch.tensor([5]))
    assert meter.compute() == 1
    with pytest.raises(ConfigError, match="needs group="):
        meter.update(torch.tensor([0.1]), torch.tensor([0.0]))


def test_meters_of_classes_stream_too():
    score, label = torch.randn(9, 4), torch.randint(4, (9,)).float()
    for name in ("logloss", "accuracy"):
        meter = metrics.get(name).meter()
        meter.update(score[:5], label[:5])
        meter.update(score[5:], label[5:])
        assert_close(meter.compute(), metrics.get(name)(score, label))


@pytest.mark.parametrize("name", NAMES)
def test_up_is_where_a_better_score_goes(name):
    metric = metrics.get(name)
    random = torch.Generator().manual_seed(1)
    label = (torch.rand(50, 10, generator=random) < 0.4).float()
    noise = torch.randn(50, 10, generator=random)
    group = torch.arange(50)
    if metric.higher_is_better is None:
        assert name == "calibration_ratio"
        return
    good, bad = (metric(label + spread * noise, label, group=group) for spread in (0.2, 5.0))
    assert (good > bad) == metric.higher_is_better


def test_names_that_do_not_exist_are_errors_that_help():
    for name, message in (
        ("ndgc@10", "Did you mean 'ndcg'"),
        ("auc@10", "Write 'auc'"),
        ("ndcg@", "'ndcg@10'"),
        ("ndcg@ten", "'ndcg@10'"),
        ("ndcg@0", "Write a number from 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            metrics.get(name)
    with pytest.raises(ConfigError, match="Did you mean 'ties'"):
        metrics.get("ndcg@10", tie="average")
    metric = metrics.get("ndcg@10")
    assert metrics.get(metric) is metric


@pytest.mark.slow
def test_a_million_rows_of_fifty_thousand_users_take_seconds():
    score, label = torch.randn(1_000_000), (torch.rand(1_000_000) < 0.1).float()
    group = torch.randint(50_000, (1_000_000,))
    start = time.perf_counter()
    metrics.gauc(score, label, group=group)
    assert time.perf_counter() - start < 10
