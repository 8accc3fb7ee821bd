"""A metric chosen by name: what it measures, which way is up, and a meter for streams."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from recstack.errors import ConfigError, unknown
from recstack.metrics import curves, lists, pointwise, ranks
from recstack.metrics.auc import auc, gauc
from recstack.metrics.concordance import xauc, xgauc
from recstack.metrics.meters import Meter, PoolMeter, SumMeter


class Entry(NamedTuple):
    """One row of the table of metrics."""

    measure: Callable[..., Tensor]
    kind: str
    higher_is_better: bool | None
    sums: pointwise.Sums | None = None


#: Every metric that a name can choose.
METRICS: dict[str, Entry] = {
    "auc": Entry(auc, "pointwise", True),
    "gauc": Entry(gauc, "grouped", True),
    "xauc": Entry(xauc, "pointwise", True),
    "xgauc": Entry(xgauc, "grouped", True),
    "logloss": Entry(pointwise.logloss, "pointwise", False, pointwise.LOGLOSS),
    "normalized_entropy": Entry(pointwise.normalized_entropy, "pointwise", False, pointwise.NORMALIZED_ENTROPY),
    "calibration_ratio": Entry(pointwise.calibration_ratio, "pointwise", None, pointwise.CALIBRATION_RATIO),
    "mae": Entry(pointwise.mae, "pointwise", False, pointwise.MAE),
    "rmse": Entry(pointwise.rmse, "pointwise", False, pointwise.RMSE),
    "brier": Entry(pointwise.brier, "pointwise", False, pointwise.BRIER),
    "average_precision": Entry(curves.average_precision, "pointwise", True),
    "partial_auc": Entry(curves.partial_auc, "pointwise", True),
    "ks": Entry(curves.kolmogorov_smirnov, "pointwise", True),
    "lift": Entry(curves.lift, "pointwise", True),
    "accuracy": Entry(pointwise.accuracy, "pointwise", True, pointwise.ACCURACY),
    "precision": Entry(lists.precision, "list", True),
    "recall": Entry(lists.recall, "list", True),
    "hit_rate": Entry(lists.hit_rate, "list", True),
    "mrr": Entry(lists.mrr, "list", True),
    "map": Entry(lists.mean_average_precision, "list", True),
    "ndcg": Entry(lists.ndcg, "list", True),
    "err": Entry(ranks.expected_reciprocal_rank, "list", True),
    "rbp": Entry(ranks.rank_biased_precision, "list", True),
    "average_position": Entry(ranks.average_position, "list", False),
    "pair_inversions": Entry(ranks.pair_inversions, "list", False),
    "click_recall": Entry(ranks.click_recall, "list", True),
    "list_value": Entry(ranks.list_value, "list", True),
}


@dataclass(frozen=True)
class Metric:
    """A metric with its options bound; made by `get`.

    kind: "pointwise" looks at cells, "grouped" at the cells of each group, "list" at the lists of the last axis.
    higher_is_better: None for the calibration ratio, whose best value is 1.
    """

    name: str
    kind: str
    higher_is_better: bool | None
    measure: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    sums: pointwise.Sums | None = None

    def function(
        self,
        score: Tensor,
        label: Tensor,
        *,
        where: Tensor | None = None,
        weight: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """One signature for all kinds; only a grouped metric looks at `group`."""
        groups = {"group": group} if self.kind == "grouped" else {}
        return self.measure(score, label, where=where, weight=weight, **groups, **self.options)

    __call__ = function

    def meter(self) -> Meter:
        """A fresh meter: of any stream of batches it computes what `function` says of all rows at once."""
        if self.kind == "list":
            add = functools.partial(self.measure, reduction="sums", **self.options)
            return SumMeter(add, lists.mean_of_sums)
        if self.sums is not None:
            return SumMeter(self.sums.add, self.sums.finish)
        return PoolMeter(functools.partial(self.measure, **self.options), grouped=self.kind == "grouped")


def get(name: str | Metric, **options: Any) -> Metric:
    """The metric of that name, "ndcg@10" cut at 10; further options are those of the function.

    Raises ConfigError, with a guess, for a name, cut or option that does not exist.

    >>> metric = get("ndcg@10", ties="average")
    >>> metric.name, metric.kind, metric.higher_is_better
    ('ndcg@10', 'list', True)
    >>> get("gauc", weights="clicks").higher_is_better, get("logloss").higher_is_better
    (True, False)
    >>> get("ndgc@10")
    Traceback (most recent call last):
    ...
    recstack.errors.ConfigError: Unknown metric 'ndgc'. Did you mean 'ndcg'? Known: accuracy, auc, \
average_position, average_precision, brier, calibration_ratio, click_recall, err, gauc, hit_rate, ks, lift, \
list_value, logloss, mae, map, mrr, ndcg, normalized_entropy, pair_inversions, partial_auc, precision, rbp, recall, \
rmse, xauc, xgauc.
    """
    if isinstance(name, Metric):
        return name
    base, at, cut = name.partition("@")
    if base not in METRICS:
        raise unknown("metric", base, METRICS)
    entry = METRICS[base]
    if at:
        if entry.kind != "list":
            raise ConfigError(f"Metric {name!r} has a cut, and {base} looks at all rows. Write {base!r}.")
        if not cut.isdecimal() or int(cut) < 1:
            raise ConfigError(f"Metric {name!r} has no cut after the @. Write a number from 1, as in '{base}@10'.")
        options["k"] = int(cut)
    for option in options:
        known = set(inspect.signature(entry.measure).parameters) - {"score", "label", "where", "weight", "group"}
        if option not in known - {"reduction", "n_positive", "total"}:
            raise unknown(f"option of {base}", option, known - {"reduction", "n_positive", "total"})
    return Metric(name, entry.kind, entry.higher_is_better, entry.measure, options, entry.sums)
