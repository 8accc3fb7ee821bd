"""Static weights searched for: the points that no other beats in every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from recstack.errors import ConfigError
from recstack.training import evaluation


@dataclass(frozen=True)
class Front:
    """What a search found.

    metrics: the names that were looked at. trials: one record each, in the order they were made, the first with equal weights:
    {"weights": {loss: w}, "metrics": {name: value}, "pareto": whether no other is at least as good in all and better in one}.
    """

    metrics: tuple[str, ...]
    trials: tuple[dict[str, Any], ...]

    @property
    def pareto(self) -> list[dict[str, Any]]:
        """The trials that no other beats, by the first metric."""
        return sorted((t for t in self.trials if t["pareto"]), key=lambda t: t["metrics"][self.metrics[0]])

    def plot(self, path: str | Path) -> Path:
        """A panel for each pair of metrics (.png or .svg); needs matplotlib, extra ``recstack[plots]``."""
        try:
            from matplotlib.figure import Figure
        except ImportError as e:
            raise ConfigError('Pictures need matplotlib: pip install "recstack[plots]".') from e
        pairs = list(combinations(self.metrics, 2))
        figure = Figure(figsize=(4.4 * len(pairs), 4.0), layout="constrained")
        for axes, pair in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            for trials, look in ((self.trials, {"color": "0.7"}), (self.pareto, {"color": "C0", "label": "best"})):
                axes.scatter(*([t["metrics"][m] for t in trials] for m in pair), **look)
            axes.scatter(*([self.trials[0]["metrics"][m]] for m in pair), marker="x", color="C3", label="equal weights")
            axes.set_xlabel(pair[0])
            axes.set_ylabel(pair[1])
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False)
        figure.savefig(path, dpi=120)
        return Path(path)


def search_weights(
    model: Callable[[], Any],
    train: Any,
    valid: Any,
    metrics: Sequence[str],
    *,
    trials: int = 20,
    losses: Sequence[str] | None = None,
    widest: float = 10.0,
    seed: int = 0,
    **options: Any,
) -> Front:
    """Train with one set of static weights after another, proposed by Optuna, and keep the Pareto front of `valid`.

    Weights are drawn on a logarithmic scale; that of the first loss is 1, for only ratios count. The first trial has equal
    weights. Needs Optuna, extra ``recstack[tune]``.

    Args:
        model: gives a new, untrained model; all trials begin with the same random numbers.
        train, valid, options: as of `Trainer`; the metrics are those of the epoch that ``monitor=`` chose, else of the last.
        metrics: validation metrics, of several tasks: ``("click/auc", "like/auc")``.
        losses: whose weights are searched; None: those of the model's tasks.
        widest: weights lie between 1 / widest and widest.

    Raises:
        ConfigError: fewer than two metrics or losses, or no Optuna.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=[rs.Task("click"), rs.Task("cart")]))
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> front = search_weights(
    ...     lambda: rs.multitask.SharedBottom(schema, dim=4),
    ...     train,
    ...     valid,
    ...     ("click/auc", "cart/auc"),
    ...     trials=2,
    ...     epochs=1,
    ...     progress=False,
    ... )
    >>> front.trials[0]["weights"], 1 <= len(front.pareto) <= 2
    ({'click': 1.0, 'cart': 1.0}, True)
    """
    from recstack.training.trainer import Trainer

    try:
        import optuna
    except ImportError as e:
        raise ConfigError('The search for weights needs Optuna: pip install "recstack[tune]".') from e
    if len(metrics) < 2:
        raise ConfigError(f"search_weights weighs metrics against each other; give two or more, got {tuple(metrics)}.")
    names = list(losses) if losses is not None else [t.name for t in model().schema.tasks if t.weight]
    if len(names) < 2:
        raise ConfigError(f"search_weights needs two losses or more; got {names}.")
    if not widest > 1:
        raise ConfigError(f"widest= is above 1; got {widest}.")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()

    def trial(asked: Any) -> list[float]:
        weights = {names[0]: 1.0} | {n: asked.suggest_float(n, 1 / widest, widest, log=True) for n in names[1:]}
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            one = model()
        result = Trainer(one, balance=weights, **{"seed": seed, **options}).fit(train, valid)
        at = result.epochs[-1 if result.best is None else result.best["epoch"] - 1]["valid"]
        asked.set_user_attr("weights", weights)
        return [at[evaluation.resolve(m, at)] for m in metrics]

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        higher = [evaluation.direction(m) for m in metrics]
        study = optuna.create_study(
            directions=["maximize" if h else "minimize" for h in higher], sampler=optuna.samplers.TPESampler(seed=seed)
        )
        study.enqueue_trial(dict.fromkeys(names[1:], 1.0))
        study.optimize(trial, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(level)
    best = {t.number for t in study.best_trials}
    return Front(
        tuple(metrics),
        tuple(
            {
                "weights": t.user_attrs["weights"],
                "metrics": dict(zip(metrics, t.values, strict=True)),
                "pareto": t.number in best,
            }
            for t in study.trials
        ),
    )
