"""Metrics are pure functions like losses: ``metric(score, label, *, where=None, weight=None, ...) -> float64 scalar``.

`get` chooses one by name; its `.meter()` gives the same answer for a stream of batches, exactly. A metric that the data
cannot answer (one class only, no positives, no rows) is NaN with a warning, never an exception.
"""

from __future__ import annotations

from recstack.metrics import off_policy
from recstack.metrics.aspects import alpha_ndcg, intent_aware_err
from recstack.metrics.auc import Coverage, GroupAUC, auc, auc_by_group, gauc, gauc_coverage
from recstack.metrics.business import business
from recstack.metrics.concordance import xauc, xgauc
from recstack.metrics.curves import (
    Confusion,
    Curve,
    average_precision,
    confusion,
    gain_curve,
    kolmogorov_smirnov,
    lift,
    partial_auc,
    precision_recall_curve,
    roc_curve,
)
from recstack.metrics.exposure import (
    ExpectedExposure,
    attention_weighted_fairness,
    expected_exposure,
    exposure_by_group,
    exposure_ratio,
    miscalibration,
)
from recstack.metrics.intervals import (
    Comparison,
    Groups,
    Interval,
    bootstrap,
    bootstrap_mean,
    bootstrap_ratio,
    by_group,
    compare,
    holm,
)
from recstack.metrics.lists import hit_rate, mean_average_precision, mrr, ndcg, precision, recall
from recstack.metrics.meters import Meter, PoolMeter, SumMeter
from recstack.metrics.named import METRICS, Metric, get
from recstack.metrics.pages import (
    concentration,
    coverage,
    exposure_entropy,
    gini,
    intra_list_distance,
    long_tail,
    novelty,
    personalisation,
    popularity,
    rank_biased_overlap,
    serendipity,
    temporal_diversity,
    user_coverage,
)
from recstack.metrics.pictures import draw_curves
from recstack.metrics.pointwise import accuracy, brier, calibration_ratio, logloss, mae, normalized_entropy, rmse
from recstack.metrics.ranks import (
    average_position,
    click_recall,
    expected_reciprocal_rank,
    list_value,
    pair_inversions,
    rank_biased_precision,
)
from recstack.metrics.stages import stage_ndcg, stage_recall

__all__ = [
    "METRICS",
    "Comparison",
    "Confusion",
    "Coverage",
    "Curve",
    "ExpectedExposure",
    "GroupAUC",
    "Groups",
    "Interval",
    "Meter",
    "Metric",
    "PoolMeter",
    "SumMeter",
    "accuracy",
    "alpha_ndcg",
    "attention_weighted_fairness",
    "auc",
    "auc_by_group",
    "average_position",
    "average_precision",
    "bootstrap",
    "bootstrap_mean",
    "bootstrap_ratio",
    "brier",
    "business",
    "by_group",
    "calibration_ratio",
    "click_recall",
    "compare",
    "concentration",
    "confusion",
    "coverage",
    "draw_curves",
    "expected_exposure",
    "expected_reciprocal_rank",
    "exposure_by_group",
    "exposure_entropy",
    "exposure_ratio",
    "gain_curve",
    "gauc",
    "gauc_coverage",
    "get",
    "gini",
    "hit_rate",
    "holm",
    "intent_aware_err",
    "intra_list_distance",
    "kolmogorov_smirnov",
    "lift",
    "list_value",
    "logloss",
    "long_tail",
    "mae",
    "mean_average_precision",
    "miscalibration",
    "mrr",
    "ndcg",
    "normalized_entropy",
    "novelty",
    "off_policy",
    "pair_inversions",
    "partial_auc",
    "personalisation",
    "popularity",
    "precision",
    "precision_recall_curve",
    "rank_biased_overlap",
    "rank_biased_precision",
    "recall",
    "rmse",
    "roc_curve",
    "serendipity",
    "stage_ndcg",
    "stage_recall",
    "temporal_diversity",
    "user_coverage",
    "xauc",
    "xgauc",
]
