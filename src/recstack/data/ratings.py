"""Ratings without what everybody knows: the mean of all, and how each item is rated; and what to ask a newcomer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl

from recstack.errors import ConfigError, DataError, SchemaError
from recstack.schema import Schema, Task

if TYPE_CHECKING:
    from recstack.data.log import Log


class MeanNormalisation:
    r"""Takes the mean of all ratings and each item's deviation off the labels, and gives them back to predictions.

    .. math:: \tilde r_{ui} = r_{ui} - \mu - b_i, \qquad b_i = \frac{\sum_u (r_{ui} - \mu)}{n_i + \lambda}

    A factorisation of the residuals says 0 of users that it does not know: with the means given back they get :math:`\mu + b_i`,
    never 0. An item without ratings has :math:`b_i = 0`. A residual does not order items: `restore` scores before you rank.

    Args:
        task: the regression whose label it is; None: the schema's first.
        shrinkage: :math:`\lambda`, how many ratings the mean of all counts for in an item's own.

    >>> import recstack as rs
    >>> schema = rs.Schema(
    ...     [rs.Categorical("user", "user"), rs.Categorical("item", "item")], [rs.Task("stars", "regression")]
    ... )
    >>> log = rs.Log({"user": [1, 2, 1, 2], "item": ["a", "a", "b", "c"], "stars": [5.0, 5.0, 1.0, 1.0]}, schema)
    >>> means = rs.MeanNormalisation(shrinkage=2).fit(log)
    >>> means.mean, means.transform(log).events["stars"].to_list(), means.restore([0.0, 0.0], ["a", "new"]).tolist()
    (3.0, [1.0, 1.0, -1.3333333333333335, -1.3333333333333335], [4.0, 3.0])
    """

    def __init__(self, task: str | None = None, *, shrinkage: float = 25.0) -> None:
        if shrinkage < 0:
            raise ConfigError(f"shrinkage= is a number of ratings, at least 0; got {shrinkage:g}.")
        self.task, self.shrinkage = task, shrinkage
        self.mean = float("nan")
        self.items: dict[Any, float] = {}  # b by raw item

    def fit(self, log: Log) -> Self:
        """Learn the means from these rows; missing labels are left out.

        Raises:
            SchemaError: no regression, no item key, or a column that is missing.
            DataError: no row has a label.
        """
        key, column = _item(log.schema), self._task(log.schema).column
        ratings = _ratings(log, key, column)
        self.mean = float(ratings[column].mean())  # type: ignore[arg-type]
        own = ratings.group_by(key).agg((pl.col(column) - self.mean).sum() / (pl.len() + self.shrinkage))
        self.items = dict(own.iter_rows())
        return self

    def transform(self, log: Log) -> Log:
        """The log with residuals in place of the labels."""
        column = self._task(log.schema).column
        rest = log.events[column].cast(pl.Float64).to_numpy() - self.baseline(log.events[_item(log.schema)])
        return log.with_columns([pl.Series(column, rest, nan_to_null=True)])

    def restore(self, values: Any, items: Any) -> np.ndarray:
        """Predicted residuals [n] of raw items [n] as ratings, float64."""
        return np.asarray(values, np.float64) + self.baseline(items)

    def baseline(self, items: Any) -> np.ndarray:
        r"""float64 [n]: :math:`\mu + b_i` of raw items, what a user of whom nothing is known would give."""
        if np.isnan(self.mean):
            raise ConfigError("This MeanNormalisation has learned nothing yet; call fit(train) first.")
        items = items.to_list() if isinstance(items, pl.Series) else np.asarray(items).tolist()
        return self.mean + np.array([self.items.get(i, 0.0) for i in items], np.float64)

    def _task(self, schema: Schema) -> Task:
        task = schema.task(self.task) if self.task else next((t for t in schema.tasks if t.kind == "regression"), None)
        if task is None or task.kind != "regression":
            raise SchemaError(
                "MeanNormalisation takes means off the label of a regression; declare Task(..., 'regression')."
            )
        return task


def onboarding(log: Log, k: int = 10, *, task: str | None = None, category: str | None = None) -> list[Any]:
    r"""The raw items to ask a newcomer about: known to many, and rated differently by them.

    .. math:: \mathrm{value}(i) = \ln n_i \cdot H_i, \qquad H_i = -\sum_r p_{ir} \ln p_{ir}

    with n ratings of i, a share p of them equal to r. Taken from the best on, none whose category is there already (of an item
    with several, one is enough); fewer than k where the categories run out. Equal values stand in the order of the ids.

    Args:
        log: ratings, labels of few values; of a continuous one the entropy says nothing.
        k: at most.
        task: whose label is the rating; None: the schema's first.
        category: a column of the items; None: no such limit.

    >>> import recstack as rs
    >>> log = rs.simulator.small()
    >>> asked = rs.onboarding(log, 4, category="category")
    >>> log.items.filter(log.items["item_id"].is_in(asked))["category"].n_unique()
    4
    """
    key = _item(log.schema)
    chosen = log.schema.task(task) if task else next(iter(log.schema.tasks), None)
    if chosen is None:
        raise SchemaError("Onboarding reads ratings; the schema needs a task, tasks=[rs.Task(...)].")
    if k < 1:
        raise ConfigError(f"k must be at least 1; got {k}.")
    ratings = _ratings(log, key, chosen.column)
    counts = ratings.group_by(key, chosen.column).agg(pl.len().alias("n"))
    share = pl.col("n") / pl.col("n").sum()
    value = pl.col("n").sum().log() * -(share * share.log()).sum()
    best = counts.group_by(key).agg(value.alias("@value")).sort(["@value", key], descending=[True, False])
    if category is None:
        return best[key].head(k).to_list()
    log.schema.feature(category)
    place = log.place(category)
    if place is None:
        raise SchemaError(f"Category {category!r} is no column of the events or items.")
    of = dict(log.frame(place).select(key, category).unique(key, keep="last", maintain_order=True).iter_rows())
    taken: set[Any] = set()
    out: list[Any] = []
    for item in best[key].to_list():
        found = of.get(item)
        own = set(found) if isinstance(found, list) else {found} - {None}
        if len(out) < k and not own & taken:
            out.append(item)
            taken |= own
    return out


def _item(schema: Schema) -> str:
    if schema.item is None:
        raise SchemaError("Ratings are of items, and the schema has no item key: add a Categorical with role 'item'.")
    return schema.item


def _ratings(log: Log, key: str, column: str) -> pl.DataFrame:
    """Item and label of the rows that have both."""
    for name in (key, column):
        if not log.has(name):
            raise SchemaError(f"The events have no column {name!r}, which ratings are read from.")
    ratings = log.events.select(key, pl.col(column).cast(pl.Float64).fill_nan(None)).drop_nulls()
    if not ratings.height:
        raise DataError(f"No row has a label {column!r} to learn from.")
    return ratings
