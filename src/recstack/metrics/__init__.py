"""Metrics are pure functions like losses: ``metric(score, label, *, where=None, weight=None, ...) -> float64 scalar``.

`get` chooses one by name; its `.meter()` gives the same answer for a stream of batches, exactly. A metric that the data
cannot answer (one class only, no positives, no rows) is NaN with a warning, never an exception.
"""

from __future__ import annotations

from recstack.metrics.auc import Coverage, GroupAUC, auc, auc_by_group, gauc, gauc_coverage
from recstack.metrics.lists import hit_rate, mean_average_precision, mrr, ndcg, precision, recall
from recstack.metrics.meters import Meter, PoolMeter, SumMeter
from recstack.metrics.named import METRICS, Metric, get
from recstack.metrics.pointwise import accuracy, calibration_ratio, logloss, mae, normalized_entropy, rmse

__all__ = [
    "METRICS",
    "Coverage",
    "GroupAUC",
    "Meter",
    "Metric",
    "PoolMeter",
    "SumMeter",
    "accuracy",
    "auc",
    "auc_by_group",
    "calibration_ratio",
    "gauc",
    "gauc_coverage",
    "get",
    "hit_rate",
    "logloss",
    "mae",
    "mean_average_precision",
    "mrr",
    "ndcg",
    "normalized_entropy",
    "precision",
    "recall",
    "rmse",
]
