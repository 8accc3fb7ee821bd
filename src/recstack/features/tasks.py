"""From a Task's names to numbers: label, mask, weight, loss, metric and link, each in one place.

Training, evaluation and models all ask here, so the rows that count in a loss are the rows that count in its metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recstack import losses as loss_room
from recstack.errors import ConfigError, DataError, SchemaError
from recstack.nn.mlp import linear
from recstack.nn.names import ByName
from recstack.schema import Schema, Task

Batch = Mapping[str, Tensor]
Logits = dict[str, Tensor]
LISTS = (  # any label that orders
    "approx_ndcg",
    "bpr",
    "lambdaloss",
    "lambdarank",
    "listmle",
    "listnet",
    "neural_ndcg",
    "p_listmle",
    "pairwise_hinge",
    "pairwise_logistic",
    "sampled_softmax",
    "softmax",
    "softrank",
)
#: The losses that each kind of task may choose, its usual one first.
LOSSES = {
    "binary": ("bce", "focal", "ghm", "fake_negative_weighted", "bce_pairwise", "jrc", "nce", *LISTS),
    "regression": ("mse", "mae", "huber", "weighted_logistic", *LISTS),
    "multiclass": ("cross_entropy", "focal"),
    "histogram": ("kl", "js", "wasserstein"),
}
DRAWN = ("nce", "sampled_softmax")  # losses of drawn candidates, which ask how likely each was
METRICS = {
    "binary": ("auc", "logloss"),
    "regression": ("mae", "rmse"),
    "multiclass": ("accuracy",),
    "histogram": (
        "rmse",
        "mae",
    ),  # what is read is a mean, and a mean has the least squared error, not the least absolute
}


class Target(NamedTuple):
    """What a task's score is held against; all of shape ``[R, L]``.

    `label` float32 (0 where not live), `where` bool, `weight` float32 or None.
    """

    label: Tensor
    where: Tensor
    weight: Tensor | None


def target(batch: Batch, schema: Schema, task: Task | str) -> Target:
    """Label, live rows and weight of one task.

    A row is live where its list position is, the label is there, and the task that it is `given` has label 1. A
    product's label is made from its members: 0 as soon as one is 0, their product if all are known, else missing.

    Raises:
        DataError: naming the label column that the batch lacks.
    """
    task = schema.task(task) if isinstance(task, str) else task
    label = _label(batch, schema, task)
    where = label.isfinite()
    if "@mask" in batch:
        where = where & batch["@mask"]
    parent = task.given
    while parent is not None:
        above = schema.task(parent)
        where = where & (_label(batch, schema, above) == 1)  # a missing condition hides what depends on it
        parent = above.given
    label = torch.where(where, label, 0)
    if task.transform == "log1p":
        label = label.clamp(min=0).log1p()
    weight = batch.get("@weight")
    if weight is not None and weight.dim() < label.dim():
        weight = weight.unsqueeze(-1)
    return Target(label, where, None if weight is None else weight.expand(label.shape))


def targets(batch: Batch, schema: Schema) -> dict[str, Target]:
    """`target` of every task."""
    return {t.name: target(batch, schema, t) for t in schema.tasks}


def _label(batch: Batch, schema: Schema, task: Task) -> Tensor:
    if task.product is None:
        key = f"{task.column}@label"
        if key not in batch:
            raise DataError(f"The batch has no label {task.column!r}, which task {task.name!r} learns from.")
        return batch[key].float()
    members = [_label(batch, schema, schema.task(name)) for name in task.product]
    return reduce(lambda a, b: torch.where((a == 0) | (b == 0), 0.0, a * b), members)


def derive(logits: Logits, schema: Schema) -> Logits:
    """With the logits of products added, in the order of the schema's tasks."""
    out = {}
    for task in schema.tasks:
        if task.product is None:
            out[task.name] = logits[task.name]
        else:
            members = [score(logits[name], schema.task(name)) for name in task.product]
            out[task.name] = reduce(loss_room.product_logit, members)
    return out


def loss_name(task: Task) -> str:
    """The name of the loss that a task chooses, or of its kind's usual one."""
    return task.loss_name or LOSSES[task.kind][0]


def loss(task: Task) -> Callable[..., Tensor]:
    """The function ``(logit, label, *, where, weight)`` that a task chooses, its options bound.

    Raises:
        ConfigError: a loss, option or value that does not exist, or a loss that is not for tasks of this kind.
    """
    known = loss_room.LOSSES | {"nce": loss_room.nce}  # one of towers, which lists of drawn items may learn by too
    function, name = loss_room.get(task.loss or LOSSES[task.kind][0], known), loss_name(task)
    if name not in LOSSES[task.kind]:
        raise ConfigError(
            f"Task {task.name!r} is {task.kind}, and the loss {name!r} is not for that kind. "
            f"Choose one of {', '.join(LOSSES[task.kind])}."
        )
    if name == "weighted_logistic" and task.transform is not None:
        raise ConfigError(f"Task {task.name!r}: 'weighted_logistic' learns the value itself; drop transform='log1p'.")
    if name == "jrc" and task.derived:
        raise ConfigError(f"Task {task.name!r} is a product and has one logit, and the loss 'jrc' needs two.")
    return partial(function, values=task.bins) if task.kind == "histogram" else function


def check(schema: Schema) -> None:
    """Try each task's loss on one row, so that a bad option is met when the model is built. Raises ConfigError."""
    for task in schema.tasks:
        row = torch.zeros(1, 1, device="cpu")
        loss(task)(row if outputs(task) == 1 else row.unsqueeze(-1).expand(1, 1, outputs(task)), row)


def losses(logits: Logits, batch: Batch, schema: Schema) -> dict[str, Tensor]:
    """Each task's own loss times its weight; tasks of weight 0 have none. Raises SchemaError where no task has a loss.

    Where a batch tells how likely each candidate was to be drawn (`@log_q`), losses of drawn candidates correct for it.
    """
    out = {}
    for task in schema.tasks:
        if task.weight == 0:
            continue
        label, where, weight = target(batch, schema, task)
        drawn = {"log_q": batch["@log_q"]} if "@log_q" in batch and loss_name(task) in DRAWN else {}
        out[task.name] = loss(task)(logits[task.name], label, where=where, weight=weight, **drawn) * task.weight
    if not out:
        raise SchemaError("No task has a loss: declare tasks=[...], at least one with a weight above 0.")
    return out


def outputs(task: Task) -> int:
    """How many numbers a row the task's logits have: ``[R, L]`` for one, else ``[R, L, outputs]``."""
    if task.kind == "multiclass":
        return task.classes  # type: ignore[return-value]
    if task.kind == "histogram":
        return len(task.bins)  # type: ignore[arg-type]
    return 2 if loss_name(task) == "jrc" else 1


def score(logit: Tensor, task: Task) -> Tensor:
    """The number ``[R, L]`` by which a task's rows are ordered and measured, from its logits; multiclass ones stay.

    The log-odds of a binary task, of a regression the value in the unit of its loss, the expected value of a histogram
    or of a weighted logistic regression.
    """
    if task.kind == "histogram":
        return loss_room.expected_value(logit, task.bins)  # type: ignore[arg-type]
    if loss_name(task) == "jrc" and not task.derived:
        return logit[..., 1] - logit[..., 0]
    return logit.exp() if loss_name(task) == "weighted_logistic" else logit


def lifted(plus: Tensor, task: Task) -> Tensor:
    r"""One number a row ``[R, L]`` as logits of the task: itself, or times a direction from -½ to ½ where outputs are ordered.

    Of two logits the difference is the number itself; of a histogram :math:`p_k \propto e^{s k / (K - 1)}`, more of the
    high values the greater s is. Between classes a number cannot choose: all get it.
    """
    n = outputs(task)
    if n == 1:
        return plus
    if task.kind == "multiclass":
        return plus.unsqueeze(-1).expand(*plus.shape, n)
    return plus.unsqueeze(-1) * torch.linspace(-0.5, 0.5, n, dtype=plus.dtype, device=plus.device)


def of_score(score: Tensor, schema: Schema) -> dict[str, Tensor]:
    """One score as the logit of every task, ``{task: [R, L]}``; as "score" where the schema has none."""
    return {t.name: lifted(score, t) for t in schema.tasks} or {"score": score}


def link(logit: Tensor, task: Task) -> Tensor:
    """From a task's logits to what people read: a probability, class probabilities, or a value.

    A "log1p" regression returns expm1 of the predicted mean logarithm: nearer the median than the mean.
    """
    if task.kind == "multiclass":
        return logit.softmax(-1)
    value = score(logit, task)
    if task.kind == "binary":
        return value.sigmoid()
    return value.expm1() if task.transform == "log1p" else value


def predictions(logits: Logits, schema: Schema) -> dict[str, Tensor]:
    """`link` for every task."""
    return {task.name: link(logits[task.name], task) for task in schema.tasks}


def metric_names(task: Task) -> tuple[str, ...]:
    """The task's metric first, then its kind's usual ones."""
    usual = METRICS[task.kind]
    return usual if task.metric is None else (task.metric, *(m for m in usual if m != task.metric))


def meters(schema: Schema) -> dict[str, Any]:
    """{"click/auc": meter, ...}: every task's metrics as streaming, exact meters."""
    return {f"{task.name}/{name}": metric(name).meter() for task in schema.tasks for name in metric_names(task)}


def metric(name: str) -> Any:
    """A metric for validation: in lists the average over the orders of equal scores, which no order of rows can flatter."""
    from recstack.metrics import get

    found, base = get(name), name.partition("@")[0]
    if found.kind != "list" or base == "pair_inversions":  # whose ties count half anyway
        return found
    return get(name, ties="pessimistic" if base == "err" else "average")  # err has no formula of the average


@torch.no_grad()
def update_meters(meters: dict[str, Any], logits: Logits, batch: Batch, schema: Schema) -> None:
    """Feed one batch to `meters`. Groups (for GAUC) are the user key's ids."""
    group = batch.get(schema.user) if schema.user is not None else None
    for name, one in meters.items():
        task = schema.task(name.rsplit("/", 1)[0])
        label, where, weight = target(batch, schema, task)
        value = score(logits[task.name].detach(), task)
        ids = None if group is None else group.reshape(-1, *[1] * (label.dim() - 1)).expand(label.shape)
        one.update(value, label, where=where, weight=weight, group=ids)


class Heads(nn.Module):
    """One logit per task that is not a product; products are added from them.

    Args:
        schema: its tasks are the outputs.
        width: of the hidden vectors; 0 for models whose score is all in `plus`: then only a bias is learned, and one
            number a row cannot choose between classes.

    Called with ``hidden [R, L, width]``, or one per task, and `plus`, a score ``[R, L]`` that a model adds (or one per
    task); gives ``{task: float32 [R, L]}``, ``[R, L, outputs]`` for tasks of several outputs. The last layer stays out
    of autocast: in bfloat16 a thousand different logits would be left.
    """

    def __init__(self, schema: Schema, width: int):
        super().__init__()
        if not schema.tasks:
            raise SchemaError("The model has nothing to predict: the schema needs tasks=[rs.Task(...)].")
        many = next((t.name for t in schema.tasks if t.kind == "multiclass"), None)
        if not width and many is not None:
            raise SchemaError(f"This model gives one number a row, and task {many!r} is multiclass. Use a deep model.")
        self.schema, self.width = schema, width
        self.layers = ByName()
        for task in schema.tasks:
            if not task.derived:
                self.layers[task.name] = linear(width, outputs(task)) if width else _Bias(outputs(task))

    def forward(
        self, hidden: Tensor | Mapping[str, Tensor] | None, plus: Tensor | Mapping[str, Tensor] | None = None
    ) -> Logits:
        logits: Logits = {}
        for task in self.schema.tasks:
            if task.derived:
                continue
            h = hidden[task.name] if isinstance(hidden, Mapping) else hidden
            p = plus[task.name] if isinstance(plus, Mapping) else plus
            some = h if h is not None else p
            assert some is not None
            with torch.autocast(some.device.type, enabled=False):
                more = None if p is None else lifted(p.float(), task)
                if h is None:
                    logits[task.name] = self.layers[task.name](more)
                    continue
                out = self.layers[task.name](h.float())
                out = out.squeeze(-1) if outputs(task) == 1 else out
                logits[task.name] = out if more is None else out + more
        return derive(logits, self.schema)


class _Bias(nn.Module):
    """``plus [R, L] → [R, L]``, or ``[R, L, outputs]`` as it came."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, plus: Tensor) -> Tensor:
        return plus + self.bias
