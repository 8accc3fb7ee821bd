"""What models of conversions have in common: which rows a task was asked of, and how likely that was."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from recstack.errors import SchemaError
from recstack.features import tasks
from recstack.losses import product_logit
from recstack.schema import Schema, Task


def conversions(schema: Schema, model: str, example: str) -> list[Task]:
    """The binary tasks that are `given` another.

    Raises:
        SchemaError: there is none, or one has another loss than the cross entropy; `example` says what to declare.
    """
    after = [t for t in schema.tasks if t.given is not None and t.kind == "binary" and t.weight > 0]
    other = next((t for t in after if t.loss not in (None, "bce")), None)
    if not after or other is not None:
        said = "and none is declared" if other is None else f"and task {other.name!r} has another loss"
        raise SchemaError(
            f"{model} weighs the cross entropy of what is only seen after a click, {said}. Declare "
            f'Task("click") and {example}.'
        )
    return after


def cross_entropy(logit: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of each row."""
    return F.binary_cross_entropy_with_logits(logit, label, reduction="none")


class Asked(NamedTuple):
    """Of a task that is `given` another; all ``[R, L]``.

    `label` float32 (0 where not seen), `seen` bool: it was asked and its label is known; `missed` bool: something that it is
    given is known not to have happened; `weight` float32 or None; `propensity`: the predicted probability that it is asked.
    """

    label: Tensor
    seen: Tensor
    missed: Tensor
    weight: Tensor | None
    propensity: Tensor


def asked(logits: Mapping[str, Tensor], batch: Mapping[str, Tensor], schema: Schema, task: Task) -> Asked:
    """`Asked` of a task, by its labels and by the logits of what it is given, one behind the other."""
    label, seen, weight = tasks.target(batch, schema, task)
    missed, chances, above = ~seen & False, [], task
    while above.given is not None:
        above = schema.task(above.given)
        known = tasks.target(batch, schema, above)
        missed = missed | known.where & (known.label == 0)
        chances.append(tasks.score(logits[above.name], above))
    return Asked(label, seen, missed, weight, reduce(product_logit, chances).sigmoid())
