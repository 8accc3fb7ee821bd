"""The inner products of several losses' gradients, of what the losses have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, unknown
from recstack.training.distributed import World

Grads = Sequence[Tensor | None]


def gram(grads: Sequence[Grads], apart: bool = True) -> Tensor:
    """[K, K] float64 from ``grads[loss][place]``; a place that fewer than two losses reach does not count.

    With `apart` neither does a part of it: a unit, a task's own tower or expert among stacked ones (a slice along the first
    axis of a dense parameter) that one loss alone moves. Sparse gradients meet in the rows that the batch holds.
    """
    some = next(g for row in grads for g in row if g is not None)
    out = torch.zeros(len(grads), len(grads), dtype=torch.float64, device=some.device)
    for column in zip(*grads, strict=True):
        if sum(g is not None for g in column) < 2:
            continue
        if any(g is not None and g.is_sparse for g in column):
            flat = _rows(column)
        else:
            shape = next(g.shape for g in column if g is not None)
            whole = [torch.zeros(shape, device=out.device) if g is None else g.float() for g in column]
            flat = torch.stack([g.reshape(shape[0] if shape and apart else 1, -1) for g in whole])
            if apart:
                flat = flat * ((flat != 0).any(-1).sum(0) > 1)[:, None]
            flat = flat.flatten(1)
        out += (flat @ flat.T).double()
    return out


def _rows(column: Grads) -> Tensor:
    """Sparse gradients [N, ...] of one table as [K, rows of the batch · D]."""
    some: list[Tensor] = [g for g in column if g is not None]
    rows = torch.cat([g._indices()[0] for g in some]).unique()
    width = some[0]._values()[:1].numel()
    out = torch.zeros(len(column), len(rows), width, device=rows.device)
    for place, g in zip(out, column, strict=True):
        if g is not None:
            values = g._values().float()
            place.index_add_(0, torch.searchsorted(rows, g._indices()[0]), values.reshape(len(values), width))
    return out.flatten(1)


class Place:
    """Where the gradients of a run's losses are taken; see `GradientBalance`.

    Raises:
        ConfigError: a module that does not exist or that some loss does not pass; nothing that two losses share; a table
            that is trained densely, or whose rows are spread over processes, with "tables".
    """

    def __init__(self, at: str, model: nn.Module, world: World) -> None:
        self.at, self.model, self.world = at, model, world
        self.params: dict[str, nn.Parameter] | None = None  # with one of two words: found at the first step
        self.outputs: list[Tensor] = []  # of the module, in this step
        self.module: nn.Module | None = None
        if at not in ("shared", "tables"):
            modules = {name: module for name, module in model.named_modules() if name}
            if at not in modules:
                near = [name for name in modules if name.count(".") < 2]  # of the many that there are
                raise unknown('module in at= of balance= (beside "shared" and "tables")', at, near)
            self.module = modules[at]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, what the module gives is kept until `forget`."""
        handle = None if self.module is None else self.module.register_forward_hook(self._keep)
        try:
            yield
        finally:
            self.forget()
            if handle is not None:
                handle.remove()

    def _keep(self, module: nn.Module, given: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self.outputs += [t for t in _tensors(output) if t.requires_grad]

    def forget(self) -> None:
        self.outputs = []

    def gram(self, losses: Mapping[str, Tensor]) -> Tensor:
        """[K, K] float64, of this process's losses summed over all; their graph is left for the step's own backward."""
        if self.module is not None:
            grads = self._taken(losses, self.outputs)
            for name, row in zip(losses, grads, strict=True):
                if all(g is None for g in row):
                    raise ConfigError(
                        f"Loss {name!r} does not pass through {self.at!r}, at= of balance=. Name a module that all losses pass."
                    )
            self._require_shared(grads)
            own = gram(grads, apart=False)  # a sum over rows, and so over processes
            return self.world.sum_(own) if self.world.several else own
        if self.params is None:
            self.params = self._shared(losses)
        params = list(self.params.values())
        grads = self._taken(losses, params)
        if self.at == "tables":
            self._require_sparse(grads)
        return gram([self._summed(params, row) for row in grads])

    def _taken(self, losses: Mapping[str, Tensor], places: Sequence[Tensor]) -> list[Grads]:
        nothing = (None,) * len(places)
        return [
            torch.autograd.grad(loss, places, retain_graph=True, allow_unused=True)
            if loss.requires_grad and places
            else nothing
            for loss in losses.values()
        ]

    def _summed(self, params: list[nn.Parameter], grads: Grads) -> Grads:
        """One loss's gradients over all processes, on the way that those of a step take."""
        if not self.world.several:
            return grads
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        self.world.reduce(params, {"": torch.zeros((), device=params[0].device)})
        out = [p.grad for p in params]
        for p in params:
            p.grad = None
        return out

    def _shared(self, losses: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        """The parameters that two losses or more reach."""
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        named = {
            name: p
            for name, p in self.model.named_parameters()
            if p.requires_grad and (self.at == "tables" or id(p) not in tables)
        }
        remote = [m.weight for m in self.model.modules() if getattr(m, "remote", None) is not None]
        if self.at == "tables" and remote:
            raise ConfigError("at='tables' of balance= needs whole tables; leave out sharded=, or take at='shared'.")
        grads = self._taken(losses, list(named.values()))
        self._require_shared(grads)
        reached = [sum(g is not None for g in column) for column in zip(*grads, strict=True)]
        return {name: p for (name, p), n in zip(named.items(), reached, strict=True) if n > 1}

    def _require_shared(self, grads: Sequence[Grads]) -> None:
        if any(sum(g is not None for g in column) > 1 for column in zip(*grads, strict=True)):
            return
        if self.at == "shared":
            raise ConfigError(
                "No dense parameter is shared by two losses, so their gradients cannot be compared there. Give balance= "
                "at='tables' (embedding tables), or at='<module>', one whose output all losses pass through."
            )
        raise ConfigError(
            f"No two losses share anything at={self.at!r} of balance=. Name a module below the place where tasks part."
        )

    def _require_sparse(self, grads: Sequence[Grads]) -> None:
        assert self.params is not None
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        for row in grads:
            for (name, p), g in zip(self.params.items(), row, strict=True):
                if id(p) in tables and g is not None and not g.is_sparse:
                    raise ConfigError(
                        f"at='tables' of balance= would hold a dense gradient of {name!r} for each loss. Give tables a row "
                        "optimiser ('rowwise_adagrad', 'lazy_adam', ...) and no penalty on whole tables, or take at='shared'."
                    )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
