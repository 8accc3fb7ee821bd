"""Counters and histograms say what was counted, in the format that Prometheus reads."""

from __future__ import annotations

import pytest

from recstack.serving.metrics import SECONDS, Metrics


def test_buckets_are_cumulative_and_end_in_all():
    metrics = Metrics({}, {"seconds": "Time."})
    values = [0.0005, SECONDS[0], 0.003, 0.3, 9.0]
    for value in values:
        metrics.observe("seconds", value, stage="a")
    lines = dict(line.rsplit(" ", 1) for line in metrics.text().splitlines() if line[0] != "#")
    for edge in SECONDS:
        expected = sum(v <= edge for v in values)
        assert lines[f'recstack_seconds_bucket{{stage="a",le="{edge}"}}'] == str(expected)
    assert lines['recstack_seconds_bucket{stage="a",le="+Inf"}'] == lines['recstack_seconds_count{stage="a"}'] == "5"
    assert float(lines['recstack_seconds_sum{stage="a"}']) == pytest.approx(sum(values))


def test_labels_are_escaped():
    metrics = Metrics({"n": "Count."}, {})
    metrics.count("n", by=2, name='a"b\\c\nd')
    assert metrics.text().splitlines()[-1] == 'recstack_n{name="a\\"b\\\\c\\nd"} 2'
