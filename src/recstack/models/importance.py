"""Which columns a trained model lives on, and which pairs of them it lets interact."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recstack.errors import ConfigError
from recstack.features import tasks
from recstack.schema import CANDIDATE_ROLES, Feature, History, is_multi
from recstack.training.evaluation import direction, meters, resolve

Batch = dict[str, Tensor]


# -- columns ------------------------------------------------------------------------------------------------------------
class Drop(NamedTuple):
    """How much worse a metric became: the mean over the repeats, and their standard deviation."""

    mean: float
    std: float


@torch.no_grad()
def permutation_importance(
    model: Any, data: Any, metric: str = "auc", *, repeats: int = 5, seed: int = 0, batch_size: int = 4096
) -> dict[str, Drop]:
    """How much a metric loses when one column is shuffled, the most important column first.

    A column of the request is shuffled among the requests, a history as a whole (with the distance in time of its steps), a
    column of candidates among all live candidates of all requests. What models make of columns (Crossed, Hits) moves with
    them. Positive is worse, whichever way the metric goes. Columns that say the same stand in for each other: both look
    unimportant.

    Args:
        model: a trained model.
        data: a Log or Columns that it was not trained on, held in memory as one batch.
        metric: by name; "click/auc" where several tasks have it.
        repeats: shuffles of each column.
        seed: of the shuffles.

    Raises:
        ConfigError: an unknown metric, or one whose best value is in the middle.

    Breiman, Machine Learning 2001, https://doi.org/10.1023/A:1010933404324

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.LR(rs.Encoder(train.schema).fit(train).schema).fit(train, epochs=1, progress=False)
    >>> drops = rs.permutation_importance(model, test, repeats=2)
    >>> set(drops) == set(model.schema.names), all(drop.std >= 0 for drop in drops.values())
    (True, True)
    """
    if repeats < 1:
        raise ConfigError(f"repeats must be at least 1; got {repeats}.")
    higher, columns = direction(metric), model._encoded(data)
    batch = columns.batch(np.arange(columns.n_requests), padded=True)
    was, _ = model.training, model.eval()
    base = _measure(model, batch, batch, metric, batch_size)
    chance = torch.Generator().manual_seed(seed)
    out = {}
    for f in model.schema.features:
        values = [_measure(model, _shuffled(batch, f, chance), batch, metric, batch_size) for _ in range(repeats)]
        drops = (base - np.array(values)) * (1 if higher else -1)
        out[f.name] = Drop(float(drops.mean()), float(drops.std(ddof=1)) if repeats > 1 else 0.0)
    model.train(was)
    return dict(sorted(out.items(), key=lambda pair: -pair[1].mean))


def _measure(model: Any, batch: Batch, truth: Batch, metric: str, batch_size: int) -> float:
    """The metric of what `batch` is scored, by the labels and groups of `truth`."""
    found = meters(model, metric)
    for (some,), (true,) in zip(_cut(batch_size, batch), _cut(batch_size, truth), strict=True):
        tasks.update_meters(found, model(some), true, model.schema)
    name = resolve(metric, found)
    return float(found[name].compute())


def _cut(size: int, *batches: Batch) -> Iterator[list[Batch]]:
    requests = len(next(iter(batches[0].values())))
    for start in range(0, requests, size):
        yield [{k: v[start : start + size] for k, v in batch.items()} for batch in batches]


def _shuffled(batch: Batch, f: Feature, chance: torch.Generator) -> Batch:
    """With one feature shuffled across requests, in a padded batch."""
    order = torch.randperm(len(next(iter(batch.values()))), generator=chance)
    if isinstance(f, History):
        out = {**batch, **{key: batch[key][order] for key in (f"{name}@{f.name}" for name in f.of)}}
        when, now = batch.get(f"@time@{f.name}"), batch.get("@time")
        if when is not None and now is not None:  # so long ago as it was for those whose history it is
            out[f"@time@{f.name}"] = when[order] + (now - now[order]).unsqueeze(-1)
        return out
    column = batch[f.name]
    lists = column.dim() - 1 - (is_multi(f) or f.kind == "vector")
    if f.role not in CANDIDATE_ROLES or lists < 1:
        return {**batch, f.name: column[order]}
    live = batch.get("@mask", torch.ones(column.shape[:2], dtype=torch.bool))
    rows, moved = column[live], column.clone()
    moved[live] = rows[torch.randperm(len(rows), generator=chance)]
    return {**batch, f.name: moved}


# -- pairs --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Strengths:
    """How strongly a model lets each pair of fields interact.

    Attributes:
        model: its name.
        names: of the F fields.
        values: float64 ``[F, F]``, symmetric; NaN where the model has no such pair, as on the diagonal.

    >>> strengths = Strengths.of("FwFM", {("user", "item"): -2.0, ("user", "hour"): 0.5, ("item", "hour"): 1.0})
    >>> strengths["item", "user"], list(strengths.pairs()), strengths.fields()["item"]
    (-2.0, [('user', 'item'), ('item', 'hour'), ('user', 'hour')], 3.0)
    """

    model: str
    names: tuple[str, ...]
    values: np.ndarray

    @classmethod
    def of(cls, model: str, pairs: Mapping[tuple[str, str], float]) -> Strengths:
        """From the value of each pair."""
        names = tuple(dict.fromkeys(name for pair in pairs for name in pair))
        values = np.full((len(names), len(names)), np.nan)
        for (a, b), value in pairs.items():
            i, j = names.index(a), names.index(b)
            values[i, j] = values[j, i] = value
        return cls(model, names, values)

    def __getitem__(self, pair: tuple[str, str]) -> float:
        return float(self.values[self.names.index(pair[0]), self.names.index(pair[1])])

    def pairs(self) -> dict[tuple[str, str], float]:
        """``{(field, field): strength}``, the largest in size first."""
        i, j = np.triu_indices(len(self.names))
        found = {(self.names[a], self.names[b]): float(self.values[a, b]) for a, b in zip(i, j, strict=True)}
        there = [
            (pair, value) for pair, value in found.items() if value == value
        ]  # not NaN, which has no place in an order
        return dict(sorted(there, key=lambda kv: -abs(kv[1])))

    def fields(self) -> dict[str, float]:
        """The sizes of each field's strengths, summed, the largest first: a ranking of fields."""
        total = np.nansum(np.abs(self.values), 0).tolist()
        return dict(sorted(zip(self.names, total, strict=True), key=lambda kv: -kv[1]))

    def plot(self, path: str | Path) -> Path:
        """A heat map (.png or .svg); needs matplotlib, extra ``recstack[plots]``."""
        try:
            from matplotlib.figure import Figure
        except ImportError as e:
            raise ConfigError('Pictures need matplotlib: pip install "recstack[plots]".') from e
        n = len(self.names)
        figure = Figure(figsize=(3.0 + 0.45 * n, 2.2 + 0.45 * n), layout="constrained")
        axes = figure.add_subplot()
        signed = bool(np.nanmin(self.values) < 0)
        top = float(np.nanmax(np.abs(self.values)))
        image = axes.imshow(self.values, cmap="RdBu" if signed else "Blues", vmin=-top if signed else 0, vmax=top)
        axes.set_facecolor("0.93")  # where there is no pair
        axes.set_xticks(range(n), self.names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), self.names)
        if n <= 6:  # more would not fit their cells
            for i, j in zip(*np.nonzero(~np.isnan(self.values)), strict=True):
                dark = abs(self.values[i, j]) > 0.6 * top
                axes.text(
                    j, i, f"{self.values[i, j]:.2g}", ha="center", va="center", fontsize=8, color="w" if dark else "k"
                )
        axes.set_title(f"{self.model}: strength of each pair of fields")
        figure.colorbar(image, shrink=0.8)
        figure.savefig(path, dpi=120)
        return Path(path)


@torch.no_grad()
def interaction_strengths(model: Any, data: Any = None, batch_size: int = 4096) -> Strengths:
    """How strongly a trained model lets each pair of fields interact.

    FwFM's r, the norms of FmFM's and FEFM's matrices and of DCN V2's blocks, GwPFM's weights of groups, AutoFIS' gates; of AFM
    and AutoInt the attention, averaged over `data`. A weight says little about a field whose vectors are small, and stays as
    it was drawn where they are zero: with `data`, weights and norms are multiplied by the mean lengths of both fields' vectors.
    AutoFIS normalises before its gates, which are compared as they are.

    Args:
        model: one with a method `strengths`.
        data: a Log or Columns to average over.

    Raises:
        ConfigError: a model without such strengths, or one that needs `data`.

    >>> import recstack as rs
    >>> train, valid, test = rs.split.by_time(rs.simulator.small())
    >>> model = rs.ranking.FwFM(rs.Encoder(train.schema).fit(train).schema).fit(train, epochs=1, progress=False)
    >>> strengths = rs.interaction_strengths(model)
    >>> strengths["user_id", "item_id"] == strengths["item_id", "user_id"]
    True
    """
    ask, name = getattr(model, "strengths", None), type(model).__name__
    if ask is None:
        raise ConfigError(f"{name} has no strengths of pairs; AFM, AutoFIS, AutoInt, DCNv2, FEFM, FmFM and FwFM have.")
    each = bool(inspect.signature(ask).parameters)  # whether rows differ
    if data is None or getattr(model, "normalised", False):
        if each:
            raise ConfigError(
                f"{name} weighs its pairs anew for each row; give rows, interaction_strengths(model, data)."
            )
        return Strengths.of(name, ask())
    columns = model._encoded(data)
    was, _ = model.training, model.eval()
    total: dict[Any, float] = {}
    for start in range(0, columns.n_requests, batch_size):
        batch = columns.batch(np.arange(start, min(start + batch_size, columns.n_requests)))
        rows = int(batch["@mask"].sum()) if "@mask" in batch else len(columns.lists[start:][: batch_size + 1]) - 1
        for key, value in (ask(batch) if each else _lengths(model, batch)).items():
            total[key] = total.get(key, 0.0) + value * rows / columns.n_rows
    model.train(was)
    if not each:
        total = {pair: value * total.get(pair[0], 1.0) * total.get(pair[1], 1.0) for pair, value in ask().items()}
    return Strengths.of(name, total)


def _lengths(model: Any, batch: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean length of each field's vectors over the live rows of a batch."""
    slots, mask = model.inputs(batch), batch.get("@mask")
    names = list(model.inputs.widths)
    found = slots.stack().unbind(-2) if model.inputs.lifts is not None else [slots[name] for name in names]
    lengths = [v.float().norm(dim=-1) for v in found]
    live = [x[mask] if mask is not None and x.shape == mask.shape else x for x in lengths]
    return {name: float(x.mean()) for name, x in zip(names, live, strict=True)}


def kendall_tau(first: Mapping[Any, float | Drop], second: Mapping[Any, float | Drop]) -> float:
    r"""How far two rankings of the same names agree: 1 in the same order, -1 in the opposite one, ties corrected.

    .. math:: \tau_b = \frac{C - D}{\sqrt{(C + D + T_1)(C + D + T_2)}}

    Of pairs of names in both: C in the same order, D in opposite orders, :math:`T_k` tied in the other one only. NaN where one
    ranking has only ties.

    Raises:
        ConfigError: fewer than two names in common.

    Kendall, Biometrika 1945, https://doi.org/10.1093/biomet/33.3.239

    >>> kendall_tau({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 9.0, "b": 4.0, "c": 5.0, "d": 0.0})
    0.3333333333333333
    """
    names = [name for name in first if name in second]
    if len(names) < 2:
        raise ConfigError(f"Two rankings are compared by the names that both have, here {names}; two are needed.")
    sides = [np.array([v[0] if isinstance(v, Drop) else v for v in map(r.__getitem__, names)]) for r in (first, second)]
    i, j = np.triu_indices(len(names), 1)
    one, two = (np.sign(side[i] - side[j]) for side in sides)
    scale = np.sqrt(np.abs(one).sum() * np.abs(two).sum())
    return float((one * two).sum() / scale) if scale else float("nan")
