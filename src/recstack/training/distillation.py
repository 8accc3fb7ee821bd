"""A student that learns from the labels and from what its teachers say of the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recstack import losses as loss_room
from recstack.errors import ConfigError, unknown
from recstack.features import tasks
from recstack.schema import Task
from recstack.training import incremental


class Distillation(nn.Module):
    r"""A model to train in the student's place: each task's loss is mixed with the distance to its teacher.

    .. math:: (1 - \lambda)\, L_k(y, s) + \lambda\, T^2\, \mathrm{KL}\big(\sigma(t_k / T) \,\|\, \sigma(s_k / T)\big)

    Of classes and histograms both are softmaxes; a regression's distance is the squared difference. Losses keep the names
    of their tasks, so that `balance=`, `alternate=` and validation work as without teachers. Keys of `optimizer` name
    the student's parameters as ``student.…``. It is the student that is trained, and that is saved or served afterwards.

    Args:
        student: any model with tasks.
        teachers: {task: a trained model that has it}, such as the single-task models; or one model, for all tasks that both have.
            Several in a sequence teach together: the mean of their logits. They stand still. A teacher may read features that
            the student has not (privileged features distillation, Xu et al., KDD 2020, https://arxiv.org/abs/1907.05171, where
            both learn at once): then train on Columns of the teacher's encoder.
        temperature: T.
        mix: λ, 0 to 1; 0 is the student alone.
        everywhere: the teacher is heard on every live row, also where the label is missing or its condition did not happen
            (a conversion that was not clicked), and not only where the task's own loss counts.
        lists: "soft_list" or "rank_distillation", with options as in ``("soft_list", {"k": 10})``: binary tasks learn the teacher's
            order of each request's candidates in place of its chances; of requests of one candidate soft_list says nothing.

    Raises:
        ConfigError: a task that either has not, or of another kind; a teacher without training, or whose ids mean other values.

    Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small(tasks=[rs.Task("click"), rs.Task("cart")]))
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> teacher = rs.ranking.DeepFM(schema, dim=4).fit(train, epochs=1, progress=False)
    >>> student = rs.multitask.MMoE(schema, dim=4, experts=2)
    >>> result = rs.Trainer(rs.Distillation(student, teacher), epochs=1, progress=False).fit(train, valid)
    >>> student.fitted, sorted(result.epochs[0]["losses"])
    (True, ['cart', 'click'])
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module | Sequence[nn.Module]] | Sequence[nn.Module] | nn.Module,
        *,
        temperature: float = 1.0,
        mix: float = 0.5,
        everywhere: bool = False,
        lists: loss_room.Choice | None = None,
    ):
        super().__init__()
        if not 0 <= mix <= 1 or not 0 < temperature < float("inf"):
            raise ConfigError(f"mix= is from 0 to 1 and temperature= above 0; got {mix} and {temperature}.")
        self.student, self.temperature, self.mix, self.everywhere = student, temperature, mix, everywhere
        self.lists = None if lists is None else loss_room.get(lists, loss_room.OF_TEACHERS)
        own: Any = student
        if not isinstance(teachers, Mapping):
            every = _together(teachers)
            by_task = {t.name: tuple(m for m in every if t.name in _tasks(m)) for t in own.schema.tasks}
            found = {name: some for name, some in by_task.items() if some}
        else:
            found = {name: _together(some) for name, some in teachers.items()}
        if not any(found.values()):
            raise ConfigError("Distillation needs a teacher: {task: a trained model}, of tasks that the student has.")
        for name, some in found.items():
            for teacher in some:
                _require_fit(name, teacher, own.schema)
        vars(self)["teachers"] = found  # no part of the module: neither trained, counted nor saved

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The student's own, those of taught tasks mixed with the distance to the teacher."""
        seen: list[Any] = []
        hook = self.student.register_forward_hook(lambda module, given, logits: seen.append(logits))
        try:
            losses = dict(self.student.losses(batch))  # type: ignore[operator]
        finally:
            hook.remove()
        logits = seen[0] if seen else self.student(batch)
        answers: dict[int, Any] = {}
        for name, teachers in self.teachers.items():
            for teacher in teachers:
                if id(teacher) not in answers:
                    with torch.no_grad():
                        answers[id(teacher)] = teacher.eval()(batch)
            said = torch.stack([answers[id(teacher)][name] for teacher in teachers]).mean(0)
            task = self.schema.task(name)
            _, where, weight = tasks.target(batch, self.schema, task)
            if self.everywhere:
                where = batch.get("@mask")
            distance = self._distance(task)(logits[name], said, where=where, weight=weight)
            soft = (
                self.mix * distance * (task.weight or 1.0)
            )  # ESMM's conversion has no loss of its own, and may be taught
            losses[name] = soft + (1 - self.mix) * losses[name] if name in losses else soft
        return losses

    def _distance(self, task: Task) -> Callable[..., Tensor]:
        if task.kind in ("multiclass", "histogram"):
            return lambda s, t, **rows: loss_room.soft_cross_entropy(s, t, temperature=self.temperature, **rows)
        if task.kind == "binary" and self.lists is not None:
            order = self.lists
            return lambda s, t, **rows: order(tasks.score(s, task), tasks.score(t, task), **rows)
        if task.kind == "binary":
            return lambda s, t, **rows: loss_room.soft_bce(
                tasks.score(s, task), tasks.score(t, task), temperature=self.temperature, **rows
            )
        return lambda s, t, **rows: loss_room.mse(tasks.score(s, task), tasks.score(t, task), **rows)

    # -- what the Trainer asks beside: the student answers ----------------------------------------------------------------
    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.student(batch)

    @property
    def fitted(self) -> bool:
        return self.student.fitted  # type: ignore[return-value]

    @fitted.setter
    def fitted(self, value: bool) -> None:
        self.student.fitted = value  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "student":
                raise
            return getattr(self.student, name)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Teachers go where the student goes."""
        for teacher in {id(t): t for some in self.teachers.values() for t in some}.values():
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _together(teachers: Any) -> tuple[Any, ...]:
    return (teachers,) if isinstance(teachers, nn.Module) else tuple(teachers)


def _tasks(model: Any) -> set[str]:
    return {t.name for t in model.schema.tasks}


def _require_fit(name: str, teacher: Any, schema: Any) -> None:
    who = f"The teacher of {name!r}, a {type(teacher).__name__},"
    if name not in {t.name for t in schema.tasks}:
        raise unknown("task of the student", name, [t.name for t in schema.tasks])
    if name not in {t.name for t in teacher.schema.tasks}:
        raise ConfigError(f"{who} has no task {name!r}.")
    mine, theirs = schema.task(name), teacher.schema.task(name)
    for what in ("kind", "transform", "classes", "bins"):
        if getattr(mine, what) != getattr(theirs, what):
            raise ConfigError(
                f"{who} has {what}={getattr(theirs, what)!r} for it, and the student {getattr(mine, what)!r}."
            )
    if tasks.outputs(mine) != tasks.outputs(theirs) or (tasks.loss_name(mine) == "weighted_logistic") != (
        tasks.loss_name(theirs) == "weighted_logistic"
    ):
        raise ConfigError(f"{who} learned by {tasks.loss_name(theirs)!r}, whose outputs mean something else.")
    if not getattr(teacher, "fitted", True):
        raise ConfigError(f"{who} was never trained; fit it first.")
    if teacher.schema.encoder is not schema.encoder:
        before, now = incremental.vocabularies(teacher.schema), incremental.vocabularies(schema)
        for feature in before.keys() & now.keys():
            if before[feature] != now[feature]:
                raise ConfigError(f"{who} has other ids for {feature!r}; build both from one fitted Encoder.")
