"""LightGBM: A Highly Efficient Gradient Boosting Decision Tree (Ke et al., NIPS 2017).

https://papers.nips.cc/paper/6907-lightgbm-a-highly-efficient-gradient-boosting-decision-tree
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from recstack.errors import BundleError, ConfigError, DataError, SchemaError, unknown
from recstack.features import tasks
from recstack.features.matrix import Matrix
from recstack.kernels.earlier import earlier
from recstack.models.base import Model
from recstack.schema import Schema, Task

OBJECTIVES = ("pointwise", "lambdarank", "rank_xendcg")
POINTWISE = {"binary": "binary", "regression": "regression", "multiclass": "multiclass"}
ROWS = 8192  # requests read at a time


class GBDT(Model):
    r"""Boosted trees by LightGBM, a booster per task: the classifier, or the ranker (LambdaMART).

    .. math:: z = \sum_m \eta\, T_m(x), \qquad x_{\mathrm{id}} = \Big[\, n_{\mathrm{id}}^{<t}, \;
        \frac{\sum_{j<t} y_j + s\, \bar y^{<t}}{n_{\mathrm{id}}^{<t} + s} \Big]

    Logits ``[R, L]``. Ids of a table below 256 are categories of the trees' own; of others the trees see how many rows they
    had and the smoothed mean of their labels (both by weight): in training those of earlier moments alone (of earlier requests, where the log
    has no time), afterwards those of all training rows, kept in the bundle. Lists, histories and vectors are read as
    `features.matrix.Matrix` says; histories by their length and whether the candidate was met in them.

    It has no gradients: `fit` grows the trees in one go, stops where `valid` gets no better, and takes nothing of a Trainer. A
    ranker's scores order and are no log-odds; give a cascade a calibrator where probabilities are read. Weights of tasks play no
    part, weights of rows do. Needs LightGBM: ``pip install recstack[gbdt]``.

    Departs from the paper: the coding of large tables, which is CatBoost's idea (https://arxiv.org/abs/1706.09516).

    Args:
        schema: a fitted schema, its tasks binary, regressions or multiclass.
        objective: "pointwise" (log loss, squared error, softmax, by the kind of task), or "lambdarank" or "rank_xendcg" over the
            candidates of each request; a regression's labels are then grades, whole numbers from 0 to 30.
        trees: at most.
        lr: shrinkage of each tree, :math:`\eta`.
        leaves: of a tree, at most.
        min_rows: in a leaf, at least.
        l2: on the leaves' values.
        smoothing: rows that the mean of all labels counts for in an id's mean, s.
        patience: stop after that many trees without a better validation loss (NDCG@10 of a ranker).
        seed: of LightGBM, and of the negatives of an implicit log.

    Ke et al., NIPS 2017, https://papers.nips.cc/paper/6907-lightgbm-a-highly-efficient-gradient-boosting-decision-tree

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.GBDT(rs.Encoder(train.schema).fit(train).schema, trees=20).fit(train, valid=valid)
    >>> model.score(test)["click"].shape == (len(test),), len(model.importance()) == len(model.columns)
    (True, True)
    """

    gradients = False

    def __init__(
        self,
        schema: Schema,
        *,
        objective: str = "pointwise",
        trees: int = 500,
        lr: float = 0.05,
        leaves: int = 31,
        min_rows: int = 20,
        l2: float = 0.0,
        smoothing: float = 20.0,
        patience: int = 30,
        seed: int = 0,
    ):
        super().__init__(schema)
        if objective not in OBJECTIVES:
            raise unknown("objective of GBDT", objective, OBJECTIVES)
        self.own = [t for t in schema.tasks if not t.derived]
        if not self.own:
            raise SchemaError("The model has nothing to predict: the schema needs tasks=[rs.Task(...)].")
        for task in self.own:
            if task.kind not in POINTWISE or tasks.loss_name(task) != tasks.LOSSES[task.kind][0]:
                asked = f"loss={tasks.loss_name(task)!r}" if task.kind in POINTWISE else f"kind={task.kind!r}"
                raise SchemaError(
                    f"GBDT has losses of its own, and task {task.name!r} asks for {asked}; leave that out."
                )
            if objective != "pointwise" and task.kind == "multiclass":
                raise SchemaError(f"Task {task.name!r} is multiclass, which {objective!r} cannot rank by.")
        self.objective, self.patience, self.smoothing, self.seed = objective, patience, smoothing, seed
        self.trees = trees
        self.options = {"learning_rate": lr, "num_leaves": leaves, "min_data_in_leaf": min_rows, "lambda_l2": l2}
        self.matrix = Matrix(schema)
        self.start = torch.tensor([0, *self.matrix.ids.values()]).cumsum(0)  # of each coded column in the statistics
        self.statistics: Tensor | None = None  # [tasks, 2, ids]: count and mean
        self.boosters: dict[str, Any] = {}

    @property
    def columns(self) -> list[str]:
        """What the trees read; ``@count`` and ``@mean`` stand for the ids of large tables."""
        return [*self.matrix.numbers, *(f"{n}@{what}" for what in ("count", "mean") for n in self.matrix.ids)]

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.statistics is None:
            raise ConfigError("This GBDT has grown no trees yet; call fit(train) first.")
        numbers, ids = self.matrix(batch)
        where = next(iter(batch.values())).device
        logits = {}
        for i, task in enumerate(self.own):
            x = torch.cat([numbers, *self.statistics[i][:, ids + self.start[:-1]].unbind(0)], -1)
            z = self.boosters[task.name].predict(
                x.flatten(0, 1).numpy(), raw_score=True, num_threads=torch.get_num_threads()
            )
            logits[task.name] = torch.from_numpy(z).float().view(*x.shape[:2], *z.shape[1:]).to(where)
        return tasks.derive(logits, self.schema)

    def importance(self, task: str | None = None) -> dict[str, float]:
        """Each column's share of what the splits of a task (by default the first) gained, best first."""
        if self.statistics is None:
            raise ConfigError("This GBDT has grown no trees yet; call fit(train) first.")
        gain = self.boosters[task or self.own[0].name].feature_importance("gain")
        order = np.argsort(-gain, kind="stable")
        return {self.columns[i]: float(gain[i] / max(gain.sum(), 1e-12)) for i in order}

    # -- growing ------------------------------------------------------------------------------------------------------
    def fit(self, train: Any, valid: Any = None, *, negatives: int = 4, **options: Any) -> Self:
        """Grow the trees; how many each task kept, and their validation loss, is in `trained`.

        Args:
            train, valid: a Log (encoded by the encoder of the schema), Columns, a Loader in order, or batches.
            negatives: drawn for each positive where a log is implicit.

        Raises:
            DataError: a task without labels, or with grades that are none; requests of one candidate, for a ranker.
        """
        if options:
            raise ConfigError(f"GBDT grows trees and is not trained step by step; leave out {next(iter(options))}=.")
        lgb = _lightgbm()
        rows = self._read(train, negatives)
        held = None if valid is None else self._read(valid, negatives)
        statistics = torch.zeros(len(self.own), 2, int(self.start[-1]))
        boosters, self.trained = {}, {}
        for i, task in enumerate(self.own):
            chosen, label = self._live(rows, task, "training")
            coded = self._coded(rows.ids[chosen], label, rows.weight[chosen], rows.moment[chosen], statistics[i])
            data = self._dataset(lgb, rows, task, chosen, coded)
            params, calls, sets = self._params(task), [], []
            if held is not None:
                kept, _ = self._live(held, task, "validation")
                known = statistics[i][:, torch.from_numpy(held.ids[kept]) + self.start[:-1]]
                sets = [self._dataset(lgb, held, task, kept, known.numpy(), data)]
                calls = [lgb.early_stopping(self.patience, verbose=False)]
            grown = lgb.train(
                params, data, self.trees, valid_sets=sets, valid_names=["valid"] * len(sets), callbacks=calls
            )
            boosters[task.name] = lgb.Booster(
                model_str=grown.model_to_string()
            )  # its best trees, as loading gives them
            found = {name: float(v) for name, v in grown.best_score.get("valid", {}).items()}
            self.trained[task.name] = {"trees": grown.best_iteration or grown.current_iteration(), "valid": found}
        self.boosters, self.statistics, self.fitted = boosters, statistics, True
        return self.eval()

    def _params(self, task: Task) -> dict[str, Any]:
        ranks = self.objective != "pointwise"
        return {
            **self.options,
            "objective": self.objective if ranks else POINTWISE[task.kind],
            **({"metric": "ndcg", "eval_at": [10]} if ranks else {}),
            **({"num_class": task.classes} if task.kind == "multiclass" else {}),
            "seed": self.seed,
            "num_threads": torch.get_num_threads(),
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _read(self, data: Any, negatives: int) -> _Rows:
        from recstack.data import Columns, Loader
        from recstack.training.batches import encoded

        data = encoded(data, self)
        if isinstance(data, Columns):
            data.check_labels()
            drawn = negatives if data.implicit else 0
            data = Loader(data, ROWS, negatives=drawn, seed=self.seed, times=True)
        parts, requests = [], 0
        for batch in data:
            numbers, ids = self.matrix(batch)
            shape = numbers.shape[:2]
            request = torch.arange(requests, requests + shape[0])
            moment = batch.get("@time", request).cpu()
            targets = [tasks.target(batch, self.schema, task) for task in self.own]
            label, where = (torch.stack([t[k].cpu() for t in targets], -1).flatten(0, 1) for k in (0, 1))  # type: ignore[arg-type]
            weight = torch.ones(shape) if targets[0].weight is None else targets[0].weight.cpu()
            each = [x.unsqueeze(1).expand(shape).flatten() for x in (moment, request)]
            parts.append((numbers.flatten(0, 1), ids.flatten(0, 1), *each, label, where, weight.flatten()))
            requests += shape[0]
        if not parts:
            raise DataError("There are no batches to learn from.")
        return _Rows(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))

    def _live(self, rows: _Rows, task: Task, what: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows that count for a task, and their labels."""
        i = self.own.index(task)
        chosen = np.flatnonzero(rows.where[:, i])
        if not len(chosen):
            raise DataError(f"No row of the {what} data has a label for task {task.name!r}.")
        label = rows.label[chosen, i]
        if self.objective != "pointwise":
            if (label != label.round()).any() or label.min() < 0 or label.max() > 30:
                raise DataError(
                    f"{self.objective!r} ranks by grades, whole numbers from 0 to 30; {task.column!r} is not."
                )
            if len(np.unique(rows.request[chosen])) == len(chosen):
                raise DataError(
                    f"{self.objective!r} learns from requests with several candidates, and each of the {what} data has "
                    'one; give Log(request="...") or objective="pointwise".'
                )
        return chosen, label

    def _coded(
        self, ids: np.ndarray, label: np.ndarray, weight: np.ndarray, moment: np.ndarray, statistics: Tensor
    ) -> np.ndarray:
        """Count and mean [2, n, Q] of each row's ids from the rows of earlier moments; those of all go into `statistics`."""
        s, sums = self.smoothing, np.stack([weight, weight * label], 1)
        count, total = sums.sum(0, dtype=np.float64)
        prior = total / max(count, 1e-12)
        count, total = earlier(np.zeros(len(label), np.int64), sums, moment).T
        early = total / np.maximum(count, 1e-12)
        out = np.empty((2, *ids.shape), np.float32)
        for q, (start, size) in enumerate(zip(self.start.tolist(), self.matrix.ids.values(), strict=False)):
            count, total = earlier(ids[:, q], sums, moment).T
            out[0, :, q], out[1, :, q] = count, (total + s * early) / np.maximum(count + s, 1e-12)
            count, total = (np.bincount(ids[:, q], column, minlength=size) for column in sums.T)
            mine = np.stack([count, (total + s * prior) / np.maximum(count + s, 1e-12)])
            statistics[:, start : start + size] = torch.from_numpy(mine)
        return out

    def _dataset(
        self, lgb: Any, rows: _Rows, task: Task, chosen: np.ndarray, coded: np.ndarray, like: Any = None
    ) -> Any:
        group = None
        if self.objective != "pointwise":
            group = np.unique(rows.request[chosen], return_counts=True)[1]
        x = np.concatenate([rows.numbers[chosen], *coded], 1)
        return lgb.Dataset(
            x,
            rows.label[chosen, self.own.index(task)],
            reference=like,
            weight=rows.weight[chosen],
            group=group,
            categorical_feature=self.matrix.categories,
            params={"verbosity": -1, "min_data_in_leaf": self.options["min_data_in_leaf"]},
        )

    # -- saving -------------------------------------------------------------------------------------------------------
    def grown(self, source: Any) -> Self:
        raise ConfigError("Trees do not grow with a vocabulary; build a GBDT from the grown schema and fit it.")

    def _tensors(self) -> dict[str, Any]:
        if self.statistics is None:
            raise ConfigError("This GBDT has grown no trees yet; call fit(train) before save.")
        texts = [self.boosters[t.name].model_to_string().encode() for t in self.own]
        return {"statistics": self.statistics} | {
            f"trees{i}": np.frombuffer(text, np.uint8) for i, text in enumerate(texts)
        }

    def _load_tensors(self, tensors: Mapping[str, Any]) -> None:
        lgb = _lightgbm()
        try:
            texts = [bytes(np.asarray(tensors[f"trees{i}"])).decode() for i in range(len(self.own))]
            self.boosters = {t.name: lgb.Booster(model_str=x) for t, x in zip(self.own, texts, strict=True)}
            self.statistics = tensors["statistics"]
        except (KeyError, UnicodeDecodeError, lgb.basic.LightGBMError) as error:
            raise BundleError(f"The saved GBDT is of another version: {' '.join(str(error).split())}.") from error


class _Rows(NamedTuple):
    """A table to learn from: n rows, the columns of `Matrix`, and per task what `tasks.target` says."""

    numbers: np.ndarray
    ids: np.ndarray
    moment: np.ndarray
    request: np.ndarray
    label: np.ndarray
    where: np.ndarray
    weight: np.ndarray


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise ConfigError("GBDT needs LightGBM; install it with: pip install recstack[gbdt].") from error
    return lightgbm
