"""The exponents of a fusion that order logged lists best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recstack.errors import ConfigError, unknown
from recstack.fusion.expression import Fusion
from recstack.fusion.reading import Value


@dataclass(frozen=True)
class TunedFusion:
    """What `tune_fusion` found.

    fusion: with the best exponents. value: its metric, on the rows that it was chosen by; before: that of the given exponents.
    trials: {"exponents": (...), "value": float} in the order they were tried, the given ones first.
    """

    fusion: Fusion
    value: float
    before: float
    trials: tuple[dict[str, Any], ...]


def tune_fusion(
    fusion: Fusion | str,
    predictions: Mapping[str, Value],
    label: Value,
    metric: str = "gauc",
    *,
    where: Value | None = None,
    weight: Value | None = None,
    group: Value | None = None,
    between: tuple[float, float] = (0.0, 2.0),
    trials: int = 200,
    by: str = "random",
    seed: int = 0,
) -> TunedFusion:
    """The exponents of a fusion that order logged lists best; give validation lists, and judge the result on others.

    What is searched are the numbers to the right of ``**``; all others stay. In a pure product only the ratios of exponents
    order anything, so leave one task without ``**``. No exponents are believed that are not better than the given ones.

    Args:
        predictions: {task: ``[R, L]``, or ``[N]``}, as `Model.predict` or `Model.score` gives them.
        label: of the same shape. Several labels become one by a fusion of theirs: ``Fusion("(click + 4 * like) / 5")(labels)``;
            GAUC takes labels between 0 and 1, nDCG any gains.
        metric: by name: "gauc", "ndcg@10", ...; lists' ties count as the average over their orders.
        where: live rows. weight: of rows. group: the user of each row, for GAUC; without it each list is a group.
        between: where exponents are looked for.
        by: "random": half of the trials evenly, half near the best so far; or "optuna", extra ``recstack[tune]``.

    Raises:
        ConfigError: no exponents, no way up in the metric, fewer than two trials, or no Optuna.

    >>> like = torch.rand(50, 8)
    >>> tune_fusion("click * like ** 0.2", {"click": 1 - like, "like": like}, like, "ndcg").fusion.exponents[0] > 1
    True
    """
    from recstack import metrics

    given = Fusion(str(fusion))
    measure = metrics.get(metric)
    if measure.kind == "list":
        measure = metrics.get(metric, ties="average")
    low, high = between
    if not given.exponents:
        raise ConfigError(f"Fusion {str(given)!r} has no exponents to tune; write 'click * like ** 1.0'.")
    if measure.higher_is_better is None:
        raise ConfigError(f"Metric {metric!r} has no better or worse; take gauc, auc or ndcg@10.")
    if by not in ("random", "optuna"):
        raise unknown("search in by=", by, ("random", "optuna"))
    if trials < 2 or not low < high:
        raise ConfigError(f"trials= is 2 or more and between= (low, high); got {trials} and {between}.")
    values = {name: torch.as_tensor(predictions[name]) for name in given.names if name in predictions}
    label = torch.as_tensor(label)
    if measure.kind == "list" and label.dim() < 2:
        raise ConfigError(
            f"Metric {metric!r} is of lists, and these rows have none; give tensors [requests, candidates]."
        )
    rows = {
        name: None if value is None else torch.as_tensor(value)
        for name, value in (("where", where), ("weight", weight), ("group", group))
    }
    sign = 1 if measure.higher_is_better else -1
    tried: list[dict[str, Any]] = []

    @torch.no_grad()
    def goodness(exponents: Sequence[float]) -> float:
        exponents = tuple(round(float(x), 4) for x in exponents)
        value = float(measure(given.with_exponents(exponents)(values), label, **rows))
        tried.append({"exponents": exponents, "value": value})
        return sign * value if value == value else -math.inf

    best = lambda: max(tried, key=lambda t: sign * t["value"] if t["value"] == t["value"] else -math.inf)  # noqa: E731
    goodness(given.exponents)
    if by == "optuna":
        _ask_optuna(goodness, len(given.exponents), between, trials - 1, seed)
    else:
        random = np.random.default_rng(seed)
        for trial in range(1, trials):
            if trial <= trials // 2:
                goodness(random.uniform(low, high, len(given.exponents)).tolist())
            else:
                goodness(random.normal(best()["exponents"], (high - low) / 20).clip(low, high).tolist())
    found = best()
    return TunedFusion(given.with_exponents(found["exponents"]), found["value"], tried[0]["value"], tuple(tried))


def _ask_optuna(
    goodness: Callable[[Sequence[float]], float], n: int, between: tuple[float, float], trials: int, seed: int
) -> None:
    try:
        import optuna
    except ImportError as e:
        raise ConfigError('by="optuna" needs Optuna: pip install "recstack[tune]".') from e
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(lambda t: goodness([t.suggest_float(str(i), *between) for i in range(n)]), n_trials=trials)
    finally:
        optuna.logging.set_verbosity(level)
