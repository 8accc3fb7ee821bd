"""AdaRank: A Boosting Algorithm for Information Retrieval (Xu and Li, SIGIR 2007). https://doi.org/10.1145/1277741.1277809"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from recstack.errors import BundleError, ConfigError
from recstack.features import tasks
from recstack.models.boosted import OfTable, Part
from recstack.schema import Schema


class AdaRank(OfTable):
    r"""A weighted sum of single columns, boosted towards the requests that are still ordered badly.

    .. math:: h_t = \arg\max_h \sum_q P_t(q)\, E(h, q), \quad
        \alpha_t = \tfrac12 \ln \frac{\sum_q P_t(q) (1 + E(h_t, q))}{\sum_q P_t(q) (1 - E(h_t, q))}, \quad
        f_t = f_{t-1} + \alpha_t h_t, \quad P_{t+1}(q) \propto e^{-E(f_t, q)}

    Logits ``[R, L]``. A weak ranker h orders a list by one column, upwards or downwards; E is the `metric`, averaged over the
    orders of equal scores. The columns are those of `features.matrix.Matrix`, ids of every table as their count and smoothed
    mean (see `rs.ranking.GBDT`), each scaled to 0 to 1 by its extremes in training; what is missing is 0. Linear in its
    columns: `coefficients` says all that it knows. `fit` takes nothing of a Trainer; requests with nothing relevant, or
    nothing else, teach nothing.

    Departs from the paper: a column may be taken downwards too; the same weak ranker is not chosen twice running, which would
    change nothing and repeat forever; with `valid`, the best round there is kept.

    Args:
        schema: a fitted schema, its tasks binary, or regressions on grades.
        rounds: weak rankers, at most.
        metric: of an order, from 0 to 1, greater is better: "ndcg@10", "map", "mrr", "precision@5" ...
        smoothing: rows that the mean of all labels counts for in an id's mean.
        patience: stop after that many rounds without a better metric on `valid`.
        seed: of the negatives of an implicit log.

    Xu and Li, SIGIR 2007, https://doi.org/10.1145/1277741.1277809

    >>> import recstack as rs
    >>> world = rs.testing.World(rs.testing.schema())
    >>> rows = [world.batch(100, 5, seed) for seed in range(3)]
    >>> model = rs.reranking.AdaRank(world.schema, rounds=10).fit(rows[:2], valid=rows[2:])
    >>> model(rows[2])["click"].shape
    torch.Size([100, 5])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        rounds: int = 200,
        metric: str = "ndcg@10",
        smoothing: float = 20.0,
        patience: int = 50,
        seed: int = 0,
    ):
        super().__init__(schema, smoothing=smoothing, seed=seed, ranks=True, asked="AdaRank", small=0)
        self.rounds, self.metric, self.patience = rounds, metric, patience
        found = tasks.metric(metric)
        if found.kind != "list" or not found.higher_is_better:
            raise ConfigError(
                f"AdaRank boosts a metric of lists whose greater values are better; {metric!r} is not one."
            )
        self.of = partial(found.measure, **found.options)
        self.scale = torch.zeros(len(self.own), 3, len(self.columns), dtype=torch.float64)  # least, width, coefficient

    def coefficients(self, task: str | None = None) -> dict[str, float]:
        """What each column that was chosen adds for its whole range, greatest first; by default of the first task."""
        self._grown()
        i = 0 if task is None else [t.name for t in self.own].index(task)
        value = self.scale[i, 2]
        order = value.abs().argsort(descending=True, stable=True).tolist()
        return {self.columns[j]: float(value[j]) for j in order if value[j] != 0}

    def _answer(self, x: np.ndarray, task: Any) -> np.ndarray:
        scale = self.scale[self.own.index(task)]
        return _scaled(x, scale) @ scale[2].numpy()

    def fit(self, train: Any, valid: Any = None, *, negatives: int = 4, **options: Any) -> Self:
        """Boost; how many rounds each task kept, and the metric on `valid`, is in `trained`.

        Args:
            train, valid: a Log (encoded by the encoder of the schema), Columns, a Loader in order, or batches.
            negatives: drawn for each positive where a log is implicit.

        Raises:
            DataError: a task without labels, or with grades that are none; requests of one candidate.
        """
        if options:
            raise ConfigError(f"AdaRank is not trained step by step; leave out {next(iter(options))}=.")
        rows = self._read(train, negatives)
        held = None if valid is None else self._read(valid, negatives)
        statistics = torch.zeros(len(self.own), 2, int(self.start[-1]))
        self.trained = {}
        for i, task in enumerate(self.own):
            part = self._learned(rows, task, statistics[i])
            known = None if held is None else self._held(held, task, statistics[i])
            x = np.nan_to_num(part.x, nan=np.inf)
            least = np.where(np.isfinite(x).any(0), x.min(0, initial=np.inf), 0)
            most = np.nan_to_num(part.x, nan=-np.inf).max(0, initial=-np.inf)
            self.scale[i] = 0
            self.scale[i, 0] = torch.from_numpy(least)
            self.scale[i, 1] = torch.from_numpy(np.where(most > least, most - least, 0))
            weights, self.trained[task.name] = self._boost(part, known, self.scale[i])
            self.scale[i, 2] = torch.from_numpy(weights)
        self.statistics, self.fitted = statistics, True
        return self.eval()

    def _boost(self, part: Part, held: Part | None, scale: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
        x, lists = _scaled(part.x, scale), _Lists(part)
        quality = np.stack([lists.measure(self.of, sign * column) for column in x.T for sign in (1, -1)])
        some = np.isfinite(quality[0])  # requests that a metric can tell about
        quality, importance = quality[:, some], lists.weight[some]
        if held is not None:
            valid_x, valid = _scaled(held.x, scale), _Lists(held)
        weights, kept = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        chance, last, best, best_round, rounds = importance / max(importance.sum(), 1e-12), -1, -np.inf, 0, 0
        for rounds in range(1, self.rounds + 1):
            gain = quality @ chance
            if last >= 0:
                gain[last] = -np.inf
            last = int(gain.argmax())
            if not gain[last] > 0:
                break
            weights[last // 2] += (1 - 2 * (last % 2)) * 0.5 * np.log((1 + gain[last]) / max(1 - gain[last], 1e-6))
            chance = importance * np.exp(-lists.measure(self.of, x @ weights)[some])
            chance /= chance.sum()
            if held is None:
                kept, best_round = weights.copy(), rounds
                continue
            found = valid.mean(self.of, valid_x @ weights)
            if found > best:
                best, best_round, kept = found, rounds, weights.copy()
            elif rounds - best_round >= self.patience:
                break
        return kept, {"rounds": best_round, "valid": {} if held is None else {self.metric: float(best)}}

    def _tensors(self) -> dict[str, Any]:
        return {"statistics": self._grown(), "scale": self.scale}

    def _load_tensors(self, tensors: Mapping[str, Any]) -> None:
        if set(tensors) != {"statistics", "scale"} or tensors["scale"].shape != self.scale.shape:
            raise BundleError("The saved AdaRank is of another version.")
        self.statistics, self.scale = tensors["statistics"], tensors["scale"]


def _scaled(x: np.ndarray, scale: Tensor) -> np.ndarray:
    """Columns from 0 to 1 as in training; 0 where nothing is, or where a column is constant."""
    least, width = scale[0].numpy(), scale[1].numpy()
    return np.nan_to_num(np.where(width > 0, (x - least) / np.where(width > 0, width, 1), 0), nan=0.0)


class _Lists:
    """Rows as padded lists, [Q, L]."""

    def __init__(self, part: Part):
        starts = np.cumsum(part.group) - part.group
        place = np.arange(part.group.max())
        self.live = torch.from_numpy(place < part.group[:, None])
        self.row = np.minimum(starts[:, None] + place, len(part.label) - 1)
        self.label = torch.from_numpy(part.label)[self.row]
        self.weight = np.add.reduceat(part.weight.astype(np.float64), starts) / part.group

    def measure(self, metric: Any, score: np.ndarray) -> np.ndarray:
        """The metric of each list; NaN where it has no answer."""
        score = np.round(score, 9)  # sums that differ by rounding alone are equal
        return metric(torch.from_numpy(score[self.row]), self.label, where=self.live, reduction="none").numpy()

    def mean(self, metric: Any, score: np.ndarray) -> float:
        each = self.measure(metric, score)
        some = np.isfinite(each)
        return float(np.average(each[some], weights=self.weight[some])) if some.any() else -np.inf
