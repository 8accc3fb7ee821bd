"""Reliability as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from recstack.errors import ConfigError


def reliability_diagram(tables: Mapping[str, Mapping[str, Tensor]], path: str | Path) -> None:
    """What models promise against what was observed, with 95 % intervals; on the diagonal they are honest.

    Args:
        tables: {name: `reliability_table`}, a curve each.
        path: of the picture; its ending chooses the format.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ConfigError('Pictures need matplotlib: pip install "recstack[plots]".') from e

    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axis = figure.subplots()
    top = max(float(max(t["predicted"].max(), t["high"].max())) for t in tables.values())
    axis.plot([0, top], [0, top], color="#999999", linewidth=1, linestyle="--")
    for name, table in tables.items():
        x, y = table["predicted"].numpy(), table["observed"].numpy()
        low, high = table["low"].numpy(), table["high"].numpy()
        axis.errorbar(
            x, y, [(y - low).clip(0), (high - y).clip(0)], marker="o", markersize=3.5, linewidth=1, label=name
        )
    axis.set_xlabel("predicted")
    axis.set_ylabel("observed")
    axis.set_xlim(0, top)
    axis.set_ylim(0, top)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
