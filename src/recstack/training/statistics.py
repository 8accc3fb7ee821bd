"""Exact statistics for batch normalisation, in place of moving averages, before a model is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recstack.errors import ConfigError, TrainingError
from recstack.nn.domains import PartitionedNorm
from recstack.nn.mlp import BatchNorm
from recstack.training import batches as feeding

Norm = nn.modules.batchnorm._BatchNorm
CLOSE = 1e-5  # of a standard deviation: two passes that differ by less agree


@dataclass(frozen=True)
class Moved:
    """How far one norm's statistics went.

    rows: that were counted. mean: the largest step of a unit's mean, in its new standard deviations; variance: the largest
    factor by which a unit's variance grew or shrank.
    """

    rows: int
    mean: float
    variance: float


@dataclass(frozen=True)
class PreciseStatistics:
    """What `precise_statistics` did: {path of a norm: `Moved`}, in how many passes, and the norms that no row reached."""

    moved: dict[str, Moved]
    passes: int
    unreached: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{path}: {m.rows:,} rows, means by up to {m.mean:.3g} deviations, variances by a factor of up to {m.variance:.3g}"
            for path, m in self.moved.items()
        ]
        lines += [f"{path}: no row reached it, and it stays as it was" for path in self.unreached]
        return "\n".join(lines)


@torch.no_grad()
def precise_statistics(
    model: nn.Module, data: Any, *, batch_size: int = 4096, negatives: int = 4, seed: int = 0
) -> PreciseStatistics:
    r"""Set the running statistics of every batch norm to the mean and variance of all rows that it meets when serving.

    .. math:: \mu = \frac{1}{N} \sum_{i=1}^N x_i, \qquad \sigma^2 = \frac{1}{N} \sum_{i=1}^N (x_i - \mu)^2

    over all live rows of `data` under the final weights, where training left moving averages of batches under weights that have
    moved since. A norm behind other norms sees what they make of their own exact statistics, so that there is a pass
    for each norm in a row. Weights are not touched. It knows torch's batch norms, those of `nn.mlp` and `nn.experts`, and
    `nn.domains.PartitionedNorm`, domain by domain. Where lists are padded, the modules that hold norms are told that they train,
    which is how they leave padding out; norms, dropout and gates are not.

    Args:
        model: trained; left in eval mode.
        data: a Log, Columns, a Loader or batches: the training data, or a part of it as it will be served.
        batch_size, negatives, seed: as of `rs.Trainer`, where `data` is not batches already.

    Raises:
        ConfigError: the model has no batch norm.
        TrainingError: a row that is not finite reached a norm, or no row did.

    Wu and Johnson, "Rethinking Batch in BatchNorm", 2021, https://arxiv.org/abs/2105.07576, section 3: whose statistics are
    means over batches under the batches' own statistics; these are those of all rows.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> schema = rs.Encoder(train.schema).fit(train).schema
    >>> model = rs.multitask.SharedBottom(schema, dim=4, hidden=(8,), towers=(), norm="batch")
    >>> done = rs.precise_statistics(model.fit(train, epochs=1, progress=False), train)
    >>> [moved.rows for moved in done.moved.values()] == [len(train)]
    True
    """
    norms: dict[str, Any] = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, PartitionedNorm) or (isinstance(m, Norm) and m.running_mean is not None)
    }
    if not norms:
        raise ConfigError(f"{type(model).__name__} has no batch norm, so there are no statistics to take.")
    before = {path: _running(norm) for path, norm in norms.items()}
    where = next(model.parameters()).device
    found: dict[str, _Sums] = {}
    passes, moving = 0, True
    while moving and passes < len(norms):
        loader = feeding.batches(data, model, batch_size=batch_size, shuffle=False, seed=seed, negatives=negatives)
        with _counting(model, norms) as counted:
            for batch in loader:
                batch = feeding.moved(batch, where)
                _leave_out_padding(model, norms, batch)
                model(batch)
        found, passes, moving = counted, passes + 1, False
        for path, sums in found.items():
            moving = sums.write(norms[path], path) or moving
    model.eval()
    if not found:
        raise TrainingError(
            "No row reached a batch norm: the data has none, or the model's forward passes by its norms."
        )
    return PreciseStatistics(
        {path: _moved(*before[path], *_running(norms[path]), found[path].total) for path in norms if path in found},
        passes,
        tuple(path for path in norms if path not in found),
    )


class _Sums:
    """Count, mean and sum of squared distances of rows ``[n, W]``, for each domain; merged as Chan, Golub and LeVeque do."""

    def __init__(self) -> None:
        self.parts: dict[int, tuple[int, Tensor, Tensor]] = {}

    @property
    def total(self) -> int:
        return sum(n for n, _, _ in self.parts.values())

    def add(self, x: Tensor, domain: int = 0) -> None:
        if not len(x):
            return
        x = x.double()
        n, mean = len(x), x.mean(0)
        square = (x - mean).square().sum(0)
        if domain in self.parts:
            m, old, old_square = self.parts[domain]
            step, n = mean - old, n + m
            square = square + old_square + step.square() * (len(x) * m / n)
            mean = old + step * (len(x) / n)
        self.parts[domain] = n, mean, square

    def write(self, norm: Any, path: str) -> bool:
        """Into the norm; whether that changed anything."""
        changed = False
        for domain, (n, mean, square) in self.parts.items():
            var = square / n
            if not (mean.isfinite().all() and var.isfinite().all()):
                raise TrainingError(f"A row that is not finite reached the norm {path!r}; clean the data first.")
            if isinstance(norm, PartitionedNorm):
                old_mean, old_var = norm.mean[domain], norm.var[domain]
                norm.rows[domain] = n
            else:
                old_mean, old_var = norm.running_mean, norm.running_var
            unit = (var + norm.eps).sqrt()
            apart = torch.maximum((mean - old_mean).abs() / unit, (var - old_var).abs() / unit.square())
            changed = changed or bool((apart > CLOSE).any())
            old_mean.copy_(mean)
            old_var.copy_(var)
        return changed


@contextmanager
def _counting(model: nn.Module, norms: dict[str, Any]) -> Iterator[dict[str, _Sums]]:
    """The rows that each norm is given while the model is asked."""
    found: dict[str, _Sums] = {}

    def hook(path: str) -> Any:
        def look(norm: Any, given: Any) -> None:
            sums = found.setdefault(path, _Sums())
            if isinstance(norm, PartitionedNorm):
                for x, domain in zip(*given, strict=True):
                    sums.add(x, int(domain))
                return
            x = given[0]
            if not isinstance(norm, BatchNorm) and x.dim() > 2:  # torch's own have the units on the second axis
                x = x.movedim(1, -1)
            sums.add(x.reshape(-1, norm.num_features))

        return look

    hooks = [norm.register_forward_pre_hook(hook(path)) for path, norm in norms.items()]
    try:
        model.eval()
        yield found
    finally:
        model.eval()
        for one in hooks:
            one.remove()


def _leave_out_padding(model: nn.Module, norms: dict[str, Any], batch: Any) -> None:
    padded = "@mask" in batch and not bool(batch["@mask"].all())
    holders = {path.rsplit(".", i)[0] for path in norms for i in range(1, path.count(".") + 1)} | {""}
    for path, module in model.named_modules():
        if path in holders and path not in norms:
            module.training = padded


def _running(norm: Any) -> tuple[Tensor, Tensor]:
    if isinstance(norm, PartitionedNorm):
        return norm.mean.clone(), norm.var.clone()
    return norm.running_mean.clone(), norm.running_var.clone()


def _moved(mean: Tensor, var: Tensor, new_mean: Tensor, new_var: Tensor, rows: int) -> Moved:
    tiny = 1e-12
    factor = (new_var.clamp(min=tiny) / var.clamp(min=tiny)).log().abs().max().exp()
    return Moved(rows, float(((new_mean - mean).abs() / new_var.clamp(min=tiny).sqrt()).max()), float(factor))
