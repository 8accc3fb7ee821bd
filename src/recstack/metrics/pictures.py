"""Curves as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recstack.errors import ConfigError, unknown
from recstack.metrics.curves import Curve

AXES = {
    "roc": ("negatives taken", "positives taken"),
    "precision_recall": ("recall", "precision"),
    "gain": ("rows taken", "positives taken"),
}


def draw_curves(curves: Mapping[str, Curve], path: str | Path, kind: str = "roc") -> None:
    """Curves of one kind in one picture.

    Args:
        curves: {name: `Curve`}, of `roc_curve`, `precision_recall_curve` or `gain_curve`.
        path: of the picture; its ending chooses the format.
        kind: "roc", "precision_recall" or "gain"; the first and the last have chance as a diagonal.

    Raises:
        ConfigError: another kind, or matplotlib is missing.
    """
    if kind not in AXES:
        raise unknown("kind of curve", kind, AXES)
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ConfigError('Pictures need matplotlib: pip install "recstack[plots]".') from e

    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axis = figure.subplots()
    if kind != "precision_recall":
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    for name, curve in curves.items():
        step = max(1, len(curve.x) // 2000)  # what a picture can show
        x, y = (v[::step].tolist() + v[-1:].tolist() for v in (curve.x, curve.y))
        axis.plot(x, y, linewidth=1.5, label=name)
    axis.set_xlabel(AXES[kind][0])
    axis.set_ylabel(AXES[kind][1])
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
