"""Counters and histograms in the Prometheus text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # upper edges
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What the service counts; every name and its help are declared once. Safe to use from several threads.

    >>> metrics = Metrics({"pages_total": "Pages."}, {"request_seconds": "Latency."})
    >>> metrics.count("pages_total", endpoint="/recommend")
    >>> print(metrics.text().splitlines()[2])
    recstack_pages_total{endpoint="/recommend"} 1
    """

    def __init__(self, counters: dict[str, str], histograms: dict[str, str]) -> None:
        self._help = {**counters, **histograms}
        self._counters: dict[str, dict[Labels, float]] = {name: {} for name in counters}
        self._histograms: dict[str, dict[Labels, list[float]]] = {name: {} for name in histograms}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._lock = threading.Lock()

    def count(self, name: str, /, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = tuple(labels.items())
        with self._lock:
            series = self._counters[name]
            series[key] = series.get(key, 0) + by

    def observe(self, name: str, seconds: float, /, **labels: str) -> None:
        """Add a value to a histogram."""
        with self._lock:
            series = self._histograms[name].setdefault(tuple(labels.items()), [0.0] * (len(SECONDS) + 2))
            series[bisect_left(SECONDS, seconds)] += 1
            series[-1] += seconds  # the last cell is the sum, the one before counts what is past the last edge

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A number that is read when it is asked for."""
        self._gauges[name] = (help, value)

    def text(self) -> str:
        """All of it, https://prometheus.io/docs/instrumenting/exposition_formats."""
        lines: list[str] = []

        def head(name: str, help: str, kind: str) -> None:
            lines.extend([f"# HELP recstack_{name} {help}", f"# TYPE recstack_{name} {kind}"])

        with self._lock:
            for name, series in self._counters.items():
                head(name, self._help[name], "counter")
                lines += [f"recstack_{name}{_labels(key)} {value:g}" for key, value in sorted(series.items())]
            for name, found in self._histograms.items():
                head(name, self._help[name], "histogram")
                for key, cells in sorted(found.items()):
                    total = 0.0
                    for edge, cell in zip((*SECONDS, "+Inf"), cells[:-1], strict=True):
                        total += cell
                        lines.append(f"recstack_{name}_bucket{_labels((*key, ('le', str(edge))))} {total:.0f}")
                    lines.append(f"recstack_{name}_sum{_labels(key)} {cells[-1]:.9f}")
                    lines.append(f"recstack_{name}_count{_labels(key)} {total:.0f}")
        for name, (help, value) in self._gauges.items():
            head(name, help, "gauge")
            lines.append(f"recstack_{name} {value():g}")
        return "\n".join(lines) + "\n"


def _labels(key: Labels) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in key) + "}" if key else ""
