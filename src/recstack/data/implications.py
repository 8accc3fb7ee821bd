"""What labels imply: a task that is given another cannot have happened where the other did not. numpy only."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recstack.data.learning import label_numbers
from recstack.schema import Schema

if TYPE_CHECKING:
    from recstack.data.log import Log

SHOWN = 5  # rows that a warning names


class Broken(NamedTuple):
    """A task whose label is 1 where the label that it is given is 0: the tasks, and the places of these rows."""

    task: str
    given: str
    rows: np.ndarray

    def __str__(self) -> str:
        first = ", ".join(map(str, self.rows[:SHOWN].tolist())) + (" ..." if len(self.rows) > SHOWN else "")
        return (
            f"Label of task {self.task!r} is 1 in {len(self.rows):,} rows where that of {self.given!r}, which it is given, is 0 "
            f"(rows {first}). These rows count for neither {self.task!r} nor a product of the two; an event that came later or "
            f"by another way may be meant, then drop given={self.given!r}, or set {self.given!r} to 1 there."
        )


def check_labels(log: Log) -> list[Broken]:
    """What `given` promises and the labels of these rows break, a `Broken` for each task; empty where all is well.

    A missing label breaks nothing. Encoding the log warns of the same; data that mean it (orders that a later day was
    credited with, videos that play by themselves) are no error.

    >>> from recstack.data import Log
    >>> from recstack.schema import Categorical, Schema, Task
    >>> schema = Schema([Categorical("item", "item")], [Task("click"), Task("order", given="click")])
    >>> (broken,) = check_labels(Log({"item": [7, 7, 8], "click": [1, 0, 0], "order": [1, 1, 0]}, schema))
    >>> broken.task, broken.given, broken.rows.tolist()
    ('order', 'click', [1])
    """
    tasks = [t for t in log.schema.tasks if not t.derived and (log.has(t.column) or not log.implicit)]
    return broken(log.schema, {t.column: label_numbers(log, t) for t in tasks})


def broken(schema: Schema, labels: Mapping[str, np.ndarray]) -> list[Broken]:
    """Of label columns, 0, 1 or NaN."""
    found = []
    for task in schema.tasks:
        if task.given is None or task.derived or task.kind != "binary":
            continue
        child, parent = labels.get(task.column), labels.get(schema.task(task.given).column)
        if child is None or parent is None:
            continue
        rows = np.flatnonzero((child == 1) & (parent == 0))
        if len(rows):
            found.append(Broken(task.name, task.given, rows))
    return found


def warn_of_implications(schema: Schema, labels: Mapping[str, np.ndarray], order: np.ndarray) -> None:
    """A warning for each of `broken`; `order` tells which row of the log each label is."""
    for one in broken(schema, labels):
        warnings.warn(str(one._replace(rows=np.sort(order[one.rows]))), stacklevel=2)
