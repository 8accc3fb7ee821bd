"""What models of one table share, a row per candidate, that learn in one go: reading it, ids as numbers, and LightGBM's trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from recstack.errors import BundleError, ConfigError, DataError, SchemaError
from recstack.features import tasks
from recstack.features.matrix import SMALL, Matrix
from recstack.kernels.earlier import earlier
from recstack.models.base import Model
from recstack.schema import Schema, Task

POINTWISE = {"binary": "binary", "regression": "regression", "multiclass": "multiclass"}
ROWS = 8192  # requests read at a time


class OfTable(Model):
    """A model of the table that `Matrix` reads, without gradients.

    Of ids of a table below 256 the columns are the ids; of others how many rows they had and the smoothed mean of their labels
    (both by weight): in training those of earlier moments alone (of earlier requests, where the log has no time), afterwards
    those of all training rows, kept in the bundle.

    Args:
        schema: a fitted schema, its tasks binary, regressions or multiclass.
        smoothing: rows that the mean of all labels counts for in an id's mean.
        seed: of the negatives of an implicit log.
        small: tables of fewer ids are columns as they are.
        ranks: it orders the candidates of a request, by grades.
        asked: what asks for that, in sentences about data.
    """

    gradients: ClassVar[bool] = False

    def __init__(self, schema: Schema, *, smoothing: float, seed: int, ranks: bool, asked: str, small: int = SMALL):
        super().__init__(schema)
        self.own = [t for t in schema.tasks if not t.derived]
        if not self.own:
            raise SchemaError("The model has nothing to predict: the schema needs tasks=[rs.Task(...)].")
        for task in self.own:
            if task.kind not in POINTWISE or tasks.loss_name(task) != tasks.LOSSES[task.kind][0]:
                wanted = f"loss={tasks.loss_name(task)!r}" if task.kind in POINTWISE else f"kind={task.kind!r}"
                raise SchemaError(
                    f"{type(self).__name__} has losses of its own, and task {task.name!r} asks for {wanted}; leave that out."
                )
            if ranks and task.kind == "multiclass":
                raise SchemaError(f"Task {task.name!r} is multiclass, which {asked} cannot rank by.")
        self.smoothing, self.seed, self.ranks, self.asked = smoothing, seed, ranks, asked
        self.matrix = Matrix(schema, small)
        self.start = torch.tensor([0, *self.matrix.ids.values()]).cumsum(0)  # of each coded column in the statistics
        self.statistics: Tensor | None = None  # [tasks, 2, ids]: count and mean

    @property
    def columns(self) -> list[str]:
        """What the model reads; ``@count`` and ``@mean`` stand for the ids of large tables."""
        return [*self.matrix.numbers, *(f"{n}@{what}" for what in ("count", "mean") for n in self.matrix.ids)]

    def _grown(self) -> Tensor:
        """The statistics. Raises ConfigError before `fit`."""
        if self.statistics is None:
            raise ConfigError(f"This {type(self).__name__} has learned nothing yet; call fit(train) first.")
        return self.statistics

    def _answer(self, x: np.ndarray, task: Task) -> np.ndarray:
        """Scores ``[n]``, ``[n, classes]``, of a table ``[n, columns]``."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        statistics = self._grown()
        numbers, ids = self.matrix(batch)
        where = next(iter(batch.values())).device
        logits = {}
        for i, task in enumerate(self.own):
            x = torch.cat([numbers, *statistics[i][:, ids + self.start[:-1]].unbind(0)], -1)
            z = self._answer(x.flatten(0, 1).numpy(), task)
            logits[task.name] = torch.from_numpy(z).float().view(*x.shape[:2], *z.shape[1:]).to(where)
        return tasks.derive(logits, self.schema)

    # -- reading ------------------------------------------------------------------------------------------------------
    def _learned(self, rows: Rows, task: Task, statistics: Tensor) -> Part:
        """What a task learns from; what its ids teach goes into `statistics` [2, ids]."""
        chosen, label = self._live(rows, task, "training")
        coded = self._coded(rows.ids[chosen], label, rows.weight[chosen], rows.moment[chosen], statistics)
        return self._part(rows, chosen, label, coded)

    def _held(self, rows: Rows, task: Task, statistics: Tensor) -> Part:
        """What a task is measured by."""
        chosen, label = self._live(rows, task, "validation")
        return self._part(
            rows, chosen, label, statistics[:, torch.from_numpy(rows.ids[chosen]) + self.start[:-1]].numpy()
        )

    def _part(self, rows: Rows, chosen: np.ndarray, label: np.ndarray, coded: np.ndarray) -> Part:
        x = np.concatenate([rows.numbers[chosen], *coded], 1)
        return Part(x, label, rows.weight[chosen], np.unique(rows.request[chosen], return_counts=True)[1])

    def _read(self, data: Any, negatives: int) -> Rows:
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
        return Rows(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))

    def _live(self, rows: Rows, task: Task, what: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows that count for a task, and their labels."""
        i = self.own.index(task)
        chosen = np.flatnonzero(rows.where[:, i])
        if not len(chosen):
            raise DataError(f"No row of the {what} data has a label for task {task.name!r}.")
        label = rows.label[chosen, i]
        if self.ranks:
            self._check_lists(rows.request[chosen], label, task, what)
        return chosen, label

    def _check_lists(self, request: np.ndarray, label: np.ndarray, task: Task, what: str) -> None:
        if (label != label.round()).any() or label.min() < 0 or label.max() > 30:
            raise DataError(f"{self.asked} ranks by grades, whole numbers from 0 to 30; {task.column!r} is not.")
        if len(np.unique(request)) == len(request):
            raise DataError(
                f"{self.asked} learns from requests with several candidates, and each of the {what} data has one; give "
                'Log(request="...") or take GBDT with objective="pointwise".'
            )

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

    def grown(self, source: Any) -> Self:
        name = type(self).__name__
        raise ConfigError(f"{name} does not grow with a vocabulary; build one from the grown schema and fit it.")


class Boosted(OfTable):
    """Trees by LightGBM, a booster per task; a subclass says which objective and options.

    Args:
        objective: LightGBM's ranking objective, or "pointwise": that of the task's kind.
        trees: at most.
        patience: stop after that many trees without a better validation loss (NDCG@at of a ranker).
        at: the cut of that NDCG.
        options: more parameters of LightGBM.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        objective: str,
        trees: int,
        patience: int,
        smoothing: float,
        seed: int,
        at: int = 10,
        asked: str = "",
        options: Mapping[str, Any],
    ):
        ranks = objective != "pointwise"
        super().__init__(schema, smoothing=smoothing, seed=seed, ranks=ranks, asked=asked or repr(objective))
        self.objective, self.trees, self.patience, self.at = objective, trees, patience, at
        self.options = dict(options)
        self.boosters: dict[str, Any] = {}

    def importance(self, task: str | None = None) -> dict[str, float]:
        """Each column's share of what the splits of a task (by default the first) gained, best first."""
        self._grown()
        gain = self.boosters[task or self.own[0].name].feature_importance("gain")
        order = np.argsort(-gain, kind="stable")
        return {self.columns[i]: float(gain[i] / max(gain.sum(), 1e-12)) for i in order}

    # -- growing ------------------------------------------------------------------------------------------------------
    def _answer(self, x: np.ndarray, task: Task) -> np.ndarray:
        return self.boosters[task.name].predict(x, raw_score=True, num_threads=torch.get_num_threads())

    def fit(self, train: Any, valid: Any = None, *, negatives: int = 4, **options: Any) -> Self:
        """Grow the trees; how many each task kept, and their validation loss, is in `trained`.

        Args:
            train, valid: a Log (encoded by the encoder of the schema), Columns, a Loader in order, or batches.
            negatives: drawn for each positive where a log is implicit.

        Raises:
            DataError: a task without labels, or with grades that are none; requests of one candidate, for a ranker.
        """
        if options:
            name = type(self).__name__
            raise ConfigError(f"{name} grows trees and is not trained step by step; leave out {next(iter(options))}=.")
        lgb = _lightgbm()
        rows = self._read(train, negatives)
        held = None if valid is None else self._read(valid, negatives)
        statistics = torch.zeros(len(self.own), 2, int(self.start[-1]))
        boosters, self.trained = {}, {}
        for i, task in enumerate(self.own):
            data = self._dataset(lgb, self._learned(rows, task, statistics[i]))
            calls, sets = [], []
            if held is not None:
                sets = [self._dataset(lgb, self._held(held, task, statistics[i]), data)]
                calls = [lgb.early_stopping(self.patience, verbose=False)]
            grown = lgb.train(
                self._params(task),
                data,
                self.trees,
                valid_sets=sets,
                valid_names=["valid"] * len(sets),
                callbacks=calls,
            )
            text = grown.model_to_string()  # of its best trees, as loading gives them
            boosters[task.name] = lgb.Booster(model_str=text)
            found = {name: float(v) for name, v in grown.best_score.get("valid", {}).items()}
            self.trained[task.name] = {"trees": grown.best_iteration or grown.current_iteration(), "valid": found}
        self.boosters, self.statistics, self.fitted = boosters, statistics, True
        return self.eval()

    def _params(self, task: Task) -> dict[str, Any]:
        return {
            **self.options,
            "objective": self.objective if self.ranks else POINTWISE[task.kind],
            **({"metric": "ndcg", "eval_at": [self.at]} if self.ranks else {}),
            **({"num_class": task.classes} if task.kind == "multiclass" else {}),
            "seed": self.seed,
            "num_threads": torch.get_num_threads(),
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _dataset(self, lgb: Any, part: Part, like: Any = None) -> Any:
        return lgb.Dataset(
            part.x,
            part.label,
            reference=like,
            weight=part.weight,
            group=part.group if self.ranks else None,
            categorical_feature=self.matrix.categories,
            params={"verbosity": -1, "min_data_in_leaf": self.options["min_data_in_leaf"]},
        )

    # -- saving -------------------------------------------------------------------------------------------------------
    def _tensors(self) -> dict[str, Any]:
        statistics = self._grown()
        texts = [self.boosters[t.name].model_to_string().encode() for t in self.own]
        return {"statistics": statistics} | {f"trees{i}": np.frombuffer(text, np.uint8) for i, text in enumerate(texts)}

    def _load_tensors(self, tensors: Mapping[str, Any]) -> None:
        lgb = _lightgbm()
        try:
            texts = [bytes(np.asarray(tensors[f"trees{i}"])).decode() for i in range(len(self.own))]
            self.boosters = {t.name: lgb.Booster(model_str=x) for t, x in zip(self.own, texts, strict=True)}
            self.statistics = tensors["statistics"]
        except (KeyError, UnicodeDecodeError, lgb.basic.LightGBMError) as error:
            raise BundleError(
                f"The saved {type(self).__name__} is of another version: {' '.join(str(error).split())}."
            ) from error


def tree_options(lr: float, leaves: int, min_rows: int, l2: float, share: float) -> dict[str, Any]:
    """LightGBM's names of the options of every tree."""
    tree = {"learning_rate": lr, "num_leaves": leaves, "min_data_in_leaf": min_rows, "lambda_l2": l2}
    return {**tree, "feature_fraction": share}


class Rows(NamedTuple):
    """A table to learn from: n rows, the columns of `Matrix`, and per task what `tasks.target` says."""

    numbers: np.ndarray
    ids: np.ndarray
    moment: np.ndarray
    request: np.ndarray
    label: np.ndarray
    where: np.ndarray
    weight: np.ndarray


class Part(NamedTuple):
    """What one task learns from or is measured by."""

    x: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    group: np.ndarray  # rows of each request, which stand together


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise ConfigError("Boosted trees need LightGBM; install it with: pip install recstack[gbdt].") from error
    return lightgbm
