"""What a multi-task model reads: all features, or whatever another model makes of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, SchemaError
from recstack.features import Heads, Inputs
from recstack.models.base import Model
from recstack.nn.experts import TaskTowers
from recstack.nn.gates import ContentGates, Gates, utilisation
from recstack.nn.mlp import Sides, flat
from recstack.nn.modes import evaluating
from recstack.schema import Schema

Plus = Tensor | Mapping[str, Tensor] | None


class Trunk(nn.Module):
    """The vectors that tasks have in common, and what the trunk adds to their logits.

    Args:
        schema: a fitted schema.
        dim: embedding width.
        history: how each history becomes one vector: "mean", "attention", ... (see `features.Inputs`).
        trunk: None: the embeddings of all features. A model class, or a `functools.partial` of one: its hidden vectors,
            just before its heads, so that experts stand on cross networks or behaviour models, and task graphs on experts.
            It has tables of its own: `dim` and `history` are then handed to it, unless the partial says otherwise.

    Raises:
        ConfigError: a trunk without heads, such as a retriever or trees.

    Called with a batch it gives ``(x, plus)``. x is ``[R, L, width]``, as a pair of sides where nothing stands between it
    and the embeddings, or ``[R, L, T, width]`` where the trunk has a vector for each task (`each` is True). `plus` is
    None, or what the heads add to the logits (an FM's score). `auxiliary_losses` are the trunk's own.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int = 16,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
    ):
        super().__init__()
        self.inputs = self.model = None
        if trunk is None:
            self.inputs = Inputs(schema, dim, history=history)
            self.width, self.each = self.inputs.width(), False
            return
        self.model = _built(trunk, schema, dim, history)
        heads = getattr(self.model, "heads", None)
        name = type(self.model).__name__
        if not isinstance(heads, Heads) or not heads.width or not self.model.ends_in_heads:
            raise ConfigError(
                f"{name} has no hidden vector before its heads, so it cannot be a trunk. Take a deep model."
            )
        self.width = heads.width
        self.model.heads = _Through()
        self.each = isinstance(self.model, MultiTask) and not self.model.one_vector
        self.names = [t.name for t in schema.tasks if not t.derived]

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Any, Plus]:
        if self.inputs is not None:
            return self.inputs(batch).sides(), None
        x, plus = self.model(batch)  # type: ignore[misc]
        return torch.stack([x[name] for name in self.names], -2) if self.each else x, plus

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``{"trunk/name": scalar}`` of another model's losses that need no logits, such as DIEN's."""
        found = {} if self.model is None else self.model.auxiliary_losses(batch)
        return {f"trunk/{name}": loss for name, loss in found.items()}


class _Through(nn.Module):
    """In the place of heads: what they would have been given."""

    def forward(self, hidden: Any, plus: Plus = None) -> tuple[Any, Plus]:
        return hidden, plus


def _built(trunk: Callable[..., Model], schema: Schema, dim: int, history: str) -> Model:
    known = inspect.signature(trunk).parameters
    said = trunk.keywords if isinstance(trunk, functools.partial) else {}
    given = {n: v for n, v in (("dim", dim), ("history", history)) if n in known and n not in said}
    model = trunk(schema, **given)
    if not isinstance(model, Model):
        raise ConfigError(f"trunk= is a class of models, or a partial of one; it made a {type(model).__name__}.")
    return model


class MultiTask(Model):
    """Base of models with a vector for each task; a subclass ends in ``self.answer(h, batch, plus)``, h ``[R, L, T, width]``.

    `trunk` gives what is read, `names` are the T tasks that have heads of their own. Tasks are computed together, along
    an axis, and not one by one.
    """

    heads: Heads
    towers: TaskTowers
    one_vector = False  # True: all tasks' heads read the same, as where towers have no layers

    def __init__(
        self,
        schema: Schema,
        dim: int = 16,
        history: str = "mean",
        trunk: Callable[..., Model] | None = None,
        *,
        together: bool = False,
    ):
        """`together`: the model reads one vector for all tasks, and a trunk with one for each is refused."""
        super().__init__(schema)
        self.names = [t.name for t in schema.tasks if not t.derived]
        if not self.names:
            raise SchemaError("The model has nothing to predict: the schema needs tasks=[rs.Task(...)].")
        self.trunk = Trunk(schema, dim, history, trunk)
        if together and self.trunk.each:
            raise ConfigError(
                f"{type(self).__name__} reads one vector for all tasks, and {type(self.trunk.model).__name__} has one for "
                "each. Take a trunk with one, such as rs.ranking.DCNv2."
            )

    def auxiliary_losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trunk's; a subclass with more adds them to ``super().auxiliary_losses(batch)``, and to losses that it overrides."""
        return self.trunk.auxiliary_losses(batch)

    def towers_on(self, width: int, hidden: Sequence[int], *, each: bool = True, **options: Any) -> None:
        """Make `towers` over vectors of `width` (`each`: one for each task) and the `heads` on them; see `TaskTowers`."""
        self.towers = TaskTowers(self.names, width, hidden, each=each, **options)
        self.heads = Heads(self.schema, self.towers.width)
        self.one_vector = not (each or hidden or options.get("detach"))

    def answer(self, x: Sides, batch: Mapping[str, Tensor], plus: Plus = None) -> dict[str, Tensor]:
        """The tasks' logits from what their towers read."""
        if self.one_vector:
            return self.heads(flat(x), plus)
        return self.heads(self.by_task(self.towers(x, batch.get("@mask"))), plus)

    def by_task(self, x: Tensor) -> dict[str, Tensor]:
        """``[..., T, H]`` as ``{task: [..., H]}``."""
        return dict(zip(self.names, x.unbind(-2), strict=True))

    @torch.no_grad()
    def measures(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the gates do on a batch, as scalars to log.

        ``"click/gate/3"`` is the mean weight of expert 3, ``"click/gate/entropy"`` the mean entropy of a row's weights in
        nats. Gates in several layers are ``"click/gate1/3"``, ``"click/gate2/3"``; one of several tasks is
        ``"shared/gate/3"``. Where tasks choose among different experts (PLE's own), experts have one number for all tasks.
        """
        gates = [m for m in self.modules() if isinstance(m, Gates | ContentGates)]
        if not gates:
            return {}
        found: list[Tensor] = []
        numbers: list[list[list[int]] | None] = []

        def keep(gate: nn.Module, given: Any, weights: Tensor) -> None:
            found.append(weights)
            numbers.append(getattr(gate, "numbers", None))

        hooks = [gate.register_forward_hook(keep) for gate in gates]
        try:
            with evaluating(self):
                self(batch)
        finally:
            for hook in hooks:
                hook.remove()
        out: dict[str, Tensor] = {}
        for i, gate in enumerate(found):
            kind = f"gate{i + 1}" if len(found) > 1 else "gate"
            several = gate.shape[-2]
            names = self.names if several == len(self.names) else ["shared", *map(str, range(1, several))]
            among = numbers[i] or [range(gate.shape[-1])] * several
            for task, weights, experts in zip(names, gate.unbind(-2), among, strict=True):
                share, out[f"{task}/{kind}/entropy"] = utilisation(weights, batch.get("@mask"))
                out |= {f"{task}/{kind}/{e}": one for e, one in zip(experts, share, strict=True)}
        return out
