"""The funnel as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recstack.errors import ConfigError

if TYPE_CHECKING:
    from recstack.cascade.evaluation import Report


def funnel(report: Report, path: str | Path) -> None:
    """Two panels side by side: what share of the relevant items survives each stage, and how good each stage's page is."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ConfigError('Pictures need matplotlib: pip install "recstack[plots]".') from e

    names = [row["name"] for row in report.stages]
    figure = Figure(figsize=(11, 0.42 * len(names) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    place = range(len(names))
    left.barh(place, [row["recall"] for row in report.stages], color="#4c78a8", height=0.7)
    for y, row in zip(place, report.stages, strict=True):
        left.text(
            row["recall"], y, f" {row['recall']:.3f} of relevant, {row['kept']:.0f} items", va="center", fontsize=8
        )
    left.set_title("Relevant items still there", loc="left", fontsize=10)
    left.set_yticks(list(place), names)
    left.invert_yaxis()
    left.set_xlim(0, 1.7 * max(max(row["recall"] for row in report.stages), 1e-9))
    right.barh(place, [row["ndcg@k"] for row in report.stages], color="#f58518", height=0.7)
    for y, row in zip(place, report.stages, strict=True):
        right.text(row["ndcg@k"], y, f" {row['ndcg@k']:.4f}", va="center", fontsize=8)
    right.set_title(f"ndcg@{report.k} of the page in this stage's order", loc="left", fontsize=10)
    right.set_xlim(0, 1.2 * max(max(row["ndcg@k"] for row in report.stages), 1e-9))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
